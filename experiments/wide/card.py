"""Write the card of the detector that fakedet ships, from what was measured: `make detector` calls it.

    python experiments/wide/card.py experiments/wide/detector.safetensors --run runs/detector/train \\
        --test runs/detector/test --study runs/studies/wide/leave_family_out/summary.json \\
        --native runs/detector/native_5.csv runs/detector/native_10.csv

--run is the folder of the training, --test that of `fakedet evaluate` on the test split, --study the summary.json of
the study that left families out, --method the detector's name in it (default: the method chosen there), and --native
tables of `fakedet predict` on a folder in the layout GENERATOR/{0_real,1_fake}/: the first by generator, those with
other shares of errors in a row each. What is not given or not there is said to be not measured.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fakedet
from fakedet.checkpoint import read_checkpoint
from fakedet.evaluation.predictions import ORIGINAL, called_fake, read_predictions
from fakedet.evaluation.scored import told_by
from fakedet.metrics.bootstrap import Interval, draw_families, mean_over_families, percentile_interval
from fakedet.metrics.decisions import Accuracy, accuracies, left_out_alarms

RESAMPLES = 1000
NOT_MEASURED = "not measured"
WILD = "wild"  # the source of fakes and photographs of the same content
KINDS = {"real": "0_real", "fake": "1_fake"}
CARD = """\
# wide: the detector that comes with fakedet

{what}

{use}

## How well it does

{headline}

{scored}

## On untouched pictures

{native}

## Data, by generator and collection

{data_told}

{data}

## What it cannot do

{limits}
"""
USE = """\
For research: several of the photographs and generators are under non-commercial terms (below), and so is what was
learned from them. Label 0 = real, 1 = fake; score = P(fake). Do not accuse anyone by its answer alone."""
POINT = """\
An image is called fake above a logit of {threshold:.3f}, fitted to {n_real} photographs and {n_fake} fakes, each scored
by a detector that was trained without its {without}{alarms}. `fakedet predict` says "fake" or "real" only where altered
copies and tiles of the picture agree, and "undecided" otherwise."""
LIMITS = (
    "Where fakes and photographs show the same, it is weaker (last row of the first table): much of an AUC is content.",
    "It knows the generators above and what resembles them; generators of other kinds, and newer ones, it may miss.",
    "It looks at {size} pixels a side; an edit elsewhere in a picture is not seen, and smaller pictures are undecided.",
    "Screenshots, filters, upscaling and repeated compression remove what it looks at.",
    "Its backbone has seen 400 million pictures of the web, perhaps some of those that it is tested on.",
    "Its threshold was not fitted on faces left out: so fitted, an earlier detector (`bce_vae`) found next to nothing "
    "on the test split and the untouched pictures, so neither is unseen. It was replaced for what "
    "families and collections left out say. Trained without real faces, it calls 80 [75, 85] % of 274 fake: nothing is "
    "promised for subjects that it has seen no photograph of.",
)


def card(
    detector: Path, run: Path, test: Path | None = None, study: Path | None = None, native: Sequence[Path] = (),
    method: str | None = None,
) -> str:  # fmt: skip
    """Put the card together."""
    info = read_checkpoint(detector)["fakedet"]
    settings = json.loads((run / "run.json").read_text())
    rows, scored = (None, "") if test is None else _scored(test)
    alone = {} if rows is None else accuracies(rows, {"": called_fake(rows)}, RESAMPLES)
    auc = None if rows is None else fakedet.average_precision(rows, seen=info["seen_generators"], resamples=RESAMPLES)
    commit = f", at commit {settings['git']['commit'][:12]}" if settings.get("git") else ""
    backbone = next(iter((info["backbones"] or {"": {"name": "none"}}).values()))
    what = (
        f"Method `{info['model']['name']}` over the frozen backbone `{backbone['name']}` (whose weights are "
        f"not in the file), {detector.stat().st_size / 1e6:.1f} MB, seed {info['seed']}; trained by `make detector` "
        f"(`conf/experiment/wide/detector.yaml`{commit}), fakedet {fakedet.__version__}. `fakedet predict`, `fakedet "
        "serve` and `fakedet.load()` take it by default."
    )
    point, manifest = info["operating_point"], _manifest(run)
    alarms = left_out_alarms(point)
    called = POINT.format(**point, without="collection or family" if alarms else "photograph or prompt",
                          alarms=f". Called fake there: {alarms}" if alarms else "")  # fmt: skip
    return CARD.format(
        what=_fill(what), use=_fill(USE),
        headline=_table(("", "AUC [95 % interval]", "measured on"), _headline(auc, rows, study, method)),
        scored=_fill(f"{called} {_false_alarms(alone, point)} {scored}"),
        native=_native(native, manifest) if native else "Not measured.",
        data_told=_fill("Images of train and val, and on the test split: the share of a collection's photographs called"
                        " fake (false alarms), the share of a generator's fakes called fake (found), and its AUC."),
        data=_data(manifest[manifest["split"].isin(["train", "val"])], auc, alone),
        limits="\n".join(textwrap.fill(f"- {line.format(size=info['crop_size'])}", 100, subsequent_indent="  ")
                         for line in LIMITS),
    )  # fmt: skip


def _scored(test: Path) -> tuple[pd.DataFrame, str]:
    frame, info = read_predictions(test / "predictions.parquet")
    return frame[frame["view"] == ORIGINAL].reset_index(drop=True), " ".join(
        told_by([info] if (info.get("test_scored") or {}).get("times") else [])
    )


def _headline(
    auc: Any, rows: pd.DataFrame | None, study: Path | None, method: str | None
) -> list[tuple[str, str, str]]:
    """Say how it does on families left out, generators seen and unseen, and on the same content."""
    found = []
    if study is not None:
        summary = json.loads(study.read_text())
        method, names = method or summary["chosen"], list(summary["families"])
        mean, worst = (_interval(summary["values"]["auc"][key][method]) for key in
                       ("mean over families", "worst family"))  # fmt: skip
        on = f"{len(names)} families of generators, each left out of a training of `{method}`; interval over families"
        found += [("families left out, mean", mean, f"{on}, photographs and seeds"),
                  ("families left out, worst", worst, summary["worst"]["auc"][method])]  # fmt: skip
    else:
        found.append(("families left out", NOT_MEASURED, "`experiments/wide/README.md`"))
    if auc is None or rows is None:
        return [*found, ("test split", NOT_MEASURED, "`fakedet evaluate`")]
    wild = set(rows["generator"][(rows["label"] == 1) & (rows["source"] == WILD)])
    for kind in ("seen", "unseen"):
        names = [name for name in auc.means[kind].generators if name not in wild]
        fakes = sum(auc.generators[name].n_fake for name in names)
        mean = fakedet.average_precision(
            rows[(rows["label"] == 0) | rows["generator"].isin(names)], seen=names, resamples=RESAMPLES
        ).means["seen"] if names else None  # fmt: skip
        found.append((f"generators {kind} in training, mean", NOT_MEASURED if mean is None else mean.auc.text(),
                      f"{len(names)} generators, {fakes} fakes; interval over photographs and prompts"))  # fmt: skip
    for name in sorted(wild):
        row = auc.generators[name]
        found.append(("**the same content**", f"**{row.auc.text()}**", f"{row.n_fake} fakes that look like photographs "
                      f"(`{name}`) and {row.n_real} photographs of the same subjects"))  # fmt: skip
    if not wild:
        found.append(("the same content", NOT_MEASURED, ""))
    return found


def _false_alarms(alone: Mapping[str, Accuracy], point: Mapping[str, Any]) -> str:
    """Say how many photographs are called fake, with an interval over collections."""
    own = [row for key, row in alone.items() if key.startswith("real:") and not np.isnan(row.points[""])]
    if not own:
        return "False alarms: not measured."
    shares, samples = np.array([1 - row.points[""] for row in own]), np.stack([1 - row.samples[""] for row in own], 1)
    mean = percentile_interval(float(shares.mean()),
                               mean_over_families(samples, draw_families(len(own), len(samples), 0)))  # fmt: skip
    worst, all_of_them = own[int(shares.argmax())], alone["reals"]
    return (
        f"Photographs called fake, at a threshold meant for {100 * point['rate']:g} %: {_percent(_false(all_of_them))} "
        f"of {all_of_them.n}; mean over {len(own)} collections {_percent(mean)} (interval over collections and "
        f"photographs); most in `{worst.name}`, {_percent(_false(worst))} of {worst.n}."
    )


def _native(answers: Sequence[Path], manifest: pd.DataFrame) -> str:
    """Lay out the answers on files as they came from cameras and generators, against the truth."""
    table = _with_truth(answers[0])
    # A group is named by the file that its crops are from, where they are of one file.
    tested = {Path(name).stem for name in manifest["group"][manifest["split"] == "test"].astype(str)}
    apart = table[table["path"].map(lambda path: Path(path).stem).isin(tested)]
    parts = [("**all**", table), ("**kept apart**", apart)]
    for path in answers[1:]:
        settings = json.loads(path.with_name(f"{path.name}.about.json").read_text())["config"]
        named = " ".join(f"{key}={settings[key]:g}" for key in ("false_alarm", "miss"))
        parts.append((f"**all, {named}**", _with_truth(path)))
    rows = []
    for name, own in [*parts, *table.groupby("generator")]:
        cells = []
        for folder in KINDS.values():
            of_kind = own[own["truth"] == folder]
            counts = [int((of_kind["verdict"] == verdict).sum()) for verdict in ("real", "undecided", "fake")]
            shares = [
                f"{count} ({count / max(len(of_kind), 1):.0%})".replace("%", " %") if "*" in str(name) else str(count)
                for count in counts
            ]
            cells += shares if len(of_kind) else ["–"] * 3
        rows.append((str(name), *cells))
    title = ("", *(f"{kind}: called {said}" for kind in KINDS for said in ("real", "undecided", "fake")))
    told = (
        "`fakedet predict` on files as they came, 5 % of errors of each kind allowed. A fake called "
        f"real and a photograph called fake are errors; undecided is no answer. {len(apart)} of the {len(table)} "
        "pictures are known to be kept apart from training; others, or their siblings, may have been "
        "in it."
    )
    return f"{_fill(told)}\n\n{_table(title, rows)}"


def _with_truth(path: Path) -> pd.DataFrame:
    answers = pd.read_csv(path)
    parts = answers["path"].map(lambda path: Path(path).parts[-3:-1])
    return answers.assign(generator=parts.str[0], truth=parts.str[1], verdict=answers["verdict"].fillna("not read"))


def _manifest(run: Path) -> pd.DataFrame:
    from omegaconf import OmegaConf

    path = Path(OmegaConf.load(run / "config.yaml").data.manifest)
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def _data(manifest: pd.DataFrame, auc: Any, alone: Mapping[str, Accuracy]) -> str:
    """Lay out collections and generators: images, family, licence, and what was measured."""
    tables: list[list[tuple[str, ...]]] = [[], []]
    for label, kind in enumerate(KINDS):
        trained = {str(name): own for name, own in manifest[manifest["label"] == label].groupby("generator")}
        tested = {row.name: row for key, row in alone.items() if key.startswith(f"{kind}:")}
        for name in [*sorted(trained), *sorted(tested.keys() - trained.keys())]:
            own, row, family, licence = trained.get(name), tested.get(name), "–", "not in training"
            if own is not None:
                family = ", ".join(sorted(set(own["family"].astype(str))))
                licence = "; ".join(sorted({_licence(str(one)) for one in own["license"].fillna("none stated")}))
            share = "–"
            if row is not None and not np.isnan(row.points[""]):
                share = f"{_percent(_false(row) if kind == 'real' else row.interval(''))} of {row.n}"
            measured = auc.generators[name].auc.text() if auc is not None and name in auc.generators else "–"
            facts = (name, str(0 if own is None else len(own)))
            tables[label].append((*facts, licence, share) if kind == "real" else
                                 (*facts, family, licence, share, measured))  # fmt: skip
    reals = _table(("photographs", "images", "licence", "false alarms"), tables[0])
    return reals + "\n\n" + _table(("generator", "images", "family", "licence", "found", "AUC"), tables[1])


def _licence(told: str) -> str:
    short = textwrap.shorten(told.replace("|", "/"), 48, placeholder=" …")
    return short if short != "…" else told[:48]


def _false(row: Accuracy) -> Interval:
    right = row.interval("")
    return Interval(1 - right.value, 1 - right.high, 1 - right.low)


def _interval(content: Mapping[str, float | None]) -> str:
    return Interval.from_dict(content).text()


def _percent(share: Interval) -> str:
    low_high = f" [{share.low:.0%}, {share.high:.0%}]" if np.isfinite(share.low) else ""
    return f"{share.value:.0%}{low_high}".replace("%", " %")


def _fill(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False)


def _table(title: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(title), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    for option in ("test", "study"):
        parser.add_argument(f"--{option}", type=Path)
    parser.add_argument("--native", type=Path, nargs="*", default=[])
    parser.add_argument("--method")
    given = parser.parse_args()
    test = given.test if given.test and (given.test / "predictions.parquet").is_file() else None
    study = given.study if given.study and given.study.is_file() else None
    native = given.native if all(path.is_file() for path in given.native) else []
    target = given.detector.with_suffix(".md")
    target.write_text(card(given.detector, given.run, test, study, native, given.method), encoding="utf-8")
    print(f"card  {target}")
