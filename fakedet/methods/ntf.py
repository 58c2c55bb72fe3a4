"""methods/ntf"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from fakedet.errors import UserError, choose
from fakedet.losses import collapse_statistics, heterogeneous_loss, homogeneous_loss, soft_contrastive_loss
from fakedet.methods.base import Detector, Scores, first_view, gather_rows
from fakedet.methods.destroy import CopyMemory, TraceDestroyer
from fakedet.methods.residual import HALVES, TraceResidual
from fakedet.models.backbones import FrozenTrunk
from fakedet.models.heads import Classifier, ProjectionHead

DISTANCES = ("knn", "prototype")


class TraceBank(nn.Module):
    """Keep up to ``size`` traces of reals and measure cosine distances to them.

    Everything is in buffers of a fixed shape, so a checkpoint carries the bank into a fresh, unfitted one.

    Args:
        dim: dimension of the traces.
        size: most traces that are kept.
        neighbours: k of the "knn" distance; all traces where there are fewer.
    """

    bank: Tensor
    count: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, size: int = 1024, neighbours: int = 10) -> None:
        super().__init__()
        if size < 2 or neighbours < 1:
            raise UserError(f"model.bank_size: a trace bank keeps 2 traces or more, not {size}")
        self.size, self.neighbours = size, neighbours
        self._fixed: int | None = None
        self.register_buffer("bank", torch.zeros(size, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        # Of the kept traces' distances, each to the others; one value for each of DISTANCES.
        self.register_buffer("mean", torch.zeros(len(DISTANCES)))
        self.register_buffer("std", torch.ones(len(DISTANCES)))

    @torch.no_grad()
    def fit(self, traces: Tensor) -> None:
        """Keep L2-normalised traces (M, D), evenly spaced ones where M exceeds ``size``, in place of the old.

        Raises:
            UserError: fewer than two traces, or values that are not finite.
        """
        if len(traces) < 2:
            raise UserError(f"the trace bank needs at least 2 real training photographs, got {len(traces)}")
        if not bool(torch.isfinite(traces).all()):
            raise UserError("the traces hold NaN or infinity: training diverged; lower model.optimizer.lr")
        kept = min(len(traces), self.size)
        spaced = torch.arange(kept, device=traces.device) * len(traces) // kept
        self.bank.zero_()
        self.bank[:kept] = traces[spaced]
        self.count.fill_(kept)
        for index, distances in enumerate((self._own_knn(), self._own_prototype())):
            self.mean[index] = distances.mean()
            # A collapsed trace has no spread; the floor keeps standardised distances finite.
            self.std[index] = distances.std().clamp(min=1e-6)

    def distance(self, z: Tensor, kind: str = "knn") -> Tensor:
        """Measure the cosine distance of L2-normalised z (N, D) from the bank.

        Args:
            z: (N, D).
            kind: "knn", 1 − mean cosine to the nearest ``neighbours``; or "prototype", 1 − cosine to the
                normalised mean.

        Returns:
            (N,) float32 in [0, 2].

        Raises:
            RuntimeError: the bank is empty.
            UserError: an unknown kind.
        """
        choose(kind, DISTANCES, "model.distance")
        bank = self._members()
        with torch.autocast(z.device.type, enabled=False):
            if kind == "prototype":
                return 1.0 - z.float() @ F.normalize(bank.mean(dim=0), dim=0)
            cosine = z.float() @ bank.T
        return 1.0 - cosine.topk(min(self.neighbours, len(bank)), dim=1).values.mean(dim=1)

    def standardised(self, z: Tensor, kind: str = "knn") -> Tensor:
        """Measure the distance (N,) in standard deviations above that of the bank's own members."""
        distance = self.distance(z, kind)
        index = DISTANCES.index(kind)
        return (distance - self.mean[index]) / self.std[index]

    def freeze(self) -> None:
        """Take the number of traces for a constant, as tracing for export needs it; no fit may follow."""
        self._fixed = int(self.count)

    def _members(self) -> Tensor:
        count = int(self.count) if self._fixed is None else self._fixed
        if count == 0:
            raise RuntimeError("the trace bank is empty: fit it on traces of real photographs first")
        return self.bank[:count].float()

    def _own_knn(self) -> Tensor:
        bank = self._members()
        with torch.autocast(bank.device.type, enabled=False):
            cosine = (bank @ bank.T).fill_diagonal_(float("-inf"))
        return 1.0 - cosine.topk(min(self.neighbours, len(bank) - 1), dim=1).values.mean(dim=1)

    def _own_prototype(self) -> Tensor:
        bank = self._members()
        others = F.normalize(bank.sum(dim=0) - bank, dim=1)
        return 1.0 - (bank * others).sum(dim=1)


def copy_draws(module: LightningModule, count: int, width: int) -> torch.Generator:
    """Give the generator of this rank's copies in this step, the same draws however many ranks share the batch.

    Args:
        module: that trains; its data module has the seed.
        count: copies that each rank makes.
        width: uniform draws a copy takes.
    """
    seed = int(module.trainer.datamodule.seed)  # type: ignore[attr-defined]
    state = np.random.SeedSequence([seed, module.global_step, 0]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> 1))
    torch.rand(module.global_rank * count, width, generator=generator)  # those of the ranks before this one
    return generator


def fixed_draws(ids: Tensor, width: int) -> Tensor:
    """Give each image draws that are its own, the same in every step and run.

    Args:
        ids: (N,) rows in the manifest.
        width: uniform draws a copy takes.

    Returns:
        (N, width) in [0, 1), on the CPU.
    """
    rows = [torch.rand(width, generator=torch.Generator().manual_seed(int(row))) for row in ids.tolist()]
    return torch.stack(rows) if rows else torch.empty(0, width)


class TracePretraining(Detector):
    """Learn homogeneous features (natural traces, shared by all reals) apart from heterogeneous ones.

    Natural Trace Forensics (Liang et al., AAAI 2025), stage 1, in our reading: docs/method.md. Scored as a
    detector, its logit is the trace distance standardised over real photographs: it has never seen a fake, so
    the logit ranks images but is not a calibrated probability.

    Args:
        encoder: maps float RGB images to embeddings; has ``embedding_dim``.
        projection_dim: dimension of both projections.
        hidden_dim: width of the projection heads.
        temperature: τ of both losses.
        heterogeneous_weight: weight of L_het.
        homogeneous_weight: weight of L_hom.
        destroyers: kinds of trace-destroyed copies that serve as negatives; empty for none.
        min_strength: least share of a destroyed copy in its blend with the original.
        bank_size: traces kept of real training photographs.
        distance: how the distance to the bank is measured, "knn" or "prototype".
        optimizer: see :func:`fakedet.methods.base.configure_optimiser`.
        recompress: JPEG qualities of the destroyed copies; see :class:`TraceDestroyer`.
        fixed_copies: each photograph has one destroyed copy, the same in every epoch and run, so that an encoder on
            a frozen trunk looks at it once; else a new one in each step.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projection_dim: int,
        hidden_dim: int,
        temperature: float,
        heterogeneous_weight: float,
        homogeneous_weight: float,
        destroyers: Sequence[str],
        min_strength: float,
        bank_size: int,
        distance: str,
        optimizer: Mapping[str, Any],
        recompress: Sequence[int] | None = None,
        fixed_copies: bool = False,
    ) -> None:
        super().__init__(optimizer)
        self.save_hyperparameters(ignore=["encoder"])
        self.encoder = encoder
        embedding_dim = int(encoder.embedding_dim)  # type: ignore[arg-type]
        self.homogeneous = ProjectionHead(embedding_dim, hidden_dim, projection_dim)
        self.heterogeneous = ProjectionHead(embedding_dim, hidden_dim, projection_dim)
        self.bank = TraceBank(projection_dim, bank_size)
        self.destroyer = TraceDestroyer(tuple(destroyers), min_strength, recompress) if destroyers else None
        self.fixed_copies = fixed_copies
        self._memory: CopyMemory | None = None
        self.temperature = temperature
        self.weights = (heterogeneous_weight, homogeneous_weight)
        self.distance = distance

    def trace(self, images: Tensor) -> Tensor:
        """Give the normalised homogeneous projection a of images (N, 3, H, W): (N, projection_dim)."""
        projected: Tensor = self.homogeneous(self.encoder(images))
        return projected

    def forward(self, images: Tensor) -> Scores:
        """Score images by their distance from the traces of real photographs."""
        a = self.trace(images)
        return Scores(
            self.bank.standardised(a, self.distance), a.float(), self.bank.distance(a, self.distance)
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum both losses over two views of each real image and a trace-destroyed copy of each."""
        pictures = self.take(batch)
        views = pictures.transpose(0, 1).flatten(0, 1)
        n = len(views)
        images = views
        if self.destroyer is not None:
            images = torch.cat([views, self._copies(self.destroyer, pictures[:, 0], batch)])
        embedding = self.encoder(images)
        projected = self.homogeneous(embedding)
        a, destroyed = self._all_views(projected[:n]), None
        if self.destroyer is not None:
            destroyed = gather_rows(self, projected[n:])
        b = self._all_views(self.heterogeneous(embedding[:n]))
        het = heterogeneous_loss(b, self.temperature)
        hom = homogeneous_loss(a, b, destroyed, self.temperature)
        loss: Tensor = self.weights[0] * het + self.weights[1] * hom
        self._log_training(loss, het, hom, a.detach())
        return loss

    def _copies(self, destroyer: TraceDestroyer, images: Tensor, batch: dict[str, Any]) -> Tensor:
        if self.fixed_copies:
            draws = fixed_draws(batch["id"], destroyer.width)
            if self._memory is not None:
                return self._memory(images, batch["id"], draws)
            return destroyer(images, draws=draws)
        return destroyer(images, copy_draws(self, len(images), destroyer.width))

    def _all_views(self, rows: Tensor) -> Tensor:
        """Gather (2B, D) of every rank so that rows i and i + N stay the two views of one image."""
        first, second = rows.chunk(2)
        return torch.cat([gather_rows(self, first), gather_rows(self, second)])

    def _log_training(self, loss: Tensor, het: Tensor, hom: Tensor, a: Tensor) -> None:
        n = len(a) // 2
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=n)
        trainer = self.trainer
        if self.global_step % trainer.log_every_n_steps and not trainer.is_last_batch:  # type: ignore[attr-defined]
            return
        values = {"train/loss_heterogeneous": het, "train/loss_homogeneous": hom}
        values |= {f"collapse/{key}": value for key, value in collapse_statistics(a).items()}
        self.log_dict(values, batch_size=n)

    def on_fit_start(self) -> None:
        """Keep each photograph's copy where it has one, and always looks the same itself."""
        super().on_fit_start()
        if self.fixed_copies and self.destroyer and self.trainer.datamodule.views_repeat:  # type: ignore[attr-defined]
            self._memory = CopyMemory(self.destroyer)

    def on_validation_epoch_start(self) -> None:
        """Refill the bank, so that every checkpoint holds the traces of its own weights."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            fill_bank(self.bank, self.trace, self)


class TraceSource(nn.Module):
    """Give the natural traces of images from a trained stage 1 that never changes again, unless it is told to learn.

    Holds copies, so that freezing them does not freeze the modules that were passed.

    Args:
        encoder: stage 1's encoder.
        head: stage 1's homogeneous projection head.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(head)
        self.learns = False
        self.requires_grad_(False)
        self.train(False)

    def let_learn(self) -> None:
        """Train it along with the detector (ablation); a frozen trunk in it stays as it is."""
        self.learns = True
        self.requires_grad_(True)
        for module in self.modules():
            if isinstance(module, FrozenTrunk):
                module.requires_grad_(False)
        self.train(True)

    def train(self, mode: bool = True) -> TraceSource:
        """Stay in evaluation mode whatever ``mode`` is: a frozen source's batch statistics must not drift."""
        return super().train(mode and self.learns)

    def forward(self, images: Tensor) -> Tensor:
        """Map float RGB (N, 3, H, W) in [0, 1] to L2-normalised traces (N, D), without gradients if it is frozen."""
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            traces: Tensor = self.head(self.encoder(images))
        return traces


def share_trunk(source: TraceSource, encoder: nn.Module) -> None:
    """Let a source over the same frozen trunk as the detector's encoder use that one: in memory and in files once.

    Args:
        source: its encoder's trunk is replaced, where it has one that says the same.
        encoder: the detector's.
    """
    own, other = getattr(source.encoder, "trunk", None), getattr(encoder, "trunk", None)
    if isinstance(own, FrozenTrunk) and isinstance(other, FrozenTrunk) and own.says_the_same(other):
        source.encoder.trunk = other


class TraceMemory:
    """Ask a frozen source once for each image, where an image looks the same each time.

    Args:
        source: maps images to traces and never changes.
    """

    def __init__(self, source: TraceSource) -> None:
        self._source = source
        self._traces: dict[int, Tensor] = {}

    def __call__(self, images: Tensor, ids: Tensor) -> Tensor:
        """Give the traces (N, D) of images (N, 3, H, W) whose rows in the manifest are ``ids`` (N,)."""
        rows = ids.tolist()
        # The whole batch if any is new: rows must not depend on which others were known, or a resumed run,
        # which begins with an empty memory, could differ in its last bits.
        if not all(row in self._traces for row in rows):
            self._traces |= dict(zip(rows, self._source(images), strict=True))
        return torch.stack([self._traces[row] for row in rows])


class ContrastiveTransfer(Detector):
    """Draw reals to the frozen source's traces and push fakes away, beside a cross-entropy on the logit.

    Natural Trace Forensics (Liang et al., AAAI 2025), stage 2, in our reading: docs/method.md.
    L = BCE(ℓ) + λ (L_R + L_F).

    Args:
        encoder: the detector's encoder; has ``embedding_dim``.
        source: the frozen stage-1 encoder and homogeneous head; gives the traces t.
        trace_dim: dimension of the traces, and so of the projection z.
        hidden_dim: width of the projection head.
        temperature: τ.
        weight_temperature: τ_w of the soft positives' weights.
        weights: "soft", or "hard" for uniform weights (ablation).
        contrastive_weight: λ.
        real_weight: weight of L_R within the contrastive term.
        fake_weight: weight of L_F within the contrastive term.
        bank_size: traces kept of real training photographs.
        distance: how the distance of z to the bank is measured, "knn" or "prototype".
        optimizer: see :func:`fakedet.methods.base.configure_optimiser`.
        copies_per_real: trace-destroyed copies that join a batch's fakes, per real photograph in it (ours); they
            and the fakes together weigh as much as the reals. 0: none.
        destroyers: kinds of those copies; see :class:`TraceDestroyer`.
        min_strength: least share of a destroyed copy in its blend with the original.
        recompress: JPEG qualities of those copies; None: they are not compressed.
        score: what ranks images, and is calibrated, validated and kept by: "logit", the classifier's, or
            "trace_distance", that distance in the spread of the bank's.
        residual: ``weight`` of the evidence of a :class:`TraceResidual` in the logit (ours; 0: none) and its settings;
            needs an encoder with ``features``, on a frozen trunk.
        train_source: the source is trained along (ablation) instead of frozen.

    Raises:
        UserError: ``copies_per_real`` is not between 0 and 1, settings of the copies that cannot be, or a score by
            distance without the contrastive term that trains it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        source: TraceSource,
        trace_dim: int,
        hidden_dim: int,
        temperature: float,
        weight_temperature: float,
        weights: str,
        contrastive_weight: float,
        real_weight: float,
        fake_weight: float,
        bank_size: int,
        distance: str,
        optimizer: Mapping[str, Any],
        copies_per_real: float = 0.0,
        destroyers: Sequence[str] = (),
        min_strength: float = 0.4,
        recompress: Sequence[int] | None = None,
        score: str = "logit",
        residual: Mapping[str, Any] | None = None,
        train_source: bool = False,
    ) -> None:
        super().__init__(optimizer)
        self.save_hyperparameters(ignore=["encoder", "source"])
        self.encoder = encoder
        self.source = source
        if train_source:
            source.let_learn()
        embedding_dim = int(encoder.embedding_dim)  # type: ignore[arg-type]
        self.projection = ProjectionHead(embedding_dim, hidden_dim, trace_dim)
        self.classifier = Classifier(embedding_dim)
        self.bank = TraceBank(trace_dim, bank_size)
        self.temperatures = (temperature, weight_temperature)
        self.hard = choose(weights, ("soft", "hard"), "model.weights") == "hard"
        self.contrastive_weight = contrastive_weight
        self.term_weights = (real_weight, fake_weight)
        self.distance = distance
        self.by_distance = choose(score, ("logit", "trace_distance"), "model.score") == "trace_distance"
        if self.by_distance and contrastive_weight * (real_weight + fake_weight) == 0:
            raise UserError(
                "model.score=trace_distance needs the contrastive term, which trains it: model.contrastive_weight and "
                "model.real_weight or model.fake_weight above 0"
            )
        if not 0.0 <= copies_per_real <= 1.0:
            raise UserError(
                f"model.copies_per_real={copies_per_real}: between 0 (none) and 1 (one of each real)"
            )
        self.copies_per_real = copies_per_real
        self.destroyer = (
            TraceDestroyer(tuple(destroyers), min_strength, recompress) if copies_per_real else None
        )
        self.residual_weight, self.residual = _make_residual(encoder, dict(residual or {}))
        self._memory: TraceMemory | None = None

    def forward(self, images: Tensor) -> Scores:
        """Score images by the logit or what takes its place, and beside it by the distance of z from the traces."""
        if self.residual is None:
            embedding, evidence = self.encoder(images), 0.0
        else:
            features = self.encoder.features(images)  # type: ignore[operator]
            embedding = self.encoder.embed(features)  # type: ignore[operator]
            evidence = self.residual_weight * self.residual(features)
        z = self.projection(embedding)
        logit = self.bank.standardised(z, self.distance) if self.by_distance else self.classifier(embedding)
        logit = logit + evidence
        return Scores(logit, z.float(), self.bank.distance(z, self.distance))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute L over the global batch's contrastive rows, destroyed copies among its fakes if asked for."""
        images, labels = self.take(batch)[:, 0], batch["label"]
        copies = self._copies(images, labels)
        pictures = torch.cat([images, copies]) if len(copies) else images
        is_fake = torch.cat([labels, labels.new_ones(len(copies))])
        embedding = self.encoder(pictures)
        bce = self._cross_entropy(self.classifier(embedding), is_fake, len(labels))
        if self.contrastive_weight == 0:
            self.log("train/loss", bce, prog_bar=True, batch_size=len(labels))
            return bce
        z = gather_rows(self, self.projection(embedding))
        t = gather_rows(self, self._traces(images, copies, batch))
        real = gather_rows(self, is_fake) == 0
        terms = soft_contrastive_loss(
            z[real], t[real], z[~real], t[~real], *self.temperatures, hard=self.hard
        )
        contrastive = self.term_weights[0] * terms.real + self.term_weights[1] * terms.fake
        loss = bce + self.contrastive_weight * contrastive
        self._log_training(loss, bce, terms.real, terms.fake)
        return loss

    def _copies(self, images: Tensor, labels: Tensor) -> Tensor:
        """Make destroyed copies of a batch's reals: as many on every rank, of whatever reals it has.

        A rank that has fewer reals than that copies fakes as well; a destroyed fake is no photograph either.
        """
        if self.destroyer is None:
            return images[:0]
        count = round(self.copies_per_real * len(labels) / 2)
        reals_first = torch.argsort(labels, stable=True)[:count]
        return self.destroyer(images[reals_first], copy_draws(self, count, self.destroyer.width))

    def _cross_entropy(self, logits: Tensor, is_fake: Tensor, rows: int) -> Tensor:
        """Average over a batch in which copies and fakes together weigh as much as the reals."""
        target = is_fake.float()
        if self.destroyer is None:
            return F.binary_cross_entropy_with_logits(logits, target)
        weight = torch.where(is_fake == 0, 1.0, 1.0 / (1.0 + self.copies_per_real))
        return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / rows

    def _traces(self, images: Tensor, copies: Tensor, batch: dict[str, Any]) -> Tensor:
        if self._memory is None:
            traces: Tensor = self.source(torch.cat([images, copies]))
            return traces
        known = self._memory(images, batch["id"])
        return torch.cat([known, self.source(copies)]) if len(copies) else known

    def _log_training(self, loss: Tensor, bce: Tensor, real: Tensor, fake: Tensor) -> None:
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
        trainer = self.trainer
        if self.global_step % trainer.log_every_n_steps and not trainer.is_last_batch:  # type: ignore[attr-defined]
            return
        self.log_dict({"train/bce": bce, "train/loss_real": real, "train/loss_fake": fake}, batch_size=1)

    def on_fit_start(self) -> None:
        """Fill the bank, once if the source is frozen. Where images never change, their traces are kept too."""
        super().on_fit_start()
        if self.trainer.datamodule.views_repeat and not self.source.learns:  # type: ignore[attr-defined]
            self._memory = TraceMemory(self.source)
        with torch.no_grad():
            fill_bank(self.bank, self.source, self)
            if self.residual is not None:
                fit_residual(self.residual, self.encoder, self)

    def on_validation_epoch_start(self) -> None:
        """Refill the bank where the source learns."""
        if self.source.learns and self.trainer.state.fn == TrainerFn.FITTING:
            fill_bank(self.bank, self.source, self)


def _make_residual(encoder: nn.Module, settings: dict[str, Any]) -> tuple[float, TraceResidual | None]:
    weight = float(settings.pop("weight", 0.0))
    if weight == 0:
        return 0.0, None
    if not hasattr(encoder, "features"):
        raise UserError(
            f"model.residual.weight={weight}: needs features that training leaves alone: model/encoder=frozen or clip"
        )
    return weight, TraceResidual(int(encoder.feature_dim), **settings)  # type: ignore[arg-type]


def fill_bank(bank: TraceBank, trace_of: Callable[[Tensor], Tensor], module: LightningModule) -> None:
    """Fit ``bank`` on the traces of real training photographs, seen as evaluation sees them.

    Args:
        bank: what is filled.
        trace_of: maps float images (N, 3, H, W) in [0, 1] to traces (N, D).
        module: the LightningModule, whose attached data module gives the photographs.
    """
    loader = module.trainer.datamodule.bank_dataloader(bank.size)  # type: ignore[attr-defined]
    was_training = module.training
    module.eval()
    rows = []
    with torch.no_grad():
        for batch in loader:
            rows.append(trace_of(first_view(batch).to(module.device)).float())
    module.train(was_training)
    bank.fit(torch.cat(rows))


def fit_residual(residual: TraceResidual, encoder: Any, module: LightningModule) -> None:
    """Fit ``residual`` on the features of training reals and fakes; photographs of one group stay in one half.

    Args:
        residual: what is fitted.
        encoder: has ``features``.
        module: the LightningModule, whose attached data module gives the images.
    """
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    rows, ids = {}, {}
    for label, limit in ((0, HALVES * residual.size), (1, residual.size)):
        batches = [batch for batch in data.bank_dataloader(limit, label) if len(batch["id"])]
        rows[label] = torch.cat([encoder.features(first_view(batch).to(module.device)) for batch in batches])
        ids[label] = torch.cat([batch["id"] for batch in batches]).cpu().numpy()
    groups, _ = pd.factorize(data.manifest.frame["group"].loc[ids[0]])
    residual.fit(rows[0], torch.from_numpy(groups % HALVES).to(module.device), rows[1])
