"""The methods' training losses against formulas written out naively from the modules' own outputs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fakedet.build import build_method
from fakedet.checkpoint import FORMAT, detector_of
from fakedet.errors import UserError
from fakedet.losses import fake_rows_loss, real_rows_loss, supervised_contrastive_loss
from fakedet.methods.base import configure_optimiser
from fakedet.methods.destroy import TraceDestroyer, fixed_draws
from fakedet.methods.ntf import NaturalTraceForensics, NaturalTracePretraining
from fakedet.methods.supervised import SupervisedDetector

OPTIMIZER = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1, "schedule": "cosine"}
ENCODER = {"_target_": "fakedet.models.encoders.SmallEncoder", "width": 8, "frontend": "npr"}
COPIES = {"_target_": "fakedet.methods.destroy.TraceDestroyer", "kinds": ["lowpass"]}
STAGE1 = {"_target_": "fakedet.methods.ntf.NaturalTracePretraining", "name": "ntf_stage1", "encoder": ENCODER,
          "loss": {"_target_": "fakedet.losses.NTXent", "temperature": 0.2}, "copies": COPIES, "fixed_copies": False,
          "projection_dim": 8, "hidden_dim": 16, "temperature": 0.2, "heterogeneous_weight": 1.0,
          "homogeneous_weight": 1.0, "bank_size": 16, "distance": "knn", "optimizer": OPTIMIZER}  # fmt: skip
NTF = {"_target_": "fakedet.methods.ntf.NaturalTraceForensics", "name": "ntf", "encoder": ENCODER, "init": "stage1",
       "loss": {"_target_": "fakedet.losses.SoftContrastive", "temperature": 0.2, "weight_temperature": 0.3},
       "hidden_dim": 16, "contrastive_weight": 0.25, "bank_size": 16, "distance": "knn",
       "optimizer": OPTIMIZER}  # fmt: skip
BCE = {"_target_": "fakedet.methods.supervised.SupervisedDetector", "name": "bce", "encoder": ENCODER,
       "loss": {"_target_": "fakedet.losses.SupCon", "temperature": 0.2}, "contrastive_weight": 0.5,
       "hidden_dim": 16, "projection_dim": 8, "optimizer": OPTIMIZER}  # fmt: skip


def stage1(**changes: Any) -> NaturalTracePretraining:
    method = build_method({**STAGE1, **changes})
    assert isinstance(method, NaturalTracePretraining)
    return method


def quiet(method: Any) -> Any:
    """Let a method compute its loss without a trainer."""
    method.log_step = lambda *args, **kwargs: None
    return method


def seeded_draws(method: Any, count: int, width: int) -> torch.Generator:
    """Stand for a trainer's seed and step."""
    return torch.Generator().manual_seed(3)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 3, 32, 32, generator=generator)
    return {"image": images, "label": torch.tensor([0, 1] * 4), "id": torch.arange(8)}


def test_transfer_loss_is_the_documented_sum(batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    trace = stage1()
    method = quiet(build_method(NTF, trace))
    assert isinstance(method, NaturalTraceForensics)
    method.eval()  # batch statistics fixed, so that the loss can be computed again below
    loss = method.training_step(batch, 0)

    x, y, tau = batch["image"][:, 0], batch["label"], 0.2
    with torch.no_grad():
        h = method.encoder(x)
        z, logit, t = method.projection(h), method.classifier(h), method.source(x)
    reals, fakes = [i for i in range(8) if y[i] == 0], [i for i in range(8) if y[i] == 1]
    bce = sum(math.log1p(math.exp(-logit[i])) if y[i] else math.log1p(math.exp(logit[i])) for i in range(8)) / 8
    l_real = 0.0
    for i in reals:
        n = sum(math.exp(z[i] @ z[f] / tau) for f in fakes)
        w = [math.exp(t[i] @ t[j] / 0.3) for j in reals]
        for weight, j in zip(w, reals, strict=True):
            c = math.exp(z[i] @ t[j] / tau)
            l_real -= weight / sum(w) * math.log(c / (c + n)) / len(reals)
    l_fake = 0.0
    for f in fakes:
        v = 1 - sum(max(0.0, float(t[f] @ t[j])) for j in reals) / len(reals)
        l_fake += sum(v * tau * math.log1p(math.exp(z[f] @ t[j] / tau)) for j in reals) / len(reals) / len(fakes)
    assert float(loss.detach()) == pytest.approx(bce + 0.25 * (l_real + l_fake), abs=1e-5)


def test_copies_are_fakes_that_share_the_fakes_weight(
    batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fakedet.methods.destroy.copy_draws", seeded_draws)
    torch.manual_seed(0)
    trace = stage1()
    settings = {
        **NTF,
        "copies_per_real": 0.5,
        "copies": {**COPIES, "kinds": ["lowpass", "smooth"], "recompress": [60, 80]},
    }
    method = quiet(build_method(settings, trace)).eval()
    loss = float(method.training_step(batch, 0).detach())

    # The first half of the reals in the batch's order, which are rows 0, 2, 4 and 6.
    reals = batch["image"][::2, 0]
    copies = TraceDestroyer(("lowpass", "smooth"), 0.4, (60, 80))(reals[:2], seeded_draws(None, 2, 0))
    assert not torch.equal(copies, reals[:2])
    x = torch.cat([reals, batch["image"][1::2, 0], copies])
    with torch.no_grad():
        h = method.encoder(x)
        z, logit, t = method.projection(h), method.classifier(h), method.source(x)
    real = [math.log1p(math.exp(v)) for v in logit[:4]]
    fake = [math.log1p(math.exp(-v)) for v in logit[4:]]
    bce = 0.5 * sum(real) / 4 + 0.5 * sum(fake) / 6
    terms = real_rows_loss(z[:4], t[:4], z[4:], 0.2, 0.3) + fake_rows_loss(z[4:], t[4:], t[:4], 0.2)
    assert loss == pytest.approx(bce + 0.25 * float(terms), abs=1e-5)


def test_copies_without_kinds_or_beyond_their_share_are_refused() -> None:
    trace = stage1()
    for wrong, told in (
        ({"copies_per_real": 1.5}, "copies_per_real=1.5"),
        ({"copies_per_real": 1.0}, r"needs model\.copies"),
        ({"copies_per_real": 1.0, "copies": {**COPIES, "kinds": []}}, "name at least one"),
        ({"copies": {**COPIES, "recompress": [90, 70]}}, r"recompress=\[90, 70\]"),
    ):
        with pytest.raises(UserError, match=told):
            build_method({**NTF, **wrong}, trace)


def test_the_trace_distance_can_take_the_logits_place(batch: dict[str, torch.Tensor]) -> None:
    trace = stage1()
    torch.manual_seed(0)
    method = build_method({**NTF, "score": "trace_distance"}, trace).eval()
    images = batch["image"][:, 0]
    with torch.no_grad():
        reals = method.source(torch.rand(12, 3, 32, 32))
        method.bank.fit(reals)
        z = torch.nn.functional.normalize(method.projection(method.encoder(images)), dim=1)
        scores = method(images)

    def nearest(row: torch.Tensor, others: list[torch.Tensor]) -> float:
        return 1 - sum(sorted(float(row @ other) for other in others)[-10:]) / 10

    distance = [nearest(row, list(reals)) for row in z]
    own = [nearest(row, [*reals[:i], *reals[i + 1 :]]) for i, row in enumerate(reals)]
    wanted = [(value - np.mean(own)) / np.std(own, ddof=1) for value in distance]
    np.testing.assert_allclose(scores.trace_distance, distance, atol=1e-5)
    np.testing.assert_allclose(scores.logit, wanted, rtol=1e-2, atol=1e-2)
    with pytest.raises(UserError, match="needs the contrastive term"):
        build_method({**NTF, "score": "trace_distance", "contrastive_weight": 0}, trace)
    with pytest.raises(UserError, match=r"model\.score: 'distance'"):
        build_method({**NTF, "score": "distance"}, trace)


def test_a_frozen_backbone_stands_once_in_memory_and_in_files(tmp_path: Path) -> None:
    encoder = {"_target_": "fakedet.models.backbones.FrozenEncoder", "name": "test_efficientnet", "pretrained": False,
               "hidden": 8}  # fmt: skip
    trace = stage1(encoder=encoder)
    apart = build_method({**NTF, "encoder": encoder, "init": "scratch"}, trace)
    assert apart.source.encoder.backbone is not apart.encoder.backbone, "random weights, which differ"
    shared = build_method({**NTF, "encoder": encoder, "init": "stage1"}, trace)
    assert shared.source.encoder.backbone is shared.encoder.backbone
    assert shared.source.encoder.layers is not shared.encoder.layers
    info = {
        "model": {**NTF, "encoder": encoder}, "stage1": {**STAGE1, "encoder": encoder}, "seen_generators": [],
        "crop_size": 32, "eval_policy": "crop", "match": None, "manifest_sha256": "", "pairs": None, "held_out": [],
        "training_data": {}, "seed": 0, "name": "ntf", "format": FORMAT,
    }  # fmt: skip
    sizes = {}
    for name, method in (("apart", apart), ("shared", shared)):
        torch.save({"state_dict": method.state_dict()}, tmp_path / name)
        sizes[name] = (tmp_path / name).stat().st_size
    backbone = sum(value.numel() * value.element_size() for value in shared.encoder.backbone.state_dict().values())
    assert sizes["apart"] - sizes["shared"] > 0.9 * backbone
    content = {"state_dict": shared.state_dict(), "fakedet": info}
    loaded = detector_of(content, "x.ckpt")
    assert loaded.source.encoder.backbone is loaded.encoder.backbone
    for name, value in shared.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_transfer_starts_from_stage_1_and_never_moves_its_source(batch: dict[str, torch.Tensor]) -> None:
    trace = stage1()
    method = quiet(build_method(NTF, trace))
    for ours, theirs in zip(method.encoder.parameters(), trace.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
    method.train()
    before = {name: value.clone() for name, value in method.source.state_dict().items()}
    optimiser = configure_optimiser(method.parameters(), OPTIMIZER, 10)["optimizer"]
    method.training_step(batch, 0).backward()
    optimiser.step()
    for name, value in method.source.state_dict().items():
        assert torch.equal(before[name], value), name


def test_supervised_loss_with_and_without_contrast(batch: dict[str, torch.Tensor]) -> None:
    method = quiet(build_method({**BCE, "contrastive_weight": 0.0}))
    assert isinstance(method, SupervisedDetector)
    method.eval()
    logit = method(batch["image"][:, 0]).logit
    expected = F.binary_cross_entropy_with_logits(logit, batch["label"].float())
    assert float(method.training_step(batch, 0).detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    both = quiet(build_method(BCE)).eval()
    with torch.no_grad():
        embedding = both.encoder(batch["image"][:, 0])
        bce = F.binary_cross_entropy_with_logits(both.classifier(embedding), batch["label"].float())
        contrast = supervised_contrastive_loss(both.projection(embedding), batch["label"], 0.2)
    assert float(both.training_step(batch, 0).detach()) == pytest.approx(float(bce + 0.5 * contrast), abs=1e-6)


def test_every_method_learns_from_one_step(batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    trace = stage1()
    for method in (build_method(STAGE1), build_method(NTF, trace), build_method(BCE)):
        quiet(method).train()
        data = batch
        monkeypatch.setattr("fakedet.methods.destroy.copy_draws", seeded_draws)
        if isinstance(method, NaturalTracePretraining):
            data = {**batch, "image": batch["image"].expand(-1, 2, -1, -1, -1)}
        method.training_step(data, 0).backward()
        moved = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is not None]
        still = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert moved
        assert not still, f"{type(method).__name__}: no gradient reaches {still}"


def test_fixed_copies_are_the_images_own(batch: dict[str, torch.Tensor]) -> None:
    """The same in any step and place of the batch; of two images alike, each has a copy of its own."""
    copies = TraceDestroyer(("lowpass",))
    images, ids = batch["image"][:, 0], torch.arange(len(batch["image"]))
    made = copies(images, draws=fixed_draws(ids, copies.width))
    assert torch.equal(copies(images.flip(0), draws=fixed_draws(ids.flip(0), copies.width)).flip(0), made)
    assert not torch.equal(made, images)
    alike = copies(images[:1].expand(2, -1, -1, -1), draws=fixed_draws(torch.tensor([5, 6]), copies.width))
    assert not torch.equal(alike[0], alike[1])
    # And stage 1 takes them: its loss does not depend on the step.
    method = quiet(build_method({**STAGE1, "fixed_copies": True})).eval()
    data = {"image": batch["image"].expand(-1, 2, -1, -1, -1), "id": ids}
    assert torch.equal(method.training_step(data, 0), method.training_step(data, 1))


def test_views_are_averaged() -> None:
    method = build_method(BCE).eval()
    images = torch.rand(3, 5, 3, 32, 32)
    together = method.score_views(images).logit.detach()
    for i in range(3):
        assert float(together[i]) == pytest.approx(float(method(images[i]).logit.detach().mean()), abs=1e-5)
    assert method.score_views(images[:0]).logit.shape == (0,)


def test_schedule_warms_up_and_falls_as_a_cosine() -> None:
    made = configure_optimiser([torch.nn.Parameter(torch.zeros(1))], OPTIMIZER, 100)
    optimiser, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    expected = [1e-3 * ((s + 1) / 10 if s < 10 else 0.5 * (1 + math.cos(math.pi * (s - 10) / 90))) for s in range(100)]
    assert rates == pytest.approx(expected)


def test_wrong_optimiser_settings_are_named() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        configure_optimiser(parameters, {"name": "adammw", "lr": 1e-3}, 10)
    with pytest.raises(UserError, match=r"model\.optimizer\.schedule"):
        configure_optimiser(parameters, {**OPTIMIZER, "schedule": "cosin"}, 10)
    with pytest.raises(UserError, match="does not take these settings"):
        configure_optimiser(parameters, {**OPTIMIZER, "momentumm": 3}, 10)
