"""A loader that stands still names the worker and the file."""

import time

import numpy as np
import pytest

from fakedet.data.dataset import ImageLoader, log, make_loader
from fakedet.data.sampler import EvaluationSampler


class Slow:
    """Reads nothing; row 3 takes its time."""

    reading = None

    def __getitem__(self, draw):
        with self.reading.of(draw.id):
            time.sleep(1.2 if draw.id == 3 else 0.0)
        return draw.id

    def collate(self, items):
        return {"id": items}

    def path_of(self, row):
        return f"/photos/{row}.jpg"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_file_and_the_worker_are_named_once(workers, monkeypatch) -> None:
    monkeypatch.setattr(ImageLoader, "stall_seconds", 0.3)
    # Not caplog: what other tests did to the logger's handlers decides how often that sees a record.
    warnings: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: warnings.append(text % values))
    loader = make_loader(Slow(), EvaluationSampler(np.arange(6), 2), workers, 0)
    assert [batch["id"] for batch in loader] == [[0, 1], [2, 3], [4, 5]]
    (said,) = warnings
    assert "no batch for" in said
    assert "reads /photos/3.jpg" in said
    assert ("worker " in said) == (workers > 0)


def test_a_quick_loader_says_nothing(monkeypatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: warnings.append(text % values))
    loader = make_loader(Slow(), EvaluationSampler(np.arange(3), 2), 0, 0)
    assert len(list(loader)) == 2
    assert not warnings
