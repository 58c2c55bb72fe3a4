"""The methods' training losses against formulas written out naively from the modules' own outputs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fakedet.build import TraceCheckpoint, build_method, detector_of
from fakedet.errors import UserError
from fakedet.losses import soft_contrastive_loss
from fakedet.methods.base import configure_optimiser
from fakedet.methods.destroy import TraceDestroyer
from fakedet.methods.ntf import ContrastiveTransfer, TracePretraining
from fakedet.methods.supervised import SupervisedDetector

OPTIMIZER = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1, "schedule": "cosine"}
ENCODER = {"_target_": "fakedet.models.encoders.SmallEncoder", "width": 8, "frontend": "npr"}
TRACE = {"_target_": "fakedet.methods.ntf.TracePretraining", "name": "trace", "encoder": ENCODER,
         "projection_dim": 8, "hidden_dim": 16, "temperature": 0.2, "heterogeneous_weight": 1.0,
         "homogeneous_weight": 1.0, "destroyers": ["lowpass"], "min_strength": 0.4, "bank_size": 16,
         "distance": "knn", "optimizer": OPTIMIZER}  # fmt: skip
TRANSFER = {"_target_": "fakedet.methods.ntf.ContrastiveTransfer", "name": "transfer", "encoder": ENCODER,
            "init": "trace", "hidden_dim": 16, "temperature": 0.2, "weight_temperature": 0.3, "weights": "soft",
            "contrastive_weight": 0.25, "real_weight": 1.0, "fake_weight": 1.0, "bank_size": 16,
            "distance": "knn", "optimizer": OPTIMIZER}  # fmt: skip
BCE = {"_target_": "fakedet.methods.supervised.SupervisedDetector", "name": "bce", "encoder": ENCODER,
       "contrastive_weight": 0.5, "hidden_dim": 16, "projection_dim": 8, "temperature": 0.2,
       "optimizer": OPTIMIZER}  # fmt: skip


def quiet(method: Any) -> Any:
    """Let a method compute its loss without a trainer."""
    method.log = lambda *args, **kwargs: None
    method.log_dict = lambda *args, **kwargs: None
    method._log_training = lambda *args, **kwargs: None
    return method


def seeded_draws(method: Any, count: int, width: int) -> torch.Generator:
    """Stand for a trainer's seed and step."""
    return torch.Generator().manual_seed(3)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.rand(8, 1, 3, 32, 32, generator=generator), "label": torch.tensor([0, 1] * 4)}


def test_transfer_loss_is_the_documented_sum(batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    trace = TraceCheckpoint(TRACE, build_method(TRACE))  # type: ignore[arg-type]
    method = quiet(build_method(TRANSFER, trace))
    assert isinstance(method, ContrastiveTransfer)
    method.eval()  # batch statistics fixed, so that the loss can be computed again below
    loss = method.training_step(batch, 0)

    x, y, tau = batch["image"][:, 0], batch["label"], 0.2
    with torch.no_grad():
        h = method.encoder(x)
        z, logit, t = method.projection(h), method.classifier(h), method.source(x)
    reals, fakes = [i for i in range(8) if y[i] == 0], [i for i in range(8) if y[i] == 1]
    bce = (
        sum(math.log1p(math.exp(-logit[i])) if y[i] else math.log1p(math.exp(logit[i])) for i in range(8)) / 8
    )
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
        l_fake += (
            sum(v * tau * math.log1p(math.exp(z[f] @ t[j] / tau)) for j in reals) / len(reals) / len(fakes)
        )
    assert float(loss.detach()) == pytest.approx(bce + 0.25 * (l_real + l_fake), abs=1e-5)


def test_copies_are_fakes_that_share_the_fakes_weight(
    batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fakedet.methods.ntf.copy_draws", seeded_draws)
    torch.manual_seed(0)
    trace = TraceCheckpoint(TRACE, build_method(TRACE))  # type: ignore[arg-type]
    settings = {
        **TRANSFER,
        "copies_per_real": 0.5,
        "destroyers": ["lowpass", "smooth"],
        "recompress": [60, 80],
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
    terms = soft_contrastive_loss(z[:4], t[:4], z[4:], t[4:], 0.2, 0.3)
    assert loss == pytest.approx(bce + 0.25 * float(terms.real + terms.fake), abs=1e-5)


def test_copies_without_kinds_or_beyond_their_share_are_refused() -> None:
    trace = TraceCheckpoint(TRACE, build_method(TRACE))  # type: ignore[arg-type]
    upside_down = {"copies_per_real": 1.0, "destroyers": ["smooth"], "recompress": [90, 70]}
    for wrong, told in (
        ({"copies_per_real": 1.5}, "copies_per_real=1.5"),
        ({"copies_per_real": 1.0}, "name at least one"),
        (upside_down, r"recompress=\[90, 70\]"),
    ):
        with pytest.raises(UserError, match=told):
            build_method({**TRANSFER, **wrong}, trace)


def test_the_trace_distance_can_take_the_logits_place(batch: dict[str, torch.Tensor]) -> None:
    trace = TraceCheckpoint(TRACE, build_method(TRACE))  # type: ignore[arg-type]
    torch.manual_seed(0)
    method = build_method({**TRANSFER, "score": "trace_distance"}, trace).eval()
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
        build_method({**TRANSFER, "score": "trace_distance", "contrastive_weight": 0}, trace)
    with pytest.raises(UserError, match=r"model\.score: 'distance'"):
        build_method({**TRANSFER, "score": "distance"}, trace)


def test_the_residuals_evidence_is_added_to_the_logit_and_trains_nothing() -> None:
    encoder = {"_target_": "fakedet.models.backbones.FrozenEncoder", "name": "test_efficientnet", "pretrained": False,
               "hidden": 8}  # fmt: skip
    trace = TraceCheckpoint(
        {**TRACE, "encoder": encoder},
        build_method({**TRACE, "encoder": encoder}),  # type: ignore[arg-type]
    )
    config = {
        **TRANSFER,
        "encoder": encoder,
        "residual": {"weight": 3, "dims": 4, "neighbours": 2, "size": 8},
    }
    method = build_method(config, trace).eval()
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = method.encoder.features(images)
    method.bank.fit(method.source(images[:4]))
    method.residual.fit(features[:14], torch.arange(14) % 2, features[14:])
    scores = method(images)
    alone = method.classifier(method.encoder(images))
    evidence = method.residual(features)
    torch.testing.assert_close(scores.logit, alone + 3 * evidence)
    assert evidence.abs().max() > 0.01
    assert not list(method.residual.parameters())
    with pytest.raises(UserError, match=r"model\.residual\.weight=3\.0: needs features"):
        build_method({**config, "encoder": ENCODER}, TraceCheckpoint(TRACE, build_method(TRACE)))


def test_a_source_may_learn_too(batch: dict[str, torch.Tensor]) -> None:
    trace = TraceCheckpoint(TRACE, build_method(TRACE))  # type: ignore[arg-type]
    method = quiet(build_method({**TRANSFER, "train_source": True}, trace)).train()
    assert method.source.training
    before = {name: value.clone() for name, value in method.source.named_parameters()}
    theirs = {name: value.clone() for name, value in trace.method.named_parameters()}
    optimiser = configure_optimiser(method.parameters(), OPTIMIZER, 10)["optimizer"]
    method.training_step(batch, 0).backward()
    optimiser.step()
    moved = [name for name, value in method.source.named_parameters() if not torch.equal(before[name], value)]
    assert {name.split(".")[0] for name in moved} == {"encoder", "head"}
    for name, value in trace.method.named_parameters():
        assert torch.equal(theirs[name], value), "what was passed stays"


def test_a_frozen_trunk_stands_once_in_memory_and_in_files(tmp_path: Path) -> None:
    encoder = {"_target_": "fakedet.models.backbones.FrozenEncoder", "name": "test_efficientnet", "pretrained": False,
               "hidden": 8}  # fmt: skip
    trace = TraceCheckpoint(
        {**TRACE, "encoder": encoder},
        build_method({**TRACE, "encoder": encoder}),  # type: ignore[arg-type]
    )
    apart = build_method({**TRANSFER, "encoder": encoder, "init": "scratch"}, trace)
    assert apart.source.encoder.trunk is not apart.encoder.trunk, "random weights, which differ"
    shared = build_method({**TRANSFER, "encoder": encoder, "init": "trace"}, trace)
    assert shared.source.encoder.trunk is shared.encoder.trunk
    assert shared.source.encoder.layers is not shared.encoder.layers
    shared.identity = {"model": {**TRANSFER, "encoder": encoder}, "stage1": {**TRACE, "encoder": encoder}}
    sizes = {}
    for name, method in (("apart", apart), ("shared", shared)):
        torch.save({"state_dict": method.state_dict()}, tmp_path / name)
        sizes[name] = (tmp_path / name).stat().st_size
    trunk = sum(value.numel() * value.element_size() for value in shared.encoder.trunk.state_dict().values())
    assert sizes["apart"] - sizes["shared"] > 0.9 * trunk
    content = {"state_dict": shared.state_dict(), "fakedet": shared.identity}
    loaded = detector_of(content, "x.ckpt")
    assert loaded.source.encoder.trunk is loaded.encoder.trunk
    for name, value in shared.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_transfer_starts_from_stage_1_and_never_moves_its_source(batch: dict[str, torch.Tensor]) -> None:
    trace = TraceCheckpoint(TRACE, build_method(TRACE))  # type: ignore[arg-type]
    method = quiet(build_method(TRANSFER, trace))
    for ours, theirs in zip(method.encoder.parameters(), trace.method.encoder.parameters(), strict=True):
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
    with_contrast = quiet(build_method(BCE)).eval()
    assert float(with_contrast.training_step(batch, 0).detach()) > 0
    assert any("projection" in name for name, _ in with_contrast.named_parameters())


def test_every_method_learns_from_one_step(
    batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = TraceCheckpoint(TRACE, build_method(TRACE))  # type: ignore[arg-type]
    for method in (build_method(TRACE), build_method(TRANSFER, trace), build_method(BCE)):
        quiet(method).train()
        data = batch
        monkeypatch.setattr("fakedet.methods.ntf.copy_draws", seeded_draws)
        if isinstance(method, TracePretraining):
            data = {**batch, "image": batch["image"].expand(-1, 2, -1, -1, -1)}
        method.training_step(data, 0).backward()
        moved = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is not None]
        still = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert moved
        assert not still, f"{type(method).__name__}: no gradient reaches {still}"


def test_fixed_copies_are_the_images_own(batch: dict[str, torch.Tensor]) -> None:
    """The same in any step and place of the batch; of two images alike, each has a copy of its own."""
    method = quiet(build_method({**TRACE, "fixed_copies": True}))
    images, ids = batch["image"][:, 0], torch.arange(len(batch["image"]))
    copies = method._copies(method.destroyer, images, {"id": ids})
    assert torch.equal(method._copies(method.destroyer, images.flip(0), {"id": ids.flip(0)}).flip(0), copies)
    assert not torch.equal(copies, images)
    alike = method._copies(method.destroyer, images[:1].expand(2, -1, -1, -1), {"id": torch.tensor([5, 6])})
    assert not torch.equal(alike[0], alike[1])


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
    expected = [
        1e-3 * ((s + 1) / 10 if s < 10 else 0.5 * (1 + math.cos(math.pi * (s - 10) / 90))) for s in range(100)
    ]
    assert rates == pytest.approx(expected)


def test_wrong_optimiser_settings_are_named() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        configure_optimiser(parameters, {"name": "adammw", "lr": 1e-3}, 10)
    with pytest.raises(UserError, match=r"model\.optimizer\.schedule"):
        configure_optimiser(parameters, {**OPTIMIZER, "schedule": "cosin"}, 10)
    with pytest.raises(UserError, match="does not take these settings"):
        configure_optimiser(parameters, {**OPTIMIZER, "momentumm": 3}, 10)
