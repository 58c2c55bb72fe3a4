"""Whether a run's folder holds an unfinished run that goes on, and what it goes on from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from fakedet.callbacks.atomic import write_whole
from fakedet.checkpoint import read_checkpoint
from fakedet.errors import UserError
from fakedet.runs.folder import open_folder
from fakedet.runs.ranks import is_main_process, was_requeued

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
        lock(folder).release()  # a run that is still training keeps its points
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
        lock(folder).release()
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


def lock(folder: Path, doing: str = "training") -> FileLock:
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


def point(config: DictConfig, manifest_sha256: str) -> Path | None:
    """Give the checkpoint that this training goes on from; None where there is none.

    Raises:
        UserError: it was written on other data.
    """
    settings = config.callbacks.get("resume")
    path = Path(settings.path) if settings else None
    if path is None or not path.is_file():
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


def finish(folder: Path) -> None:
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
