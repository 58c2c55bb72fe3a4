"""Say of images whether they are real, fake, or can't be told: what ``fakedet predict`` does."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError
from fakedet.methods.detector import Detector
from fakedet.metrics.operating_point import OperatingPoint
from fakedet.prediction.examiner import shown_path, write_heatmap
from fakedet.prediction.files import list_images
from fakedet.prediction.sink import Sink
from fakedet.published import locate
from fakedet.runs import operating
from fakedet.runs.bar import bar
from fakedet.runs.checks import check_config
from fakedet.runs.desk import make_examiner, open_detector
from fakedet.runs.folder import provenance, write_json
from fakedet.runs.threads import threads

log = logging.getLogger("fakedet")


JUDGED_BY = ("false_alarm", "miss", "views", "tiles")
"""Settings that answers depend on."""


@dataclass(frozen=True)
class Predicted:
    """What a run said."""

    output: Path
    counts: Counter[str]
    resumed: int
    """Images that were done before."""


def predict(config: DictConfig, overrides: list[str]) -> Predicted:
    """Look at every image that ``source`` names, and write a row for each.

    Raises:
        UserError: anything wrong with checkpoint, source, settings or output; single files never.
    """
    check_config(config)
    if config.heatmaps and not config.tiles:
        raise UserError("heatmaps are made of tiles; tiles=0 leaves nothing to draw")
    sources = [config.source] if isinstance(config.source, str) else [str(item) for item in config.source]
    method, point = open_detector(config)
    draw = partial(write_heatmap, Path(config.heatmaps)) if config.heatmaps else None
    desk = make_examiner(config, method, point, draw)
    output = Path(config.output)
    with Sink(output, config.resume) as sink, threads(config.threads), bar("looking at images") as shown:
        changed: list[str] = []
        todo = _todo(list_images(sources, _tell_left_out), sink, changed)
        resumed, done, errors = len(sink.done), 0, sink.counts["error"]
        about = output.with_name(f"{output.name}.about.json")
        content = _about(config, overrides, method, point)
        if resumed:
            _check_same(about, content, output)
        write_json(about, content)
        while part := list(islice(todo, config.images_at_a_time)):
            sink.write(desk.rows(part))
            done += len(part)
            shown.show(done, ", ".join(f"{count} {what}" for what, count in sorted(sink.counts.items())))
    _tell_kept(output, resumed, errors, changed, bool(draw))
    if sink.first_error:
        log.warning("%d files could not be looked at, the first: %s; the column 'error' says why", sink.counts["error"],
                    sink.first_error)  # fmt: skip
    return Predicted(output, sink.counts, resumed)


def _todo(paths: Iterable[str], sink: Sink, changed: list[str]) -> Iterator[str]:
    """Give the images without a row; note those that were written after their row."""
    for path in paths:
        if shown_path(path) not in sink.done:
            yield path
        elif (file := Path(path)).exists() and file.stat().st_mtime > sink.written:
            changed.append(path)


def _tell_kept(output: Path, resumed: int, errors: int, changed: list[str], heatmaps: bool) -> None:
    """Say what the rows that were there before leave out."""
    if changed:
        log.warning("%d images were changed after their rows in %s were written, the first: %s; the rows are of "
                    "what was there before: name another output to look at them",
                    len(changed), output, changed[0])  # fmt: skip
    if errors:
        log.warning("%d of the rows in %s are errors of an earlier start, not tried again: name another output to try",
                    errors, output)  # fmt: skip
    if heatmaps and resumed:
        log.warning("heatmaps are drawn while an image is looked at: of the %d done before there are none new; name "
                    "another output for theirs", resumed)  # fmt: skip


def _tell_left_out(kinds: Counter[str]) -> None:
    """Say which files of the folders were not looked at for their names."""
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
        log.warning("%d files in the folders are not named like images this can read, and were not looked at: %s",
                    sum(kinds.values()), listed)  # fmt: skip


def _check_same(about: Path, content: dict[str, Any], output: Path) -> None:
    """Refuse to add rows to a file whose rows were made in another way.

    Raises:
        UserError: with what differs.
    """
    try:
        earlier = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        log.warning(
            "%s is missing: whether the rows in %s were made in the same way is not known", about, output
        )
        return
    changed = [
        f"{key} was {earlier['config'].get(key)}, is {content['config'][key]}"
        for key in JUDGED_BY
        if earlier["config"].get(key) != content["config"][key]
    ]
    if earlier.get("checkpoint_sha256") != content["checkpoint_sha256"]:
        changed.append("the checkpoint is another one")
    if changed:
        raise UserError(
            f"output={output} holds answers made in another way ({'; '.join(changed)}); name another output, or give "
            "the earlier settings"
        )


def _about(
    config: DictConfig, overrides: list[str], method: Detector, point: OperatingPoint
) -> dict[str, Any]:
    identity = {key: value for key, value in method.identity.items() if key != operating.KEY}
    return {
        "config": OmegaConf.to_container(config, resolve=True), "detector": identity,
        "checkpoint_sha256": hashlib.sha256(locate(config.checkpoint).read_bytes()).hexdigest(),
        "operating_point": {
            "rate": point.rate, "n_real": point.n_real, "n_fake": point.n_fake, "calibration": point.calibration.kind,
            "threshold": point.threshold if math.isfinite(point.threshold) else None,
        },
        "run": provenance(["fakedet", "predict", *overrides]),
    }  # fmt: skip
