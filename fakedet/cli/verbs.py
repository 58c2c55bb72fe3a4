"""The verbs but predict and serve: each takes its config apart, calls the library, and says what was done."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fakedet.audit.match import match_manifest
from fakedet.audit.report import audit_manifest
from fakedet.audit.shortcuts import WARN
from fakedet.build import build_augmentation, build_datamodule
from fakedet.checkpoint import SAFETENSORS
from fakedet.config import check_config, shown_command
from fakedet.data.datamodule import DataModule
from fakedet.data.fetch import fetch as fetch_files
from fakedet.data.index import Indexed, index_source
from fakedet.data.index import Settings as IndexSettings
from fakedet.data.scan import describe_left_behind
from fakedet.data.shards import shard_manifest
from fakedet.detector import load
from fakedet.errors import UserError
from fakedet.evaluation.benchmark import (
    HEADS,
    MEAN,
    METRICS,
    describe,
    published_table,
    read_benchmark,
    score_benchmark,
)
from fakedet.evaluation.comparison import console_table, opening
from fakedet.evaluation.evaluate import evaluate
from fakedet.evaluation.report import Report, compare_runs, report_on
from fakedet.export import export_detector, of_run
from fakedet.hub import push, repository_of
from fakedet.metrics.bootstrap import Interval
from fakedet.metrics.decisions import PUBLISHED, left_out_alarms
from fakedet.metrics.pairing import against
from fakedet.shipped import DEFAULT
from fakedet.training.resume import config_of, finished
from fakedet.training.sweep import Study
from fakedet.training.train import score_missing, train
from fakedet.utils import is_main_process, open_folder, plain, write_config

log = logging.getLogger("fakedet")


def interval(content: Mapping[str, float | None]) -> str:
    """Write a value of metrics.json with its 95 % interval, such as ``0.831 [0.790, 0.866]``."""
    return Interval.from_dict(content).text(".3f")


def means_of(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Word the means of metrics.json over seen, unseen and all generators; of one class alone, its accuracy."""
    if not metrics["map"]["n_generators"]:
        kinds = {"acc_real": ("real", "all reals"), "acc_fake": ("fake", "all fakes")}
        return {words: f"called {kind} {interval(metrics[key])}  ({metrics[key]['n']} {kind})"
                for key, (kind, words) in kinds.items() if metrics.get(key, {}).get("value") is not None}  # fmt: skip
    return {
        f"mean, {words}": f"AP {interval(metrics[f'map{kind}'])}  AUC {interval(metrics[f'mauc{kind}'])}"
        + _matched(metrics, metrics[f"mauc_matched{kind}"])
        for kind, words in (("_seen", "seen"), ("_unseen", "unseen"), ("", "all"))
    }


def _matched(metrics: Mapping[str, Any], value: Mapping[str, float | None]) -> str:
    """Write the AUC among images of the same content; "" where only sources tell content, as they do for the AUC."""
    return f"  on the same content {interval(value)}" if metrics["matched_by"] == "features" else ""


def run_index(config: DictConfig, overrides: list[str]) -> None:
    """Index, and say what was found."""
    started = time.perf_counter()
    output, root = (Path(value) if value else None for value in (config.output, config.root))
    columns = {str(key): str(value) for key, value in (config.columns or {}).items()}
    # Each may be null, one name or a list.
    reals, fakes, unseen = ([names] if isinstance(names, str) else [str(name) for name in names or ()]
                            for names in (config.reals, config.fakes, config.unseen))  # fmt: skip
    settings = IndexSettings(config.layout, reals, fakes, config.split, unseen, config.group, config.split_seed,
                             config.hash, config.threads, config.skip_unreadable, config.extract)  # fmt: skip
    found = index_source(Path(config.source), output, settings, root, columns)
    Console(width=None if Console().is_terminal else 110).print(_table(found))
    state, copies, seconds = found.scan, found.copies, time.perf_counter() - started
    log.info("layout %s: %d images, %d of them read anew, in %.1f s", found.layout, found.rows, state.read, seconds)
    if state.others:
        log.info("%d files of other kinds were not looked at", state.others)
    if left := describe_left_behind(state.left_behind):
        log.info(left)
    if copies.contents:
        log.info("%d images share their content with others (%d contents)", copies.files, copies.contents)
    if copies.contradictions:
        log.warning("%d images left out: their content stands as real and as fake", copies.contradictions)
    if copies.crossing:
        log.warning("%d images left out: their content stands in another split too", copies.crossing)
    for reason, count in found.reasons.most_common(8):
        log.warning("left out: %6d  %s", count, reason)
    if found.reasons:
        log.info("left out  %s", found.rejected)
    log.info("manifest  %s", found.manifest)
    log.info("next      %s", shown_command("audit", **{"data.manifest": found.manifest}))


def _table(found: Indexed) -> Table:
    splits = ("train", "val", "test")
    table = Table("class", "generator", box=None, pad_edge=False, header_style="bold")
    for split in splits:
        table.add_column(split, justify="right")
    table.add_column("because")
    for label, name in sorted({(label, generator) for label, generator, _ in found.counts}):
        counts = [found.counts[(label, name, split)] for split in splits]
        table.add_row(("real", "fake")[label], name, *(f"{count:,}" if count else "–" for count in counts),
                      Text(found.why[label, name]))  # fmt: skip
    return table


def run_audit(config: DictConfig, overrides: list[str]) -> int:
    """Audit, print the findings, and return the number of problems."""
    check_config(config)
    if config.sample is not None and config.sample < 1:
        raise UserError(f"sample={config.sample}: must be at least 1, or null for all images")
    datamodule = _datamodule({**plain(config.data), "allow_group_leak": True})  # it reports what others refuse
    datamodule.prepare()  # a wrong manifest is refused before the folder is made
    folder = open_folder(config.output_dir, config.overwrite)
    write_config(folder, config, overrides)
    found = audit_manifest(datamodule, folder, ["fakedet", "audit", *overrides], config.sample, config.seed)
    for entry in found.generators:
        header, content = entry.header, entry.content.auc.text(".3f") if entry.content else "-"
        log.info("%-24s header AUC %s  content AUC %s  (%d real, %d fake)", entry.generator, header.auc.text(".3f"),
                 content, header.n_real, header.n_fake)  # fmt: skip
    for finding in found.findings:
        log.info("")
        log.info("%s: %s", finding.level.upper(), finding.what)
        log.info("  %s", finding.means)
        if finding.mend:
            log.info("  mend: %s", finding.mend)
    log.info("")
    log.info("%s", found.verdict)
    log.info("audit   %s/audit.json", folder)
    log.info("report  %s/report.html", folder)
    return sum(finding.level == "problem" for finding in found.findings)


def run_match(config: DictConfig, overrides: list[str]) -> None:
    """Match, and print how well headers separated the classes before and after."""
    check_config(config)
    data, folder, command = plain(config.data), Path(config.output_dir), ["fakedet", "match", *overrides]
    settings = data.pop("match")
    matched = match_manifest(_datamodule(data), settings, folder, command, config.overwrite)
    write_config(folder, config, overrides)
    log.info("%-24s %-28s %s", "header AUC", "before", "after")
    for name, before in matched.before.items():
        after = matched.after[name].auc.text(".3f") if name in matched.after else "no images left"
        log.info("%-24s %-28s %s", name, before.auc.text(".3f"), after)
    lows = {name: shortcut.auc.low for name, shortcut in matched.after.items()}
    loud = [name for name, low in lows.items() if low > WARN]
    unknown = [name for name, low in lows.items() if math.isnan(low)]
    if loud:
        log.warning("file sizes still separate the fakes of %s: at equal quality their images are smoother or rougher "
                    "than their reals, which is content and not format", ", ".join(loud))  # fmt: skip
    if unknown:
        log.warning("too few images to say whether headers still separate %s", ", ".join(unknown))
    elif lows and not loud:
        log.info("verdict   no generator's header AUC is above 0.7 by more than the interval any more")
    for (kind, name), count in sorted(matched.lost.items()):
        log.warning("left out: %6d  %s %s", count, kind, name)
    if matched.lost:
        log.info("left out  %s/manifest.rejected.csv", folder)
    log.info("%d images of %d pixels", matched.written, matched.matcher.size)
    log.info("manifest  %s/manifest.parquet", folder)
    log.info("evidence  %s/match.json", folder)
    log.info("next      %s", shown_command("audit", **{"data.manifest": folder / "manifest.parquet"}))


def _datamodule(settings: dict[str, Any]) -> DataModule:
    return build_datamodule(settings, augment=build_augmentation({"recipe": "none"}), seed=0)


def run_shard(config: DictConfig, overrides: list[str]) -> None:
    """Write the shards, and say what was left out and how to train from them."""
    check_config(config)
    written = shard_manifest(build_datamodule(plain(config.data)), config.output_dir, config.overwrite, config.shard_mb)
    for (kind, name), count in sorted(written.lost.items()):
        log.warning("left out: %6d  %s %s", count, kind, name)
    if written.lost:
        log.info("left out  %s/rejected.csv", written.folder)
    log.info("%d images in %d shards, %.1f MB", written.rows, written.shards, written.bytes / 1e6)
    manifest = written.folder / "manifest.parquet"
    log.info("manifest  %s", manifest)
    log.info("next      %s", shown_command("train", "experiment=ntf", **{"data.manifest": manifest}))


def run_train(config: DictConfig, overrides: list[str]) -> float | None:
    """Train, and return what chose the weights on the validation split: what a sweeper may optimise."""
    done = train(config, overrides)
    if not is_main_process():
        return None
    if done.metrics is not None:
        for key, means in means_of(done.metrics).items():
            log.info("test %-12s %s", key, means)
        for note in done.metrics["notes"]:
            log.warning("note: %s", note)
    log.info("checkpoint %s", done.checkpoint)
    log.info("run       %s", done.folder)
    if done.metrics is not None:
        log.info("next      %s", shown_command("report", predictions=done.folder / "predictions.parquet"))
    return done.validation


def run_also(config: DictConfig, overrides: list[str]) -> float | None:
    """Score what a finished run has not scored of ``also``; returns what :func:`run_train` returned."""
    score_missing(config)
    facts = finished(config)
    return facts["validation"] if facts else None


def run_resume(config: DictConfig, overrides: list[str]) -> None:
    """Train with the config that the run's folder holds, from the last resume point."""
    run_train(*config_of(config.run))


def run_evaluate(config: DictConfig, overrides: list[str]) -> float | None:
    """Evaluate, print AP per generator, and return mAP."""
    metrics = evaluate(config, overrides)
    if metrics is None:
        return None
    for name, entry in metrics["per_generator"].items():
        if entry["n_real"]:
            log.info("%-24s %-7s AP %s  AUC %s%s  (%d real, %d fake; %s)", name, "seen" if entry["seen"] else "unseen",
                     interval(entry["ap"]), interval(entry["auc"]), _matched(metrics, entry["auc_matched"]),
                     entry["n_real"], entry["n_fake"], against(entry["rule"], entry["reals"]))  # fmt: skip
    if not metrics["map"]["n_generators"]:
        log.info("AP and AUC are not defined: no generator has fakes and real counterparts here")
    for note in [*metrics["notes"], *metrics["pairing_notes"]]:
        log.warning("note: %s", note)
    if metrics["operating_point"]:
        _log_decisions(metrics)
    for key, means in means_of(metrics).items():
        log.info("%-24s %s", key, means)
    log.info("predictions %s/predictions.parquet", config.output_dir)
    log.info("metrics     %s/metrics.json", config.output_dir)
    log.info("next        %s", shown_command("report", predictions=Path(config.output_dir, "predictions.parquet")))
    value = metrics["map"]["value"]
    return None if value is None else float(value)


def _log_decisions(metrics: Mapping[str, Any]) -> None:
    """Print the shares of reals and fakes that are classified correctly at the stored threshold."""
    point = metrics["operating_point"]
    if point["split"] == PUBLISHED:
        log.info("at the threshold of its publication:")
    else:
        fitted = f"{point['split']}: {point['n_real']} real, {point['n_fake']} fake"
        log.info("at the threshold for %g %% of reals (fitted on %s):", 100 * point["rate"], fitted)
    for note in [*point["notes"], *filter(None, [left_out_alarms(point)])]:
        log.info("note: %s", note)
    for name, entry in metrics["per_collection"].items():
        log.info("%-24s reals called real %s  (%d real)", name, interval(entry["acc_real"]), entry["n_real"])
    for name, entry in metrics["per_generator"].items():
        own = f"reals called real {interval(entry['acc_real'])}  " if entry["n_real"] else ""
        log.info("%-24s %sfakes called fake %s  (%d fake)", name, own, interval(entry["acc_fake"]), entry["n_fake"])


def run_fetch(config: DictConfig, overrides: list[str]) -> None:
    """Fetch a data set, and say what to do with it."""
    source, folder, next_step = str(config.name), Path(config.output).expanduser(), ""
    only = [config.only] if isinstance(config.only, str) else [str(one) for one in config.only or ()]
    if "://" in source:
        next_step = shown_command("index", source=folder)
    else:
        facts = read_benchmark(source).facts
        if "fetch" not in facts:
            raise UserError(f"name={source}: it cannot be fetched from here; its data are to be had at {facts['data']} "
                            f"(licence: {facts['licence']})")  # fmt: skip
        log.info("%s; licence: %s", facts["title"], facts["licence"])
        next_step = shown_command("benchmark", name=source, **{"data.root": folder, "checkpoint": DEFAULT})
        log.info("data.root is to be %s", facts["root"])
        source, only = str(facts["fetch"]["source"]), only or [str(one) for one in facts["fetch"].get("only", ())]
    files = fetch_files(source, folder, only, config.unpack)
    log.info("%d files, %.1f MB, each of the hash that %s names, in %s", len(files),
             sum(path.stat().st_size for path in files) / 1e6, source, folder)  # fmt: skip
    log.info("next      %s", next_step)


def run_benchmark(config: DictConfig, overrides: list[str]) -> float | None:
    """Show a benchmark; where its data are named, score it, print the table and return its mean AP."""
    benchmark, cells = score_benchmark(config, overrides)
    if config.data.root is None and config.data.manifest is None:
        tables = [line for metric in METRICS for line in published_table(benchmark, metric)]
        print("\n".join([*describe(benchmark), *tables]))
        return None
    if not cells:
        return None
    shown = Table(*HEADS, title=str(benchmark.facts["title"]))
    for cell in cells:
        shown.add_row(*map(Text, cell.texts))
    Console(width=None if Console().is_terminal else 130).print(shown)
    log.info("table     %s/benchmark.md", config.output_dir)
    return next(cell.own.value / 100 for cell in cells if (cell.metric, cell.set) == ("ap", MEAN))


def run_report(config: DictConfig, overrides: list[str]) -> None:
    """Write the report and print its table and its three sentences."""
    show_reports([report_on(config, overrides)])


def run_compare(config: DictConfig, overrides: list[str]) -> None:
    """Compare, print the tables and where the pages are."""
    show_reports(compare_runs(config, overrides))


def compare_study(study: Study, arguments: list[str]) -> None:
    """Compare a study's finished jobs, into the study's folder, as `fakedet compare` would."""
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        config = compose("compare", overrides=["runs=."])
    config.runs = config.output_dir = str(study.folder)
    config.overwrite, config.bootstrap = True, study.jobs[0].config.bootstrap
    show_reports(compare_runs(config, arguments, ["fakedet", "train", *arguments]))


def show_reports(reports: Sequence[Report]) -> None:
    """Print each report's table and its three sentences, and where the pages are, the first one last."""
    console = Console(width=None if Console().is_terminal else 130)
    for report in reports:
        console.print(console_table(report.comparison, report.title))
        for sentence in [*opening(report.comparison), *report.caveats]:
            console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    for report in reversed(reports):
        log.info("report  %s", report.path)


def run_export(config: DictConfig, overrides: list[str]) -> None:
    """Export, and say how near it is to the original."""
    path = Path(config.output)
    if config.push is not None:
        repository_of(config.push)
        if path.suffix != SAFETENSORS:
            raise UserError(f"push={config.push}: others load a {SAFETENSORS} file; set output=x{SAFETENSORS}")
    detector = load(config.checkpoint, "cpu", config.trust, config.backbone)
    if config.embed_backbone:
        detector.module.info["backbones"] = None
    worst = export_detector(detector, path, config.check, overrides)
    log.info("logits differ from PyTorch's by at most %.2g on %d images", worst, config.check)
    log.info("model        %s (%.1f MB)", path, path.stat().st_size / 1e6)
    log.info("description  %s.json", path)
    if config.push is not None:
        card, metrics = path.with_suffix(".md").read_text(encoding="utf-8"), of_run(detector.path, "metrics.json")
        log.info("uploaded     %s", push(config.push, path, card, metrics, config.licence, config.private))
        log.info("next         %s", shown_command("predict", "source=FOLDER", checkpoint=config.push))
