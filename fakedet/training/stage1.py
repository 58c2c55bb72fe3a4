"""training/stage1"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf, open_dict

import fakedet
from fakedet.build import TraceCheckpoint, build_method, weights_file
from fakedet.data.manifest import Manifest
from fakedet.methods.ntf import TracePretraining
from fakedet.training.fit import fit, make_datamodule, plain
from fakedet.training.loggers import finish_loggers
from fakedet.utils import is_main_process, replacing, start_name, write_json

# Settings that change how fast stage 1 is trained or what is measured beside it, but not its weights.
DATA_ASIDE = (
    "manifest",
    "root",
    "shard_cache",
    "cache",
    "pairs",
    "num_workers",
    "eval_batch_size",
    "max_quarantine",
)
TRAINER_ASIDE = ("_target_", "limit_val_batches", "limit_test_batches", "check_val_every_n_epoch", "log_every_n_steps",
                 "detect_anomaly", "num_sanity_val_steps", "use_distributed_sampler", "enable_model_summary",
                 "enable_progress_bar", "logger", "callbacks", "default_root_dir", "profiler")  # fmt: skip


def stage1_config(config: DictConfig, folder: Path) -> DictConfig:
    """Give the config of the stage 1 that a run needs, to be trained in ``folder``."""
    # Copied with its interpolations: epochs, monitor and folders must follow stage 1's own model and folder.
    model = OmegaConf.to_container(config.stage1, resolve=True)
    derived = config.copy()
    with open_dict(derived):
        derived.model = model
        derived.name = f"{config.name}-stage1"
        derived.output_dir = str(folder)
        derived.test_after_fit = False
        derived.trace_checkpoint = None
    return derived


def stage1_key(config: DictConfig, manifest: Manifest) -> str:
    """Name a stage 1 by all that its weights depend on: model, views, data, optimisation, seed, version.

    Args:
        config: a config whose ``model`` is stage 1.
        manifest: the data; its rows and its folder count, not its file's name.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    # Which fakes a run holds out is nothing to a stage 1 that no fake chooses the weights of.
    aside = (*DATA_ASIDE, *(("hold_out", "measure") if plain["model"]["monitor"] is None else ()))
    content = {
        "model": plain["model"],
        "views": plain["view_augment"],
        "data": {key: value for key, value in plain["data"].items() if key not in aside},
        "rows": manifest.sha256,
        "files": _files(manifest),
        "root": str(manifest.root.resolve()),
        "pretrained": _pretrained(plain["model"]["encoder"]),
        "trainer": {key: value for key, value in plain["trainer"].items() if key not in TRAINER_ASIDE},
        "seed": plain["seed"],
        "threads": plain["threads"],
        "version": fakedet.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def may_be_reused(config: DictConfig) -> bool:
    """Say whether the same config always gives the same stage 1; one that is stopped by the clock does not."""
    return not config.trainer.get("max_time")


def _pretrained(encoder: Mapping[str, Any]) -> str | None:
    """Fingerprint the file of weights that the encoder starts from: another one may come to have its name."""
    if not encoder.get("weights"):
        return None
    with weights_file(encoder["weights"]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(manifest: Manifest) -> str:
    """Fingerprint the photographs that stage 1 learns from by size and time, without reading them."""
    digest = hashlib.sha256()
    rows = manifest.rows("train")
    if manifest.shards is not None and manifest.digests is not None:
        kept = manifest.digests[rows.index[rows["label"] == 0]]
        return hashlib.sha256("".join(kept).encode()).hexdigest()
    for path in rows.loc[rows["label"] == 0, "path"]:
        try:
            status = (manifest.root / path).stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path} missing\n".encode())
    return digest.hexdigest()


def publish_stage1(checkpoint: Path, cache: Path, key: str) -> Path:
    """Copy a finished stage-1 checkpoint into the cache, whole or not at all."""
    target = cache / f"{key}.ckpt"
    with replacing(target) as temporary:
        shutil.copyfile(checkpoint, temporary)
    return target


log = logging.getLogger("fakedet")

DECISION = ".stage1.json"


def obtain_trace(config: DictConfig, folder: Path) -> Path:
    """Give a stage-1 checkpoint: the given one, a cached one of identical config and data, or a new one."""
    if config.trace_checkpoint:
        return Path(config.trace_checkpoint)
    wanted = stage1_config(config, folder / "stage1")
    datamodule = make_datamodule(wanted)
    if not config.trace_cache or not may_be_reused(wanted):
        return _train_trace(wanted, folder)
    cache, key = Path(config.trace_cache), stage1_key(wanted, datamodule.manifest)
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
        return publish_stage1(_train_trace(wanted, folder), cache, key)


def check_transfer(config: DictConfig) -> None:
    """Find mistakes in what comes after stage 1 before that is trained.

    Raises:
        UserError: data that a detector cannot be trained on, or a model that cannot be built on such a stage 1.
    """
    make_datamodule(config).require("train", "val")
    if not config.trace_checkpoint:
        untrained = build_method(plain(config.stage1))
        assert isinstance(untrained, TracePretraining)
        build_method(plain(config.model), TraceCheckpoint(plain(config.stage1), untrained))


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
    finish_loggers(fitted.trainer.loggers)
    return fitted.checkpoint
