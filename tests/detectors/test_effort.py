"""Effort against its network and preprocessing written anew, at its width and with two blocks of its 24."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fakedet
from fakedet.build import build_encoder
from fakedet.published import settings_of
from tests.detectors.naive import CLIP, centre, normalised, picture, saved
from tests.detectors.plain_vit import embed, random_vit

SIZES = [(500, 457), (224, 224), (100, 260)]
HUGGING_FACE = [  # timm's names as Hugging Face's
    (r"^patch_embed\.proj", "embeddings.patch_embedding"), (r"^norm_pre", "pre_layrnorm"),
    (r"^norm\b", "post_layernorm"), (r"^blocks", "encoder.layers"), (r"\.norm(\d)", r".layer_norm\1"),
    (r"^cls_token$", "embeddings.class_embedding"), (r"^pos_embed$", "embeddings.position_embedding.weight"),
    (r"attn\.proj", "self_attn.out_proj"),
]  # fmt: skip


def published(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Name and split the weights as Effort does: a matrix of an attention is the sum of two parts, one of rank one."""
    made: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(2)

    def add(name: str, value: Tensor) -> None:
        for pattern, replacement in HUGGING_FACE:
            name = re.sub(pattern, replacement, name)
        if "self_attn" not in name or name.endswith("bias"):
            made[f"{prefix}{name}"] = value
            return
        layer = name.removesuffix(".weight")
        left, scale, right = (torch.randn(shape, generator=generator) for shape in ((1024, 1), (1,), (1, 1024)))
        parts = {"U_residual": left, "S_residual": scale, "V_residual": right,
                 "weight_main": value - scale * torch.outer(left[:, 0], right[0])}  # fmt: skip
        made.update({f"{prefix}{layer}.{part}": values for part, values in parts.items()})

    for name, value in weights.items():
        if name in ("cls_token", "pos_embed"):
            add(name, value.flatten() if name == "cls_token" else value[0])
        elif ".attn.qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                add(name.replace(".attn.qkv.", f".self_attn.{letter}_proj."), part)
        else:
            add(name, value)
    return made


def shallow(name: str) -> dict[str, Any]:
    settings = settings_of(name)
    settings["model"] = {**settings["model"], "encoder": {**settings["model"]["encoder"], "depth": 2}}
    return settings


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_vit(2, 1024, 257, pre_norm=True)


def opencv(image: Image.Image) -> Image.Image:
    """Resize both sides to 224 by the four nearest pixels, whose places are counted from the pixels' middles."""
    pixels = np.asarray(image, np.float64)
    for axis in (0, 1):
        length = pixels.shape[axis]
        place = (np.arange(224) + 0.5) * length / 224 - 0.5
        first = np.floor(place).astype(int)
        share = (place - first).reshape([-1 if one == axis else 1 for one in range(3)])
        low, high = (np.take(pixels, np.clip(index, 0, length - 1), axis) for index in (first, first + 1))
        pixels = low * (1 - share) + high * share
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def repeated(image: Image.Image) -> Image.Image:
    """Repeat a picture with a side of less than 256 pixels, as the authors do, by pasting."""
    width, height = image.size
    if min(width, height) >= 256:
        return image
    made = Image.new("RGB", (width * math.ceil(256 / width), height * math.ceil(256 / height)))
    for left in range(0, made.width, width):
        for top in range(0, made.height, height):
            made.paste(image, (left, top))
    return made


def test_effort_adds_the_trained_direction_and_resizes_as_opencv(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = {"head.weight": torch.randn(2, 1024) / 32, "head.bias": torch.randn(2)}
    state = {f"module.{name}": value for name, value in {**published(weights, "backbone."), **head}.items()}
    detector = fakedet.load(detector=shallow("effort"), weights=saved(state, tmp_path))
    pictures = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    seen = torch.cat([normalised(opencv(image), CLIP) for image in pictures])
    answers = embed(weights, seen, heads=16, eps=1e-5, act=quick_gelu) @ head["head.weight"].T + head["head.bias"]
    wanted = answers[:, 1] - answers[:, 0]  # the logit of the softmax's second
    found = detector.predict(pictures, views=(), tiles=0)
    # OpenCV's weights have 11 bits, so that some pixels differ by one; smoothing first would change the first by 0.03.
    assert found["logit"].tolist() == pytest.approx(wanted.tolist(), abs=4e-3)
    assert found["logit"][1] == pytest.approx(float(wanted[1]), abs=1e-4), "of a picture that is not resized"


def test_effort_of_universalfakedetect_repeats_small_pictures(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = {"fc.weight": torch.randn(1, 1024) / 32, "fc.bias": torch.randn(1)}
    text = {"model.text_model.final_layer_norm.bias": torch.zeros(768), "model.logit_scale": torch.tensor(4.6),
            "model.visual_projection.weight": torch.zeros(768, 1024),
            "model.vision_model.embeddings.position_ids": torch.arange(257)[None]}  # fmt: skip
    state = {**published(weights, "model.vision_model."), **head, **text}
    detector = fakedet.load(detector=shallow("effort_universal"), weights=saved({"model": state}, tmp_path))
    pictures = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    seen = torch.cat([normalised(centre(repeated(image), 224), CLIP) for image in pictures])
    wanted = embed(weights, seen, heads=16, eps=1e-5, act=quick_gelu) @ head["fc.weight"].T + head["fc.bias"]
    found = detector.predict(pictures, views=(), tiles=0)
    assert found["logit"].tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-4)


def test_its_network_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        encoder = build_encoder(settings_of("effort")["model"]["encoder"])
    values = encoder.state_dict().values()
    # The file has 681 tensors: q, k and v apart, three more for each of 96 matrices, and the classifier's two.
    assert len(values) + 24 * 4 + 3 * 96 + 2 == 681
    assert sum(value.numel() for value in values) + 96 * (1 + 1024 + 1024) + 2050 == 303_378_530


def test_a_file_without_such_weights_is_refused(tmp_path: Path) -> None:
    file = saved({"state_dict": {"fc.weight": torch.zeros(1, 7)}}, tmp_path)
    with pytest.raises(fakedet.UserError, match=r"no file of detector=effort: .*weights of the model are not in it"):
        fakedet.load(detector=shallow("effort"), weights=file)
