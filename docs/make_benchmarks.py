"""Write docs/benchmarks.md and docs/detectors.md from what the package knows of benchmarks and published detectors.

python docs/make_benchmarks.py
"""

# ruff: noqa: E501 (rows of tables)

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fakedet.evaluation.benchmark import METRICS, read_benchmark

ROOT = Path(__file__).parent.parent
ORDER = ("forensynths", "universalfakedetect", "genimage", "drct", "aigcdetectbenchmark", "aigibench", "synthbuster",
         "chameleon", "community_forensics", "wildrf", "ai_genbench")  # fmt: skip
BENCHMARKS = """# Benchmarks by name

`fakedet benchmark name=NAME` says what a public benchmark is, where its data are to be had, under
which licence, how its paper measures, and what was published on it, set by set. With the data it
scores a detector by that protocol and sets each value beside the published one:

```
fakedet benchmark name=forensynths data.root=FOLDER detector=cnndetection weights=FILE
fakedet benchmark name=genimage data.root=FOLDER checkpoint=wide
```

`fakedet fetch name=forensynths output=FOLDER` downloads the data of the three that allow it without
a form (forensynths, community_forensics, and the fakes of synthbuster), and goes on where it
stopped; every file must have the hash that its host names.

It writes `benchmark.md` and `benchmark.csv` beside what `fakedet evaluate` writes: the accuracy at
P(fake) > 0.5 over all pictures of a set, the accuracy at the detector's own threshold, AP and AUC,
each with a 95 % interval over groups of pictures, the plain mean over sets, and the difference to
each published figure of the same detector. The folder is indexed in the benchmark's layout;
`data.manifest=FILE` names a manifest instead, for instance of images that lie inside parquet files
([data](data.md)). A benchmark of your own is a YAML file and a CSV table of the same name:
`name=mine.yaml`; copy one from `fakedet/benchmarks`.

**None of these benchmarks could be fetched where fakedet is built.** Layouts and measuring are
tested on small folders of each layout, against scikit-learn. The published figures were read from
the sources that each row names; cells that could not be read are empty. Figures of one name differ
between sources, because protocols do (resized or not, trained anew or not).

## The paper's own figures

| what | paper (Liang et al., AAAI 2025) | fakedet |
|---|---|---|
| mean AP over 6 GANs, 6 diffusion models and multi-step forgeries | 96.2 %; 96.1 % in its first version | not measured: which generators and photographs is not public to us |
| accuracy on Midjourney | more than 78.4 % | not measured on its data; `wide`'s detector is scored on other Midjourney pictures ([card](../experiments/wide/detector.md)) |

The paper's figures are on other data than any of ours. `experiment=ntf_paper` is the method at full
size with what is public of it; `robustness=multistep` scores pictures that passed a second
generator. Its first version's loss is `model/loss=extended_supcon`, in our reading.

"""
DETECTORS = """# Published detectors

`detector=NAME weights=FILE` takes the place of a checkpoint in `evaluate`, `predict`, `serve` and
`benchmark`, and in `fakedet.load(detector=NAME, weights=FILE)`: the authors' network with the
authors' weights, their preprocessing and their threshold. Nothing is trained. `compare` takes what
`evaluate` wrote like any other predictions.

```
fakedet evaluate detector=univfd weights=fc_weights.pth data.manifest=FILE data.root=FOLDER
fakedet predict detector=cnndetection weights=FILE source=FOLDER views=[] tiles=0
```

The second command is the published decision alone; without its last two words altered copies and
tiles must agree, as for any detector. A published threshold promises no rate of false alarms, and
fakedet says so. Weights are read as tensors alone; a file that names code is refused, and one whose
sha256 is not that of the published file, where it is known, is told. What is not
here is told in one line, with where to fetch it. A detector of your own is a file
`detector/NAME.yaml` in a folder that `--config-dir` names; copy one from `conf/detector`.

**What "checked" means.** Each network and each preprocessing was written a second time in the
tests, in plain PyTorch, PIL and numpy, and gives the same logits with weights that the test makes.
Where a published file could be had, its names and shapes were checked too. No published table has
been reproduced: neither the large files nor the benchmarks could be fetched here.

"""


def page(lines: Iterable[str]) -> str:
    """Join lines, each but those of tables at most 100 characters long."""
    short: list[str] = []
    for line in lines:
        told = "  " if line.startswith("- ") else ""
        whole = line.startswith("|") or len(line) <= 100
        short += [line] if whole else textwrap.wrap(line, 100, subsequent_indent=told, break_long_words=False,
                                                    break_on_hyphens=False)  # fmt: skip
    return "\n".join([*short, ""])


def benchmarks() -> str:
    """Write docs/benchmarks.md."""
    lines = [*BENCHMARKS.rstrip("\n").split("\n"), ""]
    for name in ORDER:
        benchmark = read_benchmark(name)
        facts, table = benchmark.facts, benchmark.table
        lines += ["", f"## {facts['title']}", "", f"`fakedet benchmark name={name}`", ""]
        lines += [f"- paper: {facts['paper']}", f"- data: {facts['data']}", f"- licence: {facts['licence']}"]
        lines += [f"- `data.root`: {facts['root']}", *(f"- {' '.join(str(one).split())}" for one in facts["protocol"])]
        for metric in dict.fromkeys(table["metric"]):
            rows = table[table["metric"] == metric]
            rows = rows[rows["mean"].notna()] if "mean" in rows else rows[:0]
            if len(rows):
                lines += ["", f"Published means, {METRICS[metric]}, in per cent:"]
                lines += ["", "| detector | mean | source |", "|---|---:|---|"]
                lines += [f"| {row.detector} | {row.mean:g} | {row.source} |" for row in rows.itertuples()]
    return page(lines)


def detectors() -> str:
    """Write docs/detectors.md."""
    known: dict[str, Any] = {}
    for path in sorted((ROOT / "conf" / "detector").glob("*.yaml")):
        raw = OmegaConf.load(path)
        base = next((str(one) for one in raw.get("defaults", []) if isinstance(one, str) and one not in ("_self_",)
                     and not one.startswith("/")), None)  # fmt: skip
        known[path.stem] = (OmegaConf.to_container(raw, resolve=False), base)

    def value(name: str, key: str) -> Any:
        content, base = known[name]
        if key in content:
            return content[key]
        return value(base, key) if base else None

    lines = [*DETECTORS.rstrip("\n").split("\n"), ""]
    lines += ["| `detector=` | paper | weights | licence | views | checked |", "|---|---|---|---|---|---|"]
    for name in known:
        looks = f"{value(name, 'eval_policy')}, {value(name, 'crop_size')} px"
        checked = value(name, "checked") or "names, shapes and preprocessing, by a second writing"
        weights = f"`{value(name, 'file')}`: {value(name, 'fetch')}"
        cells = [f"`{name}`", value(name, "paper"), weights, value(name, "licence"), looks, checked]
        lines.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells) + " |")
    return page(lines)


def main() -> dict[Path, str]:
    """Return the pages by their file."""
    return {ROOT / "docs" / "benchmarks.md": benchmarks(), ROOT / "docs" / "detectors.md": detectors()}


if __name__ == "__main__":
    for file, text in main().items():
        file.write_text(text, encoding="utf-8")
