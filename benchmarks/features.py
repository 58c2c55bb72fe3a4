"""First look of a frozen CLIP at pictures, as this device computes it, against float32 one at a time.

The environment variable FAKEDET_CLIP names a file of weights; without it they are random, which takes as long.

Run: python -m benchmarks.features
"""

from __future__ import annotations

import os

import torch

from benchmarks.ratio import interleaved, table
from fakedet.models.backbones import FrozenBackbone
from fakedet.models.features import FeatureCache

COUNT, ROUNDS, TARGET = 8, 5, 1.8
NAME = "vit_base_patch16_clip_quickgelu_224.openai"


def main() -> None:
    """Time both, print the table."""
    os.environ.pop("FAKEDET_FEATURES", None)
    weights = os.environ.get("FAKEDET_CLIP")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = FrozenBackbone(NAME, weights is not None, weights, 224, [7, 9, 11], "class")
    images = torch.rand(COUNT, 3, 224, 224)

    def ours() -> None:
        FeatureCache.clear()
        net(images)

    def reference() -> None:
        with torch.no_grad():
            for image in images:
                seen = (image[None] - net.mean) / net.std
                net.model.forward_intermediates(  # type: ignore[operator]
                    seen, indices=net.levels, intermediates_only=True, return_prefix_tokens=True
                )

    name = f"CLIP ViT-B/16 in {str(net.dtype).removeprefix('torch.')}, {COUNT} pictures"
    print(table("Frozen CLIP", [interleaved(name, ours, reference, COUNT, ROUNDS)], TARGET))


if __name__ == "__main__":
    main()
