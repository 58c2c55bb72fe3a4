"""Score images, fit the operating point, measure, and write what training and evaluation leave behind."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray
from torch import Tensor

from fakedet.checkpoint import read_checkpoint, write_whole
from fakedet.data.datamodule import DataModule
from fakedet.data.decode import DecodeError, decode_image
from fakedet.data.manifest import Quarantine, hold_out
from fakedet.errors import UserError
from fakedet.evaluation.plots import project
from fakedet.evaluation.predictions import (
    MAP,
    ORIGINAL,
    called_fake,
    confident_errors,
    examples,
    left_out_folders,
    write_predictions,
)
from fakedet.methods.base import Detector, gather_records
from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.calibration import KINDS
from fakedet.metrics.decisions import OperatingPoint, accuracies, decision_statistics, fit_operating_point
from fakedet.metrics.matched import compress_content, content_note
from fakedet.metrics.pairing import pairing_notes
from fakedet.metrics.per_generator import evaluate_frame
from fakedet.models.backbones import FrozenBackbone
from fakedet.utils import Bar, write_json

log = logging.getLogger("fakedet")

MAPPED = 800  # images in the embedding map: enough to see clusters, few enough to see points


def score_split(trainer: Trainer, method: Detector, datamodule: DataModule, split: str) -> pd.DataFrame:
    """Score every image of a split once, by ``trainer.validate`` for "val" and ``trainer.test`` for others.

    Returns:
        One row per readable image, in the order of the manifest; the rows of all ranks, on every rank. Where the
        detector has a frozen backbone, with the column ``content``: what its last level says of each image.
    """
    content = _Content(method)
    trainer.callbacks.append(content)  # type: ignore[attr-defined]
    if split == "val":
        trainer.validate(method, datamodule=datamodule, verbose=False)  # type: ignore[arg-type]
    else:
        datamodule.test_split = split
        trainer.test(method, datamodule=datamodule, verbose=False)  # type: ignore[arg-type]
    trainer.callbacks.remove(content)  # type: ignore[attr-defined]
    assert method.metric is not None
    rows = {key: value.cpu().numpy() for key, value in method.metric.rows().items()}
    scores = {"logit": rows["logit"].astype(np.float64), "trace_distance": rows["distance"].astype(np.float64)}
    frame = datamodule.manifest.frame.loc[rows["id"]].reset_index(names="id")
    frame = frame.assign(view=ORIGINAL, crop=f"{datamodule.eval_policy}{datamodule.crop_size}", **scores)
    return content.added_to(frame)


class _Content(Callback):
    """Keep what a method's frozen backbone says of the images that are scored: its features are no result of training.

    Without such a backbone nothing is kept.
    """

    def __init__(self, method: Detector) -> None:
        self._known: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._last: Tensor | None = None
        encoder: Any = getattr(method, "encoder", None)
        backbone: Any = getattr(encoder, "backbone", None)
        self._width = 0  # all
        if isinstance(backbone, FrozenBackbone):  # its last level alone: those before it say less of content
            levels: Any = backbone.model.feature_info
            self._width = int(levels[backbone.levels[-1]]["num_chs"])
        else:
            backbone = encoder if getattr(encoder, "frozen", False) else None
        self._hook = backbone.register_forward_hook(self._keep) if backbone is not None else None

    def _keep(self, module: Any, arguments: Any, features: Tensor) -> None:
        self._last = features[:, -self._width :]

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Keep the features of a batch, averaged over the views of an image."""
        ids = batch["id"].cpu().numpy()
        if self._last is not None and len(ids) and len(self._last) % len(ids) == 0:
            views = self._last.float().unflatten(0, (len(ids), -1))
            self._known.append((ids, views.mean(dim=1).cpu().numpy()))
        self._last = None

    def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
        """Do the same."""
        self.on_test_batch_end(*arguments, **named)

    def added_to(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Add the column ``content`` to a frame with the column id; call it on every rank."""
        if self._hook is None:
            return frame
        self._hook.remove()
        if not (known := gather_records(self._known)):
            return frame
        ids = np.concatenate([own for own, _ in known])
        rows = pd.Series(list(compress_content(np.concatenate([own for _, own in known]))), index=ids)
        return frame.assign(content=rows[~rows.index.duplicated()].reindex(frame["id"]).to_numpy())


def predict(
    trainer: Trainer, method: Detector, loader: Any, columns: tuple[str, ...], what: str
) -> dict[str, NDArray[Any]]:
    """Score the images of a loader by ``trainer.predict``; call it on every rank.

    Args:
        loader: gives this rank's batches.
        columns: entries of the batch or of :class:`fakedet.methods.base.Scores`.
        what: name of the work, for the progress bar.

    Returns:
        Each column, (N, ...), on the CPU, floats as float64; N may be 0.
    """
    collector = _Collector(columns)
    trainer.callbacks.append(collector)  # type: ignore[attr-defined]
    try:
        trainer.predict(method, dataloaders=_Batches(loader, what), return_predictions=False)
    finally:
        trainer.callbacks.remove(collector)  # type: ignore[attr-defined]
    found = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in collector.parts.items()}
    return {name: rows.astype(np.float64) if rows.dtype.kind == "f" else rows for name, rows in found.items()}


class _Batches:
    """A loader with progress; not a DataLoader, which Lightning would rebuild with a warning about our sampler."""

    def __init__(self, loader: Any, what: str) -> None:
        self._loader, self._what = loader, what

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        shown = Bar(f"{self._what}, batches", len(self))
        for done, batch in enumerate(self._loader, start=1):
            yield batch
            shown.show(done)


class _Collector(Callback):
    """Keep some columns of each predicted batch; the embeddings of all images would fill the memory."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.parts: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if len(batch["id"]):
            for name, parts in self.parts.items():
                parts.append((batch[name] if name in batch else getattr(outputs, name)).cpu().numpy())


def check_operating_point(rate: float, calibration: str, runs: str | list[str] | None = None) -> None:
    """Raise UserError, before training, if the rate is no share, or there is no such calibration or no predictions."""
    if not 0 < rate < 1:
        raise UserError(f"operating_point.rate={rate}: a share of reals between 0 and 1, such as 0.05")
    if calibration not in KINDS:
        raise UserError(f"operating_point.calibration={calibration}: valid: {', '.join(KINDS)}")
    if runs:
        left_out_folders(runs)


def fit_decisions(
    trainer: Trainer, method: Detector, datamodule: DataModule, rate: float, calibration: str, checkpoint: Path,
    left_out: pd.DataFrame | None = None,
) -> None:  # fmt: skip
    """Fit the operating point and write it into the checkpoint and the method.

    Args:
        trainer, method, datamodule: of the training; the method has the chosen weights.
        rate: share of reals that may be called fake.
        calibration: one of :data:`fakedet.metrics.calibration.KINDS`.
        checkpoint: of the chosen weights; it is rewritten.
        left_out: what it is fitted on, of :func:`fakedet.evaluation.predictions.read_left_out`; None: the validation
            split.
    """
    frame = _validated(trainer, method, datamodule) if left_out is None else left_out
    reals = datamodule.bank_dataloader(512)  # for the centre and spread of the reference
    training = predict(trainer, method, reals, ("logit", "trace_distance"), "training reals")
    if not trainer.is_global_zero:
        return
    if datamodule.real_only:  # stage 1 has seen no fake, and no fake may influence what is fitted for it
        frame = frame[frame["label"] == 0]
    if not (frame["label"] == 0).any():
        log.warning("no operating point: no real image of the validation split could be read")
        return
    names = () if left_out is None else (frame["left_out"], frame["group"])
    point = fit_operating_point(
        frame["logit"], frame["trace_distance"], frame["label"], training["logit"], training["trace_distance"],
        rate, calibration, datamodule.manifest.sha256, "val" if left_out is None else "left out of training", *names,
    )  # fmt: skip
    for note in [*point.notes, *(() if point.left_out is None else (point.left_out,))]:
        log.info("operating point: %s", note)
    method.info["operating_point"] = point.to_dict()
    write_whole({**read_checkpoint(checkpoint), "fakedet": method.info}, checkpoint)


def _validated(trainer: Trainer, method: Detector, datamodule: DataModule) -> pd.DataFrame:
    # limit_val_batches shortens the validation of an epoch; the operating point is fitted on all images. Without
    # loggers, because the curves show the training and end with it.
    limit, loggers = trainer.limit_val_batches, trainer.loggers
    trainer.limit_val_batches, trainer.loggers = trainer.limit_test_batches, []
    frame = score_split(trainer, method, datamodule, "val")
    trainer.limit_val_batches, trainer.loggers = limit, loggers
    return frame


def used_for_fitting(method: Detector, datamodule: DataModule, split: str) -> str:
    """Return what images of a split were used for when the detector was made: "training", "fitting" or "" (nothing).

    Rows are compared, not the split's name, because what a name stands for depends on what is held out.
    """
    if method.info.get("manifest_sha256") != datamodule.manifest.sha256:
        return ""
    made_with = hold_out(datamodule.as_read, *method.info.get("held_out", ((), "test"))).frame["split"]
    found = set(made_with.loc[datamodule.manifest.rows(split).index])
    fitted = {"val"} if method.operating_point else set()
    return "training" if found & ({"train", "val"} - fitted) else "fitting" if found & fitted else ""


def apply_operating_point(point: OperatingPoint | None, frame: pd.DataFrame) -> pd.DataFrame:
    """Add score, p_value and verdict to a frame of logits and trace distances."""
    logits = frame["logit"].to_numpy(dtype=np.float64)
    if point is None:
        return frame.assign(score=1 / (1 + np.exp(-np.clip(logits, -700, 700))), p_value=np.nan, verdict="")
    p_values = point.reference.p_values(logits, frame["trace_distance"]) if point.reference else np.nan
    verdict = np.where(logits > point.threshold, "fake", "real")
    return frame.assign(score=point.calibration(logits), p_value=p_values, verdict=verdict)


def known_reals(datamodule: DataModule) -> set[str]:
    """Return the names of all reals of a manifest: pairs may name reals that are in another split."""
    reals = datamodule.manifest.frame.query("label == 0")
    return (set(reals["generator"]) | set(reals["source"])) - {""}


def measure_predictions(
    frame: pd.DataFrame, datamodule: DataModule, method: Detector, bootstrap: Mapping[str, int]
) -> dict[str, Any]:
    """Compute metrics.json's content from a predictions frame of the data module's manifest.

    Args:
        frame: one row per image, with the scores of :func:`apply_operating_point`.
        method: that scored them; without an operating point, there are no accuracies and no calibration.
        bootstrap: resamples and seed.
    """
    resamples, seed, reals = int(bootstrap["resamples"]), int(bootstrap["seed"]), known_reals(datamodule)
    seen, trained, point = method.info["seen_generators"], method.info["pairs"], method.operating_point
    metrics = evaluate_frame(frame, datamodule.pairs, seen, n_resamples=resamples, seed=seed, known_reals=reals)
    scores = frame["score"].to_numpy() if point is not None and point.calibration.kind != "none" else None
    threshold = None if point is None else point.threshold
    decisions = decision_statistics(frame, scores, threshold, datamodule.pairs, resamples, seed, reals)
    for name, entry in metrics["per_generator"].items():
        entry |= {key: interval.to_dict() for key, interval in decisions[name].items()}
    alone = accuracies(frame, {"": called_fake(frame)}, resamples, seed)
    metrics["per_collection"] = {
        row.name: {"n_real": row.n, "n_groups": row.n_groups, "acc_real": row.interval("").to_dict()}
        for row in alone.values() if row.name and not row.label
    }  # fmt: skip
    for key, kind in (("reals", "acc_real"), ("fakes", "acc_fake")):
        if row := alone.get(key):
            metrics[kind] = {**row.interval("").to_dict(), "n": row.n, "n_groups": row.n_groups}
    fakes = datamodule.manifest.frame.query("label == 1")["generator"].unique().tolist()
    metrics["pairs"] = datamodule.pairs and dict(datamodule.pairs)
    plain, matched = (Interval.from_dict(metrics[key]) for key in ("mauc", "mauc_matched"))
    note = content_note(plain, matched, metrics["matched_by"])
    metrics["notes"] = [note] if note else []
    metrics["pairing_notes"] = pairing_notes(frame, datamodule.pairs, {"in training": trained}, reals, fakes)
    # The scores of the point's reference stay in the checkpoint.
    fitted = None if point is None else {
        "rate": point.rate, "threshold": point.threshold if math.isfinite(point.threshold) else None,
        "calibration": point.calibration.kind, "n_real": point.n_real, "n_fake": point.n_fake,
        "manifest_sha256": point.manifest, "split": point.split, "notes": list(point.notes),
        "left_out": point.left_out and point.left_out.to_dict(),
    }  # fmt: skip
    return {**metrics, "operating_point": fitted}


def info_of(method: Detector, datamodule: DataModule, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method's info, with how these predictions were scored and measured instead of how training was."""
    return {
        **method.info, "crop_size": datamodule.crop_size, "eval_policy": datamodule.eval_policy,
        "match": datamodule.matcher.to_dict() if datamodule.matcher else None, "pairs": metrics["pairs"],
        "training_pairs": method.info["pairs"], "known_reals": sorted(known_reals(datamodule)),
        "pairing_notes": metrics["pairing_notes"],
    }  # fmt: skip


def map_embeddings(
    trainer: Trainer, method: Detector, datamodule: DataModule, frame: pd.DataFrame
) -> tuple[pd.DataFrame, list[float]]:
    """Embed some images of a frame that has one row per image; call it on every rank.

    Returns:
        The frame with the images' places on the embedding map, and the share of variance on its two components
        (empty where there are too few images for a map).
    """
    ids = frame["id"].to_numpy()
    if len(ids) > MAPPED:
        ids = ids[np.linspace(0, len(ids) - 1, MAPPED).round().astype(int)]
    found = predict(trainer, method, datamodule.subset_dataloader(ids), ("id", "embedding"), "embedding map")
    if len(found["id"]) <= 2:
        return frame, []
    places, share = project(found["embedding"])
    table = pd.DataFrame(places, index=found["id"], columns=MAP).reindex(frame["id"])
    return frame.assign(**{name: table[name].to_numpy() for name in MAP}), share.tolist()


def small_pictures(
    datamodule: DataModule, frame: pd.DataFrame, point: OperatingPoint | None, count: int
) -> dict[str, bytes]:
    """Make small JPEGs (path → JPEG, longer side 224 pixels) of the most confident errors and of examples.

    Args:
        datamodule, frame: the frame has one row per image, scored with the data module.
        point: the detector's operating point; None: the most wrong images are shown whatever their logit.
        count: greatest number of each kind of error; 0: no pictures at all.
    """
    threshold = point.threshold if point is not None and math.isfinite(point.threshold) else None
    worst = pd.concat([*confident_errors(frame, threshold, count), examples(frame).head(60 * count)])
    pictures = {}
    for path, row in worst.drop_duplicates("path")[["path", "id"]].itertuples(index=False):
        with suppress(DecodeError):  # it could be read a moment ago
            image = decode_image(datamodule.read_bytes(row))
            scale = min(1.0, 224 / max(image.shape[:2]))
            size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
            small = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
            pictures[str(path)] = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return pictures


def write_results(
    folder: Path, frame: pd.DataFrame, metrics: dict[str, Any], quarantine: Quarantine, info: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> None:  # fmt: skip
    """Write predictions.parquet, metrics.json and, where images were unreadable, quarantine.csv.

    Args:
        frame: the predictions of all views.
        metrics, pictures: from :func:`measure_predictions` and :func:`small_pictures`.
        info: of the detector and the run, for the predictions file; it has ``split`` and ``shortcut``.
    """
    write_predictions(frame, folder / "predictions.parquet", dict(info), pictures)
    lost = quarantine.lost(str(info["split"]), frame)
    for name in lost:
        log.warning("none of the images of '%s' could be read: it is in no table, see quarantine.csv", name)
    if len(quarantine):
        log.warning("%s; see quarantine.csv", quarantine.describe())
    found = {"shortcut": info["shortcut"], "lost_generators": lost, "quarantined": quarantine.summary()}
    of_run = {key: info[key] for key in ("checkpoint", "split", "seen_generators")}
    write_json(folder / "metrics.json", {**metrics, **found, **of_run})
    quarantine.write(folder / "quarantine.csv")
