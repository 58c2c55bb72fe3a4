"""`fakedet benchmark`: score a public benchmark by its protocol, and set the result beside the published figures.

What is known of a benchmark stands in ``fakedet/benchmarks``: NAME.yaml has its data, licence and protocol, NAME.csv
the published figures in per cent, a row for each detector and metric ("acc" at P(fake) > 0.5, "ap" or "auc").
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from fakedet.data.index import Settings, index_source
from fakedet.data.manifest import load_manifest
from fakedet.errors import UserError, nearest
from fakedet.evaluation.evaluate import evaluate
from fakedet.evaluation.predictions import called_fake, read_predictions
from fakedet.metrics.bootstrap import Interval, share_interval
from fakedet.metrics.decisions import accuracies
from fakedet.metrics.pairing import group_cells, real_counterparts
from fakedet.published import open_method
from fakedet.utils import open_folder, plain, replacing

log = logging.getLogger("fakedet")

MEAN = "mean"
METRICS = {
    "acc": "accuracy at P(fake) > 0.5",
    "acc_threshold": "accuracy at the detector's own threshold",
    "ap": "AP",
    "auc": "AUC",
}


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark."""

    name: str
    facts: dict[str, Any]
    """title, paper, data (where they are to be had), licence, root (what data.root is to name), protocol (sentences);
    layout, split and group, as `fakedet index` takes them; shared_reals, whether all sets have the same photographs."""
    table: pd.DataFrame
    """Published figures: detector, metric, source, and a column in per cent, or NaN, for each set, "mean" the last."""

    @property
    def sets(self) -> list[str]:
        """The generators, or other sets, that have a figure of their own."""
        return [name for name in self.table.columns[3:] if name != MEAN]


def read_benchmark(name: str) -> Benchmark:
    """Read a benchmark by its name, or from a YAML file with a CSV table beside it.

    UserError for an unknown name, and a file that lacks something.
    """
    known = {path.name.removesuffix(".yaml"): path for path in files("fakedet.benchmarks").iterdir()
             if path.name.endswith(".yaml")}  # fmt: skip
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else Path(str(known.get(name, "")))
    if not path.is_file():
        raise UserError(
            f"name={name}: there is no such benchmark (a name, or a file NAME.yaml); {nearest(name, known)}"
        )
    try:
        facts: dict[str, Any] = plain(OmegaConf.load(path))
        needed = ("title", "paper", "data", "licence", "root", "layout", "protocol")
        lacking = [key for key in needed if key not in facts]
        table = pd.read_csv(path.with_suffix(".csv"))
        if lacking or list(table.columns[:3]) != ["detector", "metric", "source"]:
            told = f"it lacks {', '.join(lacking)}" if lacking else "its table begins with detector,metric,source"
            raise ValueError(told)
        table[table.columns[3:]] = table[table.columns[3:]].astype(np.float64)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"name={name}: {path} is no benchmark: {error}") from error
    return Benchmark(path.stem, facts, table)


def measure(
    frame: pd.DataFrame, metrics: Mapping[str, Any], bootstrap: Mapping[str, int]
) -> dict[str, dict[str, Interval]]:
    """Measure a scored benchmark: the accuracy over all pictures of a set, AP and AUC, and their plain means.

    Args:
        frame: predictions, a row for each picture.
        metrics: content of metrics.json of the same evaluation.
        bootstrap: resamples and seed.

    Returns:
        Metric → set or "mean" → its value from 0 to 1. A set is a generator's fakes with the photographs that they are
        compared with.
    """
    cells = real_counterparts(frame, metrics["pairs"], metrics.get("known_reals"))
    groups, labels = group_cells(frame)[0], frame["label"].to_numpy()
    calls = {"acc": (frame["score"].to_numpy() > 0.5).astype(float), "acc_threshold": called_fake(frame)}
    parts = [(name, kind) for name, cell in cells.items() for kind in (cell.fake_rows, cell.real_rows)]
    every = np.concatenate([rows for _, rows in parts])
    # Photographs that sets share stand in each, and are drawn together because they are of one group.
    names = np.repeat([name for name, _ in parts], [len(rows) for _, rows in parts])
    named = pd.DataFrame({"label": labels[every], "generator": names, "group": groups[every]})
    calls = {key: call[every] for key, call in calls.items() if not np.isnan(call).all()}  # there may be no threshold
    found = accuracies(named, calls, int(bootstrap["resamples"]), int(bootstrap["seed"]))
    measured: dict[str, dict[str, Interval]] = {}
    for key in calls:
        own, drawn, n_groups = {}, [], 0
        for name in cells:
            pair = [found[f"{kind}:{name}"] for kind in ("real", "fake")]
            n, weights = sum(row.n_groups for row in pair), np.array([row.n for row in pair]) / sum(r.n for r in pair)
            samples = weights @ np.stack([row.samples[key] for row in pair])
            own[name] = share_interval(float(weights @ [row.points[key] for row in pair]), samples, n)
            drawn.append(samples)
            n_groups += n
        mean = float(np.mean([value.value for value in own.values()]))
        measured[key] = {**own, MEAN: share_interval(mean, np.mean(drawn, axis=0), n_groups)}
    for key in ("ap", "auc"):
        each = {name: Interval.from_dict(metrics["per_generator"][name][key]) for name in cells}
        measured[key] = {**each, MEAN: Interval.from_dict(metrics[f"m{key}"])}
    return measured


class Cell(NamedTuple):
    """A measured value beside one that was published of the same detector, in per cent."""

    metric: str
    set: str  # or "mean"
    n: tuple[int, int]  # photographs and fakes that it was measured on; of a mean, of all sets together
    own: Interval
    published: float  # NaN where none was
    source: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The cell as text, as :data:`HEADS` names it."""
        other = ("", "")
        if not math.isnan(self.published):
            other = (f"{self.published:g}", f"{self.own.value - self.published:+.1f}")
        return self.metric, self.set, "{} + {}".format(*self.n), self.own.text(".1f"), *other, self.source


HEADS = ("metric", "set", "real + fake", "ours, %", "published, %", "difference", "source")


def beside_published(
    measured: Mapping[str, Mapping[str, Interval]], sizes: Mapping[str, tuple[int, int]], benchmark: Benchmark,
    names: Sequence[str],
) -> list[Cell]:  # fmt: skip
    """Set measured values beside those that were published of the same detector.

    Args:
        measured: of :func:`measure`.
        sizes: photographs and fakes of each set that was measured, and of all as "mean".
        benchmark: names its sets; folders whose names differ in capitals alone are the same.
        names: what the detector is called in the published table, or "NAME / SOURCE" where only that source's row is of
            these weights; empty for one that is not there.

    Returns:
        A cell for each measured value, or several if several sources published one; published means only where they
        are of the very sets that were measured.
    """
    order = {name.lower(): name for name in benchmark.sets}
    cells = []
    for metric, values in measured.items():
        folded = {name.lower(): name for name in values}
        table = benchmark.table
        is_named = table["detector"].isin(names) | (table["detector"] + " / " + table["source"]).isin(names)
        known = table[is_named & (table["metric"] == metric)]
        others = [key for key in folded if key not in order and key != MEAN]
        for key in [*(key for key in order if key in folded), *others, MEAN]:
            name, own = order.get(key, folded[key]), values[folded[key]]
            rows = known.dropna(subset=name) if name in known else known[:0]
            if key == MEAN:
                rows = rows[[{*row[benchmark.sets].dropna().index.str.lower()} == {*folded} - {MEAN}
                             for _, row in rows.iterrows()]]  # fmt: skip
            given = [(float(row[name]), str(row["source"])) for _, row in rows.iterrows()]
            percent = Interval(*(100 * number for number in (own.value, own.low, own.high)))
            cells += [Cell(metric, name, sizes[folded[key]], percent, *one) for one in given or [(math.nan, "")]]
    return cells


def describe(benchmark: Benchmark) -> list[str]:
    """Write what a benchmark is as lines of Markdown."""
    facts = benchmark.facts
    told = [f"# {facts['title']}", "", f"- paper: {facts['paper']}", f"- data: {facts['data']}"]
    told += [f"- licence: {facts['licence']}", f"- data.root: {facts['root']}", "", "Protocol:", ""]
    return [*told, *(f"- {' '.join(str(line).split())}" for line in facts["protocol"])]


def published_table(benchmark: Benchmark, metric: str) -> list[str]:
    """Write the published figures of a metric as a table in Markdown; nothing if there are none."""
    table = benchmark.table[benchmark.table["metric"] == metric]
    columns = [name for name in table.columns[3:] if table[name].notna().any()]
    if table.empty:
        return []
    lines = ["", f"Published, {METRICS[metric]}, in per cent:", "",
             f"| detector | source | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]  # fmt: skip
    for _, row in table.iterrows():
        cells = [f"{row[name]:g}" if row[name] == row[name] else "" for name in columns]
        lines.append(f"| {row['detector']} | {row['source']} | {' | '.join(cells)} |")
    return lines


def page(benchmark: Benchmark, cells: Sequence[Cell], detector: str, scored: str) -> str:
    """Write what was measured of a benchmark, beside all published figures, as a page of Markdown.

    ``detector`` names what was measured, and ``scored`` says how it looked at pictures.
    """
    found = {cell.set for cell in cells}
    lines = [*describe(benchmark), "", f"## {detector}", ""]
    lines += [f"Scored as {scored} pixels; 95 % intervals over groups of pictures."]
    if missing := [name for name in benchmark.sets if name not in found]:
        lines += ["", f"Not in this folder: {', '.join(missing)}."]
    lines += ["", f"| {' | '.join(HEADS)} |", "|---|---|---:|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(cell.texts)} |" for cell in cells]
    lines += ["", *(f"- {key}: {METRICS[key]}" for key in dict.fromkeys(cell.metric for cell in cells))]
    for metric in METRICS:
        lines += published_table(benchmark, metric)
    return "\n".join([*lines, ""])


def score_benchmark(config: DictConfig, overrides: list[str]) -> tuple[Benchmark, list[Cell]]:
    """Score a benchmark into ``output_dir``: what `fakedet evaluate` writes, benchmark.csv and benchmark.md.

    Returns:
        The benchmark and the cells of :func:`beside_published`; none on ranks other than zero, and where the config
        names neither ``data.root`` nor ``data.manifest``, so that nothing was scored.

    Raises:
        UserError: an unknown benchmark, a folder of another layout, no detector, and as for `fakedet evaluate`.
    """
    benchmark = read_benchmark(config.name)
    if config.data.manifest is None and config.data.root is None:
        return benchmark, []
    if config.checkpoint is None and not config.get("detector"):
        raise UserError("name the detector: checkpoint=FILE, wide or demo, or detector=NAME weights=FILE")
    open_method(config)  # what is wrong with it is told before a folder of a million pictures is read
    wanted, folder = compose("evaluate"), open_folder(config.output_dir, config.overwrite)
    with open_dict(wanted):
        for key in ("checkpoint", "trust", "backbone", "weights", "detector", "trainer", "output_dir", "overwrite",
                    "seed", "threads", "bootstrap", "data"):  # fmt: skip
            wanted[key] = config.get(key)
    if config.data.manifest is None:
        wanted.data.manifest = str(_index(benchmark, Path(config.data.root), folder))
    wanted.overwrite = True  # the folder is this run's own by now
    _check_photographs(benchmark, wanted)
    metrics = evaluate(wanted, overrides)
    if metrics is None:
        return benchmark, []
    frame, info = read_predictions(folder / "predictions.parquet")
    measured = measure(frame, {**metrics, "known_reals": info["known_reals"]}, plain(config.bootstrap))
    if config.get("detector"):
        measured.pop("acc_threshold", None)  # the same as the accuracy
    names = (plain(config.get("detector")) or {}).get("published_as") or ()
    counts = {name: (entry["n_real"], entry["n_fake"]) for name, entry in metrics["per_generator"].items()}
    counts[MEAN] = (int((frame["label"] == 0).sum()), int((frame["label"] == 1).sum()))
    cells = beside_published(measured, counts, benchmark, names)
    rows = [
        {"metric": cell.metric, "set": cell.set, "n_real": cell.n[0], "n_fake": cell.n[1], **vars(cell.own),
         "published": cell.published, "difference": cell.own.value - cell.published, "source": cell.source}
        for cell in cells
    ]  # fmt: skip
    with replacing(folder / "benchmark.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.3f")
    told = page(benchmark, cells, method_of(config), f"{info['eval_policy']} of {info['crop_size']}")
    with replacing(folder / "benchmark.md") as temporary:
        temporary.write_text(told, encoding="utf-8")
    return benchmark, cells


def method_of(config: DictConfig) -> str:
    """Name the detector of a config: a published one with its file, or the checkpoint."""
    return f"{config.detector.name}, {Path(config.weights).name}" if config.get("detector") else str(config.checkpoint)


def _index(benchmark: Benchmark, root: Path, folder: Path) -> Path:
    """Index a benchmark's folder in its layout into a manifest in the output folder."""
    facts = benchmark.facts
    settings = Settings(facts["layout"], split=facts.get("split"), group=facts.get("group", "auto"))
    found = index_source(root, folder / "manifest.parquet", settings, None, {})
    for reason, count in found.reasons.most_common(4):
        log.warning("left out: %6d  %s", count, reason)
    return found.manifest


def _check_photographs(benchmark: Benchmark, config: DictConfig) -> None:
    """Raise UserError if a set would be compared with the photographs of others, which no published figure is of."""
    manifest = load_manifest(config.data.manifest, config.data.root if "://" in str(config.data.root or "") else None)
    cells = real_counterparts(manifest.rows(config.split), plain(config.data.pairs))
    alone = [name for name, cell in cells.items() if cell.rule == "all" or not len(cell.real_rows)]
    if alone and not benchmark.facts.get("shared_reals"):
        raise UserError(f"{benchmark.name}: {', '.join(alone)}: fakes without photographs of their own; data.root is "
                        f"to be {benchmark.facts['root']}. Leave these folders out, or name the photographs that they "
                        "are compared with: data.pairs={NAME: [NAME]}")  # fmt: skip
