"""Weights of published detectors as their authors name and split them, turned into those of a timm model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

HUGGING_FACE_CLIP = (  # names within Hugging Face's CLIP vision model → timm's
    (r"^embeddings\.class_embedding$", "cls_token"), (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."), (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."), (r"^encoder\.layers\.", "blocks."), (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)  # fmt: skip
OPENAI_CLIP = (  # names within OpenAI's CLIP vision model → timm's
    (r"^class_embedding$", "cls_token"), (r"^positional_embedding$", "pos_embed"), (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."), (r"^ln_post\.", "norm."), (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."), (r"\.attn\.in_proj_", ".attn.qkv."), (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)  # fmt: skip


def from_effort(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold Effort's weights into those of timm's CLIP, and name its classifier "head" (Yan et al., ICML 2025).

    In each attention a linear layer's matrix is kept as ``weight_main`` + U S V, of which only the last singular values
    were trained. Both of its trainings are read: that of DeepfakeBench, and that of UniversalFakeDetect, whose file
    holds CLIP's text tower as well. A file without such weights is returned with few names, and fits no model.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        within = re.fullmatch(r"(?:module\.)?(?:backbone|model\.vision_model)\.(.+)", key)
        head = re.fullmatch(r"(?:module\.)?(?:head|fc)\.(weight|bias)", key)
        if within or head:
            found[within[1] if within else f"head.{head[1]}"] = value  # type: ignore[index]
    for key in [name for name in found if name.endswith(".weight_main")]:
        layer = key.removesuffix(".weight_main")
        low, scale, high = (found.pop(f"{layer}.{part}_residual") for part in "USV")
        found[f"{layer}.weight"] = found.pop(key) + (low * scale) @ high
    return _of_hugging_face({key: value for key, value in found.items() if not re.search(r"\.[SUV]_r$", key)})


def from_dda(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold DDA's low-rank parts into timm's DINOv2 for images of 336 pixels (Chen et al., NeurIPS 2025).

    A linear layer is its original one + B A / 8, of rank 8. DINOv2's positions, 37 × 37, are resized to 24 × 24 as its
    own code does, by a scale that is a tenth of a place larger, and not as timm does. The classifier is named "head".
    """
    found = {re.sub(r"^(?:module\.)?base_model\.(?:model\.)?", "", key): value for key, value in state.items()}
    for key in [name for name in found if name.endswith(".lora.lora_A")]:
        layer = key.removesuffix(".lora.lora_A")
        added = found.pop(f"{layer}.lora.lora_B") @ found.pop(key) / 8
        found[f"{layer}.original_layer.weight"] = found[f"{layer}.original_layer.weight"] + added
    made = {re.sub(r"^fc\.", "head.", key.replace(".original_layer.", ".")): value for key, value in found.items()}
    made.pop("mask_token", None)
    if "pos_embed" in made and made["pos_embed"].shape[1] == 1 + 37**2:
        first, places = made["pos_embed"].split([1, 37**2], dim=1)
        grid, scale = places.mT.unflatten(-1, (37, 37)), (24 + 0.1) / 37
        resized = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
        made["pos_embed"] = torch.cat([first, resized.flatten(2).mT], dim=1)
    return made


def from_c2p_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights of C2P-CLIP's vision model as timm's, and its classifier "classifier.linear" (Tan et al., 2025).

    A file without such weights is returned with few names, and fits no model.
    """
    inner = "model.vision_model."
    made = _of_hugging_face({key.removeprefix(inner): value for key, value in state.items() if key.startswith(inner)})
    if (projection := state.get("model.visual_projection.weight")) is not None:
        made |= {"head.weight": projection, "head.bias": torch.zeros(len(projection))}
    layer = {key: value for key, value in state.items() if key.startswith("model.fc.")}
    return made | {key.replace("model.fc.", "classifier.linear."): value for key, value in layer.items()}


def from_drct_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights of DRCT's CLIP as timm's, below "model" (Chen et al., ICML 2024); its text tower is left out.

    CLIP's projection and the linear layer after it have nothing between them, and become one. A file without such
    weights is returned with few names, and fits no model.
    """
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("model.model.visual."):
            made |= _named(key.removeprefix("model.model.visual."), value, OPENAI_CLIP)
        elif key.startswith("model.fc."):
            made[key.replace("model.fc.", "head.")] = value
    if {"proj", "head.weight"} <= made.keys():
        made["head.weight"] = (made["head.weight"].double() @ made.pop("proj").double().T).float()
    outer = {key: value for key, value in state.items() if key.startswith("fc.")}
    return {f"model.{key}": value for key, value in made.items()} | outer


def _of_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights of Hugging Face's CLIP vision model as timm's, with queries, keys and values in one matrix."""
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        if re.search(r"\.[kv]_proj\.|position_ids$", key):
            continue
        if ".q_proj." in key:
            value = torch.cat([state[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            key = key.replace(".self_attn.q_proj.", ".attn.qkv.")
        made |= _named(key, value, HUGGING_FACE_CLIP)
    return made


def _named(key: str, value: Tensor, table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Give a weight timm's name, and the two embeddings of a vision transformer timm's shapes: (1, 1, D), (1, N, D)."""
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return {key: value.reshape(1, -1, value.shape[-1]) if key in ("cls_token", "pos_embed") else value}
