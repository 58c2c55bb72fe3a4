"""Encoders: shapes, sizes, names, resolution."""

import pytest
import torch

from fakedet.errors import UserError
from fakedet.models.encoders import SmallEncoder, TimmEncoder


def images(side=64, count=2):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frontend", ["rgb", "npr", "highpass"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47), (9, 128)])
def test_small_encoder_embeds_any_size(frontend, height, width):
    encoder = SmallEncoder(8, frontend)
    embedding = encoder(torch.rand(2, 3, height, width))
    assert embedding.shape == (2, encoder.embedding_dim) == (2, 32)
    assert embedding.dtype == torch.float32


def test_small_encoder_is_small_and_its_size_is_known():
    def parameters(width):
        return sum(p.numel() for p in SmallEncoder(width).parameters())

    w = 32
    convolutions = 9 * (12 * w + w * w + w * 2 * w + 2 * w * 4 * w)
    assert parameters(w) == convolutions + 2 * (w + w + 2 * w + 4 * w) == 105_344
    assert parameters(16) < parameters(32)


def test_small_encoder_loses_no_pixel_to_striding():
    encoder = SmallEncoder(8, "rgb").eval()
    x = images(16, 1).requires_grad_()
    encoder(x).square().sum().backward()
    assert (x.grad.abs().sum(dim=1) > 0).all()


def test_small_encoder_learns_in_every_part_and_embeds_in_float32_under_autocast():
    encoder = SmallEncoder(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = encoder(images())
    assert embedding.dtype == torch.float32
    embedding.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_width_must_be_positive():
    with pytest.raises(UserError, match=r"model\.encoder\.width"):
        SmallEncoder(0)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "ghostnet_050", "vit_tiny_patch16_224"])
def test_timm_encoder_states_the_dimension_that_comes_out(name):
    encoder = TimmEncoder(name).eval()
    with torch.no_grad():
        embedding = encoder(images(224, 1))
    assert embedding.shape == (1, encoder.embedding_dim)


@pytest.mark.parametrize("frontend", ["rgb", "npr", "highpass"])
def test_timm_encoder_takes_every_frontend(frontend):
    encoder = TimmEncoder("resnet10t.c3_in1k", frontend=frontend)
    assert encoder(images(65)).shape == (2, 512)


def test_settings_reach_timm():
    assert TimmEncoder("vit_tiny_patch16_224", img_size=64)(images(64)).shape == (2, 192)
    assert TimmEncoder("vit_tiny_patch16_224", dynamic_img_size=True)(images(96)).shape == (2, 192)
    with pytest.raises(UserError, match=r"cannot build 'resnet10t'.*img_size"):
        TimmEncoder("resnet10t", img_size=64)


def test_a_wrong_image_size_is_named():
    encoder = TimmEncoder("vit_tiny_patch16_224")
    with pytest.raises(UserError, match=r"224×224 pixels only and got 64×64; set data\.crop_size=224"):
        encoder(images(64))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet5O", "did you mean 'resnet50'"),
        ("resnet10t.c3_in2k", "did you mean 'resnet10t.c3_in1k'"),
        ("qqqqq", r"timm\.list_models\(\)"),
        ("hf-hub:someone/resnet18", "has no model"),
    ],
)
def test_an_unknown_name_is_named_with_its_nearest(name, hint):
    with pytest.raises(UserError, match=hint):
        TimmEncoder(name)


def test_missing_pretrained_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        TimmEncoder("resnet10t", pretrained=True, cache_dir=str(tmp_path))
    for words in ("timm/resnet10t.c3_in1k", "model.encoder.weights=FILE", "model.encoder.pretrained=false"):
        assert words in str(caught.value)
    with pytest.raises(UserError, match="no pretrained weights for 'resnet200'"):
        TimmEncoder("resnet200", pretrained=True)
