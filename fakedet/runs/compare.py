"""Gather the runs of a sweep into one comparison: what ``fakedet compare`` does."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError
from fakedet.evaluation.comparison import Comparison
from fakedet.evaluation.predictions import read_pictures, read_predictions
from fakedet.runs import report
from fakedet.runs.report_files import Read
from fakedet.runs.training import FAILURE

log = logging.getLogger("fakedet")

# They name a run or its place, not what it does.
ASIDE = ("seed", "output_dir", "overwrite", "resume", "trace_cache", "threads", "logger", "sweep", "hydra")


@dataclass(frozen=True)
class SweptRun:
    """One run's folder."""

    folder: Path
    overrides: dict[str, str]
    seed: int
    facts: dict[str, Any] | None
    """run.json; None for a run that has not finished."""
    failure: str
    """Why it failed; "" for a run that was stopped or is under way."""


def compare(config: DictConfig, overrides: list[str]) -> tuple[Comparison, Path]:
    """Compare all finished runs below some folders, seeds of the same overrides taken together.

    Raises:
        UserError: there is no finished run, or they were evaluated on different data.
    """
    given = [config.runs] if isinstance(config.runs, str) else [str(item) for item in config.runs]
    runs = [run for name in given for run in _find(Path(name))]
    done = [run for run in runs if run.facts and (run.folder / "predictions.parquet").is_file()]
    failures = [_describe(run) for run in runs if run.facts is None]
    for line in failures:
        log.warning("%s", line)
    if not done:
        raise UserError(f"runs={', '.join(given)}: there is no finished run with predictions.parquet below")
    differing = _differing(done)
    read, rows = [], []
    for run in sorted(done, key=lambda run: (_label(run, differing), run.seed)):
        frame, identity = read_predictions(run.folder / "predictions.parquet")
        pictures = read_pictures(run.folder / "predictions.parquet")
        read.append(
            Read(
                _label(run, differing),
                run.seed,
                run.folder / "predictions.parquet",
                frame,
                identity,
                pictures,
            )
        )
        rows.append(_row(run, differing))
    return report.write(read, config, ["fakedet", "compare", *overrides], rows, failures)


def _find(root: Path) -> list[SweptRun]:
    if not root.is_dir():
        raise UserError(f"runs={root}: there is no such folder")
    found = []
    for path in sorted(root.rglob("config.yaml")):
        folder = path.parent
        # Stage 1 has no config of its own, and reports have no model.
        if not (folder / "overrides.yaml").is_file() or "model" not in OmegaConf.load(path):
            continue
        facts = _json(folder / "run.json")
        listed: Any = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"))
        pairs = dict(item.lstrip("+~").partition("=")[::2] for item in listed)
        seed = int(facts["seed"]) if facts else int(pairs.get("seed", 0))
        failure = (_json(folder / FAILURE) or {}).get("error", "")
        found.append(SweptRun(folder, pairs, seed, facts, failure))
    return found


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _differing(runs: Sequence[SweptRun]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.overrides if not key.startswith(ASIDE))
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def _label(run: SweptRun, differing: Sequence[str]) -> str:
    named = [f"{key}={run.overrides[key]}" for key in differing if key in run.overrides]
    if not named:
        return str(OmegaConf.load(run.folder / "config.yaml").name)
    return run.overrides[differing[0]] if differing == ["model"] else ", ".join(named)


def _describe(run: SweptRun) -> str:
    """Say what became of a run that did not finish, and how to run it alone."""
    again = f"fakedet resume run={shlex.quote(str(run.folder))}"
    cause = f"failed: {run.failure}" if run.failure else "has not finished"
    return f"{run.folder.name} {cause}. Alone: {again}"


def _row(run: SweptRun, differing: Sequence[str]) -> dict[str, Any]:
    assert run.facts is not None
    return {
        **{key: run.overrides.get(key) for key in differing}, "seed": run.seed,
        "validation": _rounded(run.facts.get("validation")), "minutes": _rounded(run.facts["seconds"]["all"] / 60),
        "parameters": run.facts["parameters"], "kept epoch": run.facts["kept_epoch"], "folder": str(run.folder),
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
