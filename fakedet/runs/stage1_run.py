"""Obtain the stage 1 that a run needs: given, kept from an earlier run, or trained now."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from filelock import FileLock
from omegaconf import DictConfig

from fakedet import build
from fakedet.methods.trace import TracePretraining
from fakedet.runs import dashboard, stage1
from fakedet.runs.fitting import fit, make_datamodule, plain
from fakedet.runs.folder import write_json
from fakedet.runs.ranks import is_main_process, start_name

log = logging.getLogger("fakedet")

DECISION = ".stage1.json"


def obtain_trace(config: DictConfig, folder: Path) -> Path:
    """Give a stage-1 checkpoint: the given one, a cached one of identical config and data, or a new one."""
    if config.trace_checkpoint:
        return Path(config.trace_checkpoint)
    wanted = stage1.stage1_config(config, folder / "stage1")
    datamodule = make_datamodule(wanted)
    if not config.trace_cache or not stage1.may_be_reused(wanted):
        return _train_trace(wanted, folder)
    cache, key = Path(config.trace_cache), stage1.stage1_key(wanted, datamodule.manifest)
    cached = cache / f"{key}.ckpt"
    if not is_main_process():
        return cached if _told_to_reuse(folder) else _train_trace(wanted, folder)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{key}.lock"):
        reuse = cached.is_file()
        _tell(folder, reuse)
        if reuse:
            log.info("stage 1 of identical config and data is reused: %s", cached)
            return cached
        return stage1.publish(_train_trace(wanted, folder), cache, key)


def check_transfer(config: DictConfig) -> None:
    """Find mistakes in what comes after stage 1 before that is trained.

    Raises:
        UserError: data that a detector cannot be trained on, or a model that cannot be built on such a stage 1.
    """
    make_datamodule(config).require("train", "val")
    if not config.trace_checkpoint:
        untrained = build.build_method(plain(config.stage1))
        assert isinstance(untrained, TracePretraining)
        build.build_method(plain(config.model), build.TraceCheckpoint(plain(config.stage1), untrained))


# --- one decision for all ranks ------------------------------------------------------------------------


def _tell(folder: Path, reuse: bool) -> None:
    """Let the other ranks know: those that Lightning starts later by the environment, others by a file."""
    os.environ["FAKEDET_STAGE1"] = "reuse" if reuse else "train"
    if start_name():
        write_json(folder / DECISION, {"start": start_name(), "reuse": reuse})


def _told_to_reuse(folder: Path) -> bool:
    """Learn what the main process decided; it may wait for another run that trains this very stage 1."""
    start = start_name()
    if start is None:
        return os.environ.get("FAKEDET_STAGE1") == "reuse"
    while True:
        try:
            told = json.loads((folder / DECISION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {}
        if told.get("start") == start:
            return bool(told["reuse"])
        time.sleep(0.5)


def _train_trace(config: DictConfig, folder: Path) -> Path:
    (folder / "stage1").mkdir(exist_ok=True)
    fitted = fit(config, folder / "stage1", None)
    dashboard.finish(fitted.trainer.loggers)
    return fitted.checkpoint
