"""UnivFD: a linear layer on CLIP, against CLIP's network and the preprocessing written anew."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from naive import CLIP, centre, normalised, picture, saved
from safetensors.torch import save_file
from vits import clip_large

import fakedet
from fakedet.published import settings_of

SIZES = [(300, 257), (224, 224), (100, 260)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the backbone, under OpenAI's names."""
    file = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file({f"visual.{name}": value.detach() for name, value in clip_large().state_dict().items()}, file)
    return file


def shallow(name: str) -> dict[str, Any]:
    """Give a detector's config with a CLIP of two blocks, as the tests' is."""
    settings = settings_of(name)
    settings["model"]["encoder"]["depth"] = 2
    return settings


@pytest.mark.parametrize("size", SIZES)
def test_univfd_is_a_linear_layer_on_clips_embedding_of_the_centre(
    tmp_path: Path, backbone: Path, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer, image = torch.nn.Linear(768, 1), picture(*size)
    with torch.no_grad():
        wanted = float(layer(clip_large()(normalised(centre(image, 224), CLIP))))
    file = saved(layer.state_dict(), tmp_path)
    detector = fakedet.load(detector=shallow("univfd"), weights=file, backbone=backbone)
    found = detector.predict(image, views=(), tiles=0)
    assert found.logit == pytest.approx(wanted, abs=1e-4)
    assert found.verdict == ("fake" if wanted > 0 else "real")


def test_missing_public_weights_are_one_line_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    file = saved(torch.nn.Linear(768, 1).state_dict(), tmp_path)
    told = r"^detector=univfd .*timm/vit_large_patch14_clip_224\.openai.* backbone=FILE .*FAKEDET_CLIP_LARGE=FILE"
    with pytest.raises(fakedet.UserError, match=told):
        fakedet.load(detector=shallow("univfd"), weights=file)


@pytest.mark.skipif("FAKEDET_PUBLISHED" not in os.environ, reason="FAKEDET_PUBLISHED: folder of the published files")
def test_the_published_head_of_univfd(backbone: Path) -> None:
    file = Path(os.environ["FAKEDET_PUBLISHED"], "univfd", "fc_weights.pth")
    layer, image = torch.load(file, map_location="cpu", weights_only=True), picture(300, 257)
    with torch.no_grad():
        wanted = float(clip_large()(normalised(centre(image, 224), CLIP)) @ layer["weight"][0] + layer["bias"])
    detector = fakedet.load(detector=shallow("univfd"), weights=file, backbone=backbone)
    assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, abs=1e-4)
