"""A page on which pictures are dropped and judged: what ``fakedet serve`` does."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from fakedet.data.decode import DecodeError, decode_image
from fakedet.errors import UserError
from fakedet.methods.detector import Detector
from fakedet.metrics.operating_point import OperatingPoint
from fakedet.prediction.desk import Rules
from fakedet.prediction.examiner import Examiner
from fakedet.runs.checks import check_config
from fakedet.runs.desk import make_examiner, open_detector
from fakedet.runs.threads import threads
from fakedet.serving.card import Card, Shown, make_card, shown
from fakedet.serving.page import forget, import_gradio, launch, make_page
from fakedet.serving.rate import RateLimit

log = logging.getLogger("fakedet")

SECONDS = 60.0
"""After which an upload that nobody looked at is removed."""
HEATMAP = "scores of its squares: blue real, red fake, white between"


def serve(config: DictConfig) -> None:
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

    def _pictures(self, data: bytes) -> list[Shown]:
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
