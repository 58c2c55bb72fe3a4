"""The published baselines: preprocessing, frozen parts, heads and schedules against re-implementations."""

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision

from fakedet.build import build_method
from fakedet.errors import UserError
from fakedet.methods.base import configure_optimiser
from fakedet.models.backbones import load_linear_head
from fakedet.models.encoders import TimmEncoder
from fakedet.models.frontends import build_frontend
from fakedet.models.heads import Classifier

HIGH = [0, 0, -(0.5**0.5), 0.5**0.5, 0, 0]
"""The high-pass analysis filter of the wavelet bior1.3, as PyWavelets lists it."""


def naive_detail(line: np.ndarray) -> np.ndarray:
    """Filter one line by the definition: Σ_j f_j x[2k + 1 − j], the signal mirrored with its edge repeated."""
    n = len(line)

    def at(i: int) -> float:
        i %= 2 * n
        return float(line[i] if i < n else line[2 * n - 1 - i])

    return np.array([sum(HIGH[j] * at(2 * k + 1 - j) for j in range(6)) for k in range((n + 5) // 2)])


@pytest.mark.parametrize(("height", "width"), [(12, 16), (9, 14), (17, 11)])
def test_wavelet_frontend_is_the_diagonal_band_of_bior13(height: int, width: int) -> None:
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    seen = build_frontend("wavelet")(x)
    for colour in range(3):
        rows = np.apply_along_axis(naive_detail, 1, x[0, colour].double().numpy())
        band = torch.from_numpy(np.apply_along_axis(naive_detail, 0, rows))[None, None]
        resized = torchvision.transforms.Resize([height, width], antialias=True)(band)
        torch.testing.assert_close(seen[:, colour : colour + 1].double(), resized, rtol=1e-5, atol=1e-6)


def test_clip_frontend_is_clips_normalisation() -> None:
    x = torch.rand(1, 3, 4, 5)
    seen = build_frontend("clip")(x)
    assert float(seen[0, 1, 2, 3]) == pytest.approx((float(x[0, 1, 2, 3]) - 0.4578275) / 0.26130258, rel=1e-5)


def test_npr_trunk_is_torchvisions_resnet50_cut_after_layer2() -> None:
    encoder = TimmEncoder("resnet50", "npr", cut_after="layer2", stem_kernel=3).eval()
    assert encoder.embedding_dim == 512
    reference = torchvision.models.resnet50().eval()
    reference.conv1 = torch.nn.Conv2d(3, 64, 3, 2, 1, bias=False)
    kept = encoder.model.state_dict()
    missing = reference.load_state_dict(kept, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith(("layer3", "layer4", "fc")) for key in missing.missing_keys)
    # The published trunk has 1,442,624 weights before its last layer.
    assert sum(p.numel() for p in encoder.parameters()) == sum(
        p.numel() for n, p in reference.named_parameters() if not n.startswith(("layer3", "layer4", "fc"))
    )
    x = torch.rand(2, 3, 32, 48)
    r = encoder.frontend(x)
    y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(r))))
    expected = reference.layer2(reference.layer1(y)).mean(dim=(2, 3))
    torch.testing.assert_close(encoder(x), expected)


def test_cutting_what_is_not_there_names_what_is() -> None:
    with pytest.raises(UserError, match="layer1, layer2, layer3, layer4"):
        TimmEncoder("resnet18", cut_after="layer9")
    with pytest.raises(UserError, match="odd size"):
        TimmEncoder("resnet18", stem_kernel=4)
    with pytest.raises(UserError, match=r"stem_stride=1: .*for a ResNet; 'test_vit' is none"):
        TimmEncoder("test_vit", stem_stride=1)


def tiny_clip(**more: object) -> TimmEncoder:
    return TimmEncoder("test_vit", "clip", keep_head=True, frozen=True, num_classes=24, **more)  # type: ignore[arg-type]


def test_a_frozen_encoder_embeds_by_its_projection_and_never_learns() -> None:
    torch.manual_seed(0)
    encoder = tiny_clip()
    assert encoder.embedding_dim == 24
    assert not any(p.requires_grad for p in encoder.parameters())
    x = torch.rand(3, 3, 160, 160)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    model = encoder.model
    with torch.no_grad():
        before = model.forward_head(model.forward_features(encoder.frontend(x)), pre_logits=True)
        expected = before @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(encoder(x), expected)
    assert not encoder(x.requires_grad_()).requires_grad


def univfd(head: str | None = None) -> dict:
    return {
        "_target_": "fakedet.methods.supervised.SupervisedDetector", "name": "univfd", "head": head,
        "encoder": {"_target_": "fakedet.models.encoders.TimmEncoder", "name": "test_vit", "frontend": "clip",
                    "keep_head": True, "frozen": True, "num_classes": 24},
        "contrastive_weight": 0.0, "hidden_dim": 8, "projection_dim": 4, "loss": {"_target_": "fakedet.losses.SupCon"},
        "optimizer": {"name": "adamw", "lr": 1e-2, "schedule": "constant"},
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "fc."])
def test_a_published_head_gives_its_own_logits(prefix: str, tmp_path: Path) -> None:
    weight, bias = torch.randn(1, 24), torch.randn(1)
    torch.save({f"{prefix}weight": weight, f"{prefix}bias": bias}, tmp_path / "fc_weights.pth")
    method = build_method(univfd(str(tmp_path / "fc_weights.pth"))).eval()
    x = torch.rand(2, 3, 160, 160)
    embedding = method.encoder(x).detach().double().numpy()
    expected = [sum(w * e for w, e in zip(weight[0].tolist(), row, strict=True)) + bias.item() for row in embedding]
    np.testing.assert_allclose(method(x).logit.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_head_of_univfds_shape_fits_768_numbers_and_no_others(tmp_path: Path) -> None:
    torch.save({"weight": torch.randn(1, 768), "bias": torch.randn(1)}, tmp_path / "fc.pth")
    classifier = Classifier(768)
    load_linear_head(classifier, tmp_path / "fc.pth")
    x = torch.randn(4, 768)
    saved = torch.load(tmp_path / "fc.pth", weights_only=True)
    torch.testing.assert_close(classifier(x), F.linear(x, saved["weight"], saved["bias"]).squeeze(1))
    with pytest.raises(UserError, match=r"weight \(1, 768\).*wanted are weight \(1, 512\)"):
        load_linear_head(Classifier(512), tmp_path / "fc.pth")
    with pytest.raises(UserError, match="UnivFD's is"):
        load_linear_head(Classifier(768), tmp_path / "none.pth")


def test_one_step_teaches_the_head_alone() -> None:
    torch.manual_seed(0)
    method = build_method(univfd())
    method.log_step = lambda *args, **kwargs: None  # type: ignore[method-assign]
    method.train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    optimiser = configure_optimiser(method.parameters(), method.optimizer_settings, 10)["optimizer"]
    batch = {"image": torch.rand(8, 1, 3, 160, 160), "label": torch.tensor([0, 1] * 4)}
    first = method.training_step(batch, 0)
    first.backward()
    optimiser.step()
    assert method.training_step(batch, 0) < first
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"classifier.linear.weight", "classifier.linear.bias"}


def test_weights_that_are_not_there_say_what_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", _no_network)
    monkeypatch.setattr(timm.models._hub, "download_cached_file", _no_network)
    with pytest.raises(UserError, match=r"model\.encoder\.weights=FILE"):
        TimmEncoder("resnet50.tv_in1k", pretrained=True)


def _no_network(*args: object, **kwargs: object) -> None:
    raise OSError("offline")


def test_npr_schedule_is_ninety_per_cent_after_every_fifth() -> None:
    layer = torch.nn.Linear(1, 1)
    both = configure_optimiser(layer.parameters(), {"name": "adam", "lr": 2e-4, "schedule": "step", "factor": 0.9,
                                                    "steps": 5}, 50)  # fmt: skip
    rates = []
    for _ in range(50):
        rates.append(both["optimizer"].param_groups[0]["lr"])
        both["optimizer"].step()
        both["lr_scheduler"]["scheduler"].step()
    np.testing.assert_allclose(rates, [2e-4 * 0.9 ** (epoch // 10) for epoch in range(50)])


def test_cnndet_schedule_is_a_tenth_after_five_epochs_without_a_rise() -> None:
    layer = torch.nn.Linear(1, 1)
    both = configure_optimiser(layer.parameters(), {
        "name": "adam", "lr": 1e-4, "schedule": "plateau", "factor": 0.1, "patience": 5,
        "plateau_metric": "val/accuracy",
    }, 50)  # fmt: skip
    rates = []
    for accuracy in [0.5, 0.6, 0.7] + [0.7] * 12:
        both["lr_scheduler"]["scheduler"].step(accuracy)
        rates.append(both["optimizer"].param_groups[0]["lr"])
    falls = [math.log10(rate) for rate in rates]
    np.testing.assert_allclose(falls, [-4] * 8 + [-5] * 6 + [-6])
    assert both["lr_scheduler"]["monitor"] == "val/accuracy"
