"""The demo data as a data module: made once, kept in a cache, nothing downloaded."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from fakedet.data.datamodule import ImageDataModule
from fakedet.data.demo.cache import demo_data

log = logging.getLogger("fakedet")


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

    def locate(self) -> tuple[Path, Path]:
        """Make the data where they are not there yet, and give their manifest and folder."""
        manifest = demo_data(self.cache, self.recipe_seed)
        return manifest, manifest.parent


def default_cache() -> Path:
    """Give the folder that demo data are kept in."""
    given = os.environ.get("FAKEDET_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "fakedet"
