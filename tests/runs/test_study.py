"""A study through the real command line: jobs side by side, failures told, finished jobs kept."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score

from fakedet.data.manifest import load_manifest
from fakedet.errors import UserError
from fakedet.evaluation.predictions import read_predictions
from fakedet.training.study import Finished, Job, check_jobs, compose_job, plan, told_by_headers

STUDY = {
    "name": "small", "title": "small study", "seeds": [0, 1], "baseline": "bce", "first": ["trace"],
    "common": ["data=manifest", "data.crop_size=32", "data.batch_size=16", "debug=step", "threads=1"],
    "methods": {"trace": ["model=ntf_stage1"], "bce": ["model=mine"], "bad": ["model=bce", "+model.optimizer.no=1"]},
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
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what starts the tests may ignore it
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
    assert "'adamw' does not take these settings" in summary["failures"][0]
    assert summary["generators"]["gen_c"]["seen"] is False
    assert summary["generators"]["gen_a"]["seen"] is True
    order = [(run["method"], run["seed"]) for run in summary["runs"]]
    assert order == [("trace", 0), ("trace", 1), ("bce", 0), ("bce", 1)], (
        "as planned, whichever was the faster"
    )
    for method in ("trace", "bce"):  # of the same unseen generators, also where stage 1 saw no fakes
        rows_of = [run["mAP unseen"] for run in summary["runs"] if run["method"] == method]
        mean = summary["values"]["ap"]["map_unseen"][method]["value"]
        assert sum(rows_of) / len(rows_of) == pytest.approx(mean, abs=1e-4)
    assert "FAILED bad seed 0" in done.stdout
    assert "mean, unseen" in done.stdout
    assert summary["verdict"][0] in " ".join(done.stdout.split())
    assert done.stdout.strip().splitlines()[-1].endswith("out/report.html")
    html = (out / "report.html").read_text()
    assert "small &amp; quick" in html
    assert "does not take these settings" in html
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
@pytest.mark.parametrize("who", ["study", "worker", "terminal"])
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
    elif who == "terminal":
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 130
        assert "the same command goes on" in errors
        assert "Traceback" not in output + errors
        assert len(list((tmp_path / "out").glob("*/seed*/config.yaml"))) <= 2, "no further job was begun"
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


def test_what_a_config_trained_that_was_edited_since_is_not_taken_for_its_result(
    tiny_manifest: Path, tmp_path: Path
) -> None:
    study = {**STUDY, "methods": {"trace": ["model=ntf_stage1"], "bce": ["model=bce"]}, "also": {"same": []}}
    study["also"]["same"] = [f"data.manifest={tiny_manifest}"]
    place = tmp_path / "out"

    def jobs(overwrite: bool = False) -> list[Job]:
        first, rest = plan(study, place, [f"data.manifest={tiny_manifest}"], overwrite=overwrite)
        return first + rest

    for job in jobs():
        finish(job, manifest=sha256(tiny_manifest))
        finish(job, "same", manifest=sha256(tiny_manifest))
        OmegaConf.save(compose_job(job), job.folder / "config.yaml")
    check_jobs(jobs())
    assert all(job.is_done for job in jobs())
    # A study that was moved is the same study.
    place = place.rename(tmp_path / "moved")
    check_jobs(jobs())
    assert all(job.is_done for job in jobs())
    edited = jobs()[3]
    config = OmegaConf.load(edited.folder / "config.yaml")
    config.model.epochs = 77
    OmegaConf.save(config, edited.folder / "config.yaml")
    with pytest.raises(
        UserError, match=r"seed1 was trained by another config than 'bce' is now: .*77 → .*overwrite"
    ):
        check_jobs(jobs())
    assert edited.is_trained
    check_jobs(jobs(overwrite=True))
    assert [job.is_trained for job in jobs()] == [True, True, True, False]


def test_a_mistake_in_a_method_stops_the_study_before_it_trains(tmp_path: Path) -> None:
    for worse, message in (
        ("model/encoder=smal", r"the overrides of 'worse': .*smal"),
        ("model.loss.temperature=-1", r"study: 'worse': model.loss.temperature=-1: must be above 0"),
        (
            "model.optimizer.schedule=cosin",
            r"study: 'worse': model.optimizer.schedule: 'cosin' .*did you mean 'cosine'",
        ),
        (
            "stage1.optimizer.name=adammw",
            r"study: 'worse': stage1.optimizer.name: 'adammw' .*did you mean 'adamw'",
        ),
    ):
        methods = {"trace": ["model=ntf_stage1"], "bce": ["model=bce"], "worse": ["model=ntf", worse]}
        first, rest = plan({**STUDY, "methods": methods}, tmp_path, ["data.manifest=none.csv"])
        with pytest.raises(UserError, match=message):
            check_jobs(first + rest)


def finish(job: Job, name: str | None = None, manifest: str = "") -> None:
    """Leave what a finished job leaves that its study looks at."""
    folder = job.results(name)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(
        OmegaConf.create(list(job.scoring(name) if name else job.overrides)), folder / "overrides.yaml"
    )
    (folder / "run.json").write_text(json.dumps({"manifest_sha256": manifest}))


def test_missing_weights_stop_the_study_before_it_trains(tiny_manifest: Path, tmp_path: Path) -> None:
    methods = {"trace": ["model=ntf_stage1"], "clip": ["model=bce", "model.encoder.weights=none.safetensors"]}
    config = {**STUDY, "methods": methods, "baseline": "trace", "also": {}}
    first, rest = plan(config, tmp_path, [f"data.manifest={tiny_manifest}", "model/encoder=timm"])
    with pytest.raises(UserError, match=r"study: 'clip': model.encoder.weights: there is no file none"):
        check_jobs(first + rest)
    for job in rest:  # a method that is trained needs them no more
        finish(job, manifest=sha256(tiny_manifest))
    check_jobs(first + rest)


def test_what_other_data_trained_is_not_compared(tiny_manifest: Path, tmp_path: Path) -> None:
    other = tiny_manifest.with_name("other.csv")
    rows = tiny_manifest.read_text()
    other.write_text(rows + "\n")
    config = {**STUDY, "methods": {"bce": ["model=bce"], "trace": ["model=ntf_stage1"]}}
    config["also"] = {"other": [f"data.manifest={other}"]}

    def jobs(overwrite: bool = False) -> list[Job]:
        first, rest = plan(config, tmp_path / "out", [f"data.manifest={tiny_manifest}"], overwrite=overwrite)
        return first + rest

    for job in jobs():
        finish(job, manifest=sha256(tiny_manifest))
        finish(job, "other", manifest=sha256(other))
    check_jobs(jobs())
    assert all(job.is_done for job in jobs())
    other.write_text("\n".join(rows.splitlines()[:-1]) + "\n")
    check_jobs(jobs())
    assert not any(job.is_scored("other") for job in jobs()), "scored anew, by the same detectors"
    assert all(job.is_trained for job in jobs())
    finish(jobs()[0], manifest="of other data")
    with pytest.raises(
        UserError, match=r"trained by another manifest: .*has changed since; .*overwrite=true"
    ):
        check_jobs(jobs())
    check_jobs(jobs(overwrite=True))
    assert [job.is_trained for job in jobs()] == [False, True, True, True]
    other.unlink()
    with pytest.raises(UserError, match=r"study\.also\.other: .*other\.csv"):
        check_jobs(jobs())


def sha256(path: Path) -> str:
    return load_manifest(path).sha256


def test_wrong_names_in_a_study_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'bse' is not among its methods: trace, bce, bad"):
        plan({**STUDY, "baseline": "bse"}, tmp_path, [])
    with pytest.raises(UserError, match=r"study.seeds=\[0, 1, 0\]: each seed once"):
        plan({**STUDY, "seeds": [0, 1, 0]}, tmp_path, [])
    for changes, message in (
        ({"seeds": []}, r"study.seeds=\[\]: a list of whole numbers"),
        ({"seeds": ["a"]}, r"study.seeds=\['a'\]: a list of whole"),
        ({"methods": {}}, r"study.methods: name"),
        ({"methods": {"bce": None}}, r"study.methods.bce=None: a list of overrides"),
        ({"methods": {"bce": "model=bce"}}, r"study.methods.bce=model=bce: a list of overrides"),
        ({"also": {"x": "data=demo"}}, r"study.also.x=data=demo: a list"),
        (
            {"derived": {"bce": {"of": "trace", "score": "both"}}},
            r"study.derived.bce: a method has this name",
        ),
        (
            {"derived": {"d": {"of": "trase", "score": "both"}}},
            r"derived.d.of: 'trase' .*did you mean 'trace'",
        ),
        (
            {"derived": {"d": {"of": "trace", "score": "bot"}}},
            r"derived.d.score: 'bot' .*did you mean 'both'",
        ),
        ({"derived": {"d": "trace"}}, r"derived.d: is {of: METHOD, score: trace_distance or both}"),
    ):
        with pytest.raises(UserError, match=message):
            plan({**STUDY, **changes}, tmp_path, [])
    plan({**STUDY, "first": None, "derived": None, "also": None}, tmp_path, [])
    first, rest = plan(STUDY, tmp_path, ["seed=5"])
    assert [job.name for job in first] == ["trace seed 0", "trace seed 1"]
    assert len(rest) == 4
    assert len({job.folder for job in first + rest}) == 6


def test_what_headers_give_away_is_said() -> None:
    def finished(**areas: float | None) -> list[Finished]:
        shortcut = {name: {"auc": {"value": area, "low": area, "high": area}} for name, area in areas.items()}
        job = Job("bce", 0, (), Path("nowhere"))
        return [Finished(job, {}, {}, pd.DataFrame(), {"shortcut": shortcut})]

    (told,) = told_by_headers(finished(gen_a=0.9, gen_b=0.6, gen_c=0.71, gen_d=None))
    assert told.startswith("Format, size and compression alone tell gen_a, gen_c (AUC above 0.7)")
    assert told_by_headers(finished(gen_b=0.6)) == []
