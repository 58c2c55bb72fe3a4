"""DDA against its network and preprocessing written anew, narrower and with two blocks of its 24."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fakedet
from fakedet.build import build_encoder
from fakedet.published import settings_of
from tests.detectors.naive import CLIP, centre, normalised, picture, saved
from tests.detectors.plain_vit import embed, random_vit

SIZES = [(400, 357), (336, 336), (100, 360)]
WIDTH = 64
ADDED = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc\d)\.weight"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """What the authors' program saves: the hub's DINOv2 under its own prefix, each linear layer in three parts."""
    generator = torch.Generator().manual_seed(3)
    made = {"base_model.fc.weight": torch.randn(1, WIDTH, generator=generator) / 8,
            "base_model.fc.bias": torch.full((1,), 0.2),
            "base_model.model.mask_token": torch.zeros(1, WIDTH)}  # fmt: skip
    for name, value in random_vit(2, WIDTH, 1 + 37**2, scaled=True).items():
        layer, _, kind = name.rpartition(".")
        is_split = re.fullmatch(ADDED, f"{layer}.weight")
        made[f"base_model.model.{layer}.original_layer.{kind}" if is_split else f"base_model.model.{name}"] = value
        if is_split and kind == "weight":
            out, width = value.shape
            made[f"base_model.model.{layer}.lora.lora_A"] = torch.randn(8, width, generator=generator) / 9
            made[f"base_model.model.{layer}.lora.lora_B"] = torch.randn(out, 8, generator=generator) / 3
    return made


def narrow() -> dict[str, Any]:
    settings = settings_of("dda")
    encoder = {**settings["model"]["encoder"], "depth": 2, "embed_dim": WIDTH}
    return {**settings, "model": {**settings["model"], "encoder": encoder}}


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75, PyTorch's."""
    near, x = -0.75, np.abs(distance)
    inner = (near + 2) * x**3 - (near + 3) * x**2 + 1
    outer = near * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


def positions(table: Tensor) -> Tensor:
    """Resize (1, 1 + 37 · 37, width) to 24 × 24 places that are 37 / 24.1 apart, and keep the class token's."""
    place = (np.arange(24) + 0.5) * 37 / 24.1 - 0.5
    matrix = np.zeros((24, 37))
    for row, at in enumerate(place):
        for index in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            matrix[row, min(max(index, 0), 36)] += cubic(np.array(at - index))
    grid = table[0, 1:].numpy().astype(np.float64).reshape(37, 37, -1)
    resized = np.einsum("ia,jb,abc->ijc", matrix, matrix, grid).reshape(1, 24 * 24, -1)
    return torch.cat([table[:, :1], torch.from_numpy(resized).float()], dim=1)


def test_dda_adds_low_rank_parts_and_resizes_positions_as_dinov2_does(state: dict[str, Tensor], tmp_path: Path) -> None:
    weights = {name.removeprefix("base_model.").removeprefix("model."): value for name, value in state.items()}
    for name in [name for name in weights if name.endswith("lora_A")]:
        layer = name.removesuffix(".lora.lora_A")
        low, high = weights[name], weights[f"{layer}.lora.lora_B"]
        original = weights[f"{layer}.original_layer.weight"]
        weights[f"{layer}.weight"] = original + torch.einsum("or,ri->oi", high, low) * (1.0 / 8)
        weights[f"{layer}.bias"] = weights[f"{layer}.original_layer.bias"]
    weights["pos_embed"] = positions(weights["pos_embed"])
    detector = fakedet.load(
        detector=narrow(), weights=saved({"model": state, "optimizer": {}, "total_steps": 1}, tmp_path)
    )
    pictures = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    seen = torch.cat([normalised(centre(image, 336), CLIP) for image in pictures])
    wanted = embed(weights, seen, heads=16, eps=1e-6) @ weights["fc.weight"].T + weights["fc.bias"]
    found = detector.predict(pictures, views=(), tiles=0)
    assert found["logit"].tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-4)


def test_its_network_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        encoder = build_encoder(settings_of("dda")["model"]["encoder"])
    total = sum(value.numel() for value in encoder.state_dict().values())
    # The file holds the positions of 518 pixels, a token for masks, parts of rank 8 of 96 layers, and the classifier.
    low_rank = 24 * 8 * (4096 + 2048 + 5120 + 5120)
    assert total + (37**2 - 24**2) * 1024 + 1024 + low_rank + 1025 == 307_515_393


def test_a_file_with_one_of_two_parts_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    halves = {name: value for name, value in state.items() if not name.endswith("lora_B")}
    with pytest.raises(fakedet.UserError, match=r"no file of detector=dda: .*lora_B"):
        fakedet.load(detector=narrow(), weights=saved({"model": halves}, tmp_path))
