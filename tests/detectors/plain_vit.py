"""A vision transformer in plain PyTorch, over tensors with timm's names, that tests of published detectors share."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def random_vit(
    depth: int, width: int, places: int, *, pre_norm: bool = False, scaled: bool = False, registers: int = 0
) -> dict[str, Tensor]:
    """Draw the weights of a transformer over patches of 14 pixels with position embeddings for ``places``.

    Args:
        depth, width: blocks, channels.
        places: rows of the position embedding.
        pre_norm: normalise the tokens before the blocks; its patches have no bias then, as CLIP's.
        scaled: scale what each half of a block adds, as DINOv2's.
        registers: further tokens.
    """
    generator = torch.Generator().manual_seed(depth * width + places)

    def drawn(*shape: int, mean: float = 0.0, spread: float = 0.1) -> Tensor:
        return mean + spread * torch.randn(shape, generator=generator)

    def layer(name: str, out: int, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": drawn(out, width, spread=1 / math.sqrt(width)), f"{name}.bias": drawn(out)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": drawn(width, mean=1.0), f"{name}.bias": drawn(width)}

    weights = {"cls_token": drawn(1, 1, width), "pos_embed": drawn(1, places, width),
               "patch_embed.proj.weight": drawn(width, 3, 14, 14, spread=1 / 14)}  # fmt: skip
    weights |= norm("norm_pre") if pre_norm else {"patch_embed.proj.bias": drawn(width)}
    weights |= {"reg_token": drawn(1, registers, width)} if registers else {}
    for block in (f"blocks.{number}" for number in range(depth)):
        weights |= {**norm(f"{block}.norm1"), **layer(f"{block}.attn.qkv", 3 * width, width)}
        weights |= {**layer(f"{block}.attn.proj", width, width), **norm(f"{block}.norm2")}
        weights |= {**layer(f"{block}.mlp.fc1", 4 * width, width), **layer(f"{block}.mlp.fc2", width, 4 * width)}
        weights |= {f"{block}.ls{half}.gamma": drawn(width, mean=0.5) for half in (1, 2)} if scaled else {}
    return {**weights, **norm("norm")}


def embed(
    weights: Mapping[str, Tensor], images: Tensor, heads: int, eps: float, act: Callable[[Tensor], Tensor] = F.gelu,
    patch: int = 14,
) -> Tensor:  # fmt: skip
    """Give the class token (N, width) behind the last normalisation, of normalised images (N, 3, H, W)."""
    layer = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
    width = weights["cls_token"].shape[-1]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, unbiased=False, keepdim=True) + eps).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    patches = F.conv2d(images, weights["patch_embed.proj.weight"], weights.get("patch_embed.proj.bias"), stride=patch)
    x, places = patches.flatten(2).transpose(1, 2), weights["pos_embed"]
    first = [weights["cls_token"], *([weights["reg_token"]] if "reg_token" in weights else [])]
    is_bare = places.shape[1] == x.shape[1]  # nothing is added to the tokens that are no patches
    x = torch.cat([*(token.expand(len(x), -1, -1) for token in first), x + places if is_bare else x], dim=1)
    x = x if is_bare else x + places
    x = norm("norm_pre", x) if "norm_pre" in layer else x
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    for block in (f"blocks.{number}" for number in range(depth)):
        q, k, v = (part.unflatten(-1, (heads, width // heads)).transpose(1, 2)
                   for part in linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).chunk(3, dim=-1))  # fmt: skip
        seen = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(dim=-1) @ v
        seen = linear(f"{block}.attn.proj", seen.transpose(1, 2).flatten(2))
        x = x + seen * weights.get(f"{block}.ls1.gamma", torch.ones(()))
        within = linear(f"{block}.mlp.fc2", act(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
        x = x + within * weights.get(f"{block}.ls2.gamma", torch.ones(()))
    return norm("norm", x)[:, 0]
