"""`fakedet serve`: a page on which images are dropped and judged, made with Gradio.

An upload is read, removed, judged, and answered with a card (cards.py), which names no file of the server.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fakedet.cli.cards import Card, card_of, render, style
from fakedet.cli.predict import open_detector
from fakedet.detector import HEATMAP_BYTES, HEATMAP_TILES, Detector, Rules, read_picture
from fakedet.errors import UserError
from fakedet.shipped import DEMO, SHIPPED
from fakedet.utils import threads

log = logging.getLogger("fakedet")

WINDOW = 60.0  # seconds over which a visitor's images are counted
KEPT = 60.0  # seconds after which an upload that was never submitted is removed
# Gradio reads the clipboard only by its button, over HTTPS or on this machine; this handles Ctrl+V.
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


def run_serve(config: DictConfig, overrides: list[str]) -> None:
    """Serve the page until interrupted or told to end (SIGTERM)."""
    host, port = config.host, config.port
    try:
        alone = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UserError(f"host={host}: an IP address of this machine, such as 127.0.0.1") from error
    if not 0 <= port <= 65535:
        raise UserError(f"port={port}: 0 (any free one) or 1 to 65535")
    if not alone:
        log.warning("host=%s: other machines can reach the page; it has no password and no encryption", host)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError("fakedet serve needs Gradio: pip install 'fakedet[serve]'") from error
    detector, rules = open_detector(config, "batch_size", "max_mb", "per_minute")
    known = ", ".join(detector.generators) or "none: it knows real images only"
    point = detector.require_operating_point()
    alarms = point.reference and point.reference.false_alarms(rules.false_alarm)
    promised = (
        f"called fake are {alarms}"
        if alarms
        else (f"of photographs like those it was checked on, at most {100 * rules.false_alarm:g} % are called fake")
    )
    introduction = (
        "# Is this picture a photograph?\n\n"
        + f"**{DEMO}.**\n\n" * (detector.path == SHIPPED["demo"])
        + f"This detector has seen fakes of: {known}. It was checked on {point.n_real} "
        f"photographs. It answers *real*, *fake* or *undecided*; {promised}. Images are judged on this machine and not "
        "kept."
    )
    judge = partial(_judge, detector=detector, rules=rules, batch_size=config.batch_size)
    answer = partial(_cards, judge=judge, limit=RateLimit(config.per_minute), max_mb=config.max_mb)
    with threads(config.threads), tempfile.TemporaryDirectory(prefix="fakedet-serve-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = _page(gradio, answer, introduction)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            log.info("the page is at %s (Ctrl-C ends it)", _launch(gradio, page, host, port, config.max_mb))
            while True:
                time.sleep(KEPT / 2)
                forget(Path(folder), KEPT)
        finally:
            page.close(verbose=False)


def _judge(name: str, content: bytes, detector: Detector, rules: Rules, batch_size: int) -> Card:
    """Judge an upload."""
    picture = read_picture(content, each=HEATMAP_BYTES)
    ((found, heatmap),) = detector.examine([picture], rules, batch_size, HEATMAP_TILES)
    return card_of(name, picture, found, heatmap, detector, rules)


class RateLimit:
    """Limit how many images each visitor may send a minute; ``clock`` gives the time in seconds."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def wait(self, visitor: str, count: int = 1) -> float:
        """Count images of a visitor and return 0, or return the seconds until so many are allowed (inf: never)."""
        now = self.clock()
        for name in [name for name, times in self._times.items() if not times or times[-1] <= now - WINDOW]:
            del self._times[name]
        if count > self.per_minute:
            return math.inf
        times = self._times[visitor]
        while times and times[0] <= now - WINDOW:
            times.popleft()
        over = len(times) + count - self.per_minute
        if over > 0:
            return times[over - 1] + WINDOW - now
        times.extend([now] * count)
        return 0.0


def _page(gradio: Any, answer: Callable[[list[str], str], list[Card]], introduction: str) -> Any:
    """Lay out the page; ``answer`` makes cards from the paths of uploads and the address of their visitor."""

    def answer_to(payload: Any, request: Any) -> tuple[None, str]:
        uploads = [] if payload is None else getattr(payload, "root", [payload])
        cards = answer([str(file.path) for file in uploads if file.path], str(request.client.host))
        return None, f"<style>{style()}</style>{render(cards)}"

    suffixes = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"]
    # Gradio passes the request to the parameter that is annotated with its class, which this file cannot name.
    answer_to.__annotations__["request"] = gradio.Request
    with gradio.Blocks(analytics_enabled=False, title="fakedet") as page:
        gradio.Markdown(introduction)
        with gradio.Row():
            one = gradio.Image(type="filepath", sources=["upload", "clipboard"], image_mode=None, height=260,
                               min_width=320, label="One image: drop, choose or paste it")  # fmt: skip
            several = gradio.File(file_count="multiple", file_types=suffixes, height=260, min_width=320,
                                  label="Several images")  # fmt: skip
        shown = gradio.HTML(label="Answer", elem_id="answer")
        for component in (one, several):
            # Files are taken as they were sent: no other decoder than ours sees them, and no copy is made.
            component.preprocess = lambda payload: payload
            component.upload(answer_to, component, [component, shown], api_visibility="private", concurrency_limit=1,
                             concurrency_id="judge", show_progress="full")  # fmt: skip
    page.queue(max_size=20)  # visitors who may wait; the next one is told that the page is busy
    return page


def _launch(gradio: Any, page: Any, host: str, port: int, max_mb: int) -> str:
    """Serve a page and give its address; UserError if the port is taken or the host is no address of this machine."""
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port or None, max_file_size=max_mb * 2**20, share=False, quiet=True,
            theme=theme, head=PASTE, footer_links=[], run_history=False, ssr_mode=False, prevent_thread_lock=True,
            show_error=False, enable_monitoring=False, strict_cors=True, mcp_server=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"host={host} port={port} cannot be listened on: {error}; choose another port") from error
    return str(address)


def _cards(
    paths: list[str], visitor: str, judge: Callable[[str, bytes], Card], limit: RateLimit, max_mb: int
) -> list[Card]:
    """Read the uploads, have them removed soon, and judge each."""
    contents: dict[str, bytes | str] = {}
    for path in dict.fromkeys(paths):  # Gradio names uploads by their content: one image shown twice is one file
        try:
            large = os.path.getsize(path) > max_mb * 2**20
            contents[path] = f"The file is larger than {max_mb} MB." if large else Path(path).read_bytes()
        except FileNotFoundError:
            contents[path] = "Somebody else showed the same image at the same moment; please drop it again."

    def remove() -> None:
        for path in paths:
            with suppress(OSError):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))  # Gradio made it for this file, named by its content

    later = threading.Timer(2.0, remove)  # until then the browser may be fetching its preview
    later.daemon = True  # the folder is removed with the server
    later.start()
    if wait := limit.wait(visitor, len(paths)):
        then = "show fewer at once" if wait == math.inf else f"try again in {wait:.0f} seconds"
        return [Card("Too many images", f"At most {limit.per_minute} images a minute: {then}.")]
    named = [(Path(path).name, contents[path]) for path in paths]
    return [judge(name, content) if isinstance(content, bytes) else Card(name, content) for name, content in named]


def forget(folder: Path, seconds: float) -> None:
    """Remove uploads older than ``seconds`` that were never submitted: cancelled, or the visitor left."""
    now = time.time()
    for path in sorted(folder.rglob("*"), reverse=True):
        with suppress(OSError):  # another process may have been faster
            if path.is_dir():
                path.rmdir()  # only empty ones go
            elif now - path.stat().st_mtime > seconds:
                path.unlink()
