"""Cutting a model short, and giving it a smaller first kernel: what detectors of low-level traces do to a ResNet."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from fakedet.errors import UserError


def cut_after(model: Any, layer: str, name: str) -> None:
    """Take out of a timm model what comes after a layer and before the pooling, in place.

    ``num_features`` becomes the number of channels that the layer gives.

    Args:
        model: a timm model whose stages are attributes, such as a ResNet.
        layer: the last stage that is kept, "layer2" for NPR and SAFE.
        name: the model's, for the message.

    Raises:
        UserError: the model has no such stage.
    """
    stages = {info["module"]: info["num_chs"] for info in getattr(model, "feature_info", []) or []}
    names = [child for child, _ in model.named_children()]
    if layer not in stages or layer not in names or "global_pool" not in names:
        known = ", ".join(stage for stage in stages if stage in names) or "none"
        raise UserError(f"model.encoder.cut_after: '{name}' has no stage '{layer}'; it has: {known}")
    for child in names[names.index(layer) + 1 : names.index("global_pool")]:
        setattr(model, child, nn.Identity())
    model.num_features = model.head_hidden_size = stages[layer]


def set_stem_kernel(model: Any, size: int, name: str) -> None:
    """Give a timm model's first convolution another kernel size, with new weights drawn as a ResNet's are, in place.

    Args:
        model: a timm model with one first convolution.
        size: of the kernel, odd.
        name: the model's, for the message.

    Raises:
        UserError: an even size, or a model whose stem is not one convolution.
    """
    first = model.pretrained_cfg.get("first_conv")
    old = model.get_submodule(first) if isinstance(first, str) else None
    if size % 2 == 0 or size < 1 or not isinstance(old, nn.Conv2d):
        raise UserError(
            f"model.encoder.stem_kernel={size}: needs an odd size, and a model whose stem is one convolution ('{name}')"
        )
    stride = cast("tuple[int, int]", old.stride)
    new = nn.Conv2d(old.in_channels, old.out_channels, size, stride, size // 2, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        with torch.no_grad():
            new.bias.zero_()
    parent, _, attribute = str(first).rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
