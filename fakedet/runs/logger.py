"""The experiment logger of a run; wandb is offline unless a key is set, so that nothing waits on a network."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from fakedet.build import build_logger
from fakedet.runs.ranks import is_main_process

log = logging.getLogger("fakedet")

# wandb's own default for reaching the server is a minute and a half; a run should not stand still that long.
INIT_SECONDS = 20.0


def resolve_logger(config: DictConfig, folder: Path) -> list[Logger]:
    """Build the chosen logger; CSV is always written beside it, so ``logger=csv`` adds nothing.

    Args:
        config: the composed config; ``logger`` and ``trainer`` are read.
        folder: the run's folder.
    """
    if config.get("logger") is None or str(config.logger._target_).endswith(".CSVLogger"):
        return []
    settings: dict[str, Any] = OmegaConf.to_container(config.logger, resolve=True)  # type: ignore[assignment]
    if str(settings["_target_"]).endswith(".WandbLogger"):
        settings = _wandb_settings(settings, config, folder)
    logger = build_logger(settings)
    assert isinstance(logger, Logger)
    return [logger]


def _wandb_settings(settings: dict[str, Any], config: DictConfig, folder: Path) -> dict[str, Any]:
    import wandb

    offline = settings.get("offline")
    if offline is None:
        offline = os.environ.get("WANDB_MODE", "").lower() not in ("online", "shared") and not _has_key()
    if offline:
        log.info("wandb: offline; upload later with `wandb sync %s/wandb/offline-run-*`", folder)
    extra: dict[str, Any] = {
        "settings": wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off"),
        "config": OmegaConf.to_container(config, resolve=True),
    }
    return {**settings, "offline": bool(offline), **_same_run(folder), **extra}


def _same_run(folder: Path) -> dict[str, Any]:
    """Give the run's id, kept in its folder: a resumed run goes on in the same place on the dashboard.

    Only rank zero speaks to wandb. Another one could be here before rank zero has looked whether the folder is empty.
    """
    if not is_main_process():
        return {}
    path = folder / "wandb_id.txt"
    if not path.is_file():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return {"id": path.read_text(encoding="utf-8").strip(), "resume": "allow"}


def _has_key() -> bool:
    """Say whether wandb would find a key, without asking it: it would ask the user."""
    if os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
