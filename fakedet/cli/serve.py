"""cli/serve"""

from __future__ import annotations

import base64
import ipaddress
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from omegaconf import DictConfig

from fakedet.config import check_config
from fakedet.data.decode import DecodeError, decode_image
from fakedet.detector import FAKE, REAL, UNKNOWN, Examiner, Rules, make_examiner, open_detector
from fakedet.errors import UserError
from fakedet.methods.base import Detector
from fakedet.metrics.decisions import OperatingPoint
from fakedet.utils import threads

WINDOW = 60.0


class RateLimit:
    """Count what each visitor showed in the last minute.

    Args:
        per_minute: at most so many.
        clock: gives seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def wait(self, visitor: str, count: int = 1) -> float:
        """Take note of pictures of a visitor; give 0, or the seconds until so many are welcome (inf: never)."""
        now = self.clock()
        for name in [name for name, times in self._times.items() if not times or times[-1] <= now - WINDOW]:
            del self._times[name]
        if count > self.per_minute:
            return float("inf")
        times = self._times[visitor]
        while times and times[0] <= now - WINDOW:
            times.popleft()
        over = len(times) + count - self.per_minute
        if over > 0:
            return times[over - 1] + WINDOW - now
        times.extend([now] * count)
        return 0.0


# Longer side of a shown picture, in pixels.
THUMBNAIL_SIDE = 640
VERDICT_KINDS = {REAL: "real", FAKE: "fake", UNKNOWN: "unknown"}


@dataclass(frozen=True)
class ShownPicture:
    """A picture as the page shows it."""

    data: str
    """Data URI."""
    caption: str


@dataclass(frozen=True)
class Card:
    """What is said of one picture."""

    name: str
    verdict: str
    sentence: str
    pictures: Sequence[ShownPicture] = field(default_factory=list)
    facts: Sequence[tuple[str, str, str]] = field(default_factory=list)
    """(name, value, what it means)."""

    @property
    def kind(self) -> str:
        """The class of its style."""
        return VERDICT_KINDS.get(self.verdict, "none")


def make_card(name: str, row: Mapping[str, Any], rules: Rules, pictures: Sequence[ShownPicture]) -> Card:
    """Put an examiner's row into words.

    Args:
        name: of the file, as its owner knows it.
        row: of :class:`fakedet.detector.Examiner`.
        rules: of the desk.
        pictures: to show.
    """
    if row.get("error"):
        return Card(name, "no answer", f"This file could not be looked at: {row['error']}.")
    return Card(name, row["verdict"], _sentence(row, rules), pictures, _facts(row))


def refusal(name: str, why: str) -> Card:
    """Say why nothing was looked at."""
    return Card(name, "no answer", why)


def to_html(cards: Sequence[Card]) -> str:
    """Render cards; whatever they show is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = files("fakedet.cli")
    template = environment.from_string(here.joinpath("card.html").read_text(encoding="utf-8"))
    return template.render(cards=cards, style=Markup(here.joinpath("card.css").read_text(encoding="utf-8")))


def shown(image: NDArray[np.uint8], caption: str) -> ShownPicture:
    """Shrink an image (H, W, 3) for the page."""
    scale = min(1.0, THUMBNAIL_SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return ShownPicture("data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode(), caption)


def _sentence(row: Mapping[str, Any], rules: Rules) -> str:
    if row["verdict"] == FAKE:
        return (
            "Of photographs like those the detector was checked on, at most "
            f"{100 * rules.false_alarm:g} in 100 look this unusual to it. That is a reason to ask where the "
            "picture is from, not a proof."
        )
    if row["verdict"] == REAL:
        return (
            "It looks like a photograph to the detector. Of fakes by generators it knows, at most "
            f"{100 * rules.miss:g} in 100 get this answer; of fakes by others, more may."
        )
    return f"The detector cannot tell: {row['reason']}."


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    quality = f", quality {row['jpeg_quality']}" if row.get("jpeg_quality") else ""
    facts = [
        ("score", _shown_number(row["score"]), "P(fake), if reals and fakes were equally likely"),
        ("p-value", _shown_number(row["p_value"], ".3f"), "share of known photographs at least this unusual"),
        (
            "stability",
            _shown_number(row["stability"], ".0%"),
            "share of re-saved and rescaled copies that agree",
        ),
        ("file", f"{row['width']} × {row['height']}, {row['format']}{quality}", ""),
    ]
    return [fact for fact in facts if fact[1]]


def _shown_number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


# Seconds between reading an upload and removing it: the browser may be fetching its preview.
LINGER = 2.0
# Visitors who may wait; the next one is told that the page is busy.
QUEUE = 20
# Gradio takes from the clipboard by its button alone, and only over HTTPS or on this machine; this is for Ctrl+V.
PASTE = """<script>
document.addEventListener('paste', event => {
  const input = document.querySelector('input[type=file]');
  if (!event.clipboardData.files.length || !input) return;
  const taken = new DataTransfer();
  taken.items.add(event.clipboardData.files[0]);
  input.files = taken.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
});
</script>"""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")


def import_gradio() -> Any:
    """Import Gradio without its statistics.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError("fakedet serve needs Gradio: pip install 'fakedet[serve]'") from error
    return gradio


def make_page(look: Callable[[str, bytes], Card], introduction: str, limit: RateLimit, at_most: int) -> Any:
    """Lay the page out.

    Args:
        look: name and content of a file → its card.
        introduction: Markdown above: what the detector knows.
        limit: of pictures a visitor.
        at_most: bytes a file may have.

    Returns:
        gradio.Blocks, to be launched.
    """
    gradio = import_gradio()

    def judge(given: Any, request: Any) -> tuple[None, str]:
        return None, to_html(_cards(given, str(request.client.host), look, limit, at_most))

    # Gradio hands the request to what is annotated with its class, which this file cannot name.
    judge.__annotations__["request"] = gradio.Request
    with gradio.Blocks(analytics_enabled=False, title="fakedet") as page:
        gradio.Markdown(introduction)
        with gradio.Row():
            picture = gradio.Image(type="filepath", sources=["upload", "clipboard"], image_mode=None, height=260,
                              min_width=320, label="One picture: drop, choose or paste it")  # fmt: skip
            several = gradio.File(
                file_count="multiple",
                file_types=list(SUFFIXES),
                height=260,
                min_width=320,
                label="Several pictures",
            )
        for component in (picture, several):
            # Files are handed on as they were sent: no other decoder than ours sees them, and no copy is made.
            component.preprocess = _paths
        answer = gradio.HTML(label="Answer", elem_id="answer")
        for component in (picture, several):
            component.upload(judge, component, [component, answer], api_visibility="private",
                             concurrency_limit=1, show_progress="full")  # fmt: skip
    page.queue(max_size=QUEUE)
    return page


def launch(page: Any, host: str, port: int, max_mb: int) -> str:
    """Serve a page and give its address.

    Args:
        page: of :func:`make_page`.
        host: address to listen on.
        port: to listen on; 0: any free one from 7860 on.
        max_mb: megabytes an upload may have.

    Raises:
        UserError: the port is taken or the host is none of this machine's.
    """
    gradio = import_gradio()
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port or None, max_file_size=max_mb * 2**20, share=False, quiet=True,
            theme=theme, head=PASTE, footer_links=[], run_history=False, ssr_mode=False, prevent_thread_lock=True,
            show_error=False, enable_monitoring=False, strict_cors=True, mcp_server=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"host={host} port={port} cannot be listened on: {error}; choose another port"
        ) from error
    return str(address)


def forget(folder: Path, seconds: float) -> None:
    """Remove uploads that nobody looked at: broken off, or the visitor left."""
    now = time.time()
    for path in sorted(folder.rglob("*"), reverse=True):
        with suppress(OSError):  # another process may have been faster
            if path.is_dir():
                path.rmdir()  # only empty ones go
            elif now - path.stat().st_mtime > seconds:
                path.unlink()


def _paths(payload: Any) -> list[str]:
    """Give the paths of an upload: of a file or a list of files."""
    if payload is None:
        return []
    files = payload.root if hasattr(payload, "root") else [payload]
    return [str(file.path) for file in files if file.path]


def _cards(
    paths: Sequence[str], visitor: str, look: Callable[[str, bytes], Card], limit: RateLimit, at_most: int
) -> list[Card]:
    """Read the uploads, remove them, and look at each."""
    contents = _take(paths, at_most)
    wait = limit.wait(visitor, len(paths))
    if wait:
        then = "show fewer at once" if wait == float("inf") else f"try again in {wait:.0f} seconds"
        return [refusal("Too many pictures", f"At most {limit.per_minute} pictures a minute: {then}.")]
    cards = []
    for path in paths:
        content = contents[path]
        name = Path(path).name
        cards.append(look(name, content) if isinstance(content, bytes) else refusal(name, content))
    return cards


def _take(paths: Sequence[str], at_most: int) -> dict[str, bytes | str]:
    """Give the content of each upload, or why there is none, and have them all removed soon.

    Gradio names uploads by their content, so the same picture shown twice is one file.
    """
    contents: dict[str, bytes | str] = {}
    for path in dict.fromkeys(paths):
        try:
            large = os.path.getsize(path) > at_most
            contents[path] = (
                f"The file is larger than {at_most // 2**20} MB." if large else Path(path).read_bytes()
            )
        except FileNotFoundError:
            contents[path] = "Somebody else showed the same picture at the same moment; please drop it again."
    later = threading.Timer(LINGER, _remove, [list(contents)])
    later.daemon = True  # the folder is removed with the server
    later.start()
    return contents


def _remove(paths: Sequence[str]) -> None:
    """Remove uploads and the folders that Gradio made for them, named by their content."""
    for path in paths:
        with suppress(OSError):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))


log = logging.getLogger("fakedet")

SECONDS = 60.0
"""After which an upload that nobody looked at is removed."""
HEATMAP = "scores of its squares: blue real, red fake, white between"


def serve_page(config: DictConfig) -> None:
    """Serve the page until interrupted or told to end (SIGTERM).

    Raises:
        UserError: anything wrong with checkpoint, settings, host or port, or Gradio is not installed.
    """
    check_config(config)
    _check_host(config)
    import_gradio()
    method, point = open_detector(config)
    with threads(config.threads), tempfile.TemporaryDirectory(prefix="fakedet-serve-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        looker = Looker(config, method, point)
        page = make_page(looker, _introduction(method, point, looker.rules), RateLimit(config.per_minute),
                         config.max_mb * 2**20)  # fmt: skip
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            address = launch(page, config.host, config.port, config.max_mb)
            log.info("the page is at %s (Ctrl-C ends it)", address)
            while True:
                time.sleep(SECONDS / 2)
                forget(Path(folder), SECONDS)
        finally:
            page.close(verbose=False)


class Looker:
    """Look at one picture and say on a card what was seen.

    Args:
        config: the desk's settings.
        method: the detector.
        point: its operating point.
    """

    def __init__(self, config: DictConfig, method: Detector, point: OperatingPoint) -> None:
        self.rules = Rules(config.false_alarm, config.miss)
        self._drawn: list[NDArray[np.uint8]] = []
        draw = (lambda _, picture: self._drawn.append(picture)) if config.tiles else None
        self.examiner: Examiner = make_examiner(config, method, point, draw)

    def __call__(self, name: str, data: bytes) -> Card:
        """Look at a file's content."""
        self._drawn.clear()
        row = self.examiner.row(name, data)
        return make_card(name, row, self.rules, [] if row.get("error") else self._pictures(data))

    def _pictures(self, data: bytes) -> list[ShownPicture]:
        try:
            pictures = [shown(decode_image(data), "the picture")]
        except DecodeError:
            return []
        return pictures + [shown(picture, HEATMAP) for picture in self._drawn[:1]]


def _introduction(method: Detector, point: OperatingPoint, rules: Rules) -> str:
    known = ", ".join(method.identity["seen_generators"]) or "none: it knows reals only"
    return (
        "# Is this picture a photograph?\n\n"
        f"This detector has seen fakes of: {known}. It was checked on {point.n_real} photographs. It answers "
        "*real*, *fake* or *can't tell*; of photographs like those it was checked on, at most "
        f"{100 * rules.false_alarm:g} % are called fake. Pictures are looked at on this machine and not kept."
    )


def _check_host(config: DictConfig) -> None:
    """Say what it means to listen to others."""
    try:
        alone = config.host == "localhost" or ipaddress.ip_address(config.host).is_loopback
    except ValueError as error:
        raise UserError(f"host={config.host}: an IP address of this machine, such as 127.0.0.1") from error
    if not 0 <= config.port <= 65535:
        raise UserError(f"port={config.port}: 0 (any free one) or 1 to 65535")
    if not alone:
        log.warning(
            "host=%s: other machines can reach the page; it has no password and no encryption", config.host
        )
