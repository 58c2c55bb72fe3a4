"""The page of `fakedet predict report=FILE`, read as its reader does: by headings, cards and links."""

import csv
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from fakedet.cli.app import launch
from fakedet.cli.cards import read_rows


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


def test_a_report_replaces_nothing_but_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = folder / "in" / "<i>0.png"
    before = picture.read_bytes()
    (folder / "mine.html").write_text("<p>mine</p>")
    for given, told in {
        f"report={folder / 'rows.csv'}": "name a file that ends in .html",
        f"'report={picture}'": "ends in .html",
        f"report={folder / 'mine.html'}": "is no report of fakedet",
        f"report={folder / 'in'}": "ends in .html",
        f"heatmaps={folder / 'in'}": "is the folder of the pictures",
    }.items():
        assert predict(folder, given.strip("'")) == 2
        assert told in capsys.readouterr().err
    assert picture.read_bytes() == before
    assert (folder / "mine.html").read_text() == "<p>mine</p>"
    assert not (folder / "rows.csv").exists()
    assert predict(folder, "report_heatmaps=0", f"report={folder / 'in' / 'a report (1).html'}") == 1
    assert predict(folder, "report_heatmaps=0", f"report={folder / 'in' / 'a report (1).html'}") == 1
    names = [row["path"] for row in csv.DictReader((folder / "rows.csv").read_text().splitlines())]
    assert len(names) == 7, "it is not a file to judge the next time"


def test_a_picture_that_took_the_place_of_another_is_not_shown_under_its_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = folder / "in" / "<i>1.png", folder / "in" / "<i>2.png"
    predict(folder, "report_heatmaps=0")
    rows = {row["path"]: row for row in csv.DictReader((folder / "rows.csv").read_text().splitlines())}
    assert rows[str(first)]["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    shutil.copy2(second, first)  # with its older time
    second.touch()  # the same file
    capsys.readouterr()
    predict(folder, "report_heatmaps=6")
    told = " ".join("".join(capsys.readouterr()).split())
    assert f"1 images were changed after their rows in {folder / 'rows.csv'} were written, the first: {first}" in told
    page = Page((folder / "page.html").read_text())
    assert page.text.count("The file has gone or has changed since it was judged") == 1
    assert len(page.pictures) == 5 * 2
    assert rows[str(first)]["sha256"] in page.text


def test_no_cell_of_the_table_is_a_formula_and_all_are_read_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["=1+1.png", "@x.png", "'=2.png", "'s.png", "+.png"]
    for name in names:
        shutil.copy(folder / "in" / "<i>0.png", folder / "in" / name)
    monkeypatch.chdir(folder / "in")
    words = ["checkpoint=demo", "device=cpu", "source=.", f"output={folder / 'rows.csv'}"]
    for _ in range(2):
        with pytest.raises(SystemExit):
            launch("predict", words)
    table = list(csv.DictReader((folder / "rows.csv").read_text().splitlines()))
    assert len(table) == 12, "the second start knew all rows"
    assert not [row["path"] for row in table if row["path"][0] in "=+-@"]
    assert {row.path for row in read_rows(folder / "rows.csv")} == {*names, "broken.png", *(
        f"<i>{number}.png" for number in range(6))}  # fmt: skip
