"""Reports: of predictions files alone, of the runs below a folder, and of a study; one code path for all."""

from __future__ import annotations

import json
import logging
import re
import shlex
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fakedet.config import again, check_config, shown_command
from fakedet.data import demo
from fakedet.errors import UserError, nearest
from fakedet.evaluation import families, plots, predictions, scored
from fakedet.evaluation.comparison import TITLES, Comparison, compare, opening, rows, verdict, write_csv, write_markdown
from fakedet.evaluation.evaluate import measure_robustness
from fakedet.evaluation.predictions import MAP, STUDY, Read
from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.decisions import left_out_alarms
from fakedet.metrics.matched import content_note
from fakedet.metrics.pairing import Pairs, pairing_notes, real_counterparts
from fakedet.pages import REAL_COLOUR, Drawing, render
from fakedet.pages import plain as legible
from fakedet.utils import FAILURE, open_folder, plain, provenance, write_config, write_json

log = logging.getLogger("fakedet")

ENDED = "jobs.jsonl"  # in a multirun's folder: one line per job that has ended
# Overrides that do not tell methods apart: the seeds of a method belong together, the others leave its results alone.
NOT_COMPARED = ("seed", "output_dir", "overwrite", "resume", "stage1_cache", "threads", "logger", "study", "hydra")
# Of text, for the markers of figures.
SIGNS = dict(zip("os^DvPX*p<>h", "●■▲◆▼✚✖★⬟◀▶⬢", strict=True))
SHORTCUT = 0.7  # AUC of a classifier that sees only headers, above which the reader is warned


@dataclass(frozen=True)
class Gallery:
    """Small pictures under one title."""

    title: str
    pictures: Sequence[dict[str, str]]  # data (a URI), path and caption
    mark: tuple[str, str] | None = None  # colour and sign, of examples
    method: str = ""  # of errors


@dataclass(frozen=True)
class Page:
    """What a report shows: a comparison's tables and verdict, figures, and where the numbers come from."""

    title: str
    comparison: Comparison
    figures: Sequence[Drawing]
    runs: Sequence[Mapping[str, Any]]  # the rows of the table of runs; a missing key is shown as a dash
    facts: Mapping[str, Any]  # name → value of facts about all runs
    command: str  # how to make it again
    caveats: Sequence[str] = field(default_factory=list)
    failures: Sequence[str] = field(default_factory=list)
    galleries: Sequence[Gallery] = field(default_factory=list)
    provenance: Mapping[str, str] = field(default_factory=dict)  # run → all that is known of it, as text
    # Generator → AUC of a classifier that sees only headers, shown beside the detectors'.
    shortcuts: Mapping[str, Interval] = field(default_factory=dict)


def write_page(page: Page, path: Path) -> None:
    """Render a page into one self-contained HTML file; whatever it shows is escaped."""
    generators = page.comparison.generators
    # What the glossary explains: methods by the words of their names, and generators if all are the demo's.
    words = {word for method in page.comparison.methods for word in re.findall(r"\w+", method)}
    words |= set(generators) if {*generators} <= {*demo.SEEN, *demo.UNSEEN} else set()
    render(
        "fakedet.evaluation", "report/report.html", path, title=page.title, page=page, comparison=page.comparison,
        opening=opening(page.comparison), verdict=verdict(page.comparison), marks_of=_marks(page.comparison),
        words=words, spelled={name: told for name in (*generators, *page.comparison.methods)
                              if (told := legible(name).replace("\\$", "$").strip()) != name.strip()},
        columns=list(dict.fromkeys(name for run in page.runs for name in run)),
        tables=[(TITLES[metric], metric, rows(page.comparison, metric)) for metric in page.comparison.values],
    )  # fmt: skip


def _marks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Return each generator's colour and sign in text, those of the figures."""
    styles = plots.styles_of(comparison.generators)
    return {name: (colour, SIGNS[marker]) for name, (colour, marker) in styles.items()}


def _figures(
    folder: Path, comparison: Comparison, first: dict[str, Read], pairs: Any, bootstrap: dict[str, int],
    reals: set[str], trained: bool,
) -> list[Drawing]:  # fmt: skip
    """Draw, into a folder, the figures of all methods, then those of each method's ``first`` file.

    For pairs, bootstrap and reals see :func:`measure_robustness`; ``trained``: the files lie in their training runs.
    """
    shown = {method: first[method].original for method in comparison.methods}
    seen_by = {method: tuple(sorted(first[method].seen)) for method in comparison.methods}
    drawn = [_intervals(folder, comparison, metric) for metric in comparison.values]
    if len(set(seen_by.values()) - {()}) > 1 and "auc" in comparison.values:
        cells = {name: comparison.values["auc"][name] for name in comparison.generators}
        title = "AUC; a frame: fakes that this detector never saw"
        drawn.append(Drawing(plots.plot_matrix(cells, seen_by, title, folder / "matrix.png"),
                             "AUC of each detector (row) on each generator (column). Compare a framed cell, of fakes "
                             "that this detector never saw, with the others of its column."))  # fmt: skip
    if trained:
        curves = {method: plots.read_curves(one.path.parent) for method, one in first.items()}
        drawn.append(Drawing(plots.plot_curves(curves, folder / "curves.png"),
                             "Training, first seed of each method. The loss should fall and level off; losses of "
                             "different methods are not comparable. The weights of the best validation mAP are kept: "
                             "where it jumps from epoch to epoch, that choice is luck."))  # fmt: skip
    drawn += [] if "auc" not in comparison.values else [
        Drawing(plots.plot_curves_of_decision(shown, folder / "roc_pr.png"),
                "ROC and precision-recall of all fakes against all photographs; first seed of each method. Nearer to "
                "the upper left corner (above) and the upper right one (below) is better; dotted: a guess."),
        Drawing(plots.plot_reliability(shown, folder / "reliability.png"),
                "Can scores be read as probabilities? On the diagonal, of images scored 0.8 four in five are fakes; "
                "above it scores are too low, below it too high. Photographs and fakes weigh one half each."),
    ]  # fmt: skip
    for number, (method, one) in enumerate(first.items()):
        medians = one.original[one.original["label"] == 1].groupby("generator")["logit"].median()
        nearest_one = f"; nearest: {medians.idxmin()}" if len(medians) > 1 else ""
        drawn.append(Drawing(plots.plot_scores(one.original, folder / f"scores_{number}.png", seen=one.seen),
                             f"{method}: logits of photographs (grey) and of each generator's fakes; bar: median. The "
                             "further a generator lies to the right of grey, the better it is detected"
                             f"{nearest_one}."))  # fmt: skip
        share = one.info.get("map_share")
        if share and set(MAP) <= set(one.original) and one.original[MAP].notna().any(axis=None):
            drawn.append(Drawing(plots.draw_map(one.original, share, one.seen, folder / f"map_{number}.png"),
                                 f"{method}: test images on the two main directions of its embedding; hollow: not seen "
                                 "in training. Generators that lie among the grey photographs are hard to "
                                 "detect."))  # fmt: skip
        if one.frame["view"].nunique() > 1:
            content = measure_robustness(one.frame, pairs, sorted(one.seen), bootstrap, reals)
            drawn.append(Drawing(plots.plot_robustness(content, folder / f"robustness_{number}.png"),
                                 f"{method}: mAP of degraded images; dashed: as they are. A line that falls towards "
                                 "0.5 shows what hides the fakes."))  # fmt: skip
    return drawn


def _intervals(folder: Path, comparison: Comparison, metric: str) -> Drawing:
    found = rows(comparison, metric)
    listed = {row.name: {method: cell.to_dict() for method, cell in row.cells.items()} for row in found}
    sections = {row.name: row.section for row in found}
    chance = {row.name: comparison.chance(row.key) if metric == "ap" else 0.5 for row in found if metric != "accuracy"}
    title = f"{TITLES[metric]} with 95 % intervals"
    picture = plots.plot_intervals(listed, title, folder / f"{metric}.png", sections, chance)
    if metric == "accuracy":
        return Drawing(picture, "Share of reals called real, for each collection, and of fakes called fake")
    words = metric.upper() if metric == "ap" else TITLES[metric]
    dotted = "a guess, the share of fakes" if metric == "ap" else "a guess"
    sums = {row.name: sum(cell.value for cell in row.cells.values()) for row in found if row.section != "mean"}
    known = pd.Series(sums, dtype=float).dropna()
    hardest = f"; hardest here: {known.idxmin()}" if len(known) > 1 else ""
    return Drawing(picture, f"{words} of each generator and means, a line for each method. Further right is "
                            f"better, and lines that overlap hardly differ{hardest}. Dotted: {dotted}.")  # fmt: skip


def _galleries(first: dict[str, Read], comparison: Comparison, seen: set[str]) -> list[Gallery]:
    """Collect the small pictures: real images, fakes of each generator, the most confident errors of each method."""
    one, marks, found = first[comparison.baseline], _marks(comparison), []
    for (label, kind), group in predictions.examples(one.original).groupby(["label", "generator"], sort=True):
        name = str(kind)
        title = f"real images ({name})".replace(" (real)", "")
        title = f"fakes of {name}{plots.known(name, 1, seen)}" if label else title
        pictures = [_picture(one, path) for path in group["path"] if path in one.pictures]
        mark = marks[name] if label else (REAL_COLOUR, SIGNS["o"])
        found += [Gallery(title, pictures, mark)] if pictures else []
    for method in dict.fromkeys([comparison.best, *comparison.methods]):
        one = first[method]
        threshold = (one.info.get("operating_point") or {}).get("threshold")
        errors = predictions.confident_errors(one.original, threshold, len(one.original))
        for title, table in zip(("real images taken for fakes", "fakes taken for real"), errors, strict=True):
            pictures = []
            for path, generator, score in table[["path", "generator", "score"]].itertuples(index=False):
                if path not in one.pictures:  # only the first ones of this order have pictures
                    break
                pictures.append(_picture(one, path, generator + (f", score {score:.2f}" if score == score else "")))
            found += [Gallery(f"{method}: {title}", pictures, method=method)] if pictures else []
    return found


def _picture(one: Read, path: str, caption: str = "") -> dict[str, str]:
    data = "data:image/jpeg;base64," + b64encode(one.pictures[path]).decode()
    return {"data": data, "path": path, "caption": caption}


def _provenance(one: Read) -> str:
    """Format the info of a file's run as text, without the scores that its operating point holds."""
    point = one.info.get("operating_point") or {}
    short = {key: value for key, value in point.items() if not isinstance(value, dict | list)}
    info = {**one.info, "operating_point": short} if point else one.info
    return json.dumps(info, indent=2, ensure_ascii=False)


@dataclass(frozen=True)
class Report:
    """A report that has been written; ``path`` is its page."""

    title: str
    comparison: Comparison
    path: Path
    caveats: Sequence[str]  # sentences to read its numbers with, besides those that its user gave


def report_on(config: DictConfig, overrides: list[str]) -> Report:
    """Write report.html, summary.json, table.csv, table.md and figures from predictions files.

    Raises:
        UserError: a file is no predictions file, or they are of different data.
    """
    check_config(config)
    return write_report(predictions.read_files(plain(config.predictions)), config, ["fakedet", "report", *overrides])


def write_report(
    read: list[Read], config: DictConfig, command: list[str], runs: Sequence[Run] = (), failures: Sequence[str] = (),
    caveats: Sequence[str] = (), trained: bool = False,
) -> Report:  # fmt: skip
    """Write the report of at least one predictions file.

    Args:
        read: the files; ``trained``: they lie in the folders of their training runs.
        config: output_dir, overwrite, baseline, pairs, title and bootstrap.
        command: how to make it again.
        runs: that wrote the predictions, in the same order; empty where only the files are known.
        failures, caveats: jobs without a result, one line each; sentences that the page shows before its numbers.

    Raises:
        UserError: the files are of different data, or there is no such baseline.
    """
    started = time.perf_counter()
    if config.pairs is not None and not OmegaConf.is_dict(config.pairs):
        raise UserError(f"pairs={config.pairs}: a mapping of generators to their reals, such as {{gan: real}}")
    pairs = pairs_of(read) if config.pairs is None else plain(config.pairs)
    bootstrap, reals = plain(config.bootstrap), _reals(read)
    comparison = _compare(read, config.baseline, pairs, bootstrap)
    first_seeds = {one.method: one for one in reversed(read)}
    first = {method: first_seeds[method] for method in comparison.methods}  # a colour means one method everywhere
    folder = open_folder(config.output_dir, config.overwrite)
    write_config(folder, config, command[2:])
    facts = provenance(command)
    unseen = comparison.members("map_unseen")
    of_runs = [_run_row(run, one, unseen) for run, one in zip(runs, read, strict=bool(runs))]
    table = of_runs or [_row(one) for one in read]
    words = {"opening": opening(comparison), "verdict": verdict(comparison), "failures": list(failures)}
    write_json(folder / "summary.json", {**comparison.to_dict(), **words, "runs": table, "provenance": facts})
    write_csv(comparison, folder / "table.csv")
    write_markdown(comparison, folder / "table.md")
    headers = read[0].info.get("shortcut") or {}
    shortcuts = {name: Interval.from_dict(entry["auc"]) for name, entry in headers.items()}
    noted = [*_content(comparison), *_pairing(read, pairs, given=config.pairs is not None), *_caveats(read, shortcuts)]
    page = Page(
        title=str(config.title), comparison=comparison, runs=table, failures=failures, shortcuts=shortcuts,
        figures=_figures(folder, comparison, first, pairs, bootstrap, reals, trained),
        galleries=_galleries(first, comparison, {name for one in read for name in one.seen}),
        provenance={f"{one.method}, seed {one.seed}: {one.path}": _provenance(one) for one in read},
        caveats=[*caveats, *noted],
        facts=_facts(facts, read, runs, time.perf_counter() - started), command=again(facts["command"]),
    )  # fmt: skip
    write_page(page, folder / "report.html")
    return Report(str(config.title), comparison, folder / "report.html", noted)


def _compare(read: list[Read], baseline: str | None, pairs: Any, bootstrap: dict[str, int]) -> Comparison:
    methods = list(dict.fromkeys(one.method for one in read))
    baseline = baseline or methods[0]
    if baseline not in methods:
        raise UserError(f"baseline={baseline}: {nearest(baseline, methods)}")
    runs = {method: [(one.seed, one.original) for one in read if one.method == method] for method in methods}
    # Stage 1 saw no fakes at all. Where detectors saw different generators, none is seen or unseen for all of them.
    sets = {frozenset(one.seen) for one in read if one.seen}
    seen = None if len(sets) > 1 else frozenset[str]().union(*sets)
    return compare(runs, baseline, pairs, seen, bootstrap["resamples"], bootstrap["seed"], known_reals=_reals(read))


def pairs_of(read: list[Read]) -> Pairs | None:
    """Return the pairs that predictions were measured with; UserError where a generator then has different reals."""
    first, reals = read[0], _reals(read)
    wanted = real_counterparts(first.original, first.info.get("pairs"), reals)
    for one in {str(one.info.get("pairs")): one for one in reversed(read)}.values():
        for name, own in real_counterparts(first.original, one.info.get("pairs"), reals).items():
            if own.real_rows.tolist() != wanted[name].real_rows.tolist():
                words = f"{first.path} compares {name} with {wanted[name].words}, and {one.path} with {own.words}"
                raise UserError(f"{words}; a table compares all alike: give pairs=..., or pairs={{}} for reals by name "
                                "and source")  # fmt: skip
    return first.info.get("pairs")


def _pairing(read: list[Read], pairs: Pairs | None, given: bool) -> list[str]:
    """Say what a reader would not expect of the reals that generators are compared with; ``given``: by the user."""
    reals = _reals(read)
    told: dict[str, dict[str, None]] = {}
    keys = {"in its metrics.json": "pairs", "in training": "training_pairs"}
    for one in read:
        notes = one.info.get("pairing_notes")
        if given or notes is None:  # None: another program's file
            others = {words: one.info.get(key) for words, key in keys.items() if given and key in one.info}
            notes = pairing_notes(one.original, pairs, others, reals)
        for note in notes:
            told.setdefault(str(note), {})[one.method] = None
    methods = len({one.method for one in read})
    return [note if len(own) == methods else f"{', '.join(own)}: {note}" for note, own in told.items()]


def _reals(read: list[Read]) -> set[str]:
    """Return the names of reals that pairs may name: those in the files, and in other splits of their manifests."""
    reals = pd.concat([one.original.query("label == 0") for one in read])
    known = {str(name) for one in read for name in one.info.get("known_reals", [])}
    return (known | set(reals["generator"]) | set(reals.get("source", []))) - {""}


def _content(comparison: Comparison) -> list[str]:
    """Say of which methods the mean AUC is high, and at chance among images of the same content."""
    plain, matched = (comparison.values.get(metric, {}).get("map", {}) for metric in ("auc", "auc_matched"))
    told = {method: content_note(plain[method], value, "features") for method, value in matched.items()}
    return [f"{method}: {note}." for method, note in told.items() if note]


def _facts(facts: Mapping[str, Any], read: list[Read], runs: Sequence[Run], seconds: float) -> dict[str, Any]:
    git = facts["git"]
    told = {
        "fakedet": facts["fakedet"],
        "git": git["commit"][:12] + " with uncommitted changes" * git["dirty"] if git else "not a checkout",
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        "machine": f"{facts['cpus']} CPUs, {facts['platform']}, Python {facts['python']}", "made": facts["started"],
        "trained on": ", ".join(sorted({name for one in read for name in one.seen})) or "no fakes",
        "time": f"{seconds:.1f} s for this page",
    }  # fmt: skip
    if runs:
        told["manifest (sha256)"] = runs[0].facts["manifest_sha256"]
        trained = {method: sum(run.facts["seconds"]["all"] for run in runs if run.method == method)
                   for method in dict.fromkeys(run.method for run in runs)}  # fmt: skip
        told["training"] = ", ".join(f"{method} {spent:.0f} s" for method, spent in trained.items())
    return told


def _caveats(read: list[Read], shortcuts: Mapping[str, Interval]) -> list[str]:
    told = []
    for one in read:
        if used := one.info.get("data_was_used_for"):
            told.append(f"{one.method}: these data were used for {used} it; its results flatter.")
        if not one.info.get("operating_point"):
            told.append(f"{one.method}: no operating point, so its scores are not calibrated.")
    if by_headers := [name for name, found in shortcuts.items() if found.value > SHORTCUT]:
        told.append(f"Format, size and compression alone tell {', '.join(by_headers)} (AUC above {SHORTCUT}): the "
                    "detectors' numbers there may be this shortcut.")  # fmt: skip
    for method in dict.fromkeys(one.method for one in read):
        own = dict.fromkeys(predictions.differences([one.info for one in read if one.method == method]))
        if len(own) > 1:
            told.append(f"{method} stands for runs of different configs: {'; '.join(own)}.")
        told += [f"{method} at its threshold: {line}." for one in read if one.method == method
                 if (line := left_out_alarms(one.info.get("operating_point")))]  # fmt: skip
    return list(dict.fromkeys([*told, *scored.told_by(one.info for one in read)]))


def _row(one: Read) -> dict[str, Any]:
    point = one.info.get("operating_point") or {}
    return {
        "method": one.method, "seed": one.seed, "split": one.info.get("split"),
        "images": len(one.original), "views": one.frame["view"].nunique(),
        "threshold for reals called fake": point.get("rate") or None, "fitted on": point.get("split"),
        "checkpoint": one.info.get("checkpoint"), "file": str(one.path),
    }  # fmt: skip


def _run_row(run: Run, one: Read, unseen: Sequence[str]) -> dict[str, Any]:
    metrics = json.loads((one.path.parent / "metrics.json").read_text(encoding="utf-8"))
    # Of the comparison's unseen generators: stage 1, which saw no fakes, counts all of them in its own metrics.
    found = [metrics["per_generator"][name]["ap"]["value"] for name in unseen if name in metrics["per_generator"]]
    changed = [f"{key}={value}" for key, value in run.overrides.items() if not key.startswith(NOT_COMPARED)]
    return {
        "method": run.method, "seed": run.seed,
        "mAP unseen": round(sum(found) / len(found), 4) if found and None not in found else None,
        "validation": None if (best := run.facts.get("validation")) is None else round(best, 3),
        "kept epoch": run.facts["kept_epoch"],
        "minutes": round(run.facts["seconds"]["all"] / 60, 3), "parameters": run.facts["parameters"],
        "unreadable images": metrics["quarantined"]["n"], "changed": " ".join(changed), "folder": str(run.folder),
    }  # fmt: skip


@dataclass
class Run:
    """One run's folder."""

    folder: Path
    method: str
    given: Sequence[str]  # its overrides as they were given
    facts: dict[str, Any]  # content of run.json; empty for a run that has not finished
    failure: str  # why it failed; "" for a run that did not, was stopped or is under way
    flags: Sequence[str] = ()  # of the command line that trains it, besides its overrides
    family: str | None = None  # that a study's protocol left out

    @property
    def overrides(self) -> dict[str, str]:
        """Key → value of what it overrides."""
        return dict(str(item).lstrip("+~").partition("=")[::2] for item in self.given)

    @property
    def seed(self) -> int:
        """The seed of a finished run, else the one that its overrides name."""
        return int(self.facts.get("seed", self.overrides.get("seed", 0)))

    @property
    def has_result(self) -> bool:
        """Whether it has finished and left predictions."""
        return bool(self.facts) and (self.folder / "predictions.parquet").is_file()


def ended_jobs(root: str | Path) -> list[dict[str, Any]]:
    """Read how the jobs of a multirun have ended so far; each job once."""
    try:
        lines = (Path(root) / ENDED).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return list({row["job"]: row for row in rows}.values())


def method_label(overrides: Mapping[str, str]) -> str:
    """Name a method by what sets it apart: an experiment or a model by its name alone, anything else by its key."""
    return ", ".join(value.rpartition("/")[2] if key in ("experiment", "model") else f"{key}={value}"
                     for key, value in overrides.items() if key != "seed")  # fmt: skip


def compare_runs(config: DictConfig, overrides: list[str], command: list[str] | None = None) -> list[Report]:
    """Compare all finished runs below some folders, seeds of the same overrides taken together.

    A study's folder knows its methods, their order, its baseline, title and caveats. Each manifest of ``also`` that
    runs were scored on gets a report of its own, in on_NAME below the output folder.

    ``command`` makes the report again; None stands for `fakedet compare` with these overrides.

    Returns:
        The report on the runs' own test split, then one for each further manifest; none for a study that leaves
        families out, whose report is written and told here.

    Raises:
        UserError: there is no finished run, or they were evaluated on different data.
    """
    command = command or ["fakedet", "compare", *overrides]
    given = plain(config.runs)
    study = _json(Path(given) / STUDY) if isinstance(given, str) else {}
    runs = _planned(Path(given), study) if study else _found(given)
    failures = [line for run in runs if (line := _describe(run))]
    for line in failures:
        log.warning("%s", line)
    done = [run for run in runs if run.has_result]
    if not done:
        raise UserError(f"runs={given}: there is no finished run with predictions.parquet below")
    config = config.copy()
    title, folder = config.title or study.get("title") or "Sweep", Path(config.output_dir)
    config.title, config.baseline = title, config.baseline or study.get("baseline")
    if study.get("protocol"):
        windows = study["protocol"].get("windows") or {}
        _report_on_families(done, config, [*(study.get("caveats") or ()), *failures], command, windows)
        return []
    reports = []
    names = [path.parent.name for run in done for path in sorted(run.folder.glob("on_*/predictions.parquet"))]
    for place in ("", *dict.fromkeys(names)):
        scored = [run for run in done if not place or (run.folder / place / "run.json").is_file()]
        if not scored:
            continue
        if place:
            name = place.removeprefix("on_")
            config.title, config.output_dir, config.overwrite = f"{title}: {name}", str(folder / place), True
            if config.baseline not in (None, *(run.method for run in scored)):
                log.warning("no comparison on %s: the baseline '%s' has not been scored on it", name, config.baseline)
                continue
        files = [run.folder / place / "predictions.parquet" for run in scored]
        read = [predictions.read_file(path, run.method, run.seed) for run, path in zip(scored, files, strict=True)]
        caveats = study.get("caveats") or ()
        reports.append(write_report(read, config, command, scored, failures, caveats, trained=not place))
    return reports


def _report_on_families(
    runs: Sequence[Run], config: DictConfig, caveats: Sequence[str], command: list[str],
    windows: Mapping[str, list[str]],
) -> None:  # fmt: skip
    """Write the report of a study that left families out, and print what it says.

    Of a protocol over time, ``windows`` are the families of each; each run is measured on the first that it left out.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    if config.baseline not in (None, *methods):
        raise UserError(f"baseline={config.baseline}: {nearest(config.baseline, methods)}")
    infos, of_fakes, of_photographs = [], {}, dict[str, list[pd.DataFrame]]()
    for run in runs:
        read = predictions.read_file(run.folder / predictions.FILE)
        frame = read.original.assign(left_out=predictions.left_out_families(read.original, read.info))
        if windows:
            frame["left_out"] = families.next_window(frame, windows)
        infos.append(read.info)
        left_out = frame[frame["left_out"] != ""]
        if len(fakes := left_out[left_out["label"] == 1]) or not len(left_out):
            family = str(next(iter(fakes["left_out"]), run.family))
            of_fakes[run.method, family, run.seed] = frame.assign(
                family=frame["family"].mask(frame.index.isin(fakes.index), family)
            )
        of_photographs.setdefault(run.method, []).append(left_out[left_out["label"] == 0])
    told = [*caveats, *families.tell_false_alarms(of_photographs), *scored.told_by(infos)]
    told += [f"window {name}: {', '.join(own)}; measured without it and what came later" if number else
             f"window {name}: {', '.join(own)}; trained on by all"
             for number, (name, own) in enumerate(windows.items())]  # fmt: skip
    found, base = None, config.baseline or methods[0]
    if of_fakes:
        found = families.compare_families(of_fakes, base, **plain(config.bootstrap))
    folder = open_folder(config.output_dir, config.overwrite)
    write_config(folder, config, command[2:])
    if found:
        told = families.write_report(found, folder, str(config.title), told)
    else:
        write_json(folder / "summary.json", {"title": str(config.title), "caveats": told})
    for line in told:
        log.info("%s", line)
    log.info("report  %s", folder / ("report.html" if of_fakes else "summary.json"))


def _planned(root: Path, study: Mapping[str, Any]) -> list[Run]:
    """Read the folders of a study's jobs, in the study's order, whether they have begun or not."""
    ended = {row["job"]: row["error"] for row in ended_jobs(root)}
    flags = ["--config-dir", study["config_dir"]] if study["config_dir"] else []
    runs = []
    for number, job in enumerate(study["jobs"]):
        folder = root / job["folder"]
        failure = _json(folder / FAILURE).get("error") or ended.get(number) or ""
        runs.append(
            Run(folder, job["method"], job["overrides"], _json(folder / "run.json"), failure, flags, job.get("family"))
        )
    return runs


def _found(given: Any) -> list[Run]:
    """Find the runs below a folder, several, or method → its folder(s); sorted where the user names no methods."""
    named = given if isinstance(given, Mapping) else {"": given}
    found: dict[Path, Run] = {}
    roots = [(str(method), Path(str(root))) for method, listed in named.items()
             for root in ([listed] if isinstance(listed, str) else listed or ())]  # fmt: skip
    for method, root in roots:
        if not root.is_dir():
            raise UserError(f"runs={root}: there is no such folder")
        for path in sorted(root.rglob("config.yaml")):
            folder = path.parent
            # Stage 1 has no config of its own, and reports and evaluations have no model.
            if not (folder / "overrides.yaml").is_file() or "model" not in OmegaConf.load(path):
                continue
            overrides: Any = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"))  # ${...} stays as given
            run = Run(folder, method, overrides, _json(folder / "run.json"), _json(folder / FAILURE).get("error", ""))
            found.setdefault(folder.resolve(), run)
        for job in ended_jobs(root):
            folder = Path(job["folder"])
            if job["error"] and not (folder / "config.yaml").is_file():  # it failed before it had a folder
                found[folder] = Run(folder, method, job["overrides"], {}, job["error"], job["flags"])
    runs = list(found.values())
    if not isinstance(given, Mapping):
        _name(runs)
        runs.sort(key=lambda run: (run.method, run.seed))
    return runs


def _name(runs: list[Run]) -> None:
    """Name the methods of runs by the overrides that differ, then by what else differs in their configs."""
    keys = dict.fromkeys(key for run in runs if run.facts for key in run.overrides if not key.startswith(NOT_COMPARED))
    differing = [key for key in keys if len({run.overrides.get(key) for run in runs if run.facts}) > 1]
    for run in runs:
        run.method = method_label({key: run.overrides[key] for key in differing if key in run.overrides})
        if not run.method and (run.folder / "config.yaml").is_file():
            run.method = str(OmegaConf.load(run.folder / "config.yaml").name)
    done = {run.folder / "predictions.parquet": run for run in runs if run.has_result}
    told = [(run.method, run.seed, path, predictions.read_info(path)) for path, run in done.items()]
    for run, name in zip(done.values(), predictions.name_methods(told), strict=True):
        run.method = name


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON file; {} where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}


def _describe(run: Run) -> str:
    """Say why a run has no result, and how to run it alone; "" if it has one."""
    if run.facts and not run.failure:
        return ""
    begun = (run.folder / "config.yaml").is_file()
    cause = f"failed: {run.failure}" if run.failure else "has not finished" if begun else "has not begun"
    resume = shlex.join([*shlex.split(shown_command("resume", run=run.folder)), *run.flags])
    train = shown_command("train", *run.flags, *run.given, output_dir=run.folder)
    return f"{run.folder.name} {cause}. Alone: {resume if begun else train}"
