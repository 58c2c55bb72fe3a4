"""data/demo"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.demo_images import (
    SEEN,
    UNSEEN,
    Generate,
    crops,
    load_photos,
    middle,
    postprocess,
    train_generator,
)
from fakedet.data.manifest import Manifest, load_manifest
from fakedet.errors import UserError

DemoProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DemoRecipe:
    """Sizes of the demo data.

    Attributes:
        size: side of an image.
        margin: made around each fake and cut off, because the border of a network's output gives it away.
        steps: of training, each generator.
        batch: training crops a step.
        real: reals by split.
        fake: fakes of each generator by split; unseen generators are in test only.
    """

    size: int = 80
    margin: int = 12
    steps: int = 220
    batch: int = 12
    real: tuple[tuple[str, int], ...] = (("train", 900), ("val", 300), ("test", 200))
    fake: tuple[tuple[str, int], ...] = (("train", 300), ("val", 100), ("test", 200))


def make_demo_data(
    folder: Path, seed: int = 0, recipe: DemoRecipe | None = None, progress: DemoProgress | None = None
) -> Path:
    """Write the demo's images and ``manifest.csv`` into a folder.

    The simulated generators learn from the training photographs alone. Fakes are re-made crops, matched to their
    crop in channel mean and standard deviation, grey where it is grey, and other crops than the reals'.

    Args:
        folder: empty or not there yet.
        seed: the same seed gives the same bytes on the same machine.
        recipe: sizes.
        progress: called with what is done, how much of it, and of how much.

    Returns:
        The manifest's path.
    """
    recipe = recipe or DemoRecipe()
    report = progress or (lambda what, done, total: None)
    folder.mkdir(parents=True, exist_ok=True)
    photos = {split: load_photos(split) for split in ("train", "val", "test")}
    rows: list[dict[str, object]] = []
    with _own_random_state(seed):
        for split, count in recipe.real:
            rng = np.random.default_rng([seed, 0, _number(split)])
            stream = crops(photos[split], recipe.size, rng, recipe.margin)
            for number in range(count):
                name, image = next(stream)
                shown = middle(image, recipe.margin)
                rows.append(_write(folder, "real", 0, split, name, number, shown, rng))
        kinds = [*SEEN, *UNSEEN]
        for place, kind in enumerate(kinds):
            report(f"simulated generator '{kind}'", place, len(kinds))
            generate = _train(kind, photos["train"], recipe, seed)
            for split, count in recipe.fake:
                if kind in SEEN or split == "test":
                    rows += _fakes(folder, kind, generate, photos[split], split, count, recipe, seed)
        report("demo data", len(kinds), len(kinds))
    path = folder / "manifest.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def _train(kind: str, photos: dict[str, NDArray[np.uint8]], recipe: DemoRecipe, seed: int) -> Generate:
    stream = crops(photos, 48, np.random.default_rng([seed, 1, _number(kind)]))

    def batch() -> Tensor:
        return _tensor(np.stack([next(stream)[1] for _ in range(recipe.batch)]))

    return train_generator(kind, batch, recipe.steps, torch.Generator().manual_seed(seed))


def _fakes(
    folder: Path,
    kind: str,
    generate: Generate,
    photos: dict[str, NDArray[np.uint8]],
    split: str,
    count: int,
    recipe: DemoRecipe,
    seed: int,
) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng([seed, 2, _number(kind), _number(split)])
    stream = crops(photos, recipe.size, rng, recipe.margin)
    inner = slice(recipe.margin, recipe.margin + recipe.size)
    for number in range(count):
        name, image = next(stream)
        source = _tensor(image[None])
        with torch.no_grad():
            made = _as_grey_as(source, generate(source))
        fake = _matched(made[..., inner, inner], source[..., inner, inner])
        pixels = (fake[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        yield _write(folder, kind, 1, split, name, number, pixels, rng)


def _as_grey_as(source: Tensor, made: Tensor) -> Tensor:
    """Take the colour off what was made of a photograph without any.

    A grey photograph has three equal channels, a network's output never quite: a faint tint would tell the
    classes apart, and say nothing of generators.
    """
    grey = bool((source == source[:, :1]).all())
    return made.mean(1, keepdim=True).expand_as(made) if grey else made


def _matched(made: Tensor, source: Tensor) -> Tensor:
    """Give each channel the mean and standard deviation of the crop that it was made from."""
    at = (2, 3)
    scale = source.std(at, keepdim=True) / made.std(at, keepdim=True).clamp(min=1e-4)
    return (made - made.mean(at, keepdim=True)) * scale + source.mean(at, keepdim=True)


def _write(
    folder: Path, generator: str, label: int, split: str, photo: str, number: int, image: NDArray[np.uint8],
    rng: np.random.Generator,
) -> dict[str, object]:  # fmt: skip
    path = f"{split}/{generator}/{photo}_{number:04d}.jpg"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(postprocess(image, rng))
    return {"path": path, "label": label, "generator": generator, "split": split, "group": photo}


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255.0)


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Draw weights from a state of our own, on one thread, and leave the caller's as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # One thread: the sums of several depend on how they were shared out, and small nets gain nothing.
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


log = logging.getLogger("fakedet")

# Raise it when the recipe's code changes what it makes.
VERSION = 3


def demo_data(cache: Path, seed: int = 0, recipe: DemoRecipe | None = None) -> Path:
    """Give the manifest of the demo data, making them first where they are not whole in the cache.

    Args:
        cache: folder that keeps them.
        seed: of the data.
        recipe: sizes.

    Raises:
        UserError: the cache cannot be written.
    """
    recipe = recipe or DemoRecipe()
    key = hashlib.sha256(f"{VERSION} {seed} {recipe}".encode()).hexdigest()[:12]
    folder = cache / f"demo-{key}"
    if _is_whole(folder):  # asks for no lock, so a cache that can only be read serves too
        return folder / "manifest.csv"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"demo-{key}.lock"):
            if not _is_whole(folder):
                _make(folder, seed, recipe)
    except OSError as error:
        raise UserError(
            f"the demo data cannot be kept in {cache}: {error.strerror or error}; set FAKEDET_CACHE or "
            "data.cache to a folder that can be written"
        ) from error
    return folder / "manifest.csv"


def _make(folder: Path, seed: int, recipe: DemoRecipe) -> None:
    building = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    # We hold the lock: whatever lies here was left by a process that was killed.
    for left in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    log.info("making the demo data in %s (once, about a minute)", folder)
    bars = Progress(TextColumn("{task.description:<32}"), BarColumn(bar_width=30), MofNCompleteColumn(),
                    TimeElapsedColumn(), disable=not sys.stdout.isatty())  # fmt: skip
    try:
        with bars:
            task = bars.add_task("demo data", total=None)
            make_demo_data(building, seed, recipe, lambda what, done, total: bars.update(
                task, description=what, completed=done, total=total))  # fmt: skip
        (building / "files.txt").write_text(_listing(building), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Compare names and sizes with what was written: cheap, and notices whatever was cut or deleted."""
    try:
        return (folder / "files.txt").read_text(encoding="utf-8") == _listing(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _listing(folder: Path) -> str:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "files.txt")
    return "".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n" for path in found)


class DemoDataModule(ImageDataModule):
    """Serve real crops of bundled photographs and fakes of simulated generators.

    Args:
        cache: folder that the images are kept in; null: ``FAKEDET_CACHE`` or ``~/.cache/fakedet``.
        recipe_seed: seed of the data themselves, apart from the run's seed.
        **settings: see :class:`fakedet.data.datamodule.ImageDataModule`.
    """

    def __init__(self, cache: str | None = None, recipe_seed: int = 0, **settings: Any) -> None:
        super().__init__(manifest="", **settings)
        self.cache = Path(cache or default_cache())
        self.recipe_seed = recipe_seed

    def read_manifest(self) -> Manifest:
        """Make the images where they are not there yet, and return their manifest."""
        return load_manifest(demo_data(self.cache, self.recipe_seed), None, self.allow_group_leak)


def default_cache() -> Path:
    """Give the folder that demo data are kept in."""
    given = os.environ.get("FAKEDET_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "fakedet"
