"""Tuning of few weights, against plain matrix algebra; and the probes over timm's backbones."""

from typing import Any

import pytest
import torch
from torch import nn

import fakedet
from fakedet.api import compose
from fakedet.config import build
from fakedet.models.encoders import AttentiveEncoder, TimmEncoder
from fakedet.models.tuning import tune
from fakedet.utils import plain

TINY: dict[str, Any] = {"name": "vit_tiny_patch16_224", "depth": 2, "img_size": 32}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_tuned_encoder_begins_as_the_pretrained_one() -> None:
    for settings in ({"kind": "lora", "rank": 4}, {"kind": "norm"}, {"kind": "subspace", "rank": 3}):
        torch.manual_seed(0)
        before = TimmEncoder(**TINY).eval()
        torch.manual_seed(0)
        tuned = TimmEncoder(**TINY, tune=settings).eval()
        torch.testing.assert_close(tuned(IMAGES), before(IMAGES), rtol=1e-4, atol=1e-4)


def test_lora_is_the_matrix_and_a_product() -> None:
    layer = nn.Sequential(nn.Linear(6, 5))
    weight, bias = layer[0].weight.detach().clone(), layer[0].bias.detach().clone()
    tune(layer, {"kind": "lora", "rank": 2, "alpha": 4, "layers": "^0$"})
    trained = {name: value for name, value in layer.named_parameters() if value.requires_grad}
    assert sorted(tuple(value.shape) for value in trained.values()) == [(2, 6), (5, 2)]
    up, down = torch.rand(5, 2), torch.rand(2, 6)
    with torch.no_grad():
        for value in trained.values():
            value.copy_(up if value.shape == up.shape else down)
    x = torch.rand(3, 6)
    torch.testing.assert_close(layer(x), x @ (weight + 4 / 2 * up @ down).T + bias)


def test_a_subspace_trains_the_least_singular_directions() -> None:
    layer = nn.Sequential(nn.Linear(6, 5, bias=False))
    weight = layer[0].weight.detach().clone()
    tune(layer, {"kind": "subspace", "rank": 2, "layers": "0"})
    torch.testing.assert_close(layer[0].weight, weight)
    part = layer[0].parametrizations.weight[0]
    assert part.penalty().item() == pytest.approx(0, abs=1e-8)
    torch.manual_seed(0)
    left, right = torch.rand(5, 2), torch.rand(2, 6)
    with torch.no_grad():
        part.left.copy_(left)
        part.right.copy_(right)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(layer[0].weight, (u[:, :3] * s[:3]) @ v[:3] + (left * s[3:]) @ right)
    wanted = sum((((a.T @ a - torch.eye(2)) ** 2).sum() + ((kept.T @ a) ** 2).sum())
                 for a, kept in ((left, u[:, :3]), (right.T, v[:3].T))) / 2  # fmt: skip
    assert part.penalty().item() == pytest.approx(float(wanted), rel=1e-5)


def test_only_normalisations_are_trained() -> None:
    encoder = TimmEncoder(**TINY, tune={"kind": "norm"})
    trained = {name.rsplit(".", 2)[-2] for name, value in encoder.named_parameters() if value.requires_grad}
    assert trained
    assert trained <= {"norm", "norm1", "norm2"}


@pytest.mark.parametrize(("settings", "told"), [
    ({"kind": "lorra"}, "did you mean 'lora'"), ({"kind": "lora", "rank": 0}, "rank=0: from 1 to"),
    ({"kind": "lora", "layers": "nothing"}, "no linear layer of the model has such a name"),
])  # fmt: skip
def test_wrong_settings_are_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(fakedet.UserError, match=told):
        TimmEncoder(**TINY, tune=settings)


def test_an_attentive_probe_trains_no_weight_of_its_backbone() -> None:
    encoder = AttentiveEncoder(**TINY, pretrained=False, heads=3)
    assert encoder(IMAGES).shape == (2, 192)
    assert not any(value.requires_grad for value in encoder.backbone.parameters())
    encoder(IMAGES).sum().backward()
    assert encoder.query.grad is not None
    with pytest.raises(fakedet.UserError, match="needs a transformer"):
        AttentiveEncoder("resnet10t", pretrained=False)


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "siglip2", "pe", "metaclip"])
def test_the_configs_of_newer_backbones_build_and_embed(name: str) -> None:
    settings = plain(compose("train", f"model/encoder={name}", "data=demo").model.encoder)
    encoder = build({**settings, "pretrained": False, "precision": "float32"}, "model.encoder").eval()
    size = settings["input_size"]
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, size, size)).shape == (1, 256)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["attentive_probe", "lora", "norm_tuned", "effort"])
def test_each_experiment_trains_and_its_checkpoint_scores_the_same(experiment: str, tmp_path: Any) -> None:
    words = [f"experiment={experiment}", "data=demo", f"output_dir={tmp_path}", "model.encoder.pretrained=false",
             "model.encoder.weights=null", "model.encoder.name=vit_tiny_patch16_224", "+model.encoder.depth=2",
             "+model.encoder.img_size=64", "data.crop_size=64", "data.batch_size=8", "data.steps_per_epoch=3",
             "trainer.max_epochs=1", "trainer.limit_val_batches=2", "bootstrap.resamples=2", "augment=none",
             "trainer=cpu", "logger=csv"]  # fmt: skip
    if experiment == "attentive_probe":
        words.append("model.encoder.heads=3")
    done = fakedet.train(*words)
    first, second = (fakedet.load(done.checkpoint, device="cpu") for _ in range(2))
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(first(images), second(images))
    assert torch.isfinite(first(images)).all()
