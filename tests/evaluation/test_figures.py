"""Figures name generators in any script and whole, in one colour each, and can be read on a phone."""

import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from fakedet.evaluation.plots import (
    draw_map,
    plot_curves,
    plot_curves_of_decision,
    plot_intervals,
    plot_matrix,
    plot_reliability,
    plot_scores,
    styles_of,
)
from fakedet.metrics.bootstrap import Interval
from fakedet.pages import Drawing, plain


def rows(name: str) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "label": np.repeat([0, 1, 1], 20), "generator": np.repeat(["real", name, "zz"], 20),
        "logit": rng.normal(size=60), "score": rng.uniform(size=60), "map_x": rng.normal(size=60),
        "map_y": rng.normal(size=60),
    })  # fmt: skip


ENTRY = {"value": 0.7, "low": 0.6, "high": 0.8}
OF_GENERATORS: dict[str, Callable[[str, Path], Path]] = {
    "scores": lambda name, path: plot_scores(rows(name), path, {name}),
    "map": lambda name, path: draw_map(rows(name), [0.5, 0.3], {name}, path),
    "intervals": lambda name, path: plot_intervals({name: {"bce": ENTRY}, "zz": {"bce": ENTRY}}, "AP", path),
    "panels": lambda name, path: plot_intervals({name: {f"m{i}": ENTRY for i in range(8)}}, "AP", path),
    "matrix": lambda name, path: plot_matrix({name: {"bce": Interval(0.7, 0.6, 0.8)}}, {}, "AUC", path),
}
OF_METHODS: dict[str, Callable[[str, Path], Path]] = {
    "legend": lambda name, path: plot_intervals({"g": {name: ENTRY}}, "AP", path),
    "rows": lambda name, path: plot_matrix({"g": {name: Interval(0.7, 0.6, 0.8)}}, {}, "AUC", path),
    "reliability": lambda name, path: plot_reliability({name: rows("g")}, path),
    "decision": lambda name, path: plot_curves_of_decision({name: rows("g")}, path),
    "curves": lambda name, path: plot_curves(
        {name: pd.DataFrame({"epoch": [0, 1], "train/loss": [1, 0.5]}), "b": pd.DataFrame()}, path
    ),
}


def differ(draw: Callable[[str, Path], Path], one: str, other: str, folder: Path) -> bool:
    """Whether two names give different pictures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each sign that it has no glyph for
        first, second = (cv2.imread(str(draw(name, folder / f"{i}.png"))) for i, name in enumerate((one, other)))
    return first.shape != second.shape or bool((first != second).any())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u901a\u4e49", "\u4e07\u76f8"),  # Chinese
        ("\u753b\u50cf", "\u751f\u6210"),
        ("\ud55c\uad6d", "\uc0dd\uc131"),
        ("\u0645\u0648\u0644\u062f", "\u0635\u0648\u0631\u0629"),  # Arabic
        ("\u0939\u093f\u0902\u0926\u0940", "\u0915\u093f\u0902\u0917\u0940"),  # Hindi
        ("\u0e44\u0e17\u0e22", "\u0e44\u0e1e\u0e22"),
        ("\U0001f916", "\U0001fae0"),  # emoji
        ("\U00020000", "\U00020001"),  # ideographs that few fonts have
    ],
)
def test_names_of_any_script_are_drawn_and_not_boxes(one: str, other: str, tmp_path: Path) -> None:
    """A font without them draws the same box for all signs of a script: two names look alike."""
    assert differ(OF_GENERATORS["scores"], one, other, tmp_path)
    assert differ(OF_METHODS["legend"], f"x {one}", f"x {other}", tmp_path)


@pytest.mark.parametrize("figure", [*OF_GENERATORS, *OF_METHODS])
def test_long_names_are_not_cut(figure: str, tmp_path: Path) -> None:
    """The last letter of a name of 150 still shows."""
    draw = {**OF_GENERATORS, **OF_METHODS}[figure]
    for name in ("x" * 150, "\u901a\u4e49 _" * 30):
        assert differ(draw, f"{name}a", f"{name}b", tmp_path), name


def test_no_letter_is_lost_where_lines_are_broken() -> None:
    for name in ("a_b-c d/e,f", "stable_diffusion" * 5, "\u901a" * 30, "a  b", "x=1, y=2"):
        assert plain(name, 10).replace("\n", "").replace(" ", "") == name.replace(" ", "")
        assert all(len(line) <= 10 for line in plain(name, 10).split("\n"))
    assert plain("_$x") == r" _\$x"
    assert plain("a\nb\x07c") == "a b c"


def test_a_generator_has_one_colour_and_marker_in_all_figures(tmp_path: Path) -> None:
    styles = styles_of(["b", "a", "b", "c"])
    assert styles == styles_of(["a", "b", "c"])
    assert len(set(styles_of(map(str, range(99))).values())) == 99
    own = styles_of(["name", "zz"])
    for figure in ("scores", "map", "intervals"):
        drawn = cv2.imread(str(OF_GENERATORS[figure]("name", tmp_path / "f.png")))[..., ::-1].reshape(-1, 3)
        for colour, _ in own.values():
            wanted = 255 * np.array(to_rgb(colour))
            wanted = 0.75 * wanted + 0.25 * 255 if figure == "map" else wanted  # points there let others through
            assert (np.abs(drawn - wanted).max(axis=1) <= 2).any(), (figure, colour)


def test_figures_fit_a_phone(tmp_path: Path) -> None:
    for name, draw in {**OF_GENERATORS, **OF_METHODS}.items():
        if name not in ("panels", "matrix", "rows"):  # these may scroll
            assert Drawing(draw("some_generator", tmp_path / "f.png"), "").width <= 360, name
