"""Community Forensics: a ViT-S/16 of its published size, against one in plain PyTorch."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import fakedet
from fakedet.published import settings_of
from tests.detectors.naive import IMAGENET, centre, normalised, picture, saved, shorter
from tests.detectors.vits import Vit

NAMES = (
    ("conv1", "patch_embed.proj"), ("class_embedding", "cls_token"), ("positional_embedding", "pos_embed"),
    (r"transformer\.resblocks", "blocks"), ("ln_1", "norm1"), ("ln_2", "norm2"), (r"attn\.in_proj_", "attn.qkv."),
    (r"attn\.out_proj", "attn.proj"), (r"mlp\.c_fc", "mlp.fc1"), (r"mlp\.c_proj", "mlp.fc2"), ("ln_post", "norm"),
)  # fmt: skip


def published(net: Vit, head: torch.nn.Linear) -> dict[str, Tensor]:
    """Give the weights the names and shapes of the published file."""
    state = {}
    for key, value in net.state_dict().items():
        for ours, theirs in NAMES:
            key = re.sub(f"^{ours}|(?<=\\.){ours}", theirs, key)
        state[f"vit.{key}"] = (
            value.view(1, 1, -1) if key == "cls_token" else value[None] if key == "pos_embed" else value
        )
    del state["vit.proj"]
    return {**state, "vit.head.weight": head.weight.data, "vit.head.bias": head.bias.data}


def vit(side: int, depth: int) -> tuple[Vit, torch.nn.Linear, dict[str, Tensor]]:
    torch.manual_seed(0)
    net, head = Vit(side, 16, 384, depth, 6, 384, clip=False).eval(), torch.nn.Linear(384, 1)
    net.proj.data = torch.eye(384)
    return net, head, published(net, head)


KINDS = [("community_forensics", 384, 440, 21_811_969), ("community_forensics_224", 224, 256, 21_666_049)]


@pytest.mark.parametrize(("detector", "side", "larger"), [kind[:3] for kind in KINDS])
def test_community_forensics_is_a_vit_on_the_centre_of_the_resized_picture(
    tmp_path: Path, detector: str, side: int, larger: int
) -> None:
    net, head, state = vit(side, depth=2)
    settings = settings_of(detector)
    settings["model"]["encoder"]["depth"] = 2
    save_file(state, tmp_path / "model.safetensors")
    loaded = fakedet.load(detector=settings, weights=tmp_path / "model.safetensors")
    for size in ((500, 457), (larger, larger), (100, 260)):
        image = picture(*size)
        with torch.no_grad():
            wanted = float(head(net(normalised(centre(shorter(image, larger, Image.BILINEAR), side), IMAGENET))))
        assert loaded.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, abs=1e-4)
    compiled = {f"_orig_mod.{key}": value for key, value in state.items()}
    file = saved({"optimizer": {"state": {}}, "model": compiled, "itr": 9}, tmp_path)
    found = fakedet.load(detector=settings, weights=file).predict(image, views=(), tiles=0)
    assert found.logit == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("detector", "side", "elements"), [(kind[0], kind[1], kind[3]) for kind in KINDS])
def test_a_file_of_the_published_size_loads(tmp_path: Path, detector: str, side: int, elements: int) -> None:
    *_, state = vit(side, depth=12)
    assert (len(state), sum(value.numel() for value in state.values())) == (152, elements)
    save_file(state, tmp_path / "model.safetensors")
    assert fakedet.load(detector=detector, weights=tmp_path / "model.safetensors").crop_size == side
