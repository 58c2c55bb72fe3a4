"""A vision transformer in plain PyTorch, with CLIP's names of weights, that tests of published detectors share."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int, eps: float, quick: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.quick = quick
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        a = self.ln_1(x)
        x = x + self.attn(a, a, a, need_weights=False)[0]
        self.seen = self.ln_2(x)
        b = self.mlp["c_fc"](self.seen)
        return x + self.mlp["c_proj"](b * torch.sigmoid(1.702 * b) if self.quick else F.gelu(b))


class Vit(nn.Module):
    """CLIP's image encoder; ``quick``, ``eps`` and ``clip`` say where others differ: GELU, no first norm, a bias."""

    def __init__(
        self, side: int, patch: int, width: int, depth: int, heads: int, out: int, *, clip: bool = True
    ) -> None:
        super().__init__()
        eps = 1e-5 if clip else 1e-6
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=not clip)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre: nn.Module = nn.LayerNorm(width, eps) if clip else nn.Identity()
        blocks = [Block(width, heads, eps, quick=clip) for _ in range(depth)]
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*blocks)})
        self.ln_post = nn.LayerNorm(width, eps)
        self.proj = nn.Parameter(torch.randn(width, out) / width**0.5)
        with torch.no_grad():
            for name, value in self.named_parameters():
                if "ln_" in name or name.endswith("bias"):
                    value.add_(0.2 * torch.randn_like(value))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        x = self.transformer["resblocks"](self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


@functools.cache
def clip_large(depth: int = 2) -> Vit:
    """Make CLIP's ViT-L/14 with random weights, of a depth that tests can afford."""
    torch.manual_seed(1)
    return Vit(224, 14, 1024, depth, 16, 768).eval()
