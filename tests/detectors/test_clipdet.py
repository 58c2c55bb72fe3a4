"""clipdet against its network and preprocessing written anew, at its width and with two blocks of its 24."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor

import fakedet
from fakedet.build import build_encoder
from fakedet.published import settings_of
from tests.detectors.naive import CLIP, centre, normalised, picture, saved, shorter
from tests.detectors.plain_vit import embed, random_vit

SIZES = [(300, 257), (224, 224), (100, 260)]
OPEN_CLIP = [  # timm's names as open_clip's
    (r"^cls_token$", "class_embedding"), (r"^pos_embed$", "positional_embedding"), (r"^patch_embed\.proj", "conv1"),
    (r"^norm_pre", "ln_pre"), (r"^norm\b", "ln_post"), (r"^blocks", "transformer.resblocks"), (r"norm(\d)", r"ln_\1"),
    (r"attn\.qkv\.", "attn.in_proj_"), (r"attn\.proj", "attn.out_proj"), (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
]  # fmt: skip


def open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name and shape the weights as open_clip_pytorch_model.bin does, beside a text tower."""
    made = {"positional_embedding": torch.zeros(77, 768), "text_projection": torch.zeros(768, 768),
            "logit_scale": torch.tensor(4.6), "token_embedding.weight": torch.zeros(9, 768),
            "transformer.resblocks.0.ln_1.weight": torch.zeros(768), "ln_final.weight": torch.zeros(768),
            "visual.proj": torch.zeros(1024, 768)}  # fmt: skip
    for name, value in weights.items():
        for pattern, replacement in OPEN_CLIP:
            name = re.sub(pattern, replacement, name)
        value = value.flatten() if name == "class_embedding" else value
        made[f"visual.{name}"] = value[0] if name == "positional_embedding" else value
    return made


def shallow(name: str) -> dict[str, Any]:
    settings = settings_of(name)
    settings["model"] = {**settings["model"], "encoder": {**settings["model"]["encoder"], "depth": 2}}
    return settings


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_vit(2, 1024, 257, pre_norm=True)


@pytest.fixture(scope="module")
def files(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("clipdet")
    torch.manual_seed(0)
    head = {"fc.weight": torch.randn(1, 1024), "fc.bias": torch.randn(1)}
    return saved({"model": head}, folder), saved(open_clip(weights), folder, "open_clip_pytorch_model.bin")


@pytest.mark.parametrize("name", ["clipdet", "clipdet_plus"])
def test_a_layer_on_the_unit_embedding_before_the_projection(
    name: str, weights: dict[str, Tensor], files: tuple[Path, Path]
) -> None:
    head = torch.load(files[0])["model"]
    pictures = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    seen = torch.cat([normalised(centre(shorter(image, 224, Image.BICUBIC), 224), CLIP) for image in pictures])
    embedding = embed(weights, seen, heads=16, eps=1e-5)
    wanted = embedding / embedding.square().sum(dim=1, keepdim=True).sqrt() @ head["fc.weight"].T + head["fc.bias"]
    detector = fakedet.load(detector=shallow(name), weights=files[0], backbone=files[1])
    found = detector.predict(pictures, views=(), tiles=0)["logit"]
    assert found.tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-4)


def test_the_backbone_is_taken_from_the_hubs_cache_or_named(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    address = r"https://huggingface\.co/laion/CLIP-ViT-L-14-CommonPool\.XL-s13B-b90K/resolve/main/open_clip_pytorch"
    with pytest.raises(fakedet.UserError, match=f"needs a public backbone .*fetch {address}.*and pass backbone=FILE"):
        fakedet.load(detector="clipdet", weights=files[0])
    place = tmp_path / "models--laion--CLIP-ViT-L-14-CommonPool.XL-s13B-b90K"
    for folder in ("refs", f"snapshots/{'a' * 40}"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    (place / "snapshots" / ("a" * 40) / "open_clip_pytorch_model.bin").symlink_to(files[1])
    assert fakedet.load(detector=shallow("clipdet"), weights=files[0]).generators == ["latent_diffusion"]


def test_its_backbone_is_vit_l_14() -> None:
    with torch.device("meta"):
        encoder = build_encoder({**settings_of("clipdet")["model"]["encoder"], "pretrained": False})
    names = {name.removeprefix("model."): value for name, value in encoder.state_dict().items()}
    assert len([name for name in names if name.startswith("blocks.")]) == 24 * 12
    assert {name: names[name].shape for name in names if not re.match(r"blocks\.(?![01]\.)", name)} == {
        name: value.shape for name, value in random_vit(2, 1024, 257, pre_norm=True).items()
    }
