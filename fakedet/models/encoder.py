"""Encoders: from float RGB images to embeddings, behind a frontend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from fakedet.errors import UserError, nearest
from fakedet.models.frontend import build_frontend


class SmallEncoder(nn.Module):
    """A small net for residuals of small crops, quick on a CPU.

    Pooling or striding first would throw traces away; here every 2×2 block of pixels becomes channels, which
    keeps all of them on a quarter of the grid and takes half the time of convolutions at full resolution.
    The embedding is the channels' mean over the image.

    Args:
        width: channels of the first layers; the last has four times as many.
        frontend: see :mod:`fakedet.models.frontend`.
    """

    def __init__(self, width: int = 32, frontend: str = "npr") -> None:
        super().__init__()
        self.frontend = build_frontend(frontend)
        channels = 4 * int(self.frontend.out_channels)  # type: ignore[arg-type]
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for out, stride in ((width, 1), (width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [
                nn.Conv2d(channels, out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            channels = out
        self.layers = nn.Sequential(*layers)
        self.embedding_dim = channels

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim); odd sizes lose a row or column."""
        residual = self.frontend(images)
        height, width = residual.shape[-2:]
        residual = residual[..., : height - height % 2, : width - width % 2]
        # Channels last is a fifth faster on CPUs.
        embedding: Tensor = self.layers(residual.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        return embedding


class TimmEncoder(nn.Module):
    """Any timm model without its head, behind a frontend.

    Args:
        name: a timm model name.
        frontend: see :mod:`fakedet.models.frontend`.
        pretrained: take timm's pretrained weights from the local cache.
        weights: a file with weights for this model, safetensors or a PyTorch state dict.
        keep_resolution: set the stem's stride to 1 and take its pooling out, so that traces survive.
        kwargs: passed to ``timm.create_model``, such as ``img_size``.

    Raises:
        UserError: an unknown name, or weights that are not there or do not fit.
    """

    def __init__(
        self,
        name: str,
        frontend: str = "rgb",
        pretrained: bool = False,
        weights: str | None = None,
        keep_resolution: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.frontend = build_frontend(frontend)
        channels = int(self.frontend.out_channels)  # type: ignore[arg-type]
        self.body = _create(name, channels, pretrained and weights is None, kwargs)
        if weights is not None:
            _load(self.body, Path(weights))
        if keep_resolution:
            _keep_resolution(self.body, name)
        self.embedding_dim = int(getattr(self.body, "head_hidden_size", None) or self.body.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim)."""
        embedding: Tensor = self.body(self.frontend(images))
        return embedding


def _create(name: str, channels: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise UserError(f"model.encoder.name: timm has no model '{name}'; {nearest(name, known)[:200]}")
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=0, in_chans=channels, **options
        )
    except Exception as error:
        if not pretrained:
            raise UserError(f"model.encoder: timm cannot build '{name}': {_one_line(error)}") from error
        raise UserError(_how_to_get_weights(name)) from error
    return model


def _how_to_get_weights(name: str) -> str:
    settings = timm.get_pretrained_cfg(name)
    place = settings.hf_hub_id if settings is not None and settings.hf_hub_id else name
    return (
        f"model.encoder.pretrained=true: the weights of '{name}' are not in the local cache and cannot be fetched; "
        f"fetch model.safetensors of '{place}' on a machine with a network and pass model.encoder.weights=FILE, "
        "or train from scratch with model.encoder.pretrained=false"
    )


def _load(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"model.encoder.weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"model.encoder.weights: {path} cannot be read: {_one_line(error)}") from error
    state = state.get("state_dict", state)
    head = tuple(f"{part}." for part in ("fc", "head", "classifier"))
    state = {key: value for key, value in state.items() if not key.startswith(head) or key in model.state_dict()}
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"model.encoder.weights: {path} does not fit: {_one_line(error)[:300]}") from error
    if result.missing_keys or result.unexpected_keys:
        raise UserError(
            f"model.encoder.weights: {path} is of another model: {len(result.missing_keys)} weights are missing "
            f"({', '.join(result.missing_keys[:3])}), {len(result.unexpected_keys)} are unknown "
            f"({', '.join(result.unexpected_keys[:3])})"
        )


def _keep_resolution(model: nn.Module, name: str) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            first = module
            break
    else:
        first = None  # type: ignore[assignment]
    if first is None or max(first.stride) == 1 or max(first.stride) > 2:
        raise UserError(
            f"model.encoder.keep_resolution: '{name}' has no strided stem convolution to change; "
            "set it to false"
        )
    first.stride = (1, 1)
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
