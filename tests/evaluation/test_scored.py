"""How often a test split was scored: noted once for each detector, by several processes, wherever there is room."""

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from fakedet.data.manifest import Manifest, hold_out, load_manifest
from fakedet.evaluation.scored import count_scoring, scorings, told


class Scorer(nn.Module):
    """A detector, as far as counting needs one."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight, self.info = nn.Parameter(torch.tensor(float(weight))), {"name": "bce", "seed": 0}

    def own_weights(self, state: dict[str, Any]) -> dict[str, Any]:
        return state


def score(manifest: Manifest, weight: float, folder: Path, split: str = "test", crop: str = "crop32") -> dict[str, int]:
    data: Any = SimpleNamespace(as_read=manifest)
    frame = manifest.rows(split).reset_index(names="id").assign(crop=crop)
    scorer: Any = Scorer(weight)
    return count_scoring(scorer, data, frame, folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKEDET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_each_detector_counts_once_and_validation_does_not(tiny_manifest: Path, tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest)
    assert score(manifest, 1, tmp_path, "val") == {"times": 0, "runs": 0}
    for weight, crop, times, runs in (
        (1, "crop32", 1, 1), (1, "crop32", 1, 1), (1, "resize32", 2, 1), (2, "crop32", 3, 2),
    ):  # fmt: skip
        assert score(manifest, weight, tmp_path / crop, crop=crop) == {"times": times, "runs": runs}
    assert list(tiny_manifest.parent.glob("manifest.*.jsonl")), "beside the manifest, where it goes with the data"
    assert not (tmp_path / "cache").exists()
    # By content: another table of the same name has a count of its own, and this one's is not forgotten.
    rows = tiny_manifest.read_text()
    tiny_manifest.write_text("\n".join(rows.splitlines()[:-1]) + "\n")
    assert score(load_manifest(tiny_manifest), 1, tmp_path) == {"times": 1, "runs": 1}
    tiny_manifest.write_text(rows)
    assert scorings(load_manifest(tiny_manifest)) == {"times": 3, "runs": 2}


def test_what_measures_held_out_fakes_is_no_test_split(tiny_manifest: Path, tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest)
    held = hold_out(manifest, [], "held_out", ["gen_a"])
    frame = held.rows("test").reset_index(names="id").assign(crop="crop32")
    scorer: Any = Scorer(1)
    assert len(frame)
    data: Any = SimpleNamespace(as_read=manifest, manifest=held)
    assert count_scoring(scorer, data, frame, tmp_path) == {"times": 0, "runs": 0}


def test_the_cache_has_the_notes_where_the_data_cannot_be_written(
    tiny_manifest: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tiny_manifest.parent / "manifest.test-scored.jsonl").mkdir()  # nobody can write a file of that name
    manifest = load_manifest(tiny_manifest)
    assert score(manifest, 1, tmp_path) == {"times": 1, "runs": 1}
    assert score(manifest, 2, tmp_path) == {"times": 2, "runs": 2}
    (note,) = cache.rglob("*.jsonl")
    note.write_text(note.read_text() + '{"manifest": "' + manifest.sha256)  # a process was killed
    assert scorings(manifest) == {"times": 2, "runs": 2}
    note.unlink()
    note.mkdir()
    assert score(manifest, 1, tmp_path) == {"times": 0, "runs": 0}
    assert "could not be noted" in caplog.text


def score_many(path: Path, first: int) -> None:
    manifest = load_manifest(path)
    for weight in range(first, first + 150):
        score(manifest, weight, path.parent)


def test_two_processes_lose_no_note(tiny_manifest: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=score_many, args=(tiny_manifest, first)) for first in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    lines = (tiny_manifest.parent / "manifest.test-scored.jsonl").read_text().splitlines()
    assert len(lines) == 300
    assert len(pd.DataFrame(map(json.loads, lines))["weights"].unique()) == 250
    assert scorings(load_manifest(tiny_manifest)) == {"times": 250, "runs": 250}


def test_the_count_is_a_sentence() -> None:
    assert told({"times": 1, "runs": 1}) == "The test split of this manifest has been scored once (1 run)."
    assert told({"times": 3, "runs": 2}) == "The test split of this manifest has been scored 3 times (2 runs)."
