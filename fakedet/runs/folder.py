"""One folder a run: who may write into it, and what stands in it besides results."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import fakedet
from fakedet.errors import UserError

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "albumentations", "numpy",
            "opencv-python-headless", "hydra-core")  # fmt: skip


def open_folder(path: str | Path, overwrite: bool = False) -> Path:
    """Make a run's folder.

    Raises:
        UserError: it is a file, is not empty and ``overwrite`` is off, or cannot be written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with os.scandir(folder) as entries:
            occupied = next((entry.name for entry in entries if not _is_scaffold(entry)), None)
    except FileExistsError as error:
        raise UserError(f"output_dir={folder} is a file; name a folder") from error
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be written: {error.strerror}") from error
    if occupied is not None and not overwrite:
        raise UserError(
            f"output_dir={folder} is not empty (it holds '{occupied}'); name another one, "
            "or pass overwrite=true to replace the files of this run in it"
        )
    if not os.access(folder, os.W_OK):
        raise UserError(f"output_dir={folder} cannot be written: permission denied")
    return folder


def _is_scaffold(entry: os.DirEntry[str]) -> bool:
    """Say whether a file is only what a run killed in its first moments leaves."""
    if entry.name == "run.log":
        return entry.stat().st_size == 0
    return entry.name == ".lock" or (entry.name.startswith(".") and entry.name.endswith(".tmp"))


def write_config(folder: Path, config: DictConfig, overrides: list[str] | None = None) -> None:
    """Write the resolved config and what the user overrode."""
    _save(config, folder / "config.yaml")
    if overrides is not None:
        _save(OmegaConf.create(overrides), folder / "overrides.yaml")


def _save(config: Any, path: Path) -> None:
    """Write YAML whole or not at all: a run whose config is cut in two could not go on."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        OmegaConf.save(config, temporary, resolve=True)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader never sees half a file; NaN is refused, say null."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def provenance(command: list[str]) -> dict[str, Any]:
    """Say what made a result: versions, git state, machine, command."""
    return {
        "fakedet": fakedet.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "git": _git_state(),
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def log_to_file(folder: Path) -> logging.Handler:
    """Let a copy of the log go to ``run.log`` in the folder; the caller removes the handler."""
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("fakedet")
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    return handler


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Give commit and whether files differ from it, of the checkout that fakedet runs from, if it is one."""
    root = Path(fakedet.__file__).parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
        done.check_returncode()
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
