"""Bring the manifest of a dataset up to date: what ``fakedet index`` does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from fakedet.data.index.embedded import extract, parquets
from fakedet.data.index.folder import Indexed, Settings, index_folder
from fakedet.data.index.rows import Choices
from fakedet.data.index.scan import Scan
from fakedet.data.index.table import index_table
from fakedet.data.loader import cores
from fakedet.errors import UserError
from fakedet.runs.bar import Bar, bar

log = logging.getLogger("fakedet")

TABLES = (".csv", ".tsv", ".parquet")
EMBEDDED = "parquet"
"""As ``layout=`` names parquet files that hold the images."""


def index(config: DictConfig) -> Indexed:
    """Index the folder, the table or the parquet files of images that ``source`` names.

    Raises:
        UserError: anything wrong with source, settings or the place for the manifest.
    """
    source = Path(config.source)
    if not source.exists():
        raise UserError(f"source={source}: there is no such folder or file")
    settings = _settings(config)
    manifest = _manifest_path(config, source)
    embedded = parquets(source, deep=settings.layout == EMBEDDED)
    if settings.layout == EMBEDDED and not embedded:
        raise UserError(f"layout={EMBEDDED}: {source} holds no parquet files with a column of image bytes")
    if embedded:
        return _index_embedded(embedded, manifest, settings)
    with bar("reading headers") as shown:
        if source.is_dir():
            return index_folder(source.resolve(), manifest, settings, _show(shown))
        if source.suffix.lower() not in TABLES:
            raise UserError(f"source={source}: neither a folder nor a table ({', '.join(TABLES)})")
        root = Path(config.root) if config.root else source.parent
        columns = {str(key): str(value) for key, value in config.columns.items()}
        return index_table(source, root.resolve(), manifest, settings, columns, _show(shown))


def _index_embedded(files: list[Path], manifest: Path, settings: Settings) -> Indexed:
    """Write the images beside the manifest, then index them."""
    folder = manifest.parent / "images"
    log.info("%d parquet file(s) hold images; they are written to %s", len(files), folder)
    with bar("writing images") as shown:
        failed = extract(files, folder, shown.show)
    for where, reason in list(failed.items())[:5]:
        log.warning("left out: %s: %s", where, reason)
    if len(failed) > 5:
        log.warning("... and %d more rows", len(failed) - 5)
    with bar("reading headers") as shown:
        return index_folder(folder.resolve(), manifest, replace(settings, layout="real_fake"), _show(shown))


def _show(shown: Bar) -> Callable[[Scan], None]:
    def seen(state: Scan) -> None:
        shown.show(state.files, f"files, {state.read:,} read")

    return seen


def _settings(config: DictConfig) -> Settings:
    threads = 4 * cores() if config.threads is None else int(config.threads)
    if threads < 1:
        raise UserError(f"threads={threads}: must be at least 1")
    choices = Choices(config.split, _names(config.unseen), config.group, config.split_seed)
    return Settings(
        config.layout, _names(config.reals), choices, config.hash, min(threads, 64), config.skip_unreadable
    )


def _names(value: str | Iterable[object] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(name) for name in value]


def _manifest_path(config: DictConfig, source: Path) -> Path:
    """Choose where the manifest goes: into the folder itself, else beside the table."""
    if config.output is None:
        return (source if source.is_dir() else source.parent) / "manifest.parquet"
    path = Path(config.output)
    if path.is_dir():
        return path / "manifest.parquet"
    if path.suffix != ".parquet":
        raise UserError(f"output={path}: name a folder or a .parquet file")
    if source.is_file() and path.exists() and path.samefile(source):
        raise UserError(f"output={path}: this is the source itself; name another file")
    return path
