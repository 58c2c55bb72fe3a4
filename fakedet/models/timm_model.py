"""Building a timm model by name, with errors that help."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import timm
from torch import nn

from fakedet.errors import UserError, nearest


def create_timm_model(
    name: str, channels: int, pretrained: bool, options: Mapping[str, Any], keep_head: bool = False
) -> nn.Module:
    """Build a timm model without its classifier.

    Args:
        name: a timm model name, with or without a tag.
        channels: input channels.
        pretrained: with timm's pretrained weights, from the local cache or the network.
        options: further keyword arguments of ``timm.create_model``.
        keep_head: keep the last linear layer: CLIP's is no classifier but its projection.

    Raises:
        UserError: an unknown name, tag or option, or pretrained weights that cannot be had.
    """
    _check_name(name)
    if pretrained and not _has_weights(name):
        raise UserError(
            f"model.encoder.pretrained: timm has no pretrained weights for '{name}'; set it to false, "
            "or pass model.encoder.weights=FILE"
        )
    try:
        head: dict[str, Any] = {} if keep_head else {"num_classes": 0}
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, in_chans=channels, **head, **options
        )
    except Exception as error:  # whatever a builder, a hub client or the network raises
        if pretrained and not isinstance(error, TypeError):
            raise UserError(_how_to_get_weights(name, error)) from error
        raise UserError(f"model.encoder: timm cannot build '{name}': {_one_line(error)}") from error
    return model


def required_size(model: nn.Module, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Give the one image size (H, W) that a timm model takes, or None where it takes any."""
    settings: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if not settings.get("fixed_input_size") or options.get("dynamic_img_size"):
        return None
    size = options.get("img_size") or settings["input_size"][1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _check_name(name: str) -> None:
    base = name.split(".")[0]
    if not timm.is_model(base):
        # With thousands of names a full list would bury the message.
        hint = nearest(base, timm.list_models())
        hint = hint if hint.startswith("did you mean") else "timm.list_models() lists all names"
        raise UserError(f"model.encoder.name: timm has no model '{name}'; {hint}")
    tags = timm.list_models(f"{base}.*", pretrained=True)
    if name != base and name not in tags:
        raise UserError(
            f"model.encoder.name: timm has no weights tagged '{name}'; {nearest(name, [base, *tags])}"
        )


def _has_weights(name: str) -> bool:
    settings = timm.get_pretrained_cfg(name)
    return settings is not None and bool(settings.has_weights)


def _how_to_get_weights(name: str, error: BaseException) -> str:
    settings = timm.get_pretrained_cfg(name)
    place = (settings.hf_hub_id or settings.url) if settings is not None else None
    cause = shorten(_one_line(error), 160, placeholder=" …")
    return (
        f"model.encoder.pretrained: no weights '{place or name}' on this machine: put the file here and pass "
        f"model.encoder.weights=FILE{_variable(name)}, or set model.encoder.pretrained=false. They are neither in the "
        f"local cache nor can be downloaded ({cause}); HF_HUB_OFFLINE=1 keeps the hub's client from trying again"
    )


def _variable(name: str) -> str:
    return " (or export FAKEDET_CLIP=FILE; see experiments/clip)" if "clip" in name else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
