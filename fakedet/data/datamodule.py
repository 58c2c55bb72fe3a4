"""The data module: a manifest's images as balanced training batches and as evaluation batches.

:class:`DataModule` is the protocol that training and evaluation rely on. :class:`ImageDataModule` implements it for
manifests. To use data of your own, name a subclass as ``data._target_`` in the config and override

* :meth:`ImageDataModule.read_manifest`: the images, for example ``Manifest.from_frame(frame, folder)``;
* :meth:`ImageDataModule.make_source`: where their bytes come from, any object with ``read(row) -> bytes``.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch.distributed
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fakedet.data.dataset import EvaluationDataset, ImageDataset, ImageLoader, cores, make_loader
from fakedet.data.manifest import Cells, Manifest, hold_out, load_manifest, make_cells
from fakedet.data.match import MatchedSource, Matcher
from fakedet.data.sampler import BalancedBatchSampler, EvaluationSampler, Shards
from fakedet.data.sources import FileSource, ParquetSource, ShardSource, Source
from fakedet.data.transforms import RECIPES, Augment, Augmentation, check_policy, is_whole
from fakedet.errors import UserError

log = logging.getLogger("fakedet")


class DataModule(Protocol):
    """What training and evaluation need of a data module, besides being a ``LightningDataModule``.

    It is built from the config's ``data`` node, and must also accept the keywords ``augment``, ``views``, ``real_only``
    and ``seed``, as :class:`ImageDataModule` does. Its loaders yield :class:`fakedet.data.dataset.Batch`: Lightning's
    ``train_dataloader``, whose batch sampler is seeded and draws by epoch, and ``val_dataloader`` and
    ``test_dataloader``, which give each image of "val" and of ``test_split`` once over all ranks. For a run that is
    resumed within an epoch, the hooks ``state_dict`` and ``load_state_dict`` carry the position in the training data.
    """

    manifest: Manifest  # The images: labels, generators, splits, groups; the row number is a batch's ``id``
    as_read: Manifest  # The manifest before generators were held out; the same object if none were
    cells: Cells  # Names of the codes in a batch's ``generator``, and which reals each generator is compared with
    pairs: Mapping[str, Any] | None  # See :mod:`fakedet.metrics.pairing`; None: the default rules
    image_source: Source  # Gives the bytes of a row, for degraded views and audits
    crop_size: int
    eval_policy: str  # See :func:`fakedet.data.transforms.evaluation_views`
    num_workers: int
    seed: int
    real_only: bool  # Whether training serves reals only (stage 1)
    max_quarantine: float  # Largest share of unreadable images in a split, 0 to 1
    matcher: Matcher | None  # How images are matched when they are read; the checkpoint remembers it
    held_out: tuple[tuple[str, ...] | str, ...]  # What :func:`fakedet.data.manifest.hold_out` takes, after the manifest
    seen_generators: list[str]  # Generators whose fakes are trained on
    test_split: str  # The split that :meth:`test_dataloader` loads; evaluation sets it

    def prepare(self) -> None:
        """Read what there is to check; mistakes in the data are errors here."""

    def take_manifest_of(self, other: DataModule) -> None:
        """Use the manifest of another data module of the same config; training calls it after stage 1."""

    def require(self, *splits: str) -> None:
        """Raise a UserError if a split cannot be trained on or measured."""

    def has_split(self, split: str) -> bool:
        """Return whether a split has any image."""

    def describe(self) -> str:
        """Return the numbers of images in one line, for the log."""

    def read_bytes(self, row: int) -> bytes:
        """Return the bytes of a row's image file; raise a DecodeError if that is impossible."""

    def bank_dataloader(self, limit: int, label: int = 0) -> Any:
        """Return a loader of at most ``limit`` training images of a class, as evaluation sees them."""

    def subset_dataloader(self, ids: NDArray[np.int64]) -> Any:
        """Return a loader of these rows, as evaluation sees them."""


def check_data_module(module: object) -> DataModule:
    """Check that an object offers what :class:`DataModule` asks for, without reading any data.

    A UserError if it is no LightningDataModule, or if members are missing; all are listed.
    """
    name = f"data._target_={type(module).__module__}.{type(module).__qualname__}"
    if not isinstance(module, LightningDataModule):
        raise UserError(f"{name}: not a lightning.pytorch.LightningDataModule")
    wanted = [name for name in (*inspect.get_annotations(DataModule), *vars(DataModule)) if not name.startswith("_")]
    # Static: a property of the class counts, and is not computed, which might read the data.
    absent = object()
    missing = [name for name in wanted if inspect.getattr_static(module, name, absent) is absent]
    # Lightning's own class has every loader, as a method that only raises an error.
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    missing += [loader for loader in loaders if getattr(type(module), loader) is getattr(LightningDataModule, loader)]
    if missing:
        raise UserError(f"{name} has no {', '.join(missing)}; see fakedet.data.datamodule.DataModule, or make it a "
                        "subclass of fakedet.data.datamodule.ImageDataModule, which has them all")  # fmt: skip
    return cast(DataModule, module)


class ImageDataModule(LightningDataModule):
    """The images of a manifest; see the module's docstring on subclassing it.

    A value out of range is a UserError. Nothing is read until the manifest is first used.

    Args:
        manifest: the table; see :func:`fakedet.data.manifest.load_manifest`.
        root: folder that the table's paths are relative to; None: the table's own folder.
        pairs: generator → the reals it is compared with; see :mod:`fakedet.metrics.pairing`.
        crop_size, eval_policy: side of the square that the detector sees, in pixels; how evaluation takes them, see
            :func:`fakedet.data.transforms.evaluation_views`.
        batch_size, eval_batch_size: images of a training batch over all ranks, and of an evaluation batch on each.
        num_workers: processes that load images.
        steps_per_epoch: training steps of an epoch; None: as many as one pass over the training rows takes.
        max_quarantine: largest share of unreadable images in a split, 0 to 1.
        allow_group_leak: accept a group of images that is in several splits.
        hold_out, hold_out_families, measure: generators and families whose fakes are not trained on, and what is then
            tested, "test" or "held_out"; see :func:`fakedet.data.manifest.hold_out`.
        match: settings of a :class:`fakedet.data.match.Matcher`; with size null or 0, images are taken as they are.
        shard_window: shards, or row groups of parquet files, of each stratum that are open at a time; see
            :class:`BalancedBatchSampler`.
        shard_cache: folder for shards of an object store; None: litdata's own.
        augment, views: makes the training views (None: random crops only); number of views of each training image.
        real_only, seed: serve only reals in training (stage 1); seed of sampling and augmentation.
    """

    def __init__(
        self, manifest: str, root: str | None = None, pairs: Mapping[str, Any] | None = None, crop_size: int = 128,
        eval_policy: str = "crop", batch_size: int = 64, eval_batch_size: int = 128, num_workers: int = 0,
        steps_per_epoch: int | None = None, max_quarantine: float = 0.05, allow_group_leak: bool = False,
        hold_out: Sequence[str] = (), hold_out_families: Sequence[str] = (), measure: str = "test",
        match: Mapping[str, Any] | None = None, shard_window: int = 4, shard_cache: str | None = None,
        augment: Augment | None = None, views: int = 1, real_only: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.table, self.root, self.allow_group_leak, self.pairs = manifest, root, allow_group_leak, pairs
        self.crop_size, self.eval_policy, self.max_quarantine = crop_size, eval_policy, max_quarantine
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.steps_per_epoch = steps_per_epoch
        self.held_out = tuple(hold_out), measure, tuple(hold_out_families)
        self.matcher = Matcher(**match) if match and match.get("size") else None
        self.shard_window, self.shard_cache, self.seed = shard_window, shard_cache, seed
        self.augment, self.views, self.real_only = augment or Augmentation("none"), views, real_only
        self.test_split, self._measured = "test", "val"
        self.by_handle = False  # whether batches may hold handles of pictures; see fakedet.models.features.Pictures
        self._training: ImageLoader | None = None
        self._position: dict[str, int] = {}
        self._cells: dict[str, Cells] = {}
        for name in ("crop_size", "batch_size", "eval_batch_size", "views", "steps_per_epoch", "shard_window"):
            size = getattr(self, name)
            if (not isinstance(size, int) or size < 1) and not (size is None and name == "steps_per_epoch"):
                raise UserError(f"data.{name}={size}: must be a whole number, at least 1")
        most = 4 * cores()  # more only cost memory; a larger number is taken for a typing error
        if not isinstance(num_workers, int) or not 0 <= num_workers <= most:
            raise UserError(f"data.num_workers={num_workers}: this machine has {cores()} cores; valid: 0 (load in the "
                            f"main process) to {most}, best about one a core")  # fmt: skip
        check_policy(self.eval_policy, self.crop_size)
        if not 0 <= self.max_quarantine <= 1:
            raise UserError(f"data.max_quarantine={self.max_quarantine}: must be a share between 0 and 1")
        if self.matcher is not None and self.matcher.size < self.crop_size:
            raise UserError(f"data.crop_size={self.crop_size} is larger than data.match.size={self.matcher.size}; "
                            "crops are cut from matched images")  # fmt: skip

    def read_manifest(self) -> Manifest:
        """Return the manifest; called once. A subclass may override it."""
        # A URL of shards is no path: Path would remove a slash.
        root = self.root if self.root is None or "://" in self.root else Path(self.root)
        return load_manifest(self.table, root, self.allow_group_leak)

    def make_source(self) -> Source:
        """Return what reads the bytes of a row of the manifest; called once. A subclass may override it."""
        manifest = self.manifest
        if manifest.inside is not None:
            assert manifest.shards is not None
            paths = manifest.frame["path"].tolist()
            return ParquetSource(manifest.shards, paths, manifest.inside, manifest.fact("bytes"))
        if manifest.shards is None:
            return FileSource(manifest.root, manifest.frame["path"].tolist())
        assert manifest.digests is not None
        places = manifest.fact("position"), manifest.fact("bytes")
        return ShardSource(manifest.shards, *places, manifest.digests[0], self.shard_cache)

    @cached_property
    def as_read(self) -> Manifest:
        """The manifest before generators are held out."""
        manifest = self.read_manifest()
        for note in manifest.notes:
            log.info("%s: %s", manifest.path.name, note, extra={"once": manifest.path})
        if self.num_workers > cores():
            log.info("data.num_workers=%d on %d cores: rarely faster", self.num_workers, cores())
        return manifest

    @cached_property
    def manifest(self) -> Manifest:
        """The checked manifest; reading it is the first thing that touches the disk."""
        return hold_out(self.as_read, *self.held_out)

    def prepare(self) -> None:
        """Read and check the manifest, if that has not happened yet."""
        _ = self.manifest

    @cached_property
    def image_source(self) -> Source:
        """What reads the bytes of a row, matched if the settings say so."""
        source = self.make_source()
        if self.matcher is None:
            return source
        return MatchedSource(source, self.matcher, self.manifest.frame["path"].tolist())

    def take_manifest_of(self, other: DataModule) -> None:
        """Use the manifest of another data module over the same data instead of reading it again."""
        self.as_read, self.manifest = other.as_read, other.manifest

    def read_bytes(self, row: int) -> bytes:
        """Return the bytes of a row's image, matched if the settings say so; a DecodeError if that is impossible."""
        return self.image_source.read(row)

    def setup(self, stage: str) -> None:
        """Read the manifest, and remember which split :attr:`cells` pairs: the one that will be measured."""
        self.prepare()
        self._measured = self.test_split if stage == "test" else "val"

    @property
    def cells(self) -> Cells:
        """The metric's cells, paired among the rows of the split that is measured."""
        # As reports pair their predictions: reals that only the training split has are not compared with test fakes.
        if self._measured not in self._cells:
            self._cells[self._measured] = make_cells(self.manifest, self.pairs, self._measured)
        return self._cells[self._measured]

    @property
    def seen_generators(self) -> list[str]:
        """Generators whose fakes are trained on."""
        rows = self.manifest.rows("train")
        return sorted(rows.loc[rows["label"] == 1, "generator"].unique().tolist())

    def require(self, *splits: str) -> None:
        """Raise a UserError if a split is empty, or if "train" or "val" lacks a class that the method needs.

        Balanced batches and the mAP that selects the checkpoint need both classes, stage 1 needs reals.
        """
        for split in splits:
            self.manifest.require(split, both_classes=split in ("train", "val") and not self.real_only)
        if self.real_only and not (self.manifest.rows("train")["label"] == 0).any():
            raise UserError("the split 'train' has no real images (label 0); stage 1 learns from those alone")

    def has_split(self, split: str) -> bool:
        """Return whether a split has any image."""
        return not self.manifest.rows(split).empty

    def describe(self) -> str:
        """Return the numbers of reals and fakes of each split in one line."""
        parts = {"train": self._training_rows(), "val": self.manifest.rows("val"), "test": self.manifest.rows("test")}
        counts = {split: [int((rows["label"] == label).sum()) for label in (0, 1)] for split, rows in parts.items()}
        return ", ".join(f"{split} {real} real + {fake} fake" for split, (real, fake) in counts.items())

    def train_dataloader(self) -> DataLoader[Any]:
        """Load balanced batches; stage 1 gets reals only."""
        rows = self._training_rows()
        ids = rows.index.to_numpy()
        # Rounded up: one pass leaves no row out for lack of a whole batch.
        steps = self.steps_per_epoch or -(-len(rows) // self.batch_size)
        shards = None
        if isinstance(source := self.make_source(), ParquetSource):
            shards = Shards(source.row_groups(), self.shard_window)
        elif self.manifest.shards is not None:
            shards = Shards(self.manifest.fact("shard"), self.shard_window)
        sampler = BalancedBatchSampler(
            ids, rows["label"].to_numpy(), rows["generator"].tolist(), rows["source"].tolist(),
            self.batch_size, steps, self.seed, self.real_only, *_rank_and_world_size(), shards,
        )  # fmt: skip
        codes = self.cells.codes
        dataset = ImageDataset(self.manifest, codes, self.image_source, self.augment, self.crop_size, self.views, ids)
        is_plain = isinstance(self.augment, Augmentation) and self.augment.settings == RECIPES["none"]
        dataset.by_handle = self.by_handle and self.num_workers == 0 and is_plain
        if self._position:
            sampler.set_epoch(self._position["epoch"])
            sampler.set_start_step(self._position["step"])
        self._training = make_loader(dataset, sampler, self.num_workers, self.seed)
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
        """Load the split that ``test_split`` names."""
        return self.eval_dataloader(self.test_split)

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Load every image of a split once over all ranks, in order, nothing padded or dropped."""
        return self.subset_dataloader(self.manifest.rows(split).index.to_numpy(), *_rank_and_world_size())

    def bank_dataloader(self, limit: int, label: int = 0) -> DataLoader[Any]:
        """Load at most ``limit`` training reals (label 1: fakes), evenly thinned, as evaluation sees them."""
        rows = self._training_rows()
        ids: NDArray[np.int64] = rows.index[rows["label"] == label].to_numpy()
        if len(ids) > limit:
            ids = ids[np.linspace(0, len(ids) - 1, limit).round().astype(int)]
        return self.subset_dataloader(ids)

    def subset_dataloader(self, ids: NDArray[np.int64], rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Load these rows, as evaluation sees them: a rank's share, or by default all of them on every rank."""
        codes, source = self.cells.codes, self.image_source
        dataset = EvaluationDataset(self.manifest, codes, source, self.eval_policy, self.crop_size)
        dataset.by_handle = self.by_handle and self.num_workers == 0 and self.eval_policy in ("crop", "multi-crop")
        size = 1 if is_whole(self.eval_policy) else self.eval_batch_size
        sampler = EvaluationSampler(ids, size, rank, world_size)
        return make_loader(dataset, sampler, self.num_workers, self.seed)

    def _training_rows(self) -> Any:
        rows = self.manifest.rows("train")
        return rows[rows["label"] == 0] if self.real_only else rows


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
