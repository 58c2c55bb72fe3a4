"""The page to drop pictures on: from the command line to the verdict in a real browser."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from fakedet.cli.app import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "bce"
    assert launch("train", [
        "model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=1", "threads=1",
        "bootstrap.resamples=0", "header_audit=false", f"data.manifest={tiny_manifest_module}", f"output_dir={folder}",
    ]) == 0  # fmt: skip
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a <b>picture.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8))
    return path


class Served:
    """A running `fakedet serve`."""

    def __init__(self, checkpoint: Path, temporary: Path, *more: str) -> None:
        temporary.mkdir(exist_ok=True)
        self.temporary = temporary
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fakedet", "serve", f"checkpoint={checkpoint}", "threads=1", *more],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        self.said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"the page is at (\S+)", line):
                self.address = found.group(1)
                return
        raise AssertionError(f"it ended: {self.said}")

    def files(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file() and "fakedet-job" not in path.name]

    def soon_empty(self) -> bool:
        until = time.monotonic() + 10
        while self.files() and time.monotonic() < until:
            time.sleep(0.1)
        return not self.files()

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=120)
        return self.process.returncode


@pytest.fixture
def served(checkpoint: Path, tmp_path: Path, browser) -> Iterator[Served]:
    running = Served(checkpoint, tmp_path / "temporary", "per_minute=3", "max_mb=1")
    yield running
    running.end()


def cards(page, count: int = 1) -> list[str]:
    page.wait_for_function(f"document.querySelectorAll('.fakedet-card').length === {count}")
    return [element.inner_text() for element in page.query_selector_all(".fakedet-card")]


def test_a_picture_gets_its_verdict_and_is_not_kept(served: Served, picture: Path, browser, watch) -> None:
    assert served.address.startswith("http://127.0.0.1:")
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    watch.follow(page)
    page.goto(served.address)
    one = page.locator("input[type=file]").nth(0)
    one.wait_for(state="attached")
    one.set_input_files(str(picture))
    (card,) = cards(page)
    assert re.search(r"^(real|fake|undecided)$", card, re.M | re.I)
    for name in ("score", "p-value", "stability", "200 × 120, JPEG, quality 95"):
        assert name in card
    assert page.locator(".fakedet-card img").count() == 2  # the image and its tiles
    assert page.locator(".fakedet-card b").count() == 0  # its name is text, not markup
    assert page.evaluate("[...document.querySelectorAll('.fakedet-card img')].every(i => i.naturalWidth > 0)")
    assert watch.errors == []
    assert watch.outside == []
    assert served.soon_empty()  # nothing of it stays on the disk
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()
    assert served.end() == 130
    assert list(served.temporary.glob("fakedet-serve-*")) == []


def test_limits_and_bad_files_are_said_on_the_page(served: Served, picture: Path, tmp_path: Path, browser) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    page = browser.new_page()
    page.goto(served.address)
    several = page.locator("input[type=file]").nth(1)
    several.wait_for(state="attached")
    several.set_input_files([str(picture), str(text)])
    first, second = cards(page, 2)
    assert "score" in first
    assert "This file cannot be read" in second
    several.set_input_files([str(picture), str(text)])
    page.wait_for_function("document.body.innerText.includes('try again in')")
    several.set_input_files([str(picture)] * 4)
    page.wait_for_function("document.body.innerText.includes('show fewer at once')")
    large = tmp_path / "large.png"
    large.write_bytes(os.urandom(2 * 2**20))
    several.set_input_files(str(large))
    page.wait_for_function("/exceed|too large|larger than/i.test(document.body.innerText)")
    assert served.soon_empty()
    page.close()


def test_a_pasted_picture_is_looked_at(served: Served, browser) -> None:
    page, uploads = browser.new_page(), []
    page.on("request", lambda request: uploads.append(request.url) if "/upload?" in request.url else None)
    page.goto(served.address)
    page.locator("input[type=file]").nth(0).wait_for(state="attached")
    page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(90, 70); canvas.getContext('2d').fillRect(9, 9, 30, 30);
        const blob = await canvas.convertToBlob({type: 'image/png'});
        const data = new DataTransfer(); data.items.add(new File([blob], 'pasted.png', {type: 'image/png'}));
        document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
    }""")
    (card,) = cards(page)
    assert "90 × 70, PNG" in card
    assert len(uploads) == 1
    page.close()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("host=nowhere", "an IP address of this machine"),
        ("port=99999", "1 to 65535"),
        ("max_mb=0", "must be at least 1"),
        ("per_minute=0", "must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("serve", [f"checkpoint={checkpoint}", override]) == 2
    assert message in capsys.readouterr().err


def test_a_taken_port_is_said(served: Served, checkpoint: Path) -> None:
    # Gradio leaves a socket open when it finds its port taken: in a process of its own.
    port = served.address.rstrip("/").rsplit(":", 1)[1]
    command = [sys.executable, "-m", "fakedet", "serve", f"checkpoint={checkpoint}", f"port={port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "choose another port" in done.stderr
    assert "Traceback" not in done.stderr
