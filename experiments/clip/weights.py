"""Read CLIP's ViT-B/16 out of a quantised ONNX file, for machines that reach a package index and no model hub.

    python experiments/clip/weights.py clip_encoder.int8.onnx clip_b16.safetensors

The ONNX file is the image tower as `transformers` exports it, with matrices in 8 bits and a scale for each row; it is
read as data, nothing in it is run. Where the hub can be reached this is not needed: timm fetches OpenAI's own weights.
Needs the extra `export` (onnx).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

ROOT = "vision_model."


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the named tensors, and the 8-bit matrices by the path of the layer that uses them, as float (out, in)."""
    graph = onnx.load(str(file)).graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    matrices = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            name, zero = node.input[1], node.input[3]
            steps = stored[name].astype(np.float32) - stored[zero].astype(np.float32)
            values = steps * stored[f"{name.removesuffix('_quantized')}_scale"]
            matrices[node.name.replace("/MatMul_quant", "").strip("/").replace("/", ".")] = torch.from_numpy(
                values.T.copy()
            )
    named = {name: torch.from_numpy(np.array(value)) for name, value in stored.items() if name.startswith(ROOT)}
    return named, matrices


def convert(file: Path) -> dict[str, Tensor]:
    """Give the state dict of timm's vit_base_patch16_clip_quickgelu_224, projection included."""
    named, matrices = read_tensors(file)
    state = {
        "cls_token": named[f"{ROOT}embeddings.class_embedding"].reshape(1, 1, -1),
        "pos_embed": named[f"{ROOT}embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": named[f"{ROOT}embeddings.patch_embedding.weight"],
        "head.weight": matrices["visual_projection"],
        "head.bias": torch.zeros(len(matrices["visual_projection"])),
    }
    for kind in ("weight", "bias"):
        state[f"norm_pre.{kind}"] = named[f"{ROOT}pre_layrnorm.{kind}"]  # the typo is transformers'
        state[f"norm.{kind}"] = named[f"{ROOT}post_layernorm.{kind}"]
    for block in range(12):
        theirs, ours = f"{ROOT}encoder.layers.{block}.", f"blocks.{block}."
        qkv = [f"{theirs}self_attn.{letter}_proj" for letter in "qkv"]
        state[f"{ours}attn.qkv.weight"] = torch.cat([matrices[name] for name in qkv])
        state[f"{ours}attn.qkv.bias"] = torch.cat([named[f"{name}.bias"] for name in qkv])
        for new, old in (("attn.proj", "self_attn.out_proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            state[f"{ours}{new}.weight"] = matrices[theirs + old]
            state[f"{ours}{new}.bias"] = named[f"{theirs}{old}.bias"]
        for new, old in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
            for kind in ("weight", "bias"):
                state[f"{ours}{new}.{kind}"] = named[f"{theirs}{old}.{kind}"]
    model = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=len(state["head.weight"]))
    model.load_state_dict(state)  # complete, or an error
    return state


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    save_file({name: value.contiguous() for name, value in convert(source).items()}, target)
    print(f"written to {target}")
