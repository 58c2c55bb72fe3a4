"""Keep the demo data: made once, whole or not at all, by one process however many start together."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from pathlib import Path

from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fakedet.data.demo.make import DemoRecipe, make_demo_data
from fakedet.errors import UserError

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
