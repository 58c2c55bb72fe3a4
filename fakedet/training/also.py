"""Further manifests that a trained detector is scored on as part of its run: the node ``also`` of conf/train.yaml."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from fakedet.build import build_datamodule
from fakedet.config import packages_of, plain
from fakedet.errors import UserError, nearest
from fakedet.evaluation.evaluate import evaluate

log = logging.getLogger("fakedet")


def also_config(config: DictConfig, name: str) -> DictConfig:
    """Compose the config that scores a manifest of ``also`` as `fakedet evaluate` does, into on_NAME.

    Args:
        config: of the training.
        name: key in ``config.also``.

    Raises:
        UserError: it is no mapping of keys of the data node, or names no manifest.
    """
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else initialize_config_module("fakedet.conf", version_base="1.3"):
        wanted = compose("evaluate")
    given = plain(config.also[name])
    if not isinstance(given, dict) or "manifest" not in given:
        raise UserError(f"also.{name}={given}: values of the data node, such as {{manifest: other.csv}}")
    known = [str(key) for key in wanted.data.keys()]  # noqa: SIM118, a missing value is not "in"
    if unknown := next((key for key in given if key not in known), None):
        raise UserError(f"also.{name}: there is no key 'data.{unknown}'; {nearest(unknown, known)}")
    wanted.data = OmegaConf.merge(wanted.data, given)
    wanted.output_dir = str(Path(config.output_dir) / f"on_{name}")
    wanted.overwrite = True
    for key in ("threads", "trainer", "header_audit", "pictures", "bootstrap"):
        wanted[key] = config[key]
    with open_dict(wanted):
        wanted.trust = sorted(packages_of(plain(config.model)))  # what this run itself has trained with
    return wanted


def also_sha256(wanted: DictConfig) -> str:
    """Read the manifest of a config of :func:`also_config` and return its sha256.

    Raises:
        UserError: it cannot be read.
    """
    datamodule = build_datamodule(
        {**plain(wanted.data), "crop_size": 64, "eval_policy": "crop", "match": None}
    )
    datamodule.prepare()
    return datamodule.manifest.sha256


def unscored(config: DictConfig) -> list[str]:
    """Name the manifests of ``also`` that a run has not scored as they are now."""
    return [str(name) for name in config.get("also") or () if not _is_scored(also_config(config, str(name)))]


def _is_scored(wanted: DictConfig) -> bool:
    folder = Path(wanted.output_dir)
    try:
        facts: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        data = plain(OmegaConf.load(folder / "config.yaml"))["data"]
    except (OSError, ValueError):
        return False
    return bool(data == plain(wanted.data) and facts["manifest_sha256"] == also_sha256(wanted))


def score_also(config: DictConfig, checkpoint: Path) -> None:
    """Score the manifests of ``also`` that a run has not scored as they are now.

    Args:
        config: of the run.
        checkpoint: its weights.
    """
    for name in unscored(config):
        wanted = also_config(config, name)
        wanted.checkpoint = str(checkpoint)
        log.info("scoring %s", wanted.data.manifest)
        evaluate(wanted, [f"checkpoint={wanted.checkpoint}", f"data.manifest={wanted.data.manifest}"])


def forget_scores(folder: Path) -> None:
    """Let what an earlier detector in this folder has scored count as not scored."""
    for facts in folder.glob("on_*/run.json"):
        facts.unlink()
