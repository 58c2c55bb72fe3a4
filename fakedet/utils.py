"""What every part needs: ranks, threads, progress, atomic writes, and provenance."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import fakedet
from fakedet.errors import UserError

log = logging.getLogger("fakedet")

FAILURE = "failure.json"  # In the folder of a run that ended with an error


def number(variable: str, default: int = 0) -> int:
    """Read an environment variable that launchers of processes set; UserError if it is no number."""
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"the environment variable {variable} is '{text}', no number; launchers of several processes "
                        f"set it: `unset {variable}`")  # fmt: skip
    return int(text)


def is_main_process() -> bool:
    """Return whether this process is rank zero; UserError for a rank that no launcher can have set."""
    # Lightning's own launcher sets LOCAL_RANK and NODE_RANK, torchrun RANK and LOCAL_RANK, SLURM SLURM_PROCID.
    for rank, processes in {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}.items():
        if number(rank) and number(processes, 1) < 2:
            raise UserError(f"the environment variable {rank} is {number(rank)}, the rank of a further process, but "
                            f"{processes} names no others; an earlier start has left it: `unset {rank}`")  # fmt: skip
    return not any(map(number, ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")))


def start_name() -> str | None:
    """Name this start of a job whose processes were all started from outside (srun, torchrun), else return None.

    All processes of one start share the name; a requeued job has another one.
    """
    environ = os.environ
    if number("SLURM_NTASKS") > 1 and "SLURM_PROCID" in environ:
        return f"slurm-{environ.get('SLURM_JOB_ID')}-{environ.get('SLURM_RESTART_COUNT', '0')}"
    if number("WORLD_SIZE") > 1 and "TORCHELASTIC_RUN_ID" in environ:
        return f"torchrun-{environ['TORCHELASTIC_RUN_ID']}-{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return None


def was_requeued() -> bool:
    """Return whether SLURM started this job again."""
    return number("SLURM_RESTART_COUNT") > 0


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Limit PyTorch to ``count`` CPU threads inside the block; None keeps its own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device computes in it faster than in float32, else float32."""
    if device.type == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_it = device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if has_it else torch.float32


# Warnings that tell the user nothing, with the reason.
SILENCED = (
    r".*module\(s\) in eval mode at the start of training.*",  # stage 2's frozen source keeps its statistics
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of a PyTorch name that PyTorch has renamed.
    r".*does not have many workers.*",  # The user chooses the number of workers; on small data none is best.
    r".*The number of training batches .* is smaller than the logging interval.*",  # an epoch's end is always logged
    r".*Checkpoint directory .* exists and is not empty.*",  # fakedet opened the folder; stage 1 leaves files in it.
    r".*It is recommended to use `self.log.*sync_dist=True.*",  # every rank has the rows of all ranks
    r".*Using `DistributedSampler` with the dataloaders.*",  # our sampler splits the rows without padding
    r".*your dataloader is not resumable.*",  # the data module saves the position, where Lightning does not look for it
    r".*Experiment logs directory .* exists and is not empty.*",  # a resumed run restores its curves
    r".*The `srun` command is available on your system but is not used.*",  # one process is intended
)


def quiet_libraries() -> None:
    """Limit Lightning's loggers (its import resets their level) to warnings, and hide those of :data:`SILENCED`."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it finds in a file is told with the file's name
    for message in SILENCED:
        warnings.filterwarnings("ignore", message=message)


class Bar:
    """Progress of ``total`` items of some work: a live bar on a terminal, else a line in the log every 30 seconds.

    The line says how many are done of how many, how many a second, and the time left; the first comes after 5 seconds.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total = what, total
        self._live, self._began = sys.stdout.isatty(), time.monotonic()
        self._said = self._began - 25
        self._first: tuple[int, float] | None = None  # work that is resumed does not begin at 0
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.completed:,.0f}"),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stdout), transient=True, disable=not self._live,
        )  # fmt: skip
        self._task = self.progress.add_task(what, total=total, note="")

    def set_total(self, total: int) -> None:
        """Set the number of items, once it is known."""
        self.total = total
        self.progress.update(self._task, total=total)

    def show(self, done: int, note: str = "") -> None:
        """Set the number of finished items."""
        self._first = self._first or (done, time.monotonic())
        if self._live:
            self.progress.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._said > 30:
            self._said = time.monotonic()
            log.info("%s: %s", self.what, self.told(done, note))

    def told(self, done: int, note: str = "") -> str:
        """Say how many items are done, how fast, and how long the others will take."""
        before, since = self._first if self._first and self._first[0] < done else (0, self._began)
        rate = (done - before) / max(1e-9, time.monotonic() - since)
        text = (f"{done:,}" if self.total is None else f"{done:,} of {self.total:,}") + (f", {note}" if note else "")
        text += f", {rate:,.{0 if rate >= 10 else 1 if rate >= 1 else 3}f} a second"
        if self.total is None or not done or done >= self.total:
            return text
        left = (self.total - done) / rate
        return text + (f", {left:.0f} s" if left < 90 else f", {left / 60:.0f} min") + " left"


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Bar]:
    """Show a :class:`Bar` while the block runs."""
    shown = Bar(what, total)
    with shown.progress:
        yield shown


# Text that Hydra's grammar reads as it is.
PLAIN = re.compile(r"(?!(null|true|false|nan|inf)$)([a-z_/]|\.{1,2}/)[\w/.-]*", re.ASCII | re.IGNORECASE)


def written(value: Any) -> str:
    """Write a value in the grammar of Hydra's overrides."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(written, value)) + "]"
    text = str(value)
    if PLAIN.fullmatch(text):
        return text
    # Within quotes Hydra reads backslashes as they are, unless a quote follows.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def shown_names(key: str, names: Iterable[str]) -> str:
    """Write a list of names, given as a key's value, as a word that a shell takes as it is printed."""
    listed = ",".join(name if re.fullmatch(r"\w([\w ./-]*\w)?", name) else written(name) for name in names)
    return shlex.quote(f"{key}=[{listed}]")


def open_folder(path: str | Path, overwrite: bool = False) -> Path:
    """Create a run's folder; UserError if it is a file, is not empty without ``overwrite``, or cannot be written."""
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
        raise UserError(f"output_dir={folder} is not empty (it holds '{occupied}'); name another one, or pass "
                        "overwrite=true to replace the files of this run in it")  # fmt: skip
    if not os.access(folder, os.W_OK):
        raise UserError(f"output_dir={folder} cannot be written: permission denied")
    return folder


def _is_scaffold(entry: os.DirEntry[str]) -> bool:
    """Return whether a file is only what a run killed in its first moments leaves behind."""
    if entry.name == "run.log":
        return entry.stat().st_size == 0
    return entry.name in (".lock", "console.log") or (entry.name.startswith(".") and entry.name.endswith(".tmp"))


def plain(node: Any) -> Any:
    """Resolve a node of a config into plain values; other values are returned as they are."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` when the block ends without an error.

    A reader never sees half a file. UserError if it cannot be written; the old file is then still there.
    """
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")  # a name has at most 255 bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the one that was there is unchanged" if path.exists() else ""
        raise UserError(f"{path} cannot be written: {error.strerror or error}{kept}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def alone(path: Path, key: str, within: bool = False) -> Iterator[None]:
    """Keep other processes from writing a file or folder while the block runs.

    The lock lies in the folder itself if ``within``, where a training has its own, and else beside it. UserError,
    which names the setting ``key``, if another process has it.
    """
    place = path.resolve()
    name = place.name if len(os.fsencode(place.name)) < 200 else hashlib.sha256(os.fsencode(place.name)).hexdigest()
    lock = FileLock(place / ".lock" if within else place.with_name(f".{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{key}={path}: another process is writing it; wait until that has ended, or name another "
                        "one") from error  # fmt: skip
    except OSError:
        pass  # what cannot be written is told by the one who writes
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def link(file: Path, name: Path) -> None:
    """Give a file a second name by a hard link, or by a copy where the file system has none; UserError as above."""
    with replacing(name) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)


def write_config(folder: Path, config: DictConfig, overrides: list[str] | None = None) -> None:
    """Write the resolved config and the user's overrides into a run's folder."""
    with replacing(folder / "config.yaml") as temporary:
        OmegaConf.save(config, temporary, resolve=True)
    if overrides is not None:
        with replacing(folder / "overrides.yaml") as temporary:
            OmegaConf.save(OmegaConf.create(overrides), temporary)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON; ValueError for NaN and infinite values: the caller writes None instead."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def provenance(command: list[str]) -> dict[str, Any]:
    """Describe what made a result: versions, git state, machine, command and time."""

    def installed(name: str) -> str | None:
        with suppress(PackageNotFoundError):
            return version(name)
        return None

    packages = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "albumentations", "numpy",
                "opencv-python-headless", "hydra-core")  # fmt: skip
    return {
        "fakedet": fakedet.__version__, "packages": {name: installed(name) for name in packages},
        "python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(),
        "git": _git_state(), "command": command, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the checkout that fakedet runs from and whether files differ; None outside one."""
    root = Path(fakedet.__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root.resolve():
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    return None


def log_to_file(folder: Path) -> logging.Handler:
    """Copy the log to ``run.log`` in the folder; the caller removes the handler."""
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    return handler


def fits(value: Any, kind: Any) -> bool:
    """Say whether a plain value is of a type; text holds no control codes, which a terminal would obey."""
    of = get_args(kind)
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in of)
    if is_typeddict(kind):  # or empty, which is told or known elsewhere
        hints = get_type_hints(kind) if value else {}
        return isinstance(value, dict) and all(fits(value.get(key), one) for key, one in hints.items())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(one, of[0]) for one in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(key, of[0]) and fits(one, of[1]) for key, one in value.items())
    if kind is str:
        return isinstance(value, str) and not any(unicodedata.category(sign) == "Cc" for sign in value)
    if kind is float:
        return isinstance(value, int | float)
    return kind is Any or (isinstance(value, kind) and not isinstance(value, bool))


def default_cache() -> Path:
    """Return the folder for what is made once: ``FAKEDET_CACHE``, or ~/.cache/fakedet; UserError without a home."""
    if not (given := os.environ.get("FAKEDET_CACHE")) and os.path.expanduser("~") == "~":
        raise UserError("this user has no home folder to keep the demo data in: set FAKEDET_CACHE or data.cache")
    return Path(given or Path.home() / ".cache" / "fakedet")
