"""Which stage 1 a run needs, and the cache that hands a trained one on to other runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf, open_dict

import fakedet
from fakedet.data.manifest import Manifest
from fakedet.utils import is_main_process, link, plain, start_name, write_json

log = logging.getLogger("fakedet")

# Settings that change how fast stage 1 is trained or what is measured beside it, but not its weights.
DATA_ASIDE = ("manifest", "root", "shard_cache", "cache", "pairs", "num_workers", "eval_batch_size", "max_quarantine")
TRAINER_ASIDE = ("_target_", "limit_val_batches", "limit_test_batches", "check_val_every_n_epoch", "log_every_n_steps",
                 "detect_anomaly", "num_sanity_val_steps", "use_distributed_sampler", "enable_model_summary",
                 "enable_progress_bar", "logger", "callbacks", "default_root_dir", "profiler")  # fmt: skip
DECISION = ".stage1.json"


def stage1_config(config: DictConfig, folder: Path) -> DictConfig:
    """Return the config of the stage 1 that a run needs, to be trained in ``folder``."""
    # Copied with its interpolations: epochs, monitor and folders must follow stage 1's own model and folder.
    derived = config.copy()
    with open_dict(derived):
        derived.model = OmegaConf.to_container(config.stage1, resolve=True)
        derived.name, derived.output_dir = f"{config.name}-stage1", str(folder)
        derived.test_after_fit, derived.stage1_checkpoint = False, None
    return derived


def stage1_key(config: DictConfig, manifest: Manifest) -> str:
    """Name a stage 1, the model of ``config``, by all that its weights depend on.

    That is model, views, data, optimisation, seed, version; of the manifest its rows and folder, not its file's name.
    """
    given: dict[str, Any] = plain(config)
    model = given["model"]
    # Held-out fakes do not matter where no fake chooses the weights.
    aside = (*DATA_ASIDE, *(("hold_out", "hold_out_families", "measure") if model["monitor"] is None else ()))
    pretrained = None
    if weights := model["encoder"].get("weights"):
        # By content: other weights may come to have the same name.
        with Path(weights).expanduser().open("rb") as file:
            pretrained = hashlib.file_digest(file, "sha256").hexdigest()
    content = {
        "model": model, "views": given["view_augment"], "pretrained": pretrained,
        "data": {key: value for key, value in given["data"].items() if key not in aside},
        "rows": manifest.sha256, "files": _photographs(manifest), "root": str(manifest.root.resolve()),
        "trainer": {key: value for key, value in given["trainer"].items() if key not in TRAINER_ASIDE},
        "seed": given["seed"], "threads": given["threads"], "version": fakedet.__version__,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _photographs(manifest: Manifest) -> str:
    """Fingerprint the photographs that stage 1 learns from by size and time, without reading them."""
    rows = manifest.rows("train")
    reals = rows[rows["label"] == 0]
    if manifest.shards is not None and manifest.digests is not None:
        return hashlib.sha256("".join(manifest.digests[reals.index]).encode()).hexdigest()
    digest = hashlib.sha256()
    for path in reals["path"]:
        try:
            status = (manifest.root / path).stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path} missing\n".encode())
    return digest.hexdigest()


def cached_stage1(config: DictConfig, manifest: Manifest) -> Path:
    """Return where the stage 1 of ``config`` lies in the folder of trained ones that runs share."""
    return Path(config.stage1_cache) / f"{stage1_key(config, manifest)}.ckpt"


def obtain_cached(path: Path, run: Path, train_it: Callable[[], Path]) -> Path:
    """Return the checkpoint at ``path``, or train stage 1 and put it there; one process at a time, same on all ranks.

    ``train_it``, collective over the ranks, trains stage 1 for the run in the folder ``run``.
    """
    if not is_main_process():
        return path if _told_to_reuse(run) else train_it()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        reuse = path.is_file()
        # Ranks that Lightning starts later read the environment, others a file.
        os.environ["FAKEDET_STAGE1"] = "reuse" if reuse else "train"
        if start_name():
            write_json(run / DECISION, {"start": start_name(), "reuse": reuse})
        if reuse:
            log.info("stage 1 of identical config and data is reused: %s", path)
        else:
            link(train_it(), path)
        return path


def _told_to_reuse(run: Path) -> bool:
    """Wait for rank zero's decision, which may take as long as another run trains the same stage 1."""
    start = start_name()
    if start is None:
        return os.environ.get("FAKEDET_STAGE1") == "reuse"
    while True:
        try:
            told = json.loads((run / DECISION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {}
        if told.get("start") == start:
            return bool(told["reuse"])
        time.sleep(0.5)
