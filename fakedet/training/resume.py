"""Runs that go on where they were stopped: the checkpoint they resume from, and the folder they resume in."""

from __future__ import annotations

import json
import logging
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from fakedet.checkpoint import read_checkpoint, write_whole
from fakedet.errors import Preempted, UserError, one_line
from fakedet.methods.base import gather_records
from fakedet.models.features import FeatureCache
from fakedet.utils import FAILURE, is_main_process, log_to_file, open_folder, plain, was_requeued, write_json

log = logging.getLogger("fakedet")

# Settings that may differ between the starts of one run.
ASIDE = ("overwrite", "resume", "callbacks.progress", "stage1_cache", "also", "study", "protocol")
# What clusters send before they end a job: SLURM (--signal), submitit (USR2), shutdown and `kill`.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class ResumePoint(Checkpoint):
    """Write a checkpoint that a killed run resumes from: every few steps, after an epoch, and when told to stop.

    Besides what Lightning restores (weights, optimiser, schedule, scaler, progress, data module, other callbacks) it
    holds each rank's random state, the files that could not be read so far, and the logged curves. It is written
    between an optimiser step and the next batch, never at an epoch's last batch, where validation is still to come. On
    :data:`SIGNALS`, the current step is finished, the checkpoint is written, and :class:`Preempted` ends the run.

    Args:
        path: the file; each checkpoint replaces the one before it.
        every_steps: batches between two checkpoints within an epoch.
        min_seconds: least time between checkpoints at the ends of epochs but the last; for large nets and short epochs.
    """

    def __init__(self, path: str, every_steps: int = 200, min_seconds: float = 0.0) -> None:
        self.path, self.every_steps, self.min_seconds = Path(path), every_steps, min_seconds
        self._saved_at, self._is_behind, self._signal = -float("inf"), False, 0
        self._saving: tuple[Trainer, list[Any]] | None = None  # while _save runs: what state_dict is not given
        self._loaded: dict[str, Any] = {}
        self._handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the unreadable files and the curves, even where no step is left to take."""
        if not self._loaded:
            return
        if trainer.is_global_zero:
            pl_module.quarantined.extend(self._loaded["quarantined"])  # type: ignore[union-attr, operator]
        writer, curves = _csv(trainer), self._loaded["curves"]
        if writer is not None and curves:
            Path(writer.metrics_file_path).write_text(curves, encoding="utf-8", newline="")
            writer.metrics_keys = curves.splitlines()[0].split(",")
        if self._loaded["unlogged"]:
            metrics, step = self._loaded["unlogged"]
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""

        def listen(number: int, _: Any) -> None:
            self._signal = number

        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, listen) for number in SIGNALS}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the random state just before the first batch of a resumed run."""
        states, self._loaded = self._loaded.get("random", []), {}
        if trainer.global_rank < len(states):
            _set_random(states[trainer.global_rank])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write a checkpoint where one is due or a signal asks for it."""
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or done >= trainer.num_training_batches:
            return  # not between an optimiser step and the next batch
        stop = self._asked_to_stop(trainer, done)
        if stop or done % self.every_steps == 0:
            self._save(trainer, _unlogged(trainer))
        if stop:
            raise Preempted(stop, self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint if one is due; validation has run and the epoch's other checkpoints are written."""
        stop = self._asked_to_stop(trainer, 0)
        # Checkpoint callbacks have their turn after those that may end the training. A limit of -1 is none.
        is_last = trainer.should_stop or 0 <= (trainer.max_epochs or -1) <= trainer.current_epoch + 1
        is_last = is_last or 0 <= trainer.max_steps <= trainer.global_step
        due = is_last or time.monotonic() - self._saved_at >= self.min_seconds
        self._is_behind = not (stop or trainer.strategy.broadcast(due))
        if not self._is_behind:
            self._save(trainer)
        if stop:
            raise Preempted(stop, self.path)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint if the last epoch was not known to be the last; stop listening to signals."""
        if self._is_behind:
            self._save(trainer)
        self._stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening to signals."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning does not keep; only for our own checkpoints, and collective."""
        if self._saving is None:
            return {}
        trainer, unlogged = self._saving
        module: Any = trainer.lightning_module
        ranks = gather_records([{"random": _random_state(), "quarantined": list(module.quarantined)}])
        curves = ""
        if (writer := _csv(trainer)) is not None:
            writer.save()
            path = Path(writer.metrics_file_path)
            curves = path.read_text(encoding="utf-8") if path.is_file() else ""
        quarantined = [record for rank in ranks for record in rank["quarantined"]]
        random_states = [rank["random"] for rank in ranks]
        return {"random": random_states, "quarantined": quarantined, "curves": curves, "unlogged": unlogged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        self._loaded = state_dict

    def _save(self, trainer: Trainer, unlogged: list[Any] | None = None) -> None:
        """Write a checkpoint; ``unlogged`` are metrics and their step that Lightning will log only after it."""
        self._saving = trainer, unlogged or []
        try:
            trainer.save_checkpoint(self.path)
            self._saved_at, self._is_behind = time.monotonic(), False
        finally:
            self._saving = None

    def _asked_to_stop(self, trainer: Trainer, done: int) -> int:
        """Return the signal that some rank was sent, the same on all ranks; 0 for none."""
        if trainer.world_size == 1:
            return self._signal
        if done % 10:  # ranks must stop at the same step; they compare every ten
            return 0
        asked = torch.tensor(self._signal, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return int(asked)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a signal that tells a run to stop end the block at once, wherever no :class:`ResumePoint` listens to it."""

    def stop(number: int, _: Any) -> None:
        raise Preempted(number, "what was computed")

    in_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in SIGNALS if in_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _random_state() -> dict[str, Any]:
    """Return the state of all generators as tensors and plain values, which load with ``weights_only``."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert kind == "MT19937"
    state = {
        "torch": torch.get_rng_state(), "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
    }  # fmt: skip
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _unlogged(trainer: Trainer) -> list[Any]:
    """Return the current step's metrics and its number; Lightning logs them after the callbacks' turn."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return []
    metrics = {key: float(value) for key, value in connector.metrics["log"].items()}
    step = int(trainer.fit_loop.epoch_loop._batches_that_stepped)
    return [{**metrics, "epoch": trainer.current_epoch}, step] if metrics else []


def _csv(trainer: Trainer) -> Any:
    """Return the writer of logs/metrics.csv, or None on other ranks."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def open_or_resume(config: DictConfig) -> Path:
    """Create the run's folder, or continue the unfinished run in it.

    Raises:
        UserError: the folder holds a finished run, one of another config, or something else.
    """
    folder, overwrite = Path(config.output_dir), config.overwrite
    # A job that SLURM started again has begun its folder itself: overwriting would lose its work.
    if (folder / "config.yaml").is_file() and config.resume and (was_requeued() or not overwrite):
        if (folder / "run.json").is_file():
            raise UserError(f"output_dir={folder} holds a finished run; name another one, or pass overwrite=true to "
                            "`fakedet train` to train it anew")  # fmt: skip
        differing = differences(config)
        if not differing:
            log.info("%s holds an unfinished run of this config: it goes on", folder)
            return folder
        if any(folder.glob("**/*.ckpt")):
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(f"output_dir={folder} holds an unfinished run of another config: "
                            f"{', '.join(differing[:3])}{more}; name another one, or pass overwrite=true to replace it"
                            )  # fmt: skip
        # A mistake in the config ended it before it had learned anything: the corrected run may take its place.
        overwrite = True
    folder = open_folder(folder, overwrite)
    lock_folder(folder).release()  # a run that is still training keeps its checkpoints
    # With these files, an overwritten run would seem unfinished or finished.
    points = ("checkpoints/resume.ckpt", "stage1/checkpoints/resume.ckpt")
    for name in (*points, "run.json", "wandb_id.txt", "mlflow_run.txt"):
        (folder / name).unlink(missing_ok=True)
    return folder


def differences(config: DictConfig) -> list[str]:
    """List the settings of the run in a config's folder that the config changes, as "key: old → new"."""
    folder = Path(config.output_dir)
    if not (folder / "config.yaml").is_file():
        return []
    saved = plain(_load(folder))
    return list(_differences(_moved(saved, str(saved.get("output_dir", "")), str(config.output_dir)), plain(config)))


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        name, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if name in ASIDE or name == "output_dir":
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences({"output_dir": "", **before}, {"output_dir": "", **after}, f"{name}.")
        elif before != after and not (isinstance(before, str) and isinstance(after, str) and "/" in before
                                      and Path(before).resolve() == Path(after).resolve()):  # fmt: skip
            yield f"{name}: {before} → {after}"


def finished(config: DictConfig) -> dict[str, Any] | None:
    """Return the content of run.json of the finished run of this very config in its folder; None without one."""
    facts = Path(config.output_dir) / "run.json"
    if config.overwrite or not facts.is_file() or not facts.with_name("config.yaml").is_file() or differences(config):
        return None
    log.info("%s holds this very run, finished: it is not trained again", facts.parent)
    content: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
    return content


def config_of(run: str) -> tuple[DictConfig, list[str]]:
    """Return the config of the unfinished run in a folder, and the overrides that it was started with.

    Raises:
        UserError: the folder holds no training run.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        below = sorted(path.parent for path in folder.glob("*/config.yaml"))
        more = f"; its jobs are in {below[0]} and so on" if below else ""
        raise UserError(f"run={folder}: there is no run in this folder (no config.yaml){more}")
    config = _load(folder)
    if "callbacks" not in config or "model" not in config:
        raise UserError(f"run={folder} is no training run; only those can be resumed")
    # The folder may have been moved or copied since: the run goes on where it is now.
    config = OmegaConf.create(_moved(plain(config), str(config.output_dir), str(folder.absolute())))
    config.overwrite, config.resume = False, True
    overrides = folder / "overrides.yaml"
    given = plain(OmegaConf.load(overrides)) if overrides.is_file() else None
    return config, [str(item) for item in given or []]


def _load(folder: Path) -> DictConfig:
    try:
        config = OmegaConf.load(folder / "config.yaml")
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{folder}/config.yaml cannot be read: {one_line(error)[:200]}") from error
    if not isinstance(config, DictConfig) or not config:
        raise UserError(f"{folder}/config.yaml holds no config; pass overwrite=true to `fakedet train` to begin anew")
    return config


def lock_folder(folder: Path, doing: str = "training") -> FileLock:
    """Take an existing folder for this process alone; ``doing`` names its work to another process.

    Raises:
        UserError: another process has it.
    """
    taken = FileLock(folder / ".lock")
    try:
        taken.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"output_dir={folder}: another process is {doing} in it; name another one") from error
    return taken


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process, log into it, end at a signal, and leave the cause of a failure in it."""
    if not is_main_process():
        yield
        return
    lock = lock_folder(folder)
    for leftover in folder.glob("**/.*.tmp"):  # of a run that was killed while it wrote
        leftover.unlink(missing_ok=True)
    handler, kept = log_to_file(folder), "features.pt"
    FeatureCache.restore(folder / kept)
    try:
        with stoppable():
            yield
        for name in (FAILURE, kept):
            (folder / name).unlink(missing_ok=True)
    except (Preempted, KeyboardInterrupt):
        FeatureCache.keep(folder / kept)
        raise
    except BaseException as error:
        # A sweep's comparison reads the cause here; a full disk must not hide it from the console.
        with suppress(UserError):
            write_json(folder / FAILURE, {"error": one_line(error)[:500]})
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
        lock.release()


def resume_point_of(path: Path, manifest_sha256: str) -> Path | None:
    """Return the path of the checkpoint that a training goes on from, or None if there is none.

    Raises:
        UserError: it cannot be read, or was written on other data.
    """
    if not path.is_file():
        return None
    try:
        content = read_checkpoint(path)
    except UserError as error:
        raise UserError(f"{error}. It is this run's resume point: bring it back whole, or pass overwrite=true to "
                        "`fakedet train` to begin anew") from error  # fmt: skip
    if content["fakedet"]["manifest_sha256"] != manifest_sha256:
        raise UserError(f"{path} was written on other data: the manifest has changed since this run began. Bring it "
                        "back, or pass overwrite=true to `fakedet train` to begin anew")  # fmt: skip
    # Lightning's checkpoint callback forgets which epoch was best if its folder has another name now.
    states = [state for state in content["callbacks"].values() if isinstance(state, dict)]
    before = next((str(state["dirpath"]) for state in states if state.get("dirpath")), "")
    if before and before != str(path.parent.absolute()) and is_main_process():
        content["callbacks"] = _moved(content["callbacks"], before, str(path.parent.absolute()))
        write_whole(content, path)
    log.info("going on after step %d, in epoch %d", content["global_step"], content["epoch"] + 1)
    return path


def _moved(node: Any, before: str, after: str) -> Any:
    """Replace one folder by another in all paths among some plain values."""
    if isinstance(node, dict):
        return {_moved(key, before, after): _moved(value, before, after) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, before, after) for value in node]
    if before and isinstance(node, str) and (node == before or node.startswith(before.rstrip("/") + "/")):
        return after + node[len(before) :]
    return node
