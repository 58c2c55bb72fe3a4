"""What all tests share: small data on disk, the demo data, the development corpus where it is there."""

import os
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parent.parent
UNTIL = int(os.environ.get("FAKEDET_SLOW_UNTIL") or 0)
"""When CI's time ends, in seconds since 1970; long tests that have not begun by then are skipped. 0: never."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with another file each day, so that time which always ends early does not always skip the same tests."""
    files = list(dict.fromkeys(item.path for item in items))
    first = UNTIL // 86_400 % max(1, len(files))
    place = {path: (number - first) % len(files) for number, path in enumerate(files)}
    items.sort(key=lambda item: place[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if UNTIL and time.time() > UNTIL and item.get_closest_marker("slow"):
        pytest.skip("not run: the time that CI has was over")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def write_tiny_manifest(folder: Path) -> Path:
    """Write 72 small images of two collections and three generators, gen_c only in test."""
    rng = np.random.default_rng(0)
    rows = []

    def add(generator: str, label: int, split: str, count: int) -> None:
        for number in range(count):
            name = f"{generator}/{split} {number}.{'png' if number % 2 else 'jpg'}"
            image = rng.integers(0, 256, (40 + number, 48, 3), dtype=np.uint8)
            if label:
                image = cv2.GaussianBlur(image, (3, 3), 0)
            (folder / generator).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / name), image)
            rows.append({"path": name, "label": label, "generator": generator, "split": split,
                         "group": f"{generator}-{split}-{number // 2}"})  # fmt: skip

    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        add("real_x", 0, split, count)
        add("real_y", 0, split, count)
        add("gen_a", 1, split, count)
        add("gen_b", 1, split, count)
    add("gen_c", 1, "test", 8)
    path = folder / "manifest.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def tiny_manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    return write_tiny_manifest(folder)


@pytest.fixture(scope="module")
def tiny_manifest_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for a module's tests, which must leave it as it is."""
    return write_tiny_manifest(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def demo_cache() -> Path:
    """The cache that holds the full demo data; made if it is not there yet (about a minute)."""
    from fakedet.data.demo import demo_data
    from fakedet.utils import default_cache

    demo_data(default_cache())
    return default_cache()


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The development corpus."""
    folder = Path(os.environ.get("FAKEDET_CORPUS") or ROOT.parent / "shared" / "data")
    if not (folder / "matched" / "manifest.csv").is_file():
        pytest.skip(f"the development corpus is not at {folder}; set FAKEDET_CORPUS to run this test")
    return folder
