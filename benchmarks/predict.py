"""Verdicts and heatmaps, against a picture at a time, every view, float32, and heatmaps drawn at full size.

With FAKEDET_CLIP the detector is `wide`, without it `demo`. With FAKEDET_CORPUS the pictures are of its folder
`native`, without it photographs that scikit-image brings along.

Run: python -m benchmarks.predict
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch

import fakedet
from benchmarks.ratio import Timing, interleaved, table
from fakedet.models.backbones import FrozenBackbone
from fakedet.models.features import FeatureCache
from fakedet.tiles import Pixels, Tiles, cut_tiles, draw_heatmap

COUNT, ROUNDS = 16, 3


def pictures() -> list[str] | list[Pixels]:
    """Take pictures of every generator and collection of the corpus in turn, or scikit-image's."""
    folder = Path(os.environ.get("FAKEDET_CORPUS", "")) / "native"
    if files := sorted(str(path) for path in folder.glob("*/*/*") if path.is_file()):
        return files[:: max(1, len(files) // COUNT)][:COUNT]
    return [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]


def verdicts() -> tuple[Timing, str]:
    """Time verdicts, and say how many are the same."""
    detector = fakedet.load("wide" if os.environ.get("FAKEDET_CLIP") else "demo", "cpu")
    nets = [part for part in detector.module.modules() if isinstance(part, FrozenBackbone)]
    shown = pictures()

    def ours() -> list[str]:
        for net in nets:
            net.precision = "auto"
            FeatureCache.clear()
        return list(detector.predict(shown)["verdict"])

    def reference() -> list[str]:
        for net in nets:
            net.precision = "float32"
            FeatureCache.clear()
        return [str(detector.predict(one, all_views=True).verdict) for one in shown]

    same = sum(one == other for one, other in zip(ours(), reference(), strict=True))
    name = f"verdicts of {len(shown)} pictures, {Path(detector.path).stem}"
    return interleaved(name, ours, reference, len(shown), ROUNDS), f"- {same} of {len(shown)} verdicts are the same."


def heatmaps() -> Timing:
    """Time the drawing and the file of a heatmap of 24 megapixels; the scores are given."""
    image = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), dtype=np.uint8)
    few, many = cut_tiles(image, 224, 9), cut_tiles(image, 224, 64, overlap=True)

    def scores(tiles: Tiles) -> np.ndarray:
        return np.linspace(0, 1, len(tiles.places))

    def ours() -> None:
        cv2.imencode(".jpg", draw_heatmap(image, many, scores(many), "undecided"), [cv2.IMWRITE_JPEG_QUALITY, 85])

    def reference() -> None:
        total, count = np.zeros((2, *image.shape[:2]))
        for (top, left), score in zip(few.places, scores(few), strict=True):
            total[top : top + 224, left : left + 224] += score
            count[top : top + 224, left : left + 224] += 1
        mean = np.where(count > 0, total / np.maximum(1, count), 0.5)
        red, blue = np.clip(2 * mean, 0, 1), np.clip(2 - 2 * mean, 0, 1)
        colours = 255 * np.stack([red, np.minimum(red, blue), blue], axis=-1)
        mixed = np.where((count > 0)[..., None], 0.55 * image + 0.45 * colours, image)
        cv2.imencode(".png", mixed.astype(np.uint8))

    return interleaved("heatmap of 24 megapixels, drawn and written", ours, reference, 1, ROUNDS)


def main() -> None:
    """Time both, print the table."""
    os.environ.pop("FAKEDET_FEATURES", None)
    torch.set_num_threads(1)
    timing, same = verdicts()
    print(table("Judging pictures", [timing, heatmaps()], None))
    print(f"\n{same}")


if __name__ == "__main__":
    sys.exit(main())
