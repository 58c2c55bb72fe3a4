"""The page of `fakedet predict report=FILE`, read as its reader does: by headings, cards and links."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from fakedet.cli.app import launch


class Page(HTMLParser):
    """What stands on a page: its text, the cards in their order, and where it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.cards: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.pictures: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note cards, links and pictures."""
        given = dict(attrs)
        self.ids.add(str(given.get("id")))
        if tag == "section":
            self.cards.append(str(given["aria-label"]))
        self.links += [str(given[key]) for key in ("href", "src") if key in given and tag != "img"]
        if tag == "img":
            self.pictures.append(str(given["src"]))

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words.append(data)

    @property
    def text(self) -> str:
        """All words, a space between."""
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(6):
        noise = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)
        image = cv2.GaussianBlur(noise, (0, 0), 0.4 + number) if number else noise
        cv2.imwrite(str(tmp_path / "in" / f"<i>{number}.png"), image)
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def predict(folder: Path, *more: str) -> int:
    try:
        words = [f"source={folder / 'in'}", f"output={folder / 'rows.csv'}", f"report={folder / 'page.html'}"]
        return launch("predict", ["checkpoint=demo", "device=cpu", *words, *more])
    except SystemExit as stopped:
        return int(str(stopped.code))


def test_the_report_begins_with_a_summary_and_has_a_card_for_each_picture(folder: Path) -> None:
    assert predict(folder, "report_heatmaps=2") == 1
    rows = list(csv.DictReader((folder / "rows.csv").read_text().splitlines()))
    page = Page(text := (folder / "page.html").read_text())
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("fake", "undecided", "real")}
    listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    assert f"7 files: {listed}, 1 not looked at" in page.text
    assert len(page.cards) == 6
    order = ["fake", "undecided", "real"]
    verdicts = [label.rpartition(": ")[2] for label in page.cards]
    assert verdicts == sorted(verdicts, key=order.index)
    by_p = [float(row["p_value"]) for label in page.cards for row in rows if label.startswith(row["path"] + ":")]
    for verdict in order:
        own = [value for value, given in zip(by_p, verdicts, strict=True) if given == verdict]
        assert own == sorted(own)
    assert [link for link in page.links if link.startswith("#")] == [f"#card-{number}" for number in range(1, 5)]
    assert {"card-1", "card-6"} <= page.ids
    assert "<i>0.png" not in text
    assert "broken.png" in page.text
    assert len(page.pictures) == 6 + 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.pictures)
    assert not re.search(r"https?://", " ".join(page.links)), "it needs no other file"
    assert "of 100 pictures with 5 fakes among them" in page.text.lower()
    assert "simulated" in page.text
    for row in rows:
        assert not row["verdict"] or row["reason"], "every verdict has its why"


def test_a_report_holds_what_an_earlier_start_did_and_no_more_cards_than_asked(folder: Path) -> None:
    predict(folder, "report_heatmaps=0")
    first = Page((folder / "page.html").read_text())
    for path in sorted((folder / "in").iterdir())[:3]:
        path.unlink()
    predict(folder, "report_heatmaps=0", "report_cards=5", "prior=0.5")
    again = Page((folder / "page.html").read_text())
    assert again.cards == first.cards[:5]
    assert "1 more pictures have a row in the table" in again.text
    assert len(again.pictures) < 5, "of files that are gone there is none"
    assert "of 100 pictures with 50 fakes among them" in again.text.lower()
    assert predict(folder, "prior=1") == 2
