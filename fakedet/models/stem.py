"""Taking the downsampling out of a model's stem."""

from __future__ import annotations

from typing import Any

from torch import nn

from fakedet.errors import UserError

# Where timm's convolutional models keep the pooling of their stem.
POOLS = ("maxpool", "stem.pool", "features.pool0")


def keep_full_resolution(model: Any, name: str) -> None:
    """Set a timm model's first convolution to stride 1 and remove the pooling that follows it, in place.

    Weights keep their shapes. Feature maps grow by the strides taken out, and so does the time for them.

    Args:
        model: a timm model.
        name: its name, for the message.

    Raises:
        UserError: the first convolution does not stride, or cuts the image into patches that do not overlap.
    """
    convolutions = [model.get_submodule(part) for part in _first_convolutions(model)]
    strided = [layer for layer in convolutions if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1]
    if not strided or all(min(layer.kernel_size) <= max(layer.stride) for layer in strided):
        raise UserError(
            f"model.encoder.keep_resolution: '{name}' has no strided convolution as its stem (it cuts "
            "patches, or keeps the resolution anyway); set it to false, or choose a convolutional model such "
            "as resnet18"
        )
    for layer in strided:
        layer.stride = (1, 1)
    for pool in POOLS:
        parent, _, attribute = pool.rpartition(".")
        holder = _descend(model, parent)
        if holder is not None and isinstance(getattr(holder, attribute, None), nn.Module):
            setattr(holder, attribute, nn.Identity())


def _first_convolutions(model: Any) -> tuple[str, ...]:
    """Name the convolutions that see the image: several where a stem has parallel branches."""
    first = model.pretrained_cfg.get("first_conv")
    if first is None:
        return ()
    return (first,) if isinstance(first, str) else tuple(first)


def _descend(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
