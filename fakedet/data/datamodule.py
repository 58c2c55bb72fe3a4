"""data/datamodule"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch.distributed
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fakedet.data.dataset import (
    EvaluationDataset,
    ImageDataset,
    ImageLoader,
    check_workers,
    cores,
    make_loader,
)
from fakedet.data.manifest import Cells, Manifest, hold_out, load_manifest, make_cells
from fakedet.data.match import Matcher, make_matcher
from fakedet.data.sampler import BalancedBatchSampler, EvaluationSampler, Shards
from fakedet.data.sources import Source, make_source
from fakedet.data.transforms import POLICIES, Augmentation
from fakedet.errors import UserError, choose

OPTIONAL = ("steps_per_epoch", "max_train_reals")


def check_settings(
    eval_policy: str, num_workers: int, max_quarantine: float, matcher: Matcher | None, **sizes: int | None
) -> None:
    """Check the settings of :class:`fakedet.data.datamodule.ImageDataModule`.

    Raises:
        UserError: the first that is out of range, with what would be valid.
    """
    for name, size in sizes.items():
        if size is None and name in OPTIONAL:
            continue
        if not isinstance(size, int) or size < 1:
            raise UserError(f"data.{name}={size}: must be a whole number, at least 1")
    check_workers(num_workers)
    choose(eval_policy, POLICIES, "data.eval_policy")
    if not 0 <= max_quarantine <= 1:
        raise UserError(f"data.max_quarantine={max_quarantine}: must be a share between 0 and 1")
    crop = sizes["crop_size"] or 0
    if matcher is not None and matcher.size < crop:
        raise UserError(
            f"data.crop_size={crop} is larger than data.match.size={matcher.size}; crops are cut from matched images"
        )


log = logging.getLogger("fakedet")


class ImageDataModule(LightningDataModule):
    """Serve the images of a manifest.

    Args:
        manifest: the table; see :func:`fakedet.data.manifest.load_manifest`.
        root: folder that its paths are relative to; None: its own folder.
        pairs: generator → the reals it is compared with; see :mod:`fakedet.metrics.per_generator`.
        crop_size: side of the square that the detector sees.
        eval_policy: "crop", "multi-crop" or "resize".
        batch_size: of the global training batch, over all ranks.
        eval_batch_size: of evaluation, a rank.
        num_workers: processes that load images.
        steps_per_epoch: None: as many as one pass over the training rows takes.
        max_quarantine: largest share of unreadable images.
        max_train_reals: train on at most this many reals, evenly thinned; None: all.
        allow_group_leak: see :func:`fakedet.data.manifest.load_manifest`.
        hold_out: generators whose fakes are not trained on; see :func:`fakedet.data.manifest.hold_out`.
        measure: what is tested where generators are held out, "test" or "held_out".
        match: settings of a :class:`fakedet.data.match.Matcher`; without a size, images are taken as they are.
        shard_window: shards of each stratum that are open at a time; see :class:`BalancedBatchSampler`.
        shard_cache: folder for shards of an object store; None: litdata's own.
        augment: makes the training views.
        views: views of each training image.
        real_only: serve reals only in training (stage 1).
        seed: of sampling and augmentation.
    """

    def __init__(
        self,
        manifest: str,
        root: str | None = None,
        pairs: Mapping[str, Any] | None = None,
        crop_size: int = 128,
        eval_policy: str = "crop",
        batch_size: int = 64,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        steps_per_epoch: int | None = None,
        max_quarantine: float = 0.05,
        max_train_reals: int | None = None,
        allow_group_leak: bool = False,
        hold_out: Sequence[str] = (),
        measure: str = "test",
        match: Mapping[str, Any] | None = None,
        shard_window: int = 4,
        shard_cache: str | None = None,
        augment: Augmentation | None = None,
        views: int = 1,
        real_only: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.matcher = make_matcher(dict(match or {}))
        check_settings(
            eval_policy, num_workers, max_quarantine, self.matcher, crop_size=crop_size, batch_size=batch_size,
            eval_batch_size=eval_batch_size, views=views, steps_per_epoch=steps_per_epoch,
            max_train_reals=max_train_reals, shard_window=shard_window,
        )  # fmt: skip
        self.source = (manifest, root)
        self.pairs, self.crop_size, self.eval_policy = pairs, crop_size, eval_policy
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.steps_per_epoch = num_workers, steps_per_epoch
        self.max_quarantine, self.max_train_reals = max_quarantine, max_train_reals
        self.allow_group_leak = allow_group_leak
        self.held_out = (tuple(hold_out), measure)
        self.augment = augment or Augmentation("none")
        self.views, self.real_only, self.seed = views, real_only, seed
        self.test_split, self.shard_window, self.shard_cache = "test", shard_window, shard_cache
        self._manifest: Manifest | None = None
        self.as_read: Manifest | None = None  # before anything is held out
        self._image_source: Source | None = None
        self._cells: dict[str, Cells] = {}
        self._measured = "val"
        self._training: ImageLoader | None = None
        self._position: dict[str, int] = {}

    # --- the data --------------------------------------------------------------------------------------

    def locate(self) -> tuple[Path, Path | str | None]:
        """Give the manifest's path and root; a subclass may make them first."""
        manifest, root = self.source
        # A URL is no path: Path would take a slash out of it.
        return Path(manifest), root if root is None or "://" in root else Path(root)

    def prepare(self) -> None:
        """Read and check the manifest, once."""
        if self._manifest is None:
            path, root = self.locate()
            manifest = load_manifest(path, root, self.allow_group_leak)
            self._manifest, self.as_read = hold_out(manifest, *self.held_out), manifest
            for note in manifest.notes:
                log.info("%s: %s", path.name, note)
            if self.num_workers > cores():
                log.info("data.num_workers=%d on %d cores: rarely faster", self.num_workers, cores())

    def take_manifest_of(self, other: ImageDataModule) -> None:
        """Use the manifest of another data module over the same data instead of reading it again."""
        self._manifest, self.as_read = other.manifest, other.as_read

    def read_bytes(self, row: int) -> bytes:
        """Read the file of a row, matched if that is asked for.

        Raises:
            DecodeError: it cannot be read or matched.
        """
        return self.image_source.read(row)

    @property
    def image_source(self) -> Source:
        """Where the images' bytes come from, matched if that is asked for."""
        if self._image_source is None:
            self._image_source = make_source(self.manifest, self.matcher, self.shard_cache)
        return self._image_source

    @property
    def manifest(self) -> Manifest:
        """The checked manifest."""
        self.prepare()
        assert self._manifest is not None
        return self._manifest

    def setup(self, stage: str) -> None:
        """Read the manifest, and remember which split :attr:`cells` pairs: the one that will be measured."""
        self.prepare()
        self._measured = self.test_split if stage == "test" else "val"

    @property
    def cells(self) -> Cells:
        """The metric's cells, and their pairing among the rows of the split that is measured.

        Pairing within the split, as the report pairs its predictions: reals that only the training split has
        are no counterparts of a test.
        """
        if self._measured not in self._cells:
            self._cells[self._measured] = make_cells(self.manifest, self.pairs, self._measured)
        return self._cells[self._measured]

    @property
    def views_repeat(self) -> bool:
        """Whether a training image looks the same each time: no augmentation, and no larger than the crop."""
        if not self.augment.only_crops:
            return False
        if self.matcher is not None:
            return bool(self.matcher.size == self.crop_size)
        facts = self.manifest.facts
        if facts is None or not {"width", "height"} <= set(facts.column_names):
            return False
        ids = self._training_rows().index.to_numpy()
        # Text in a CSV table, and of some images the size may not be known.
        sides = (pd.to_numeric(facts[side].to_pandas(), errors="coerce") for side in ("width", "height"))
        return all(bool((side.to_numpy()[ids] == self.crop_size).all()) for side in sides)

    @property
    def seen_generators(self) -> list[str]:
        """Generators whose fakes are trained on."""
        rows = self.manifest.rows("train")
        return sorted(rows.loc[rows["label"] == 1, "generator"].unique().tolist())

    def require(self, *splits: str) -> None:
        """Check that there is something to train on and to measure.

        Raises:
            UserError: a split is empty; for a detector's training and validation, also one without reals or
                without fakes, because batches need both and so does the mAP that chooses the weights.
        """
        for split in splits:
            self.manifest.require(split, both_classes=split in ("train", "val") and not self.real_only)
        if self.real_only and not (self.manifest.rows("train")["label"] == 0).any():
            raise UserError("the split 'train' has no real images (label 0); stage 1 learns from those alone")

    def has_split(self, split: str) -> bool:
        """Say whether a split has any image."""
        return not self.manifest.rows(split).empty

    def describe(self) -> str:
        """Count images per split and class in one line."""
        parts = []
        for split in ("train", "val", "test"):
            rows = self._training_rows() if split == "train" else self.manifest.rows(split)
            labels = rows["label"]
            parts.append(f"{split} {int((labels == 0).sum())} real + {int((labels == 1).sum())} fake")
        return ", ".join(parts)

    # --- loaders ---------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Load balanced batches; stage 1 gets reals only."""
        rows = self._training_rows()
        ids = rows.index.to_numpy()
        rank, world_size = _ranks()
        # Rounded up: one pass leaves no row out for lack of a whole batch.
        steps = self.steps_per_epoch or -(-len(rows) // self.batch_size)
        sampler = BalancedBatchSampler(
            ids, rows["label"].to_numpy(), rows["generator"].tolist(), rows["source"].tolist(),
            self.batch_size, steps, self.seed, self.real_only, rank, world_size, self._shards(),
        )  # fmt: skip
        dataset = ImageDataset(
            self.manifest, self.cells.codes, self.augment, self.crop_size, self.views, ids, self.image_source
        )
        if self._position:
            sampler.set_epoch(self._position["epoch"])
            sampler.set_start_step(self._position["step"])
        self._training = self._loader(dataset, sampler)
        return self._training

    def state_dict(self) -> dict[str, int]:
        """Return where a resumed training goes on: the epoch and its next step, the same on every rank."""
        if self._training is None:
            return {}
        sampler: Any = self._training.batch_sampler
        epochs, step = divmod(sampler.start_step + self._training.taken, sampler.steps)
        return {"epoch": sampler.epoch + epochs, "step": step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader begin where the state was taken."""
        self._position = state_dict

    def val_dataloader(self) -> DataLoader[Any]:
        """Load the validation split."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Load the split named by ``test_split``."""
        return self.eval_dataloader(self.test_split)

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Load every image of a split once over all ranks, in order, nothing padded or dropped."""
        return self._eval_loader(self.manifest.rows(split).index.to_numpy(), *_ranks())

    def bank_dataloader(self, limit: int, label: int = 0) -> DataLoader[Any]:
        """Load at most ``limit`` training reals (label 1: fakes), evenly thinned, as evaluation sees them."""
        rows = self._training_rows()
        return self._eval_loader(_thinned(rows.index[rows["label"] == label].to_numpy(), limit), 0, 1)

    def subset_dataloader(self, ids: NDArray[np.int64]) -> DataLoader[Any]:
        """Load these rows, as evaluation sees them, on every rank alike."""
        return self._eval_loader(ids, 0, 1)

    def _eval_loader(self, ids: NDArray[np.int64], rank: int, world_size: int) -> DataLoader[Any]:
        dataset = EvaluationDataset(
            self.manifest, self.cells.codes, self.eval_policy, self.crop_size, self.image_source
        )
        return self._loader(dataset, EvaluationSampler(ids, self.eval_batch_size, rank, world_size))

    def _loader(self, dataset: Any, sampler: Any) -> ImageLoader:
        return make_loader(dataset, sampler, self.num_workers, self.seed)

    def _shards(self) -> Shards | None:
        if self.manifest.shards is None:
            return None
        return Shards(self.manifest.fact("shard"), self.shard_window)

    def _training_rows(self) -> Any:
        rows = self.manifest.rows("train")
        if self.max_train_reals is not None:
            kept = _thinned(rows.index[rows["label"] == 0].to_numpy(), self.max_train_reals)
            rows = rows[(rows["label"] == 1) | rows.index.isin(kept)]
        return rows[rows["label"] == 0] if self.real_only else rows


def _thinned(ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(ids) <= most:
        return ids
    kept: NDArray[np.int64] = ids[np.linspace(0, len(ids) - 1, most).round().astype(int)]
    return kept


def _ranks() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
