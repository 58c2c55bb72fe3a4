"""Encoders: from float RGB images to embeddings, behind a frontend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakedet.errors import UserError
from fakedet.models.backbones import create_timm_model, describe_public, required_size
from fakedet.models.frontends import build_frontend
from fakedet.models.tuning import Subspace
from fakedet.models.tuning import tune as tune_model


def cut_model_after(model: Any, layer: str, name: str) -> None:
    """Remove, in place, a timm model's layers between a stage and the pooling; UserError if it has no such stage."""
    stages = {info["module"]: info["num_chs"] for info in getattr(model, "feature_info", []) or []}
    names = [child for child, _ in model.named_children()]
    if layer not in stages or layer not in names or "global_pool" not in names:
        known = ", ".join(stage for stage in stages if stage in names) or "none"
        raise UserError(f"model.encoder.cut_after: '{name}' has no stage '{layer}'; it has: {known}")
    for child in names[names.index(layer) + 1 : names.index("global_pool")]:
        setattr(model, child, nn.Identity())
    model.num_features = model.head_hidden_size = stages[layer]


def set_stem_kernel(model: Any, size: int, name: str) -> None:
    """Replace, in place, a timm model's first convolution by one of another, odd size, initialised as in a ResNet.

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


def set_stem_stride(model: Any, stride: int, name: str) -> None:
    """Let, in place, the first convolution of a timm ResNet, and the pooling behind it, take steps of ``stride``.

    Raises:
        UserError: a model whose stem is not one convolution with a pooling, or a stride below 1.
    """
    first, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if stride < 1 or not isinstance(first, nn.Conv2d) or not isinstance(pool, nn.MaxPool2d):
        raise UserError(f"model.encoder.stem_stride={stride}: at least 1, and for a ResNet; '{name}' is none")
    first.stride, pool.stride = (stride, stride), stride


class SmallEncoder(nn.Module):
    """A small net for residuals of small crops, quick on a CPU.

    Pooling or striding first would throw traces away; here every 2×2 block of pixels becomes channels, which keeps all
    of them on a quarter of the grid. The embedding is the channels' mean over the image.

    Batch normalisation is over all images of one forward pass: stage 1 passes reals and their destroyed copies
    together, so that batch statistics cannot tell them apart.

    Args:
        width: channels of the first layers; the last has four times as many.
        frontend: see :mod:`fakedet.models.frontends`.

    Raises:
        UserError: an unknown frontend, or a width below 1.
    """

    def __init__(self, width: int = 32, frontend: str = "npr") -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"model.encoder.width: {width} channels are too few; 32 is usual")
        self.frontend = build_frontend(frontend)
        channels = 4 * int(self.frontend.out_channels)  # type: ignore[arg-type]
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for out, stride in ((width, 1), (width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.layers = nn.Sequential(*layers)
        self.embedding_dim = channels

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim); odd sizes lose a row or column."""
        seen = self.frontend(images)
        height, width = seen.shape[-2:]
        seen = seen[..., : height - height % 2, : width - width % 2]
        # Channels last is a tenth faster on CPUs.
        features: Tensor = self.layers(seen.contiguous(memory_format=torch.channels_last))
        return features.float().mean(dim=(2, 3))


class TimmEncoder(nn.Module):
    """Any timm model without its classifier, behind a frontend.

    Args:
        name: a timm model name, with or without a tag of pretrained weights ("resnet50.a1_in1k").
        frontend: see :mod:`fakedet.models.frontends`.
        pretrained: load timm's pretrained weights, from the local cache or the network.
        weights: a file with weights for this model, safetensors or PyTorch; replaces ``pretrained``.
        cut_after: the last stage that is kept ("layer2" for NPR and SAFE); None: all.
        stem_kernel: kernel size of the first convolution, whose weights are then drawn anew; None: the model's own.
        stem_stride: of a ResNet's first convolution and of the pooling behind it; None: the model's own, 2.
        keep_head: embed by the output of the model's last linear layer (CLIP's projection), not by its input.
        frozen: never train the weights nor update the batch statistics.
        unit_length: divide each embedding by its length.
        tune: train few weights alone; see :func:`fakedet.models.tuning.tune`. None: all, unless frozen.
        kwargs: passed to ``timm.create_model``, such as ``img_size`` or ``drop_path_rate``.

    Raises:
        UserError: an unknown name or setting, or weights that are missing or do not fit.
    """

    def __init__(
        self,
        name: str,
        frontend: str = "rgb",
        pretrained: bool = False,
        weights: str | None = None,
        cut_after: str | None = None,
        stem_kernel: int | None = None,
        stem_stride: int | None = None,
        keep_head: bool = False,
        frozen: bool = False,
        unit_length: bool = False,
        tune: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.frontend = build_frontend(frontend)
        channels = int(self.frontend.out_channels)  # type: ignore[arg-type]
        self.model = create_timm_model(name, channels, pretrained, weights, keep_head, **kwargs)
        if cut_after is not None:
            cut_model_after(self.model, cut_after, name)
        if stem_kernel is not None:
            set_stem_kernel(self.model, stem_kernel, name)
        if stem_stride is not None:
            set_stem_stride(self.model, stem_stride, name)
        self.name = name
        self.size = required_size(self.model, kwargs)
        # Some models (MobileNet) widen once more after pooling: num_features is then not what comes out.
        width = getattr(self.model, "head_hidden_size", None) or self.model.num_features
        self.embedding_dim = int(self.model.num_classes if keep_head else width)  # type: ignore[arg-type]
        self.frozen, self.unit_length = frozen, unit_length
        self.public = None
        if tune is not None:
            tune_model(self.model, tune)
        if frozen:
            self.requires_grad_(False)
            if stem_kernel is None:  # which starts from random numbers
                self.public = describe_public(name, pretrained, weights)

    def penalty(self) -> Tensor | None:
        """Sum what the trained directions of a subspace cost; None where none are trained."""
        costs = [part.penalty() for part in self.model.modules() if isinstance(part, Subspace)]
        return torch.stack(costs).sum() if costs else None

    def train(self, mode: bool = True) -> TimmEncoder:
        """Follow the mode, unless frozen: batch statistics and dropout of a frozen encoder stay as in evaluation."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim).

        Raises:
            UserError: the model takes images of one size only, and these have another.
        """
        seen = self.frontend(images)
        if self.size is not None and tuple(seen.shape[-2:]) != self.size:
            asked, got = ("×".join(map(str, size)) for size in (self.size, seen.shape[-2:]))
            raise UserError(
                f"model.encoder.name: '{self.name}' takes images of {asked} pixels only and got {got}; "
                f"set data.crop_size={self.size[0]}, or +model.encoder.img_size={seen.shape[-1]} "
                "to build the model for these"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            # Channels last: convolutions are a quarter faster on CPUs, and GPUs in half precision want it too.
            embedding: Tensor = self.model(seen.contiguous(memory_format=torch.channels_last))
            return F.normalize(embedding, dim=1) if self.unit_length else embedding


class AttentiveEncoder(nn.Module):
    """Embed images by what one learned query attends to among a frozen transformer's tokens (an attentive probe).

    Cross-attention with layer normalisation, as in V-JEPA's evaluation (Bardes et al., 2024), without its MLP.

    Args:
        name, frontend, pretrained, weights, kwargs: see :class:`TimmEncoder`.
        heads: of the attention; must divide the width of the tokens.

    Raises:
        UserError: see :class:`TimmEncoder`; a model without tokens, or a number of heads that does not fit.
    """

    def __init__(
        self, name: str, frontend: str = "rgb", pretrained: bool = True, weights: str | None = None, heads: int = 8,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = TimmEncoder(name, frontend, pretrained, weights, frozen=True, **kwargs)
        self.embedding_dim = int(self.backbone.model.num_features)  # type: ignore[arg-type]
        if not hasattr(self.backbone.model, "blocks") or self.embedding_dim % heads:
            raise UserError(f"model.encoder: '{name}' with heads={heads}: an attentive probe needs a transformer, "
                            "whose width the heads divide")  # fmt: skip
        self.query = nn.Parameter(torch.randn(1, 1, self.embedding_dim) * 0.02)
        self.norm = nn.LayerNorm(self.embedding_dim)
        self.attention = nn.MultiheadAttention(self.embedding_dim, heads, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim)."""
        with torch.no_grad():
            tokens = cast("Any", self.backbone.model).forward_features(self.backbone.frontend(images))
        tokens = self.norm(tokens)
        attended: Tensor = self.attention(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)[0]
        return attended[:, 0]
