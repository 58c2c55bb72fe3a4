"""The file of features: what one process stored, another finds; wrong files are told."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fakedet.errors import UserError
from fakedet.models.backbones import FrozenBackbone
from fakedet.models.features import VARIABLE, FeatureCache, FeatureFile, log

PROGRAM = """
import torch
from fakedet.models.backbones import FrozenBackbone
torch.manual_seed(0)
net = FrozenBackbone("test_efficientnet", False, None, 48, [-1])
torch.manual_seed(1)
print(net(torch.rand(3, 3, 40, 40)).double().sum().item())
"""


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    FeatureCache.clear()
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    FeatureCache.clear()


def test_another_process_finds_what_one_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new folder" / "features.sqlite"
    environment = {**os.environ, VARIABLE: str(file)}
    said = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    monkeypatch.setenv(VARIABLE, str(file))
    torch.manual_seed(0)
    net = FrozenBackbone("test_efficientnet", False, None, 48, [-1])
    monkeypatch.setattr(net, "describe", lambda images: pytest.fail("it looked again"))
    torch.manual_seed(1)
    assert net(torch.rand(3, 3, 40, 40)).double().sum().item() == float(said.stdout)


def test_processes_that_begin_together_share_the_work(tmp_path: Path) -> None:
    program = """
import time, torch
from fakedet.models.backbones import FrozenBackbone
from fakedet.models.features import FeatureCache
torch.manual_seed(0)
net = FrozenBackbone("test_efficientnet", False, None, 48, [-1])
describe = net.describe
net.describe = lambda images: time.sleep(0.1) or describe(images)
torch.manual_seed(1)
print(net(torch.rand(60, 3, 40, 40)).double().sum().item(), FeatureCache.computed)
"""
    environment = {**os.environ, VARIABLE: str(tmp_path / "f.sqlite"), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(2)]  # fmt: skip
    said = [one.communicate()[0].split() for one in both]
    assert said[0][0] == said[1][0]
    assert 60 <= sum(int(computed) for _, computed in said) <= 90, said  # 120 if each did all


def test_what_memory_forgot_the_file_still_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "f.sqlite"))
    monkeypatch.setattr(FeatureCache, "capacity", 1)
    monkeypatch.setattr(FeatureFile, "interval", 0.0)
    net, images = FrozenBackbone("test_efficientnet", False, None, 48, [-1]), torch.rand(2, 3, 40, 40)
    known = net(images)
    monkeypatch.setattr(net, "describe", lambda images: pytest.fail("it looked again"))
    assert torch.equal(net(images), known)


def test_what_other_threads_have_computed_outlives_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = FrozenBackbone("test_efficientnet", False, None, 48, [-1]), torch.rand(4, 3, 40, 40)
    describe, done, others = net.describe, list[int](), threading.Event()

    def look(image: torch.Tensor) -> torch.Tensor:
        if torch.equal(image[0], images[0]):  # is stopped when the other thread has computed all others
            assert others.wait(60)
            raise KeyboardInterrupt
        row = describe(image)
        done.append(1)
        if len(done) == 3:
            others.set()
        return row

    monkeypatch.setattr(net, "describe", look)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            net(images)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(net, "describe", lambda images: pytest.fail("it looked again"))
    assert len(net(images[1:])) == 3


def test_rows_come_back_as_they_were_and_by_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureFile, "interval", 3600.0)
    store, rows = FeatureFile(tmp_path / "f.sqlite"), torch.randn(20, 7)
    for index, row in enumerate(rows):
        store.put(b"one", index.to_bytes(4, "big"), row)
    store.put(b"two", b"x", rows[0] + 1)
    other = FeatureFile(tmp_path / "f.sqlite")
    assert other.get(b"one", (0).to_bytes(4, "big")) is None  # it waits
    store.flush()
    store.put(b"one", (0).to_bytes(4, "big"), rows[0])  # known already
    store.flush()
    for index, row in enumerate(rows):
        found = other.get(b"one", index.to_bytes(4, "big"))
        assert found is not None
        assert torch.equal(found, row)
    assert torch.equal(other.get(b"two", b"x"), rows[0] + 1)
    assert other.get(b"one", b"x") is None


@pytest.mark.parametrize("harm", [
    lambda row: row[:9] + bytes([row[9] ^ 1]) + row[10:], lambda row: row[:-5], lambda row: row + b"x", lambda row: b"",
    lambda row: None, lambda row: "text",
], ids=["flipped", "short", "long", "empty", "null", "text"])  # fmt: skip
def test_a_damaged_row_is_looked_up_again(harm: Callable[[bytes], object], tmp_path: Path) -> None:
    store, rows = FeatureFile(tmp_path / "f.sqlite"), torch.randn(2, 7)
    for row, name in zip(rows, (b"x", b"y"), strict=True):
        store.put(b"one", name, row)
    store.flush()
    with contextlib.closing(sqlite3.connect(tmp_path / "f.sqlite")) as connection, connection:
        (value,) = connection.execute("SELECT value FROM features WHERE image = ?", (b"x",)).fetchone()
        connection.execute("UPDATE features SET value = ? WHERE image = ?", (harm(value), b"x"))
    assert store.get(b"one", b"x") is None
    whole = store.get(b"one", b"y")
    assert whole is not None
    assert torch.equal(whole, rows[1])
    store.put(b"one", b"x", rows[0])
    store.flush()
    mended = store.get(b"one", b"x")
    assert mended is not None
    assert torch.equal(mended, rows[0])


def test_what_is_there_is_read_though_nothing_can_be_written(tmp_path: Path) -> None:
    store, row = FeatureFile(tmp_path / "f.sqlite"), torch.randn(7)
    store.put(b"one", b"x", row)
    store.flush()
    with contextlib.closing(sqlite3.connect(tmp_path / "f.sqlite")) as connection, connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON features BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    store.put(b"one", b"y", row)
    store.flush()
    found = store.get(b"one", b"x")
    assert found is not None
    assert torch.equal(found, row)
    assert store.get(b"one", b"y") is None


def test_a_file_that_is_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear all, " * 200)
    for path in (tmp_path / "letter.txt", tmp_path, tmp_path / "letter.txt" / "f.sqlite"):
        with pytest.raises(UserError, match=f"{VARIABLE}=.*cannot be used"):
            FeatureFile(path)
    assert (tmp_path / "letter.txt").read_text() == "Dear all, " * 200


def test_a_file_that_can_no_longer_be_written_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not caplog: what other tests did to the logger's handlers decides how often that sees a record.
    warnings: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: warnings.append(text % values))
    file = tmp_path / "f.sqlite"
    store = FeatureFile(file)
    file.write_text("Dear all, " * 200)  # somebody's mistake, or a full disk
    for _ in range(2):
        store.put(b"one", b"x", torch.ones(3))
        store.flush()
        assert store.get(b"one", b"x") is None
    (said,) = warnings
    assert "no longer kept" in said
