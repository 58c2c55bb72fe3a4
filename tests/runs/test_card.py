"""The card of the shipped detector says what was measured, of each collection and generator, and no more."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fakedet.cli.app import launch
from fakedet.evaluation.families import compare_families, write_report
from fakedet.evaluation.predictions import read_predictions, write_predictions

ROOT = Path(__file__).parents[2]
LICENCES = {"real_x": "CC0-1.0", "real_y": "non-commercial | research", "gen_a": "MIT", "gen_b": None}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("card", ROOT / "experiments" / "wide" / "card.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def threshold_of(root: Path) -> float:
    content = json.loads((root / "detector.safetensors.json").read_text())
    return float(content["operating_point"]["threshold"])


@pytest.fixture(scope="module")
def made(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its weights, its test split, a study, and answers on untouched files."""
    root = tmp_path_factory.mktemp("card")
    table = pd.read_csv(tiny_manifest_module)
    table = table.assign(license=table["generator"].map(LICENCES), family=table["generator"].replace("gen_b", "gan"),
                         source=np.where(table["generator"].isin(["gen_c", "real_y"]) & (table["split"] == "test"),
                                         "wild", "scenes"))  # fmt: skip
    manifest = tiny_manifest_module.with_name("wide.csv")
    table.to_csv(manifest, index=False)
    common = [f"data.manifest={manifest}", "threads=1", "header_audit=false", "bootstrap.resamples=0", "pictures=0"]
    assert launch("train", [
        "model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=16", "test_after_fit=false",
        "trainer.max_epochs=1", "operating_point.rate=0.25", f"output_dir={root}/run", *common,
    ]) == 0  # fmt: skip
    assert launch("export", [f"checkpoint={root}/run/checkpoints/best.ckpt", f"output={root}/detector.safetensors",
                             "check=2"]) == 0  # fmt: skip
    assert launch("evaluate", [f"checkpoint={root}/detector.safetensors", f"output_dir={root}/test", *common]) == 0
    rng = np.random.default_rng(0)
    scored, info = read_predictions(root / "test" / "predictions.parquet")
    scored["logit"] = rng.normal(size=len(scored)) + scored["label"]  # neither all right nor all wrong
    scored["verdict"] = np.where(scored["logit"] > threshold_of(root), "fake", "real")
    write_predictions(scored, root / "test" / "predictions.parquet", info)
    names = np.repeat(["photos", "gan", "ldm"], 30)
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(90)], "label": names != "photos", "source": "scenes",
                          "generator": names, "family": names, "logit": rng.normal(size=90),
                          "group": [str(i) for i in range(90)]}).astype({"label": int})  # fmt: skip
    compared = compare_families({("bce", name, 0): frame for name in ("gan", "ldm")}, "bce", 20)
    (root / "study").mkdir()
    write_report(compared, root / "study", "t", [])
    given = {"0_real": ["real", "real", "fake", "undecided"], "1_fake": ["fake", "undecided", None]}
    answers = [(f"/home/me/gen_a/{folder}/gen_a-{'test' if number == 1 else 'train'}-{number}.png", verdict)
               for folder, verdicts in given.items() for number, verdict in enumerate(verdicts)]  # fmt: skip
    table = pd.DataFrame(answers, columns=["path", "verdict"])
    table.to_csv(root / "native_5.csv", index=False)
    table.replace({"verdict": {"undecided": "fake"}}).to_csv(root / "native_10.csv", index=False)
    (root / "native_10.csv.about.json").write_text(json.dumps({"config": {"false_alarm": 0.1, "miss": 0.2}}))
    return root


def test_the_card_is_complete(script: ModuleType, made: Path) -> None:
    told = script.card(made / "detector.safetensors", made / "run", made / "test", made / "study" / "summary.json",
                       [made / "native_5.csv", made / "native_10.csv"])  # fmt: skip
    frame = pd.read_parquet(made / "test" / "predictions.parquet")
    rows = {cells[0]: cells for line in told.splitlines() if line.startswith("|")
            for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}  # fmt: skip
    called = frame["verdict"] == "fake"
    assert f"above a logit of {threshold_of(made):.3f}, fitted to 8 photographs and 8 fakes" in told
    for name, licence in (("real_x", "CC0-1.0"), ("real_y", "non-commercial / research")):
        own = frame["generator"] == name
        assert rows[name][1:3] == ["12", licence]
        assert rows[name][3].startswith(f"{called[own].mean():.0%}".replace("%", " %"))
        assert rows[name][3].endswith(f"of {own.sum()}")
    for name, facts in (("gen_a", ["12", "gen_a", "MIT"]), ("gen_b", ["12", "gan", "none stated"]),
                        ("gen_c", ["0", "–", "not in training"])):  # fmt: skip
        own = frame[(frame["generator"] == name)]
        reals = frame[(frame["label"] == 0) & (frame["source"] == own["source"].iloc[0])]
        both = pd.concat([own, reals])
        assert rows[name][1:4] == facts
        assert rows[name][4].startswith(f"{(own['verdict'] == 'fake').mean():.0%}".replace("%", " %"))
        assert rows[name][5].startswith(f"{roc_auc_score(both['label'], both['logit']):.2f} [")
    assert rows["**the same content**"][1].strip("*") == rows["gen_c"][5], "gen_c is wild"
    seen = np.mean([float(rows[name][5].split()[0]) for name in ("gen_a", "gen_b")])
    assert float(rows["generators seen in training, mean"][1].split()[0]) == pytest.approx(seen, abs=0.011)
    assert rows["generators unseen in training, mean"][1] == "not measured", "gen_c alone, which is wild"
    summary = json.loads((made / "study" / "summary.json").read_text())
    mean = summary["values"]["auc"]["mean over families"]["bce"]
    assert rows["families left out, mean"][1] == f"{mean['value']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]"
    assert rows["families left out, worst"][2] == summary["worst"]["auc"]["bce"]
    assert rows["**all**"][1:] == ["2 (50 %)", "1 (25 %)", "1 (25 %)", "0 (0 %)", "1 (33 %)", "1 (33 %)"]
    assert rows["**all, false_alarm=0.1 miss=0.2**"][1:] == [
        "2 (50 %)", "0 (0 %)", "2 (50 %)", "0 (0 %)", "0 (0 %)", "2 (67 %)"]  # fmt: skip
    assert rows["**kept apart**"][1:] == ["1 (100 %)", *["0 (0 %)"] * 3, "1 (100 %)", "0 (0 %)"]
    assert "2 of the 7 pictures are known to be kept apart from training" in " ".join(told.split())
    shares = [called[frame["generator"] == name].mean() for name in ("real_x", "real_y")]
    assert f"mean over 2 collections {np.mean(shares):.0%}".replace("%", " %") in " ".join(told.split())
    assert "The test split of this manifest has been scored once (1 run)." in " ".join(told.split())
    assert "For research" in told
    assert len(told.splitlines()) < 100
    assert not re.search(r"/home|/tmp|/work", told)
    assert not re.findall(r"^(?!\|).{101,}", told, re.MULTILINE)


def test_what_was_not_measured_is_said(script: ModuleType, made: Path) -> None:
    told = script.card(made / "detector.safetensors", made / "run")
    assert told.count("not measured") == 3
    assert "Not measured." in told
    assert "| real_x | 12 | CC0-1.0 | – |" in told
