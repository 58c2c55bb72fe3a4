"""B-Free against its network written anew, smaller than it is: crops of patch embeddings."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fakedet
from fakedet.build import build_encoder
from fakedet.published import settings_of
from tests.detectors.naive import IMAGENET, normalised, picture, saved
from tests.detectors.plain_vit import embed, random_vit

# In turn: larger, equal, smaller on both sides, smaller on one, and less than a patch.
SIZES = [(100, 135), (56, 56), (30, 45), (30, 120), (9, 40)]
SIDE = 4  # patches on each side of a square, in place of 36


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    head = {"head.weight": torch.randn(1, 96, generator=generator), "head.bias": torch.tensor([0.3])}
    return {**random_vit(2, 96, SIDE**2, scaled=True, registers=4), **head}


def small() -> dict[str, Any]:
    settings = settings_of("b_free")
    encoder = {**settings["model"]["encoder"], "depth": 2, "embed_dim": 96, "img_size": 14 * SIDE}
    return {**settings, "crop_size": 14 * SIDE, "model": {**settings["model"], "encoder": encoder}}


def patches_of(grid: Tensor) -> list[Tensor]:
    """Take the five crops of a grid of patch embeddings (1, width, rows, columns), as the authors' wrapper does."""
    rows, columns = grid.shape[-2:]
    if rows < SIDE or columns < SIDE:
        grid = grid.repeat(1, 1, max(1, math.ceil(SIDE / rows)), max(1, math.ceil(SIDE / columns)))[..., :SIDE, :SIDE]
        rows, columns = SIDE, SIDE
    bottom, right = rows - SIDE, columns - SIDE
    places = [(bottom // 2, right // 2), (0, 0), (bottom, 0), (bottom, right), (0, right)]
    return [grid[..., top : top + SIDE, left : left + SIDE] for top, left in places]


def logit(weights: dict[str, Tensor], image: Tensor) -> float:
    grid = F.conv2d(image, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=14)
    # The transformer is given crops of embeddings: as images of one "pixel" a patch, by an identity.
    width = grid.shape[1]
    crops = torch.cat(patches_of(grid))
    after = {**weights, "patch_embed.proj.weight": torch.eye(width)[..., None, None],
             "patch_embed.proj.bias": torch.zeros(width)}  # fmt: skip
    token = embed(after, crops, heads=12, eps=1e-6, patch=1)
    return float((token @ weights["head.weight"].T + weights["head.bias"]).mean())


def test_the_mean_of_five_crops_of_the_grid_of_patches(weights: dict[str, Tensor], tmp_path: Path) -> None:
    detector = fakedet.load(detector=small(), weights=saved({"model": weights}, tmp_path))
    pictures = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    wanted = [logit(weights, normalised(image, IMAGENET)) for image in pictures[:-1]]
    found = detector.predict(pictures, views=(), tiles=0)["logit"].tolist()
    assert found[:-1] == pytest.approx(wanted, abs=1e-4)
    assert math.isfinite(found[-1]), "the authors' program takes no picture of less than a patch"


def test_its_backbone_is_vit_b_14_with_registers() -> None:
    settings = settings_of("b_free")
    assert (settings["crop_size"], settings["eval_policy"]) == (36 * 14, "grid14")
    with torch.device("meta"):
        encoder = build_encoder(settings["model"]["encoder"])
    names = {name.removeprefix("model."): value for name, value in encoder.state_dict().items()}
    assert len(names) + 2 == 177, "with the head"
    assert sum(value.numel() for value in names.values()) + 769 == 86_526_721
    whole = random_vit(12, 768, 36**2, scaled=True, registers=4)
    assert {name: value.shape for name, value in names.items()} == {name: value.shape for name, value in whole.items()}
