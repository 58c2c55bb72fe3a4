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
    assert not [name for name in names if name.startswith(("tests/", "conf/", "experiments/"))]


@pytest.mark.slow
def test_installed_wheel_trains_from_another_folder(wheel: Path, tmp_path: Path, demo_cache: Path) -> None:
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    site = next(environment.glob("lib/python*/site-packages"))
    # The environment has no fakedet; the heavy packages are lent by path instead of installed for minutes.
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Before the lent path, so that the wheel's fakedet is found and not the checkout's.
    program = "import sys, fakedet; assert 'env' in fakedet.__file__, fakedet.__file__; " \
              "from fakedet.commands import main; sys.exit(main())"  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [str(environment / "bin" / "python"), "-c", program, "train", "experiment=demo", "debug=step"],
        cwd=elsewhere, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "FAKEDET_CACHE": str(demo_cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(elsewhere.glob("runs/transfer/*/metrics.json"))
