"""Reuse of stage 1: what makes two of them the same, and where they are kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

import fakedet
from fakedet import build
from fakedet.data.manifest import Manifest

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
    with build.weights_file(encoder["weights"]).open("rb") as file:
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


def publish(checkpoint: Path, cache: Path, key: str) -> Path:
    """Copy a finished stage-1 checkpoint into the cache, whole or not at all."""
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{key}.ckpt"
    temporary = cache / f".{key}.{os.getpid()}.tmp"
    shutil.copyfile(checkpoint, temporary)
    os.replace(temporary, target)
    return target
