"""utils"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import fakedet
from fakedet.errors import UserError

# Lightning's own launcher sets LOCAL_RANK and NODE_RANK, torchrun RANK and LOCAL_RANK, SLURM SLURM_PROCID.
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")


def is_main_process() -> bool:
    """Say whether this process is rank zero."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def start_name() -> str | None:
    """Name this start of a job whose processes are all started from outside (srun, torchrun); None for others.

    All processes of the start give the same name, and those of a requeued job another one.
    """
    if int(os.environ.get("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in os.environ:
        return f"slurm-{os.environ.get('SLURM_JOB_ID')}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        environ = os.environ
        return f"torchrun-{environ['TORCHELASTIC_RUN_ID']}-{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return None


def was_requeued() -> bool:
    """Say whether SLURM started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use ``count`` CPU threads meanwhile; None leaves its own choice."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What is silenced, and why it says nothing to the user.
SILENCED = (
    # The frozen source of stage 2 stays in evaluation mode: that is what freezing its batch statistics means.
    r".*module\(s\) in eval mode at the start of training.*",
    # Lightning's own use of a PyTorch name that PyTorch has renamed.
    r".*isinstance\(treespec, LeafSpec\).*",
    # How many workers are best is the user's to say; on small data none is.
    r".*does not have many workers.*",
    # Fewer steps an epoch than log_every_n_steps: the epoch's end is logged in any case.
    r".*The number of training batches .* is smaller than the logging interval.*",
    # The folder was opened by us; that stage 1 left files below it is intended.
    r".*Checkpoint directory .* exists and is not empty.*",
    # Metrics are reduced by our own metric, which every rank computes alike.
    r".*It is recommended to use `self.log.*sync_dist=True.*",
    # Evaluation shares the rows out without padding; our metric counts each row once.
    r".*Using `DistributedSampler` with the dataloaders.*",
    # Our sampler begins at the step where the run was stopped; Lightning looks for another way of saying so.
    r".*your dataloader is not resumable.*",
    # A resumed run's curves are written back from its resume point.
    r".*Experiment logs directory .* exists and is not empty.*",
    # One process outside of srun is what was asked for.
    r".*The `srun` command is available on your system but is not used.*",
)


def quiet_libraries() -> None:
    """Leave Lightning's log to warnings, and hide the warnings that :data:`SILENCED` explains.

    Call it after Lightning was imported: the import sets its own level.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in SILENCED:
        warnings.filterwarnings("ignore", message=message)


log = logging.getLogger("fakedet")

SECONDS_BETWEEN_LINES = 30.0


class Bar:
    """How far some work is.

    Args:
        what: is done.
        total: number of items; None: not known beforehand.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total = what, total
        self._live = sys.stdout.isatty()
        self._said = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if total is not None else []),
            console=Console(file=sys.stdout),
            transient=True,
            disable=not self._live,
        )
        self._task = self.progress.add_task(what, total=total, note="")

    def show(self, done: int, note: str = "") -> None:
        """Move to ``done`` items."""
        if self._live:
            self.progress.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = f" of {self.total:,}" if self.total is not None else ""
            log.info("%s: %s%s%s", self.what, f"{done:,}", of, f", {note}" if note else "")


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Bar]:
    """Show the progress of some work until it ends."""
    shown = Bar(what, total)
    with shown.progress:
        yield shown


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


FAILURE = "failure.json"
"""In the folder of a run that ended with an error."""
