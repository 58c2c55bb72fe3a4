"""The examples run as they stand."""

import json
import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def start(name: str, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return start


def test_every_script_is_short_and_run_here() -> None:
    scripts = sorted(FOLDER.glob("*.py"))
    own = Path(__file__).read_text()
    assert scripts
    for script in scripts:
        assert len(script.read_text().splitlines()) <= 40, script
        assert f'run("{script.name}"' in own, f"{script.name} is not run by any test"


def test_predict_folder(run, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(data.astronaut()).save(folder / "astronaut.png")
    (folder / "broken.jpg").write_text("no image")
    told = run("predict_folder.py", folder, "demo")
    assert "astronaut.png" in told
    assert "broken.jpg cannot be read: not an image" in told


def test_embeddings(run, tmp_path: Path) -> None:
    told = run("embeddings.py", tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as content:
        assert content["embeddings"].shape[0] == len(content["names"]) == 4
    cosines = [[float(word) for word in line.split()[1:]] for line in told.splitlines()[-4:]]
    np.testing.assert_allclose(np.diag(cosines), 1, atol=0.01)
    np.testing.assert_allclose(cosines, np.transpose(cosines), atol=0.01)


def test_train_baseline(run, tmp_path: Path, demo_cache: Path) -> None:
    told = run("train_baseline.py", tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"mAP on the test split {metrics['map']['value']}" in told
    assert "logit of a photograph" in told


def test_evaluate_scores(run) -> None:
    told = run("evaluate_scores.py")
    rows = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in told.splitlines() if
            line.startswith(("sdxl", "flux"))}  # fmt: skip
    assert rows["sdxl"][2] > 0.9 > rows["flux"][2]  # AP
    assert rows["flux"][3] < rows["flux"][2] < rows["flux"][4]  # within its interval
    assert "AP on flux: 0." in told


def test_compression_table(run, tmp_path: Path) -> None:
    told = run("compression_table.py", tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv")
    assert len(table) == 12
    assert table["jpeg_quality"].tolist() == table["quality"].tolist()
    assert all(name in told for name in ("astronaut", "coffee", "95", "50"))


def test_the_notebook_runs_and_holds_no_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    notebook = json.loads((FOLDER / "first_steps.ipynb").read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            exec("".join(cell["source"]), names)
    assert len(names["table"]) == 4  # type: ignore[arg-type]
    assert names["logits"].shape == (4,)  # type: ignore[attr-defined]


def test_the_pages_of_benchmarks_and_detectors_are_those_of_the_package() -> None:
    pages = runpy.run_path(str(FOLDER.parent / "docs" / "make_benchmarks.py"))["main"]()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/make_benchmarks.py"


def test_the_api_page_is_that_of_the_docstrings() -> None:
    docs = FOLDER.parent / "docs"
    page = (docs / "api.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(docs / "make_api.py"))["main"](), "run: python docs/make_api.py"
    prose = "\n".join(page.split("```")[::2])
    assert max(map(len, prose.splitlines())) <= 100
    assert ":func:" not in page
