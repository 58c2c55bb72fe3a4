"""training/resume"""

from __future__ import annotations

import json
import logging
import random
import signal
import threading
import time
from collections.abc import Iterator
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
from fakedet.errors import Preempted, UserError
from fakedet.utils import is_main_process, open_folder, was_requeued

# What clusters send before they end a job: SLURM (--signal), submitit (USR2), shutdown and `kill`.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
# With several ranks, all must stop at the same step: they ask one another after so many.
ASK_EVERY = 10


class ResumePoint(Checkpoint):
    """Write a checkpoint that a killed run resumes from, every so many steps, after each epoch, and when told to stop.

    Besides what Lightning restores (weights, optimiser, schedule, scaler, progress, other callbacks) it holds each
    rank's random state, the files that could not be read so far, and the logged curves. The data module saves its own
    position in the epoch. Written between an optimiser step and the next batch, never at an epoch's last batch, where
    validation is still to come.

    On SIGUSR1, SIGUSR2 and SIGTERM the step under way is finished, the point is written, and
    :class:`fakedet.errors.Preempted` ends the run.

    Args:
        path: the file; the last point replaces the one before it.
        every_steps: batches between two points within an epoch.
        min_seconds: an epoch that ends sooner than that after the last point writes none, unless it is the last one:
            of a net that is large and an epoch that is short, points would be most of the time.
    """

    def __init__(self, path: str, every_steps: int = 200, min_seconds: float = 0.0) -> None:
        self.path, self.every_steps, self.min_seconds = Path(path), every_steps, min_seconds
        self._saved_at, self._is_behind = -float("inf"), False
        self._trainer: Trainer | None = None
        self._saving = False
        self._loaded: dict[str, Any] = {}
        self._signal = 0
        self._unlogged: list[Any] = []
        self._handlers: dict[int, Any] = {}

    # --- Lightning's hooks -----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember whose state is to be written."""
        self._trainer = trainer

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up what the last point held, even where no step is left to be taken."""
        if not self._loaded:
            return
        if trainer.is_global_zero:
            pl_module.quarantined.extend(self._loaded["quarantined"])  # type: ignore[union-attr, operator]
        _write_curves(trainer, self._loaded["curves"])
        if self._loaded["unlogged"]:
            metrics, step = self._loaded["unlogged"]
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._listen) for number in SIGNALS}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the random state just before the first batch after a point."""
        if self._loaded:
            states = self._loaded["random"]
            if trainer.global_rank < len(states):
                _set_random(states[trainer.global_rank])
            self._loaded = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a point where one is due or asked for."""
        done = batch_idx + 1
        between = done % trainer.accumulate_grad_batches == 0 and done < trainer.num_training_batches
        if not between:
            return
        stop = self._asked_to_stop(trainer, done)
        if stop or done % self.every_steps == 0:
            self.save(trainer, _unlogged(trainer))
        if stop:
            raise Preempted(stop, self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a point if one is due; validation has run and the other checkpoints of the epoch are written."""
        stop = self._asked_to_stop(trainer, 0)
        due = _is_last_epoch(trainer) or time.monotonic() - self._saved_at >= self.min_seconds
        self._is_behind = not (stop or trainer.strategy.broadcast(due))
        if not self._is_behind:
            self.save(trainer)
        if stop:
            raise Preempted(stop, self.path)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last point if the last epoch was not known to be the last, and give the signals back."""
        if self._is_behind:
            self.save(trainer)
        self._stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._stop_listening()

    def state_dict(self) -> dict[str, Any]:
        """Give what Lightning does not keep; collective, and only for a point."""
        if not self._saving:
            return {}
        assert self._trainer is not None
        module: Any = self._trainer.lightning_module
        own = {"random": _random_state(), "quarantined": list(module.quarantined)}
        ranks = [own]
        if self._trainer.world_size > 1:
            ranks = [{} for _ in range(self._trainer.world_size)]
            torch.distributed.all_gather_object(ranks, own)
        return {
            "random": [rank["random"] for rank in ranks],
            "quarantined": [record for rank in ranks for record in rank["quarantined"]],
            "curves": _read_curves(self._trainer),
            "unlogged": self._unlogged,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        self._loaded = state_dict

    # --- parts -----------------------------------------------------------------------------------------

    def save(self, trainer: Trainer, unlogged: list[Any] | None = None) -> None:
        """Write a point.

        Args:
            trainer: whose state is written.
            unlogged: metrics and step that Lightning will log only after this.
        """
        self._saving, self._unlogged = True, unlogged or []
        try:
            trainer.save_checkpoint(self.path)
            self._saved_at, self._is_behind = time.monotonic(), False
        finally:
            self._saving = False

    def _listen(self, number: int, _: Any) -> None:
        self._signal = number

    def _asked_to_stop(self, trainer: Trainer, done: int) -> int:
        """Give the signal that some rank was sent, on all ranks alike; 0 for none."""
        if trainer.world_size == 1:
            return self._signal
        if done % ASK_EVERY:
            return 0
        asked = torch.tensor(self._signal, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return int(asked)

    def _stop_listening(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _is_last_epoch(trainer: Trainer) -> bool:
    """Say whether training ends with this epoch; what stops it has had its turn, as checkpoints have theirs last."""
    enough_epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    enough_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or enough_epochs or enough_steps)


def _random_state() -> dict[str, Any]:
    """Give the state of all generators as tensors and plain values, which load without running code."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert kind == "MT19937"
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
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
    """Give the metrics of the step under way and their step; Lightning logs them after the callbacks' turn."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return []
    metrics = {key: float(value) for key, value in connector.metrics["log"].items()}
    step = int(trainer.fit_loop.epoch_loop._batches_that_stepped)
    return [{**metrics, "epoch": trainer.current_epoch}, step] if metrics else []


def _csv(trainer: Trainer) -> Any:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def _read_curves(trainer: Trainer) -> str:
    writer = _csv(trainer)
    if writer is None:
        return ""
    writer.save()
    path = Path(writer.metrics_file_path)
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _write_curves(trainer: Trainer, text: str) -> None:
    writer = _csv(trainer)
    if writer is not None and text:
        Path(writer.metrics_file_path).write_text(text, encoding="utf-8", newline="")
        writer.metrics_keys = text.splitlines()[0].split(",")


log = logging.getLogger("fakedet")

# They may differ between the starts of one run.
ASIDE = ("overwrite", "resume", "callbacks.progress", "trace_cache")
SHOWN = 3


def open_or_resume(config: DictConfig) -> Path:
    """Make the run's folder, or take up the unfinished run in it.

    Raises:
        UserError: the folder holds a finished run, one of another config, or something else.
    """
    folder = Path(config.output_dir)
    begun = (folder / "config.yaml").is_file()
    # A job that SLURM started again has begun its folder itself: overwriting would lose what it did.
    if not begun or not config.resume or (config.overwrite and not was_requeued()):
        folder = open_folder(folder, config.overwrite)
        lock_folder(folder).release()  # a run that is still training keeps its points
        _forget(folder)
        return folder
    if (folder / "run.json").is_file():
        raise UserError(
            f"output_dir={folder} holds a finished run; name another one, or pass overwrite=true to `fakedet train` to "
            "train it anew"
        )
    differing = _differing(folder, config)
    if differing and not any(folder.glob("**/*.ckpt")):
        # It ended by a mistake in the config before it had learned anything: the corrected one may have its place.
        lock_folder(folder).release()
        _forget(folder)
        return open_folder(folder, overwrite=True)
    if differing:
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise UserError(
            f"output_dir={folder} holds an unfinished run of another config: {', '.join(differing[:SHOWN])}{more}; "
            "name another one, or pass overwrite=true to replace it"
        )
    log.info("%s holds an unfinished run of this config: it goes on", folder)
    return folder


def differences(config: DictConfig) -> list[str]:
    """List as "key: old → new" what the run in the folder of a config was told otherwise; empty without a run."""
    folder = Path(config.output_dir)
    return _differing(folder, config) if (folder / "config.yaml").is_file() else []


def _differing(folder: Path, config: DictConfig) -> list[str]:
    saved = _plain(_load(folder))
    saved = _moved(saved, str(saved.get("output_dir", "")), str(config.output_dir))
    return list(_differences(saved, _plain(config)))


def finished(config: DictConfig) -> dict[str, Any] | None:
    """Give what run.json says of the finished run of this very config in its folder; None where there is none."""
    facts = Path(config.output_dir) / "run.json"
    if config.overwrite or not facts.is_file() or not facts.with_name("config.yaml").is_file():
        return None
    if any(_differences(_plain(_load(facts.parent)), _plain(config))):
        return None
    log.info("%s holds this very run, finished: it is not trained again", facts.parent)
    content: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
    return content


def config_of(run: str) -> tuple[DictConfig, list[str]]:
    """Give the config of a run's folder, made to go on, and what its user had overridden.

    Raises:
        UserError: the folder holds no run, or a finished one.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        below = sorted(path.parent for path in folder.glob("*/config.yaml"))
        more = f"; its jobs are in {below[0]} and so on" if below else ""
        raise UserError(f"run={folder}: there is no run in this folder (no config.yaml){more}")
    config = _load(folder)
    if "callbacks" not in config or "model" not in config:
        raise UserError(f"run={folder} is no training run; only those can be resumed")
    # The folder may have been moved or copied since: it goes on where it is now.
    config = OmegaConf.create(_moved(_plain(config), str(config.output_dir), str(folder.absolute())))
    assert isinstance(config, DictConfig)
    config.overwrite, config.resume = False, True
    overrides = folder / "overrides.yaml"
    given = OmegaConf.to_container(OmegaConf.load(overrides)) if overrides.is_file() else []
    return config, [str(item) for item in given or []]  # type: ignore[union-attr]


def _load(folder: Path) -> DictConfig:
    try:
        config = OmegaConf.load(folder / "config.yaml")
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(
            f"{folder}/config.yaml cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(config, DictConfig) or not config:
        raise UserError(
            f"{folder}/config.yaml holds no config; pass overwrite=true to `fakedet train` to begin anew"
        )
    return config


def lock_folder(folder: Path, doing: str = "training") -> FileLock:
    """Take the folder for this process alone.

    Args:
        folder: that is there.
        doing: what another process is told to be doing there.

    Raises:
        UserError: another process has it.
    """
    taken = FileLock(folder / ".lock")
    try:
        taken.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"output_dir={folder}: another process is {doing} in it; name another one") from error
    return taken


def resume_point_of(path: Path, manifest_sha256: str) -> Path | None:
    """Return the path of the checkpoint that a training goes on from, or None if there is none.

    Raises:
        UserError: it was written on other data.
    """
    if not path.is_file():
        return None
    try:
        content = read_checkpoint(path)
    except UserError as error:
        raise UserError(
            f"{error}. It is this run's resume point: bring it back whole, or pass overwrite=true to `fakedet train` "
            "to begin anew"
        ) from error
    if content["fakedet"]["manifest_sha256"] != manifest_sha256:
        raise UserError(
            f"{path} was written on other data: the manifest has changed since this run began. Bring it back, or pass "
            "overwrite=true to `fakedet train` to begin anew"
        )
    _bring_along(content, path)
    log.info("going on after step %d, in epoch %d", content["global_step"], content["epoch"] + 1)
    return path


def _forget(folder: Path) -> None:
    """Remove what an overwritten run would be taken for unfinished or finished by."""
    for name in ("run.json", "checkpoints/resume.ckpt", "stage1/checkpoints/resume.ckpt", "wandb_id.txt"):
        (folder / name).unlink(missing_ok=True)


def keep_last_point(folder: Path) -> None:
    """Let the resume points of a run that is done be its last checkpoints."""
    for path in folder.glob("**/checkpoints/resume.ckpt"):
        path.replace(path.with_name("last.ckpt"))


def _bring_along(content: dict[str, Any], path: Path) -> None:
    """Let a point that was written in another folder speak of this one.

    Lightning's checkpoint callback would else forget which epoch was best, and name its file in the old folder.
    """
    folder = str(path.parent.absolute())
    for state in content["callbacks"].values():
        before = str(state.get("dirpath") or "") if isinstance(state, dict) else ""
        if before and before != folder and is_main_process():
            content["callbacks"] = _moved(content["callbacks"], before, folder)
            write_whole(content, path)
            return


def _moved(node: Any, before: str, after: str) -> Any:
    """Give plain values with the paths below one folder brought below another."""
    if isinstance(node, dict):
        return {_moved(key, before, after): _moved(value, before, after) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, before, after) for value in node]
    if before and isinstance(node, str) and (node == before or node.startswith(before.rstrip("/") + "/")):
        return after + node[len(before) :]
    return node


def _plain(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return content


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield "key: old → new"; folders named after the run's own folder are compared without it."""
    for key in dict.fromkeys([*old, *new]):
        name, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if name in ASIDE or name == "output_dir":
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            inner = {"output_dir": ""}
            yield from _differences({**inner, **before}, {**inner, **after}, f"{name}.")
        elif before != after and not _same_place(before, after):
            yield f"{name}: {before} → {after}"


def _same_place(before: Any, after: Any) -> bool:
    """Say whether two paths are one, whether written from the root or from here."""
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    return "/" in before and Path(before).resolve() == Path(after).resolve()
