"""The page itself, made with Gradio: a place to drop pictures on, and what is said of them.

Nothing a visitor shows is kept: Gradio writes an upload into a temporary folder, from where it is read once and
removed two seconds later; :func:`forget` takes what was uploaded and never looked at. The page asks nothing of other
servers.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fakedet.errors import UserError
from fakedet.serving.card import Card, refusal, to_html
from fakedet.serving.rate import RateLimit

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
