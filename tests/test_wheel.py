"""The wheel holds everything: an empty environment trains from another folder."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    source = target / "source"
    # A copy, so that building leaves no build/ and egg-info behind in the checkout.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("fakedet", "conf"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                copy = source / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)],
                   check=True, capture_output=True)  # fmt: skip
    return next(target.glob("*.whl"))


def test_wheel_holds_every_package_and_config(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in find_packages(str(ROOT), include=["fakedet*"]):
        assert f"{package.replace('.', '/')}/__init__.py" in names
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"fakedet/conf/{path.relative_to(ROOT / 'conf')}" in names
    assert "fakedet/evaluation/report/report.html" in names
    assert {f"fakedet/cli/{name}" for name in ("card.html", "card.css", "page.html", "page.css", "page.js")} <= names
    assert {"fakedet/weights/demo.safetensors", "fakedet/weights/demo.md", "fakedet/py.typed"} <= set(names)
    assert not [name for name in names if name.endswith("detector.safetensors")]
    assert not [name for name in names if name.startswith(("tests/", "conf/", "experiments/"))]


@pytest.mark.slow
def test_installed_wheel_trains_from_another_folder(wheel: Path, tmp_path: Path, demo_cache: Path) -> None:
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel],
                   check=True, capture_output=True)  # fmt: skip
    # The heavy packages are lent by path instead of installed for minutes; fakedet itself is the wheel's.
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = "import fakedet, fakedet.conf; print(fakedet.__file__, fakedet.conf.__file__)"
    where = subprocess.run([python, "-c", program], cwd=elsewhere, capture_output=True, text=True, check=True).stdout
    assert where.count(str(site)) == 2, where
    done = subprocess.run(
        [environment / "bin" / "fakedet", "train", "experiment=demo", "debug=step"],
        cwd=elsewhere, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "FAKEDET_CACHE": str(demo_cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(elsewhere.glob("runs/ntf/*/metrics.json"))
