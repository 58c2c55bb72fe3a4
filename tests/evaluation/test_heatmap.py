"""The matrix of detectors and generators: its colours are its values."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from fakedet.evaluation.plots import plot_matrix
from fakedet.metrics.bootstrap import Interval

VALUES = {"alpha": {"one": 0.9, "two": 0.1}, "beta": {"one": 0.6, "two": float("nan")}}


def draw(path: Path, seen: dict[str, set[str]]) -> np.ndarray:
    cells = {
        name: {method: Interval(value, value - 0.05, value + 0.05) for method, value in row.items()}
        for name, row in VALUES.items()
    }
    return np.asarray(Image.open(plot_matrix(cells, seen, "a title", path)).convert("RGB")).astype(int)


def test_each_value_has_its_colour_and_frames_mark_the_unseen(tmp_path: Path) -> None:
    framed = draw(tmp_path / "a.png", {"one": {"alpha"}, "two": set()})
    plain = draw(tmp_path / "b.png", {"one": {"alpha", "beta"}, "two": {"alpha", "beta"}})
    for value in (0.9, 0.1, 0.6):
        colour = np.array(colormaps["RdBu"](value)[:3]) * 255
        near = np.abs(plain - colour).max(axis=2) <= 2
        assert near.sum() > 5000, f"no cell has the colour of {value}"
    assert framed.shape == plain.shape
    black = [int((picture.max(axis=2) < 40).sum()) for picture in (framed, plain)]
    assert black[0] > black[1] + 3000, "three frames are drawn in the first and none in the second"
