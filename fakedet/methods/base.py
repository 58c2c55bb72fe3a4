"""What all methods share: the optimiser, gathering over ranks, and the Lightning hooks that score and measure."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import timm.optim
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fakedet.errors import UserError, choose
from fakedet.metrics.average_precision import GeneratorAveragePrecision
from fakedet.metrics.decisions import OperatingPoint
from fakedet.models.features import FeatureCache, check_backbones
from fakedet.utils import Bar, bar

Record = TypeVar("Record")

log = logging.getLogger("fakedet")

TRAINING_KEYS = ("name", "epochs", "batch", "init", "monitor")
"""Keys of a model's config that say how it is trained, not how it is built."""
SCHEDULES = ("cosine", "constant", "step", "plateau")


def configure_optimiser(parameters: Iterable[nn.Parameter], settings: Any, total_steps: int) -> Any:
    """Build the optimiser and its per-step schedule in the form that Lightning takes.

    Args:
        parameters: what is learned; frozen ones are left out.
        settings: a mapping with ``name`` (any optimiser of timm), ``lr``, ``weight_decay``, ``warmup`` (share of all
            steps) and ``schedule``; everything else goes to the optimiser itself. Schedules: "cosine"; "constant";
            "step", times ``factor`` after each of ``steps`` equal parts of the training; "plateau", times ``factor``
            when ``plateau_metric`` of the validation has not risen for ``patience`` epochs; or a callable that takes
            the optimiser and returns a PyTorch scheduler, stepped per step. Or, in place of the mapping, a callable
            that takes the parameters and returns an optimiser, as
            ``{_target_: torch.optim.SGD, _partial_: true, lr: 0.1}`` does.
        total_steps: optimiser steps of the whole training.

    Raises:
        UserError: an unknown optimiser or schedule, or settings that the optimiser does not take.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    if callable(settings):
        return settings(learned)
    check_optimiser(settings)
    options = dict(settings)
    name, schedule = str(options.pop("name")), options.pop("schedule", "constant")
    warmup = float(options.pop("warmup", 0.0))
    shape = {key: options.pop(key) for key in ("factor", "steps", "patience", "plateau_metric") if key in options}
    try:
        optimiser = timm.optim.create_optimizer_v2(learned, opt=name.lower(), **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer: '{name}' does not take these settings: {error}") from error
    if callable(schedule):
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule(optimiser), "interval": "step"}}
    if schedule == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimiser, mode="max", factor=float(shape["factor"]), patience=int(shape["patience"])
        )
        every = {"scheduler": plateau, "interval": "epoch", "monitor": shape["plateau_metric"]}
        return {"optimizer": optimiser, "lr_scheduler": every}
    warmup_steps = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant":
            return 1.0
        if schedule == "step":
            return float(shape["factor"] ** (step * shape["steps"] // max(1, total_steps)))
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check_optimiser(settings: Mapping[str, Any], where: str = "model.optimizer") -> None:
    """Check the names of optimiser and schedule; what a ``_target_`` stands for is checked when it is built.

    Raises:
        UserError: one is unknown; the message names the nearest.
    """
    if "_target_" in settings:
        return
    choose(str(settings["name"]).lower(), map(str, timm.optim.list_optimizers()), f"{where}.name")
    schedule = settings.get("schedule", "constant")
    if not callable(schedule) and not isinstance(schedule, Mapping):
        choose(str(schedule), SCHEDULES, f"{where}.schedule")


def sum_of_terms(terms: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Add up what a :class:`fakedet.losses.ContrastiveLoss` returned; gives the sum and the named terms.

    UserError if it returned anything else than scalars.
    """
    named = terms if isinstance(terms, Mapping) else {"contrastive": terms}
    are_scalars = all(isinstance(term, float | Tensor) and not getattr(term, "ndim", 0) for term in named.values())
    total = sum(named.values()) if are_scalars else None
    if not isinstance(total, Tensor):
        shape = f" of shape {tuple(terms.shape)}" if isinstance(terms, Tensor) else ""
        raise UserError(
            f"the contrastive loss returned a {type(terms).__name__}{shape}; it must return a tensor without "
            "dimensions, or a mapping of names to such tensors; see fakedet.losses.ContrastiveLoss"
        )
    return total, named


def gather_rows(module: LightningModule, rows: Tensor) -> Tensor:
    """Concatenate the rows (B, ...) of all ranks, with gradients; on one rank they stay as they are.

    Every rank has the same B and computes the same loss over all rows; the gradient of the gather sums over ranks and
    DDP averages over them, which together give the gradient of a single process with the whole batch.
    """
    trainer = module._trainer
    if trainer is None or trainer.world_size == 1:
        return rows
    gathered = module.all_gather(rows, sync_grads=rows.requires_grad)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)


def gather_records(records: list[Record]) -> list[Record]:
    """Join picklable records of all ranks, in the order of the ranks; collective under DDP."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return records
    gathered: list[list[Record]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, records)
    return [record for of_rank in gathered for record in of_rank]


def watched(batches: Any, what: str) -> Iterator[dict[str, Any]]:
    """Yield the batches of a loader or list that hold images, and show how far a frozen backbone is with them."""
    if isinstance(batches, list):
        total: int | None = sum(len(batch["id"]) for batch in batches)
    else:
        ids = getattr(getattr(batches, "batch_sampler", None), "ids", None)
        total = None if ids is None else len(ids)
    done, known = 0, FeatureCache.computed
    with bar(what, total) as shown:
        for batch in batches:
            if len(batch["id"]):
                yield batch
                done += len(batch["id"])
                shown.show(done)
    if computed := FeatureCache.computed - known:
        log.info("%s: %s (%s computed, the others known)", what, shown.told(done), f"{computed:,}")


def first_view(batch: dict[str, Any]) -> Tensor:
    """Return the first view of each image of a batch, float (B, 3, H, W) in [0, 1]."""
    return _scaled(batch["image"][:, 0])


def check_range(images: Tensor) -> None:
    """Refuse images that are not floats in [0, 1]: any model takes them, and what it says of them means nothing.

    Raises:
        UserError: another dtype, NaN, or values out of range; says what to do.
    """
    told = f"a tensor of {images.dtype} of shape {tuple(images.shape)}: a model takes RGB images as floats in [0, 1]"
    if not images.is_floating_point():
        raise UserError(f"{told}; divide uint8 by 255, as in images / 255")
    if images.numel():
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise UserError(f"{told}; its values run from {low:g} to {high:g}: divide 0 ... 255 by 255, and do not "
                            "normalise")  # fmt: skip


def _check_arguments(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Check the images that a method is called with, except while it is traced, when they have no values."""
    images = arguments[0] if arguments else named.get("images")
    if isinstance(images, Tensor) and images.dtype != torch.int64 and not torch.compiler.is_compiling():
        check_range(images)


class Scores(NamedTuple):
    """A detector's output for each image of a batch."""

    logit: Tensor
    """(B,) float32; sigmoid(logit) = P(fake)."""
    embedding: Tensor
    """(B, D) float32; what the embedding map draws."""
    trace_distance: Tensor
    """(B,) float32 distance from the natural traces; NaN where a method has none."""


class Detector(LightningModule):
    """Score images, log the loss, and measure AP per generator on the validation and test splits.

    Subclasses define :meth:`forward` and ``training_step``. Every checkpoint holds ``info``: the model's config, the
    generators seen in training and the crop, all that is needed to build the detector again and to say what it knows.
    It has plain values only, so that checkpoints load with ``weights_only``.
    """

    encoder: nn.Module
    needs_stage1: ClassVar[bool] = False
    """Whether the method is built over a trained stage 1, passed to it as ``source``."""
    features_only: bool = False
    """Whether images go into frozen encoders alone, so that :class:`fakedet.models.features.Pictures` may stand for
    them."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.info: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.trust: tuple[str, ...] = ()
        self.backbone: str | Path | None = None
        self.metric: GeneratorAveragePrecision | None = None
        self.quarantined: list[dict[str, Any]] = []
        self.register_forward_pre_hook(_check_arguments, with_kwargs=True)

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The threshold, calibration and reference that were fitted after training, if the checkpoint has them."""
        content = self.info.get("operating_point")
        return OperatingPoint.from_dict(content) if content else None

    @abstractmethod
    def forward(self, images: Tensor) -> Scores:
        """Score float RGB images (N, 3, H, W) in [0, 1]."""

    def freeze_for_export(self) -> None:
        """Turn what depends on values of buffers into constants, so that the forward pass can be traced."""
        for module in self.modules():
            if callable(freeze := getattr(module, "freeze", None)):
                freeze()

    # --- Lightning's hooks -----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Make the metric for the generators of the attached data."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and stage != "predict":
            cells = data.cells
            metric = GeneratorAveragePrecision(cells.names, cells.is_fake, cells.counterparts)
            self.metric = metric.to(self.device)

    def on_fit_start(self) -> None:
        """Fit an encoder that has ``fit_reals`` to at most 4096 real training photographs, as evaluation sees them."""
        if callable(fit := getattr(self.encoder, "fit_reals", None)):
            loader = self.trainer.datamodule.bank_dataloader(4096)  # type: ignore[attr-defined]
            batches = watched(loader, "features of training photographs")
            fit(first_view(batch).to(self.device) for batch in batches)

    def configure_optimizers(self) -> Any:
        """Build the optimiser over everything that is not frozen."""
        total = int(self.trainer.estimated_stepping_batches)
        return configure_optimiser(self.parameters(), self.optimizer_settings, total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the info into the checkpoint, and leave out the public backbones that it names."""
        checkpoint["fakedet"] = self.info
        checkpoint["state_dict"] = self.own_weights(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise UserError if the checkpoint that training goes on from leaves out a backbone with other weights."""
        check_backbones(checkpoint["fakedet"], self.info, "the checkpoint to go on from", "model.encoder.weights")

    def own_weights(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state dict without the public backbones that ``info`` names."""
        left_out = tuple(f"{place}." for place in self.info.get("backbones") or ())
        return {name: value for name, value in state.items() if not name.startswith(left_out)}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights; public backbones that ``info`` names stay as they are."""
        whole = self.state_dict()
        left_out = whole.keys() - self.own_weights(whole).keys()
        return super().load_state_dict({**{name: whole[name] for name in left_out}, **state_dict}, *args, **kwargs)

    def predict_step(self, batch: dict[str, Any], batch_idx: int = 0) -> Scores:
        """Score the images of a batch; the one way to score, in validation, test and prediction alike."""
        return self.score_views(_scaled(batch["image"]))

    def on_validation_start(self) -> None:
        """Forget the scores of the epoch before."""
        assert self.metric is not None
        self.metric.reset()
        self._bar = Bar("validation, batches", int(sum(self.trainer.num_val_batches)))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect scores on the validation split."""
        self._collect(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log mAP, AP per generator, the loss and the accuracy at logit 0 on the validation split."""
        assert self.metric is not None
        # From the gathered rows: exact over uneven ranks, and no rank can wait for one that has no rows.
        rows = self.metric.rows()
        if len(rows["logit"]):
            loss = F.binary_cross_entropy_with_logits(rows["logit"], rows["label"].to(rows["logit"].dtype))
            self.log("val/loss", float(loss), batch_size=1)
            right = (rows["logit"] > 0) == (rows["label"] == 1)
            self.log("val/accuracy", float(right.double().mean()), batch_size=1)
        self._log_metric("val")

    def on_test_start(self) -> None:
        """Show how far the scoring is."""
        self._bar = Bar("scoring, batches", int(sum(self.trainer.num_test_batches)))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect scores on the test split."""
        self._collect(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log mAP and AP per generator on the test split."""
        self._log_metric("test")

    def _collect(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert self.metric is not None
        self.quarantined.extend(batch["quarantined"])
        scores = self.predict_step(batch, batch_idx)
        self.metric.update(batch["id"], batch["label"], batch["generator"], scores.logit, scores.trace_distance)
        self._bar.show(batch_idx + 1)

    def _log_metric(self, stage: str) -> None:
        assert self.metric is not None
        # One dictionary at the end of an epoch; logging ten keys on every step would cost milliseconds each.
        values = {f"{stage}/{key}": float(value) for key, value in self.metric.compute().items()}
        self.log_dict(values, batch_size=1)

    def log_step(self, loss: Tensor, rows: int, terms: Callable[[], Mapping[str, Tensor]] | None = None) -> None:
        """Log the loss of a training step, and its terms every ``trainer.log_every_n_steps`` steps.

        Args:
            loss: a scalar, logged as ``train/loss``.
            rows: of the batch; weighs it in the epoch's mean.
            terms: computes further values by their key; called only when they are logged.
        """
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=rows)
        due = not self.global_step % self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if terms is not None and (due or self.trainer.is_last_batch):
            self.log_dict(dict(terms()), batch_size=rows)

    # --- parts -----------------------------------------------------------------------------------------

    def take(self, batch: dict[str, Any]) -> Tensor:
        """Return a training batch's images, float (B, V, 3, H, W) in [0, 1], and note the unreadable files."""
        self.quarantined.extend(batch.get("quarantined", ()))
        return _scaled(batch["image"])

    def score_views(self, images: Tensor) -> Scores:
        """Score (B, V, 3, H, W) and average each image's V views."""
        batch, views = images.shape[:2]
        if batch == 0:
            empty = images.new_zeros(0)
            return Scores(empty, images.new_zeros(0, 1), empty)
        scores = self(images.flatten(0, 1))
        shapes = [tuple(value.shape) for value in scores] if isinstance(scores, tuple) else []
        rows = (batch * views,)
        if len(shapes) != 3 or [shapes[0], shapes[1][:-1], shapes[2]] != [rows] * 3:
            told = f"{type(self).__name__}.forward returned {shapes or type(scores).__name__} for {rows[0]} images"
            raise UserError(
                f"model: {told}; it must return fakedet.methods.base.Scores: logit (N,), embedding (N, D), "
                "trace_distance (N,)"
            )
        return Scores(*(value.float().unflatten(0, (batch, views)).mean(dim=1) for value in scores))


def _scaled(images: Tensor) -> Tensor:
    """Scale uint8 images to float [0, 1], on their device: they travel there as a quarter of the bytes."""
    if images.dtype == torch.uint8:
        return images.float().div_(255.0)
    if images.dtype != torch.int64:  # handles
        check_range(images)  # of a data module of the user's own
    return images
