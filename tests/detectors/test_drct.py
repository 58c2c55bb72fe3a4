"""DRCT: a ConvNeXt and a CLIP, against torchvision's and one in plain PyTorch; and C2P-CLIP, in another's names."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import fakedet
from fakedet.models import conversions
from fakedet.models.encoders import TimmEncoder
from fakedet.published import settings_of
from tests.detectors.naive import CLIP, IMAGENET, centre, normalised, picture, saved, shorter
from tests.detectors.vits import Vit, clip_large

SIZES = [(301, 257), (227, 300), (224, 224), (100, 261), (90, 41)]
DEPTHS = [1, 1, 2, 1]


def middle(image: Image.Image, size: int) -> Image.Image:
    """Pad with zeros and cut as albumentations does: half of what is missing or too much, rounded down, comes first."""
    pixels = np.asarray(image)
    missing = [max(0, size - side) for side in pixels.shape[:2]]
    pixels = np.pad(pixels, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return Image.fromarray(pixels[top : top + size, left : left + size])


def convnext(depths: list[int]) -> ConvNeXt:
    """Make torchvision's ConvNeXt-B with 1,024 outputs, whose blocks matter: their scales are near 1, not 1e-6."""
    torch.manual_seed(0)
    widths = zip((128, 256, 512, 1024), (256, 512, 1024, None), depths, strict=True)
    net = ConvNeXt([CNBlockConfig(*one) for one in widths], num_classes=1024, layer_scale=1.0).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("bias") or "layer_scale" in name:
                value.add_(0.2 * torch.randn_like(value))
    return net


def timm_names(net: ConvNeXt) -> dict[str, Tensor]:
    """Give torchvision's weights the names that the published file has."""
    state = {}
    inside = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}
    for key, value in net.state_dict().items():
        if block := re.fullmatch(r"features\.([1357])\.(\d+)\.(block\.\d|layer_scale)\.?(.*)", key):
            place = f"stages.{int(block[1]) // 2}.blocks.{block[2]}"
            if block[3] == "layer_scale":
                state[f"{place}.gamma"] = value.flatten()
            else:
                state[f"{place}.{inside[block[3]]}.{block[4]}"] = value
        elif step := re.fullmatch(r"features\.([0246])\.(.*)", key):
            stage = int(step[1]) // 2
            state[f"stages.{stage}.downsample.{step[2]}" if stage else f"stem.{step[2]}"] = value
        else:
            state[key.replace("classifier.0", "head.norm").replace("classifier.2", "head.fc")] = value
    return state


def changed(name: str, **encoder: Any) -> dict[str, Any]:
    settings = settings_of(name)
    settings["model"]["encoder"] |= encoder
    return settings


def test_drct_is_a_convnext_on_the_middle_of_the_picture(tmp_path: Path) -> None:
    net, fc = convnext(DEPTHS), nn.Linear(1024, 2)
    state = {f"model.{key}": value for key, value in timm_names(net).items()}
    file = saved({**state, "fc.weight": fc.weight.data, "fc.bias": fc.bias.data}, tmp_path)
    detector = fakedet.load(detector=changed("drct", depths=DEPTHS), weights=file)
    for size in SIZES:
        image = picture(*size)
        with torch.no_grad():
            wanted = 1 - float(fc(net(normalised(middle(image, 224), IMAGENET))).softmax(dim=1)[0, 0])
        assert detector.predict(image, views=(), tiles=0).score == pytest.approx(wanted, abs=1e-5)


def drct_names(net: Vit, embedding: nn.Linear, fc: nn.Linear) -> dict[str, Tensor]:
    """Give CLIP and its layers the names of DRCT's file, which holds CLIP's text tower as well."""
    state = {f"model.model.visual.{key}": value for key, value in net.state_dict().items()}
    text = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
            "transformer.resblocks.0.ln_1.weight")  # fmt: skip
    state |= {f"model.model.{key}": torch.ones(3) for key in text}
    state |= {f"model.fc.{key}": value for key, value in embedding.state_dict().items()}
    return {**state, **{f"fc.{key}": value for key, value in fc.state_dict().items()}}


def test_drct_on_clip_has_a_layer_between_and_imagenets_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedding, fc = nn.Linear(768, 1024), nn.Linear(1024, 2)
    file = saved(drct_names(clip_large(), embedding, fc), tmp_path)
    detector = fakedet.load(detector=changed("drct_clip", depth=2), weights=file)
    for size in SIZES[1:4]:
        image = picture(*size)
        with torch.no_grad():
            logits = fc(embedding(clip_large()(normalised(middle(image, 224), IMAGENET))))
        wanted = 1 - float(logits.softmax(dim=1)[0, 0])
        assert detector.predict(image, views=(), tiles=0).score == pytest.approx(wanted, abs=1e-5)


def c2p_names(net: Vit, fc: nn.Linear) -> dict[str, Tensor]:
    """Give CLIP and a linear layer the names of C2P-CLIP's file: Hugging Face's, with queries and keys apart."""
    state = {"model.visual_projection.weight": net.proj.data.T.contiguous()}
    state |= {f"model.fc.{key}": value for key, value in fc.state_dict().items()}
    vision, embeddings = "model.vision_model", "model.vision_model.embeddings"
    for key, value in net.state_dict().items():
        key = re.sub(r"^transformer\.resblocks\.(\d+)", rf"{vision}.encoder.layers.\1", key)
        key = re.sub(r"\.ln_(\d)", r".layer_norm\1", key).replace(".mlp.c_fc", ".mlp.fc1")
        key = key.replace(".mlp.c_proj", ".mlp.fc2").replace(".attn.out_proj", ".self_attn.out_proj")
        if ".attn.in_proj_" in key:
            before, after = key.split(".attn.in_proj_")
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                state[f"{before}.self_attn.{part}_proj.{after}"] = rows.contiguous()
        elif key == "conv1.weight":
            state[f"{embeddings}.patch_embedding.weight"] = value
        elif key in ("class_embedding", "positional_embedding"):
            state[f"{embeddings}.{key.replace('positional_embedding', 'position_embedding.weight')}"] = value
        elif key != "proj":
            key = re.sub("^ln_pre", f"{vision}.pre_layrnorm", re.sub("^ln_post", f"{vision}.post_layernorm", key))
            state[key] = value
    return state


def repeated(image: Image.Image, size: int) -> Image.Image:
    """Repeat a picture until it is large enough, where one side is too short."""
    factors = [-(-size // side) if min(image.size) < size else 1 for side in image.size[::-1]]
    return Image.fromarray(np.tile(np.asarray(image), (*factors, 1)))


@pytest.mark.parametrize("name", ["c2p_clip", "c2p_clip_genimage"])
def test_c2p_clip_is_a_linear_layer_on_the_direction_of_clips_embedding(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    fc = nn.Linear(768, 1)
    fc.weight.data *= 20  # of a vector of length 1
    old = {"model.vision_model.embeddings.position_ids": torch.arange(257)[None]}  # of earlier transformers
    detector = fakedet.load(detector=changed(name, depth=2), weights=saved(c2p_names(clip_large(), fc) | old, tmp_path))
    for size in SIZES[:4]:
        image = picture(*size)
        seen = repeated(image, 224) if "genimage" in name else shorter(image, 224, Image.BILINEAR)
        with torch.no_grad():
            wanted = float(fc(F.normalize(clip_large()(normalised(centre(seen, 224), CLIP)))))
        assert detector.predict(image, views=(), tiles=0).logit == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_the_published_sizes_have_the_weights_that_the_models_have() -> None:
    with torch.device("meta"):
        clip = Vit(224, 14, 1024, 24, 16, 768)
        drct = conversions.from_drct_clip(drct_names(clip, nn.Linear(768, 1024), nn.Linear(1024, 2)))
        c2p = conversions.from_c2p_clip(c2p_names(clip, nn.Linear(768, 1)))
        found = {
            "drct": {f"model.{key}": value for key, value in timm_names(convnext([3, 3, 27, 3])).items()},
            "drct_clip": {key: value for key, value in drct.items() if not key.startswith("fc.")},
            "c2p_clip": {f"model.{key}": value for key, value in c2p.items() if not key.startswith("classifier.")},
        }
        for name, state in found.items():
            settings = settings_of(name)["model"]["encoder"]
            encoder = TimmEncoder(**{key: value for key, value in settings.items() if key != "_target_"})
            own = {key: value.shape for key, value in encoder.state_dict().items()}
            assert own == {key: value.shape for key, value in state.items()}, name
        assert len(found["drct"]) == 344
        assert sum(value.numel() for value in found["drct"].values()) == 88_616_064


def test_a_file_of_another_detector_is_told_by_what_it_lacks(tmp_path: Path) -> None:
    file = saved(nn.Linear(768, 1).state_dict(), tmp_path)
    for name in ("drct_clip", "c2p_clip"):
        with pytest.raises(fakedet.UserError, match=rf"no file of detector={name}: .*weights of the model are not"):
            fakedet.load(detector=changed(name, depth=1), weights=file)
