"""A study through the real command line: jobs side by side, failures told, finished jobs kept."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score

from fakedet.errors import UserError
from fakedet.evaluation.predictions import read_predictions
from fakedet.runs.study import check, plan
from fakedet.runs.study_job import Job, compose_job

STUDY = {
    "name": "small", "title": "small study", "seeds": [0, 1], "baseline": "bce", "first": ["trace"],
    "common": ["data=manifest", "data.crop_size=32", "data.batch_size=16", "debug=step", "threads=1"],
    "methods": {"trace": ["model=trace"], "bce": ["model=mine"], "bad": ["model=bce", "model.optimizer.name=adammw"]},
    "derived": {"distance": {"of": "trace", "score": "trace_distance"}},
    "also": {"same": ["data.manifest=${oc.env:SMALL_MANIFEST}"]}, "caveats": ["small & quick"],
}  # fmt: skip


def run(folder: Path, manifest: Path) -> subprocess.CompletedProcess[str]:
    process = start(folder, manifest)
    output, errors = process.communicate(timeout=400)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def start(folder: Path, manifest: Path) -> subprocess.Popen[str]:
    configs = folder / "configs" / "study"
    configs.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(STUDY), configs / "small.yaml")
    (configs.parent / "model").mkdir(exist_ok=True)
    (configs.parent / "model" / "mine.yaml").write_text("defaults: [bce, _self_]\nname: mine\n")
    environment = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"}
    environment["SMALL_MANIFEST"] = str(manifest)
    return subprocess.Popen(
        [sys.executable, "-m", "fakedet", "study", "--config-dir", str(configs.parent), "study=small",
         f"extra=['data.manifest={manifest}']", "output_dir=out", "bootstrap.resamples=50"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_study_compares_what_ended_well_and_tells_what_did_not(tiny_manifest: Path, tmp_path: Path) -> None:
    done = run(tmp_path, tiny_manifest)
    assert done.returncode == 1, "a job failed, and a script must be able to tell"
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["methods"] == ["trace", "bce", "distance"]
    assert summary["seeds"] == {"trace": [0, 1], "bce": [0, 1], "distance": [0, 1]}
    assert len(summary["failures"]) == 2
    assert "did you mean 'adamw'" in summary["failures"][0]
    assert summary["generators"]["gen_c"]["seen"] is False
    assert summary["generators"]["gen_a"]["seen"] is True
    assert "FAILED bad seed 0" in done.stdout
    assert "mean, unseen" in done.stdout
    assert summary["verdict"][0] in " ".join(done.stdout.split())
    assert done.stdout.strip().splitlines()[-1].endswith("out/report.html")
    html = (out / "report.html").read_text()
    assert "small &amp; quick" in html
    assert "did you mean" in html
    for name in ("ap.png", "auc.png", "curves.png", "table.csv", "table.md", "bce/seed0/predictions.parquet"):
        assert (out / name).stat().st_size > 0
    assert "Traceback" not in done.stdout + done.stderr
    # The other manifest is the same one, so the trained detectors give the same table there.
    other = json.loads((out / "on_same" / "summary.json").read_text())
    assert other["values"] == summary["values"]
    assert "small study: same" in (out / "on_same" / "report.html").read_text()
    predictions = [read_predictions(out / f"trace/seed{seed}/predictions.parquet")[0] for seed in (0, 1)]
    for name in ("gen_a", "gen_b", "gen_c"):
        areas = []
        for frame in predictions:
            rows = frame[(frame["label"] == 0) | (frame["generator"] == name)]
            areas.append(roc_auc_score(rows["label"], rows["trace_distance"]))
        assert summary["values"]["auc"][name]["distance"]["value"] == pytest.approx(sum(areas) / 2, abs=1e-9)

    # The same command again: what is done is kept, what failed is tried again.
    stamp = (out / "bce" / "seed0" / "run.json").stat().st_mtime_ns
    (out / "bce" / "seed1" / "run.json").unlink()  # as if it had been killed
    (out / "trace" / "seed1" / "on_same" / "run.json").unlink()
    trained = (out / "trace" / "seed1" / "run.json").stat().st_mtime_ns
    again = run(tmp_path, tiny_manifest)
    assert (out / "bce" / "seed0" / "run.json").stat().st_mtime_ns == stamp
    assert (out / "bce" / "seed1" / "run.json").is_file()
    assert (out / "trace" / "seed1" / "on_same" / "run.json").is_file(), "scored again ..."
    assert (out / "trace" / "seed1" / "run.json").stat().st_mtime_ns == trained, "... and not trained again"
    values = json.loads((out / "summary.json").read_text())["values"]
    assert (out / "on_same" / "summary.json").stat().st_mtime_ns > stamp
    assert values == summary["values"], "the same seeds give the same numbers"
    assert re.search(r"3/3|1/3", again.stdout), "two bad jobs and the killed one ran again, nothing else"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
@pytest.mark.parametrize("who", ["study", "worker"])
def test_workers_end_with_a_study_that_is_killed(who: str, tiny_manifest: Path, tmp_path: Path) -> None:
    process = start(tmp_path, tiny_manifest)
    deadline = time.monotonic() + 300
    while not (tmp_path / "out" / "trace" / "seed0" / "config.yaml").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) >= 2
    if who == "study":
        os.kill(process.pid, signal.SIGSTOP)  # or it may be done before the second has started
        second = run(tmp_path, tiny_manifest)
        os.kill(process.pid, signal.SIGCONT)
        assert second.returncode == 2
        assert "another process is running a study in it" in second.stderr
        process.kill()
        process.communicate()  # closes its pipes too
    else:
        for worker in workers:  # multiprocessing's resource tracker among them lets the signal pass
            os.kill(int(worker), signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 2
        assert "a process of the study was killed" in errors
        assert "Traceback" not in output + errors
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}/cmdline").is_file() for worker in workers):
        assert time.monotonic() < deadline, "they would train on, unseen"
        time.sleep(0.1)


def test_what_other_settings_trained_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    first, rest = plan(STUDY, tmp_path, [])
    done = (first + rest)[2]
    done.folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(done.overrides)), done.folder / "overrides.yaml")
    (done.folder / "run.json").write_text("{}")
    assert done.is_trained
    plan(STUDY, tmp_path, [])
    with pytest.raises(UserError, match=rf"{done.name} \(see overrides.yaml.*overwrite=true"):
        plan(STUDY, tmp_path, ["model.optimizer.lr=0.1"])
    first, rest = plan(STUDY, tmp_path, ["model.optimizer.lr=0.1"], overwrite=True)
    assert not (first + rest)[2].is_trained
    # A study that was moved is the same study.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    first, rest = plan(STUDY, moved, [])
    assert [job.is_trained for job in first + rest] == [False, False, True, False, False, False]


def test_what_a_config_trained_that_was_edited_since_is_not_taken_for_its_result(tmp_path: Path) -> None:
    methods = {"trace": ["model=trace"], "bce": ["model=bce"]}

    def jobs(overwrite: bool = False) -> list[Job]:
        settings = {**STUDY, "methods": methods}
        first, rest = plan(settings, tmp_path, ["data.manifest=none.csv"], overwrite=overwrite)
        return first + rest

    done = jobs()[3]
    done.folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(done.overrides)), done.folder / "overrides.yaml")
    config = compose_job(done)
    (done.folder / "run.json").write_text("{}")
    OmegaConf.save(config, done.folder / "config.yaml")
    with pytest.raises(UserError, match=r"none\.csv"):
        check(jobs())
    assert done.is_trained, "the same config: kept, and what is wrong is the manifest alone"
    config.model.epochs = 77
    OmegaConf.save(config, done.folder / "config.yaml")
    with pytest.raises(
        UserError, match=r"seed1 was trained by another config than 'bce' is now: .*77 → .*overwrite"
    ):
        check(jobs())
    assert done.is_trained
    with pytest.raises(UserError, match=r"none\.csv"):
        check(jobs(overwrite=True))
    assert not done.is_trained


def test_a_mistake_in_a_method_stops_the_study_before_it_trains(tmp_path: Path) -> None:
    methods = {"trace": ["model=trace"], "bce": ["model=bce"], "worse": ["model=bce", "model/encoder=smal"]}
    first, rest = plan({**STUDY, "methods": methods}, tmp_path, ["data.manifest=none.csv"])
    with pytest.raises(UserError, match=r"the overrides of 'worse': .*smal"):
        check(first + rest)


def test_missing_weights_stop_the_study_before_it_trains(tmp_path: Path) -> None:
    methods = {"trace": ["model=trace"], "clip": ["model=bce", "model.encoder.weights=none.safetensors"]}
    config = {**STUDY, "methods": methods, "baseline": "trace"}
    first, rest = plan(config, tmp_path, ["data.manifest=none.csv", "model/encoder=timm"])
    with pytest.raises(UserError, match=r"study: 'clip': model.encoder.weights: there is no file none"):
        check(first + rest)
    # A method that is done needs them no more: what is wrong next is the manifest.
    for job in rest:
        job.folder.mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(list(job.overrides)), job.folder / "overrides.yaml")
        for folder in (job.folder, job.results("same")):
            folder.mkdir(exist_ok=True)
            (folder / "run.json").write_text("{}")
        OmegaConf.save(OmegaConf.create(list(job.scoring("same"))), job.results("same") / "overrides.yaml")
    with pytest.raises(UserError, match=r"none\.csv"):
        check(first + rest)


def test_wrong_names_in_a_study_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'bse' is not among its methods: trace, bce, bad"):
        plan({**STUDY, "baseline": "bse"}, tmp_path, [])
    with pytest.raises(UserError, match=r"study.seeds=\[0, 1, 0\]: each seed once"):
        plan({**STUDY, "seeds": [0, 1, 0]}, tmp_path, [])
    first, rest = plan(STUDY, tmp_path, ["seed=5"])
    assert [job.name for job in first] == ["trace seed 0", "trace seed 1"]
    assert len(rest) == 4
    assert len({job.folder for job in first + rest}) == 6
