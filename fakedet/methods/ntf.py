"""Natural Trace Forensics: the method, both stages (Liang et al., AAAI 2025, arXiv 2403.16513; docs/method.md).

Real photographs share stable natural traces. Stage 1, :class:`NaturalTracePretraining`, learns them from reals alone.
Stage 2, :class:`NaturalTraceForensics`, transfers them into a detector: a soft contrastive loss pulls reals to the
traces of a frozen stage 1 (:class:`TraceSource`) and pushes fakes away. How far an image lies from the traces of known
photographs is measured against a :class:`TraceBank`.

The authors' equations are not public to us: these are our reading of the paper's abstract and of public summaries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from fakedet.errors import UserError, choose
from fakedet.losses import collapse_statistics, homogeneous_loss
from fakedet.methods.base import Detector, Scores, first_view, gather_rows, sum_of_terms, watched
from fakedet.methods.destroy import CopiesAsFakes, Joined, TraceDestroyer, draw_copies
from fakedet.models.backbones import share_backbone
from fakedet.models.heads import Classifier, ProjectionHead

DISTANCES = ("knn", "prototype")


# --- stage 1: learn natural traces from real photographs alone ------------------------------------------


class NaturalTracePretraining(Detector):
    """Stage 1: learn homogeneous features (natural traces, shared by all reals) apart from heterogeneous ones.

    L = w_het L_het + w_hom L_hom: ``loss`` tells photographs apart by their heterogeneous projections b (NT-Xent over
    two views), and :func:`fakedet.losses.homogeneous_loss` pulls their homogeneous projections a together, away from
    b and from trace-destroyed copies of the photographs. The natural trace of an image is a.

    Stage 1 can score images, too: its logit is the trace distance standardised over real photographs. It has never
    seen a fake, so the logit ranks images but is no calibrated probability.

    Args:
        encoder: maps float RGB images (N, 3, H, W) in [0, 1] to embeddings (N, ``embedding_dim``).
        loss: L_het, called with the projections (2N, D) of two views; see :class:`fakedet.losses.ContrastiveLoss`.
        optimizer: see :func:`fakedet.methods.base.configure_optimiser`.
        projection_dim: dimension D of both projections.
        hidden_dim: width of the projection heads.
        temperature: τ of L_hom.
        heterogeneous_weight: w_het.
        homogeneous_weight: w_hom.
        copies: makes the trace-destroyed copies; None: L_hom has no such negatives (the trace then collapses).
        fixed_copies: each photograph has one destroyed copy, the same in every epoch and run, so that a frozen backbone
            computes its features once; else it has a new one in each step.
        bank_size: traces kept of real training photographs.
        distance: how the distance to the bank is measured, "knn" or "prototype".
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        optimizer: Any,
        projection_dim: int,
        hidden_dim: int,
        temperature: float,
        heterogeneous_weight: float,
        homogeneous_weight: float,
        copies: TraceDestroyer | None,
        fixed_copies: bool,
        bank_size: int,
        distance: str,
    ) -> None:
        super().__init__(optimizer)
        self.encoder = encoder
        self.loss = loss
        embedding_dim = int(encoder.embedding_dim)  # type: ignore[arg-type]
        self.homogeneous = ProjectionHead(embedding_dim, hidden_dim, projection_dim)
        self.heterogeneous = ProjectionHead(embedding_dim, hidden_dim, projection_dim)
        self.bank = TraceBank(projection_dim, bank_size)
        self.copies, self.fixed_copies = copies, fixed_copies
        self.features_only = copies is None or fixed_copies
        self.temperature = temperature
        self.weights = (heterogeneous_weight, homogeneous_weight)
        self.distance = choose(distance, DISTANCES, "model.distance")

    def trace(self, images: Tensor) -> Tensor:
        """Compute the natural traces (N, projection_dim) of images (N, 3, H, W), L2-normalised."""
        projected: Tensor = self.homogeneous(self.encoder(images))
        return projected

    def forward(self, images: Tensor) -> Scores:
        """Score images (N, 3, H, W) by their distance from the traces of real photographs."""
        a = self.trace(images)
        logit = self.bank.standardised(a, self.distance)
        return Scores(logit, a.float(), self.bank.distance(a, self.distance))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute L over two views of each real image of the global batch and a trace-destroyed copy of each."""
        pictures = self.take(batch)
        views = pictures.transpose(0, 1).flatten(0, 1)
        n, joined = len(views), Joined(views)
        if self.copies is not None:
            # Views and copies pass the encoder together: batch statistics cannot tell them apart.
            draws = draw_copies(self, batch["id"], self.copies.width, self.fixed_copies)
            joined = Joined(views, pictures[:, 0], self.copies, draws, self.fixed_copies, [self.encoder])
        embedding = joined.embed(self.encoder)
        projected = self.homogeneous(embedding)
        a = self._gather_views(projected[:n])
        destroyed = None if self.copies is None else gather_rows(self, projected[n:])
        b = self._gather_views(self.heterogeneous(embedding[:n]))
        het, _ = sum_of_terms(self.loss(b, None, None))
        hom = homogeneous_loss(a, b, destroyed, self.temperature)
        loss: Tensor = self.weights[0] * het + self.weights[1] * hom
        self.log_step(loss, n // 2, lambda: {
            "train/loss_heterogeneous": het, "train/loss_homogeneous": hom,
            **{f"collapse/{name}": value for name, value in collapse_statistics(a.detach()).items()},
        })  # fmt: skip
        return loss

    def _gather_views(self, rows: Tensor) -> Tensor:
        """Gather (2B, D) of every rank so that rows i and i + N stay the two views of one image."""
        first, second = rows.chunk(2)
        return torch.cat([gather_rows(self, first), gather_rows(self, second)])

    def on_validation_epoch_start(self) -> None:
        """Refill the bank, so that every checkpoint holds the traces of its own weights."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            fill_bank(self.bank, self.trace, self)


# --- stage 2: transfer the traces into a detector -------------------------------------------------------


class NaturalTraceForensics(Detector):
    """Stage 2: train a detector that pulls reals to the natural traces of stage 1 and pushes fakes away.

    L = BCE(ℓ) + λ L_contrastive(z, t): ℓ is the classifier's logit, z a projection of the embedding, t the traces that
    the frozen source gives. With the default ``loss``, :class:`fakedet.losses.SoftContrastive`, L_contrastive is
    L_R + L_F.

    Args:
        encoder: the detector's encoder; has ``embedding_dim``.
        source: the frozen encoder and homogeneous head of stage 1.
        loss: the contrastive loss; see :class:`fakedet.losses.ContrastiveLoss`.
        optimizer: see :func:`fakedet.methods.base.configure_optimiser`.
        contrastive_weight: λ; 0 for cross-entropy alone.
        hidden_dim: width of the projection head.
        bank_size: traces kept of real training photographs.
        distance: how the distance of z to the bank is measured, "knn" or "prototype".
        score: the score of images: "logit", the classifier's, or "trace_distance", standardised over the bank.
        copies: makes trace-destroyed copies that join a batch's fakes (ours).
        copies_per_real: how many of them, per real of the batch, in [0, 1]; BCE weighs copies and fakes together as
            much as the reals.
        fixed_copies: each photograph has one copy, as in stage 1.

    Raises:
        UserError: a value out of range, or a score by distance without the contrastive term that trains it.
    """

    needs_stage1 = True

    def __init__(
        self,
        encoder: nn.Module,
        source: TraceSource,
        loss: nn.Module,
        optimizer: Any,
        contrastive_weight: float,
        hidden_dim: int,
        bank_size: int,
        distance: str,
        score: str = "logit",
        copies: TraceDestroyer | None = None,
        copies_per_real: float = 0.0,
        fixed_copies: bool = False,
    ) -> None:
        super().__init__(optimizer)
        self.by_distance = choose(score, ("logit", "trace_distance"), "model.score") == "trace_distance"
        if self.by_distance and contrastive_weight == 0:
            raise UserError("model.score=trace_distance needs the contrastive term: model.contrastive_weight above 0")
        self.encoder, self.source, self.loss = encoder, source, loss
        share_backbone(source.encoder, encoder)
        embedding_dim = int(encoder.embedding_dim)  # type: ignore[arg-type]
        self.projection = ProjectionHead(embedding_dim, hidden_dim, source.dim)
        self.classifier = Classifier(embedding_dim)
        self.bank = TraceBank(source.dim, bank_size)
        self.contrastive_weight = contrastive_weight
        self.distance = choose(distance, DISTANCES, "model.distance")
        self.copies = CopiesAsFakes(copies, copies_per_real, fixed_copies)
        self.features_only = copies_per_real == 0 or fixed_copies

    def forward(self, images: Tensor) -> Scores:
        """Score images (N, 3, H, W) by the logit or the standardised distance, and measure z's distance."""
        embedding = self.encoder(images)
        z = self.projection(embedding)
        logit = self.bank.standardised(z, self.distance) if self.by_distance else self.classifier(embedding)
        return Scores(logit, z.float(), self.bank.distance(z, self.distance))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute L; its contrastive term is over the global batch, destroyed copies among its fakes if asked for."""
        images, labels = self.take(batch)[:, 0], batch["label"]
        joined, is_fake = self.copies.join(self, images, batch, self.encoder, self.source.encoder)
        embedding = joined.embed(self.encoder)
        bce = self.copies.cross_entropy(self.classifier(embedding), is_fake, len(labels))
        if self.contrastive_weight == 0:
            self.log_step(bce, len(labels))
            return bce
        z = gather_rows(self, self.projection(embedding))
        t = gather_rows(self, self.source.traces(joined))
        contrastive, terms = sum_of_terms(self.loss(z, gather_rows(self, is_fake), t))
        loss = bce + self.contrastive_weight * contrastive
        self.log_step(loss, 1, lambda: {
            "train/bce": bce, **{f"train/loss_{name}": term for name, term in terms.items()}
        })  # fmt: skip
        return loss

    def on_fit_start(self) -> None:
        """Set up before training: standardise the encoder, fill the trace bank."""
        super().on_fit_start()
        with torch.no_grad():
            fill_bank(self.bank, self.source, self)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights; source and encoder go on sharing a backbone if it is the same."""
        found = super().load_state_dict(*args, **kwargs)
        share_backbone(self.source.encoder, self.encoder)
        return found


class TraceSource(nn.Module):
    """A trained stage 1, frozen: maps images to their natural traces by its encoder and homogeneous projection head.

    It holds copies, so that freezing them does not freeze the modules that were passed.
    """

    def __init__(self, encoder: nn.Module, head: ProjectionHead) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(head)
        self.dim = head.out_dim
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> TraceSource:
        """Stay in evaluation mode whatever ``mode`` is: the batch statistics of a frozen source must not drift."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map float RGB (N, 3, H, W) in [0, 1] to L2-normalised traces (N, dim), without gradients."""
        return self.traces(Joined(images))

    @torch.no_grad()
    def traces(self, joined: Joined) -> Tensor:
        """Map images and their destroyed copies to traces (N + M, dim)."""
        traces: Tensor = self.head(joined.embed(self.encoder))
        return traces


# --- the traces of known photographs --------------------------------------------------------------------


class TraceBank(nn.Module):
    """Keep the traces of up to ``size`` reals, of dimension ``dim``, and measure cosine distances to them.

    Everything is in buffers of a fixed shape, so that a checkpoint carries the bank. ``neighbours`` is the k of the
    "knn" distance; where there are fewer traces, it takes all of them.
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
        # Of each kept trace's distance to the others; one value for each of DISTANCES.
        self.register_buffer("mean", torch.zeros(len(DISTANCES)))
        self.register_buffer("std", torch.ones(len(DISTANCES)))

    @torch.no_grad()
    def fit(self, traces: Tensor) -> None:
        """Replace the bank by L2-normalised traces (M, D); where M exceeds ``size``, by evenly spaced ones.

        Raises:
            UserError: fewer than two traces, or values that are not finite.
        """
        if len(traces) < 2:
            raise UserError(f"the trace bank needs at least 2 real training photographs, got {len(traces)}")
        if not bool(torch.isfinite(traces).all()):
            raise UserError("the traces hold NaN or infinity: training diverged; lower model.optimizer.lr")
        kept = min(len(traces), self.size)
        self.bank.zero_()
        self.bank[:kept] = traces[torch.arange(kept, device=traces.device) * len(traces) // kept]
        self.count.fill_(kept)
        bank = self._members()
        with torch.autocast(bank.device.type, enabled=False):
            cosine = (bank @ bank.T).fill_diagonal_(float("-inf"))
        knn = 1.0 - cosine.topk(min(self.neighbours, kept - 1), dim=1).values.mean(dim=1)
        prototype = 1.0 - (bank * F.normalize(bank.sum(dim=0) - bank, dim=1)).sum(dim=1)
        for index, distances in enumerate((knn, prototype)):
            self.mean[index] = distances.mean()
            # A collapsed trace has no spread; the floor keeps standardised distances finite.
            self.std[index] = distances.std().clamp(min=1e-6)

    def distance(self, z: Tensor, kind: str = "knn") -> Tensor:
        """Measure the cosine distance of L2-normalised z (N, D) from the bank: (N,) float32 in [0, 2].

        The kind is "knn", 1 − mean cosine to the ``neighbours`` nearest traces, or "prototype", 1 − cosine to the
        normalised mean of all traces.

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
        """Measure the distance (N,) of z in standard deviations above the mean of the bank's own members."""
        index = DISTANCES.index(kind)
        return (self.distance(z, kind) - self.mean[index]) / self.std[index]

    def freeze(self) -> None:
        """Make the number of traces a constant, which tracing for export needs; do not fit the bank after that."""
        self._fixed = int(self.count)

    def _members(self) -> Tensor:
        count = int(self.count) if self._fixed is None else self._fixed
        if count == 0:
            raise RuntimeError("the trace bank is empty: fit it on traces of real photographs first")
        return self.bank[:count].float()


def fill_bank(bank: TraceBank, trace_of: Callable[[Tensor], Tensor], module: LightningModule) -> None:
    """Fit ``bank`` on the traces of real training photographs of the module's data, seen as evaluation sees them.

    ``trace_of`` maps float images (N, 3, H, W) in [0, 1] to traces (N, D).
    """
    loader = module.trainer.datamodule.bank_dataloader(bank.size)  # type: ignore[attr-defined]
    was_training = module.training
    module.eval()
    with torch.no_grad():
        batches = watched(loader, "traces of training photographs")
        rows = [trace_of(first_view(batch).to(module.device)).float() for batch in batches]
    module.train(was_training)
    bank.fit(torch.cat(rows))
