"""How often a test split has been scored, in a file that outlives runs: what is looked at often is fitted."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from fakedet.checkpoint import digest_of_weights
from fakedet.data.datamodule import DataModule
from fakedet.data.manifest import Manifest
from fakedet.errors import UserError
from fakedet.methods.base import Detector
from fakedet.utils import default_cache

log = logging.getLogger("fakedet")


def count_scoring(method: Detector, datamodule: DataModule, frame: pd.DataFrame, folder: Path) -> dict[str, int]:
    """Note that a detector has scored images of a manifest's test split, and say so in the log; on rank zero.

    A line of JSON is appended to NAME.test-scored.jsonl beside the manifest NAME, or to a file in ``FAKEDET_CACHE``
    (``~/.cache/fakedet``) where that cannot be written. Several processes may append at a time.

    Args:
        method, datamodule, folder: what scored, the images, and where the results go.
        frame: the scored rows, with ``id`` and ``crop``. Rows that the manifest itself does not put into test count for
            nothing: with ``data.measure=held_out`` the split of this name is another one.

    Returns:
        How often the test split has been scored so far: "times" and "runs", as :func:`scorings` counts them.
    """
    manifest = datamodule.as_read
    if (manifest.frame.loc[frame["id"], "split"] == "test").any():
        weights = {name: value.cpu() for name, value in method.own_weights(method.state_dict()).items()}
        note = {
            "manifest": manifest.sha256, "weights": digest_of_weights(weights), "crop": str(frame["crop"].iloc[0]),
            "name": method.info["name"], "seed": method.info["seed"], "output_dir": str(folder.absolute()),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }  # fmt: skip
        for path in places(manifest):
            # Opened to append and written at once: lines of several processes do not mix.
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab", buffering=0) as file:
                    file.write(json.dumps(note).encode() + b"\n")
                break
        else:
            log.warning("that the test split was scored could not be noted, neither beside %s nor in the cache folder; "
                        "set FAKEDET_CACHE to a folder that can be written", manifest.path)  # fmt: skip
        log.info("%s", told(scorings(manifest)))
    return scorings(manifest)


def places(manifest: Manifest) -> list[Path]:
    """Return the files that may hold a manifest's notes: beside it, if it is a file, and in the cache folder."""
    found = [manifest.path.with_name(f"{manifest.path.stem}.test-scored.jsonl")] if manifest.path.is_file() else []
    with suppress(UserError):  # no home folder
        found.append(default_cache() / "test-scored" / f"{manifest.sha256}.jsonl")
    return found


def scorings(manifest: Manifest) -> dict[str, int]:
    """Count the notes on a manifest of this content.

    Returns:
        "runs": trained detectors, told apart by their weights; "times": the same with other crops counted anew. What
        is scored again by the same weights in the same way, such as a run that is resumed, counts once.
    """
    notes = set()
    for path in places(manifest):
        with suppress(OSError):
            for line in path.read_bytes().splitlines():
                with suppress(ValueError, KeyError, TypeError):  # of a process that was killed while it wrote
                    note = json.loads(line)
                    if note["manifest"] == manifest.sha256:
                        notes.add((note["weights"], note["crop"]))
    return {"times": len(notes), "runs": len({weights for weights, _ in notes})}


def told(counts: Mapping[str, int]) -> str:
    """Say in a sentence how often the test split was scored."""
    times, runs = counts["times"], counts["runs"]
    often = "once" if times == 1 else f"{times} times"
    return f"The test split of this manifest has been scored {often} ({runs} run{'s' * (runs != 1)})."


def told_by(infos: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say it of the latest of some predictions files, by the infos in their metadata; nothing for older files."""
    counts = [info["test_scored"] for info in infos if info.get("test_scored")]
    return [told(max(counts, key=lambda one: one["times"]))] if counts else []
