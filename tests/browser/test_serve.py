"""The page to drop pictures on: from the command line to the verdict in a real browser."""

import csv
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

import fakedet
from fakedet.cli.app import launch
from fakedet.detector import COLUMNS
from tests.browser.test_report_page import contrast
from tests.serving.served import Served

pytestmark = pytest.mark.slow


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a <b>picture.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, browser) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("serve") / "temporary", "max_mb=1")
    yield running
    assert running.files() == []  # nothing of any upload is on the disk
    assert running.end() == 0
    assert "Traceback" not in running.said


def rows(page, count: int) -> list[str]:
    page.locator("#rows details").nth(count - 1).wait_for(state="attached")
    page.locator("#state").wait_for(state="hidden")
    found = [element.inner_text() for element in page.query_selector_all("#rows summary")]
    assert len(found) == count
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_every_file_gets_a_row_and_the_most_suspicious_are_first(
    served: Served, picture: Path, tmp_path: Path, browser, watch, width: int, scheme: str
) -> None:
    assert served.address.startswith("http://127.0.0.1:")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "=1+1.jpg").write_bytes(picture.read_bytes())
    (tmp_path / "large.png").write_bytes(bytes(2 * 2**20))
    rng = np.random.default_rng(1)
    for number in range(6):
        small = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), cv2.resize(small, None, fx=number % 3 + 1, fy=number % 3 + 1))
    files = sorted(path for path in tmp_path.iterdir() if path.is_file())
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    watch.follow(page)
    page.goto(served.address)
    page.locator("#files").set_input_files([str(path) for path in files])
    found = rows(page, len(files))
    order = ["fake", "undecided", "real", "not looked at"]
    verdicts = [row.splitlines()[0] for row in found]
    assert verdicts == sorted(verdicts, key=order.index)
    assert verdicts.count("not looked at") == 2
    assert all(
        ("simulated fakes only" in row) == (one != "not looked at") for row, one in zip(found, verdicts, strict=True)
    )
    assert any("larger than 1 MB" in row for row in found)
    p_values = [float(number) for row in found for number in re.findall(r"\bp (\d\.\d+)$", row)]
    counts = [(verdict, verdicts.count(verdict)) for verdict in order if verdict in verdicts]
    starts = np.cumsum([0, *(count for _, count in counts)])
    for start, end in pairwise(starts):
        assert p_values[start:end] == sorted(p_values[start:end])
    line = f"{len(files)} files: " + ", ".join(f"{count} {verdict}" for verdict, count in counts)
    assert page.inner_text("#summary") == line
    with page.expect_download() as saved:
        page.click("#save")
    with open(saved.value.path(), newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert {row["path"] for row in table} == {path.name.replace("=1", "'=1") for path in files}  # no formula
    scores = {row["path"]: row["score"] for row in table}
    assert float(scores[picture.name]) == float(f"{fakedet.load('demo').predict(picture).score:.6g}")
    assert [row["verdict"] or "not looked at" for row in table] == verdicts
    with page.expect_download() as saved:
        page.click("#report")
    report = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    saved.value.save_as(tmp_path / "report.html")
    report.goto((tmp_path / "report.html").as_uri())  # alone, without its server
    assert report.inner_text("h1") == f"{len(files)} files, judged by fakedet"
    assert line in report.inner_text("main")
    words = report.locator(".fakedet-card .word").all_inner_texts()
    assert words == [one.capitalize() for one in verdicts][: len(words)]
    assert len(words) == len(files) - 1, "of the file that was never sent there is no card"
    assert "larger than 1 MB" in report.inner_text("main")
    assert "seen fakes of" in report.inner_text("main")
    assert report.evaluate("[...document.images].every(i => i.naturalWidth > 0 && i.src.startsWith('data:'))")
    assert report.evaluate("document.querySelectorAll('script, link').length") == 0
    assert report.evaluate("document.documentElement.scrollWidth") <= width
    report.close()
    row = page.locator("#rows li", has_text="picture.jpg")
    row.locator("summary").click()
    card = row.locator(".fakedet-card").inner_text()
    for text in ("score", "p-value", "stability", "200 × 120, JPEG, quality 95", "knows simulated fakes only"):
        assert text in card
    assert row.locator("img").count() == 2  # the image and its tiles
    assert page.locator("#rows b").count() == 0  # its name is text, not markup
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0 && i.alt)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert min(contrast(page, place) for place in ("p", ".soft", "#rows .verdict", ".why", ".word", ".meaning")) > 4.5
    assert watch.errors == []
    assert watch.outside == []
    page.close()


def test_the_page_works_by_keyboard(served: Served, picture: Path, browser) -> None:
    page = browser.new_page()
    page.on("filechooser", lambda _: None)  # dialogs are caught from here on; asked for later, that may be too late
    page.goto(served.address)
    page.keyboard.press("Tab")  # what the detector knows
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.evaluate("getComputedStyle(document.querySelector('#zone')).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([str(picture)] * 4)
    rows(page, 4)
    for _ in range(5):  # the folder, save, clear, the first row (stop is disabled)
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    assert page.locator("#rows [open]").count() == 0
    page.keyboard.press("Enter")
    assert page.locator("#rows [open]").count() == 1
    roles = "[...document.querySelectorAll('h1, h2')].map(h => h.textContent)"
    assert page.evaluate(roles) == ["Is this picture a photograph?", "Answers, most suspicious first"]
    assert page.get_by_role("status").inner_text().startswith("4 files: ")
    page.close()


def test_a_dropped_folder_is_read_to_its_depths_and_can_be_stopped(
    served: Served, picture: Path, tmp_path: Path, browser
) -> None:
    folder = tmp_path / "of <i>many"
    for number in range(130):  # a browser lists a hundred at a time
        (folder / f"{number % 3}" / "deep").mkdir(parents=True, exist_ok=True)
        (folder / f"{number % 3}" / "deep" / f"{number}.jpg").write_bytes(picture.read_bytes())
    page = browser.new_page()
    page.goto(served.address)
    drop = {"x": 300, "y": 300, "data": {"items": [], "files": [str(folder)], "dragOperationsMask": 1}}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **drop})
    page.get_by_text(re.compile(r"\d of 130 looked at, [\d.]+ a second, about \d+ (seconds|minutes) left")).wait_for()
    page.click("#stop")
    found = rows(page, 130)
    stopped = [row for row in found if "stopped before it was looked at" in row]
    assert 0 < len(stopped) < 130
    assert any("of <i>many/1/deep/1.jpg" in row for row in found)
    page.locator("#clear").click()
    page.locator("#files").set_input_files(str(picture))
    assert "stopped" not in rows(page, 1)[0]
    page.close()


def test_a_pasted_picture_is_looked_at(served: Served, browser) -> None:
    page = browser.new_page()
    page.goto(served.address)
    page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(90, 70); canvas.getContext('2d').fillRect(9, 9, 30, 30);
        const blob = await canvas.convertToBlob({type: 'image/png'});
        const data = new DataTransfer(); data.items.add(new File([blob], 'pasted.png', {type: 'image/png'}));
        document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
    }""")
    rows(page, 1)
    assert "90 × 70, PNG" in page.inner_text(".fakedet-card")
    page.close()


@pytest.fixture
def locked(tmp_path: Path, browser) -> Iterator[Served]:
    running = Served(tmp_path / "temporary", "token=sesame", "per_minute=3")
    yield running
    assert running.end() == 0


def test_the_page_asks_for_the_token_and_waits_its_turn(locked: Served, picture: Path, browser) -> None:
    page = browser.new_page()
    page.goto(locked.address)
    page.locator("#files").set_input_files([str(picture)] * 4)
    for word in ("wrong", "sesame"):
        page.get_by_label("This server asks for its token").fill(word)
        page.keyboard.press("Enter")
    page.locator("#rows details").nth(2).wait_for()
    page.get_by_text(re.compile("the server asks to wait [1-9]")).wait_for()
    page.click("#stop")
    assert "stopped" in rows(page, 4)[3]
    page.close()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("host=nowhere", "an IP address of this machine"),
        ("host=192.0.2.1", "cannot be listened on"),
        ("port=99999", "1 to 65535"),
        ("max_mb=0", "must be at least 1"),
        ("per_minute=0", "must be at least 1"),
        ("proxy=[nginx]", "name addresses or networks"),
    ],
)
def test_mistakes_are_one_line(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("serve", ["checkpoint=demo", override]) == 2
    assert message in capsys.readouterr().err


def test_a_taken_port_is_said(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = served.address.rstrip("/").rsplit(":", 1)[1]
    assert launch("serve", ["checkpoint=demo", f"port={port}"]) == 2
    assert "choose another port" in capsys.readouterr().err
