"""A study through the command line: jobs side by side, failures named, finished jobs kept, mistakes found first."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score

from fakedet.cli.app import launch, register_resolvers
from fakedet.errors import UserError
from fakedet.evaluation.predictions import read_info, read_predictions
from fakedet.training.sweep import Job, Study, plan, watch

METHODS = {
    "trace": "defaults: [ntf_stage1, _self_]\n",
    "mine": "defaults: [bce, _self_]\nname: mine\n",
    "bad": "defaults: [bce, _self_]\nname: bad\noptimizer: {'no': 1}\n",
}


def write_study(folder: Path, methods: str, seeds: str, **changes: object) -> Path:
    """Write the study `small` and its methods into a folder for --config-dir."""
    study = {
        "defaults": [
            {"override /data": "manifest"}, {"override /debug": "step"}, {"override /hydra/launcher": "local"},
        ],
        "data": {"crop_size": 32, "batch_size": 16}, "threads": 1, "bootstrap": {"resamples": 20},
        "also": {"same": {"manifest": "${oc.env:OTHER_MANIFEST}"}},
        "study": {"name": "small", "title": "small study", "baseline": "mine", "caveats": ["small & quick"]},
        "hydra": {"sweep": {"dir": "out"}, "sweeper": {"params": {"model": methods, "seed": seeds}}},
    }  # fmt: skip
    for name in ("study", "model"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.merge(study, changes))
    (folder / "study" / "small.yaml").write_text(f"# @package _global_\n{text}")
    for name, text in METHODS.items():
        (folder / "model" / f"{name}.yaml").write_text(text)
    return folder


def start(folder: Path, manifest: Path, *more: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"}
    environment["OTHER_MANIFEST"] = str(manifest)
    return subprocess.Popen(
        [sys.executable, "-m", "fakedet", "study", "--config-dir", "configs", "study=small",
         f"data.manifest={manifest}", "stage1_cache=stage1", *more],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what starts the tests may ignore it
    )  # fmt: skip


def run(folder: Path, manifest: Path, *more: str) -> subprocess.CompletedProcess[str]:
    process = start(folder, manifest, *more)
    output, errors = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def job(out: Path, method: str, seed: int = 0) -> Path:
    return out / f"model={method},seed={seed}"


@pytest.mark.slow
def test_a_study_compares_what_ended_well_and_names_what_did_not(tiny_manifest: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "configs", "trace,mine,bad", "0,1")
    done = run(tmp_path, tiny_manifest)
    assert done.returncode in (1, 2), "a job failed, and a script must be able to tell"
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["methods"] == ["trace", "mine"]
    assert summary["seeds"] == {"trace": [0, 1], "mine": [0, 1]}
    assert len(summary["failures"]) == 2
    assert "'adamw' does not take these settings" in summary["failures"][0]
    assert f"Alone: fakedet resume run='{job(out, 'bad')}'" in summary["failures"][0].replace('"', "'") or (
        f"Alone: fakedet resume run={job(out, 'bad')}" in summary["failures"][0]
    )
    assert summary["generators"]["gen_c"]["seen"] is False
    assert summary["generators"]["gen_a"]["seen"] is True
    order = [(run["method"], run["seed"]) for run in summary["runs"]]
    assert order == [("trace", 0), ("trace", 1), ("mine", 0), ("mine", 1)], "as planned, whichever was the faster"
    for method in ("trace", "mine"):  # of the same unseen generators, also where stage 1 saw no fakes
        rows_of = [run["mAP unseen"] for run in summary["runs"] if run["method"] == method]
        mean = summary["values"]["ap"]["map_unseen"][method]["value"]
        assert sum(rows_of) / len(rows_of) == pytest.approx(mean, abs=1e-4)
    lines = done.stdout.splitlines()
    assert sum("done after" in line for line in lines) == 4, "one line per job where nobody watches"
    assert any("bad, seed 0: FAILED: model.optimizer" in line for line in lines)
    assert "training mine" not in done.stdout, "what a job prints is in its console.log"
    assert "training mine" in (job(out, "mine") / "console.log").read_text()
    assert "mean, unseen" in done.stdout
    assert summary["verdict"]
    assert all(sentence in " ".join(done.stdout.split()) for sentence in summary["opening"])
    assert any(line.endswith("out/report.html") for line in lines[-2:])
    html = (out / "report.html").read_text()
    assert "small &amp; quick" in html
    assert "does not take these settings" in html
    for name in ("ap.png", "auc.png", "curves.png", "table.csv", "table.md"):
        assert (out / name).stat().st_size > 0
    assert "Traceback" not in done.stdout + done.stderr
    # The other manifest is the same one, so the trained detectors give the same table there.
    other = json.loads((out / "on_same" / "summary.json").read_text())
    assert other["values"] == summary["values"]
    assert "small study: same" in (out / "on_same" / "report.html").read_text()

    # The same command again: what is done is kept, what failed is tried again.
    stamp = (job(out, "mine") / "run.json").stat().st_mtime_ns
    (job(out, "mine", 1) / "run.json").unlink()  # as if it had been killed
    (job(out, "trace", 1) / "on_same" / "run.json").unlink()
    trained = (job(out, "trace", 1) / "run.json").stat().st_mtime_ns
    again = run(tmp_path, tiny_manifest)
    assert (job(out, "mine") / "run.json").stat().st_mtime_ns == stamp
    assert (job(out, "mine", 1) / "run.json").is_file()
    assert (job(out, "trace", 1) / "on_same" / "run.json").is_file(), "scored again ..."
    assert (job(out, "trace", 1) / "run.json").stat().st_mtime_ns == trained, "... and not trained again"
    values = json.loads((out / "summary.json").read_text())["values"]
    assert (out / "on_same" / "summary.json").stat().st_mtime_ns > stamp
    assert values == summary["values"], "the same seeds give the same numbers"
    ran = [
        line.split(":")[0].partition("  ")[2]
        for line in again.stdout.splitlines()
        if " after " in line or "FAILED" in line
    ]
    assert sorted(ran) == ["bad, seed 0", "bad, seed 1", "mine, seed 1", "trace, seed 1"], "and nothing else"


def test_nothing_is_said_of_jobs_that_ended_in_an_earlier_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"job": 0, "folder": "a", "seconds": 1, "error": None, "kept": False, "mistake": False}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(row) + "\n")
    study = Study(tmp_path, {}, [Job([], "mine", 0, tmp_path / "a", OmegaConf.create({}))], None)
    with watch(study):
        time.sleep(0.7)  # Hydra needs longer than a look on a busy machine
    assert "mine" not in capsys.readouterr().out
    with watch(study):
        (tmp_path / "jobs.jsonl").write_text(json.dumps(row) + "\n")
    assert "mine, seed 0: done after 1 s" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
@pytest.mark.parametrize("who", ["study", "worker", "terminal"])
def test_workers_end_with_a_study_that_is_stopped(who: str, tiny_manifest: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "configs", "mine", "0,1,2")
    endless = ["data.steps_per_epoch=100000", "trainer.limit_train_batches=1.0", "callbacks.resume.every_steps=100000",
               "callbacks.progress.file=${output_dir}/progress.json"]  # fmt: skip
    process = start(tmp_path, tiny_manifest, *endless)
    out = tmp_path / "out"
    until(lambda: len(list(out.glob("*/progress.json"))) == 2, process)
    workers = [number for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
               if "resource_tracker" not in Path(f"/proc/{number}/cmdline").read_text()]  # fmt: skip
    assert len(workers) == 2
    if who == "study":
        os.kill(process.pid, signal.SIGSTOP)  # or it may be done before the second has started
        second = run(tmp_path, tiny_manifest, *endless)
        os.kill(process.pid, signal.SIGCONT)
        assert second.returncode == 2
        assert "another process is running a study in it" in second.stderr
        process.kill()
        process.communicate()  # closes its pipes too
    elif who == "terminal":
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 130, errors
        assert "the same command goes on" in errors
        assert "Traceback" not in output + errors
        assert len(list(out.glob("*/config.yaml"))) == 2, "no further job was begun"
    else:
        for worker in workers:
            os.kill(int(worker), signal.SIGTERM)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 2
        assert "a process of the jobs was killed" in errors
        assert "Traceback" not in output + errors
    until(lambda: not any(Path(f"/proc/{worker}/cmdline").is_file() for worker in workers))
    points = list(out.glob("*/checkpoints/resume.ckpt"))
    assert len(points) == 2 or (who == "worker" and points), "each job that trained writes its resume point"
    assert all(torch.load(point, weights_only=True)["global_step"] > 0 for point in points)


def until(reached, process: subprocess.Popen[str] | None = None, seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)


# --- in this process: one job of each of two methods ---------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with configs, the data, and a finished study in `out`."""
    root = tmp_path_factory.mktemp("study")
    write_study(root / "configs", "trace,mine", "0")
    shutil.copytree(tiny_manifest_module.parent, root / "data")
    shutil.copy(root / "data" / "manifest.csv", root / "data" / "other.csv")
    with pytest.MonkeyPatch.context() as patch:
        assert study(root, patch) == 0
    return root


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a copy of it: a study that was moved is the same study."""
    shutil.copytree(trained, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    return tmp_path / "moved"


def study(root: Path, patch: pytest.MonkeyPatch, *more: str) -> int:
    patch.chdir(root)
    patch.setenv("OTHER_MANIFEST", "data/other.csv")
    # The flag may stand among the overrides.
    return launch("study", ["study=small", "--config-dir", str(root / "configs"), "data.manifest=data/manifest.csv",
                            "stage1_cache=stage1", "hydra/launcher=basic", *more])  # fmt: skip


def stamps(root: Path) -> dict[str, int]:
    """Give when each training and each scoring was finished."""
    return {str(path.parent.relative_to(root / "out")): path.stat().st_mtime_ns
            for path in (root / "out").glob("model=*/**/run.json")}  # fmt: skip


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in after if after[name] != before.get(name)}


def test_a_finished_study_is_compared_again_and_not_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    before = stamps(place)
    assert len(before) == 4
    assert study(place, monkeypatch) == 0
    assert stamps(place) == before
    assert "2 jobs, 2 of them trained before" in capsys.readouterr().out
    # The same comparison, made alone and later.
    assert launch("compare", [f"runs={place / 'out'}", "output_dir=later", "bootstrap.resamples=20"]) == 0
    for name in ("summary.json", "on_same/summary.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (place / "out", place / "later"))
        assert one["values"] == other["values"]
        assert (one["methods"], one["baseline"]) == (other["methods"], other["baseline"]) == (["trace", "mine"], "mine")
    assert "small &amp; quick" in (place / "later" / "report.html").read_text()


def test_what_another_config_trained_is_not_taken_for_its_result(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = job(place / "out", "mine") / "config.yaml"
    config = OmegaConf.load(saved)
    config.model.hidden_dim = 77
    OmegaConf.save(config, saved)
    before = stamps(place)
    assert study(place, monkeypatch) == 2
    said = capsys.readouterr().err
    assert "seed=0 was trained by another config than 'mine' is now: model.hidden_dim: 77 → 128; " in said
    assert "overwrite=true" in said
    assert stamps(place) == before
    assert study(place, monkeypatch, "overwrite=true") == 0
    assert changed(before, stamps(place)) == {"model=mine,seed=0", "model=mine,seed=0/on_same"}
    # On the command line it is the same; a checkpoint without run.json is no reason to replace it either.
    (job(place / "out", "mine") / "run.json").unlink()
    assert study(place, monkeypatch, "model.optimizer.weight_decay=0.5") == 2
    assert "model.optimizer.weight_decay: 0.01 → 0.5" in capsys.readouterr().err


def test_what_other_data_trained_is_not_compared(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(place)
    other, own = place / "data" / "other.csv", place / "data" / "manifest.csv"
    other.write_text("\n".join(own.read_text().splitlines()[:-1]) + "\n")
    assert study(place, monkeypatch) == 0
    assert changed(before, stamps(place)) == {"model=mine,seed=0/on_same", "model=trace,seed=0/on_same"}, "scored anew"
    before = stamps(place)
    rows = own.read_text()
    own.write_text("\n".join(rows.splitlines()[:-1]) + "\n")
    capsys.readouterr()
    assert study(place, monkeypatch) == 2
    said = capsys.readouterr().err
    assert "was trained by another manifest: data/manifest.csv has changed since; " in said
    assert "overwrite=true" in said
    own.write_text(rows)
    other.unlink()
    assert study(place, monkeypatch) == 2
    assert "other.csv" in capsys.readouterr().err
    assert stamps(place) == before


def test_missing_weights_are_found_first_unless_the_method_is_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "configs" / "model" / "clip.yaml").write_text(
        "defaults: [bce, override encoder: timm, _self_]\nname: clip\n"
        "encoder: {name: resnet10t, weights: none.safetensors}\n"
    )
    write_study(place / "configs", "trace,mine,clip", "0")
    assert study(place, monkeypatch) == 2
    assert "study: 'clip': model.encoder.weights: there is no file none" in capsys.readouterr().err
    (job(place / "out", "clip")).mkdir()
    assert not (job(place / "out", "clip") / "config.yaml").exists()


# --- protocol=leave_family_out ---------------------------------------------------------------------


@pytest.fixture
def families(tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with the study, over data whose fakes have families: gen_a `one`, gen_b and gen_c `two`."""
    write_study(tmp_path / "configs", "mine", "0")
    frame = pd.read_csv(tiny_manifest)
    frame["family"] = frame["generator"].replace({"gen_a": "one", "gen_b": "two", "gen_c": "two"})
    (tmp_path / "data").mkdir()
    shutil.copytree(tiny_manifest.parent, tmp_path / "data", dirs_exist_ok=True)
    frame.to_csv(tmp_path / "data" / "manifest.csv", index=False)
    shutil.copy(tmp_path / "data" / "manifest.csv", tmp_path / "data" / "other.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTHER_MANIFEST", "data/other.csv")
    return tmp_path


def planned(*words: str) -> Study:
    register_resolvers()
    _, study = plan("train", ["study=small", "data.manifest=data/manifest.csv", *words], "configs")
    assert study is not None
    return study


def test_a_protocol_makes_a_grid_of_methods_seeds_and_families(families: Path) -> None:
    words = ["model=bce,mine", "seed=3,4", "protocol=leave_family_out"]
    study = planned(*words)
    grid = list(itertools.product(["bce", "mine"], [3, 4], ["one", "two"]))
    assert [(job.method, job.seed, job.family) for job in study.jobs] == grid
    assert [job.folder.name for job in study.jobs] == [
        f"model={method},seed={seed},data.hold_out_families={family}" for method, seed, family in grid
    ]
    assert {job.folder.parent for job in study.jobs} == {families / "out" / "leave_family_out"}, (
        "beside the study's own"
    )
    for job in study.jobs:
        assert (job.config.data.hold_out_families, job.config.data.measure) == ([job.family], "held_out")
        assert job.config.also is None, "other manifests have test splits too"
    words[:2] = ["seed=3"]
    (one,) = planned(*words, "protocol.families=[two]").jobs
    assert (one.family, one.folder.name) == ("two", "model=mine,seed=3,data.hold_out_families=two")
    assert planned("seed=3", "hydra.sweep.dir=elsewhere", *words[1:]).folder == families / "elsewhere"
    with pytest.raises(UserError, match=r"protocol.families: 'tow' is not known; did you mean 'two'"):
        planned(*words, "protocol.families=[tow]")
    with pytest.raises(UserError, match=r"the training fakes are of 1 family \(one\)"):
        planned(*words, "data.hold_out=[gen_b]")


def test_a_protocol_leaves_out_collections_of_photographs_too(families: Path) -> None:
    def left_out(*words: str) -> list[list[str]]:
        jobs = planned("seed=3", "protocol=leave_out", *words).jobs
        assert all(job.family == "+".join(job.config.data.hold_out_families) for job in jobs)
        assert all(job.folder.name.endswith(f"={','.join(job.config.data.hold_out_families)}") for job in jobs)
        return [list(job.config.data.hold_out_families) for job in jobs]

    assert left_out() == [["one"], ["two"], ["real_x"], ["real_y"]]
    assert left_out("protocol.families=[one,[real_x,real_y]]") == [["one"], ["real_x", "real_y"]]
    with pytest.raises(UserError, match=r"protocol.families: 'real_z' is not known; did you mean 'real_"):
        planned("protocol=leave_out", "protocol.families=[one,[real_x,real_z]]")


DATES = {"one": "2018", "two": "2019-05", "three": "2020-01-01", "four": "2020-01-01", "five": "2021"}


@pytest.fixture
def dated(families: Path) -> Path:
    """Give the fakes of train and val five families in turn, and dates of release."""
    path = families / "data" / "manifest.csv"
    frame = pd.read_csv(path)
    used = frame.index[(frame["label"] == 1) & frame["split"].isin(["train", "val"])]
    names = np.array([*DATES])[np.arange(len(used)) % 5]
    names[frame.loc[used, "split"] == "val"] = "one"  # so that each fold has fakes in validation
    frame.loc[used, ["generator", "family"]] = np.array([names, names]).T
    frame["released"] = frame["family"].map(DATES).fillna("")
    frame.to_csv(path, index=False)
    return families


def test_windows_over_time_are_left_out_from_the_last_on(dated: Path) -> None:
    def windows(*words: str) -> list[tuple[str | None, set[str]]]:
        jobs = planned("seed=3", "protocol=over_time", *words).jobs
        return [(job.family, set(job.config.data.hold_out_families)) for job in jobs]

    last = ("2021", {"five"})
    assert windows("protocol.windows=2") == [last], "half of the families, and the other of the same date"
    assert windows("protocol.windows=3") == [("2020-01-01", {"three", "four", "five"}), last]
    assert windows() == [("2019-05", {"two", "three", "four", "five"}), ("2020-01-01", {"three", "four", "five"}), last]
    swapped = "protocol.released={five: 2018, two: 2019-05, three: 2020, four: 2021, one: 2021-02-03}"
    assert windows("protocol.windows=2", swapped)[0] == ("2021 to 2021-02-03", {"four", "one"})
    for wrong, told in {
        "protocol.windows=5": "from 2 to 4, the number of dates of release",
        "protocol.released={one: 2018}": "the release of 'five' is not there; a date such as 2022-08-22",
        "protocol.released={one: 2018, two: soon, three: 2020, four: 2020, five: 2021}": "the release of 'two' is soon",
    }.items():
        with pytest.raises(UserError, match=re.escape(told)):
            windows(wrong)
    frame = pd.read_csv(dated / "data" / "manifest.csv").drop(columns="released")
    frame.to_csv(dated / "data" / "manifest.csv", index=False)
    with pytest.raises(UserError, match=r"the manifest has no column 'released'; add one"):
        windows()


def test_over_time_each_run_is_measured_on_the_window_after_it(
    dated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(dated, monkeypatch, "protocol=over_time", "protocol.windows=3", "seed=0") == 0
    assert "window 2018 to 2019-05: one, two; trained on by all" in capsys.readouterr().out
    out = dated / "out" / "over_time"
    table = pd.read_csv(dated / "data" / "manifest.csv").set_index("path")
    summary = json.loads((out / "summary.json").read_text())
    found = []
    for job_of, (window, own, later) in zip(
        json.loads((out / "study.json").read_text())["jobs"],
        [("2020-01-01", ["four", "three"], ["five"]), ("2021", ["five"], [])], strict=True,
    ):  # fmt: skip
        frame = read_predictions(out / job_of["folder"] / "predictions.parquet")[0]
        assert job_of["family"] == window
        assert set(frame.loc[frame["label"] == 1, "family"]) == {*own, *later}
        assert "test" not in set(table.loc[frame["path"], "split"])
        measured = frame[(frame["label"] == 0) | frame["family"].isin(own)]
        found.append(roc_auc_score(measured["label"], measured["logit"]))
        assert summary["values"]["auc"][window]["mine"]["value"] == pytest.approx(found[-1])
    assert summary["values"]["auc"]["mean over families"]["mine"]["value"] == pytest.approx(np.mean(found))


def test_a_study_that_leaves_families_out_never_scores_the_test_split(
    families: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(families, monkeypatch, "protocol=leave_family_out", "model=mine,bce") == 0
    said = capsys.readouterr().out
    assert "mine without two, seed 0: done after" in said
    assert "The test split of this manifest has been scored 0 times (0 runs)." in said
    out = families / "out" / "leave_family_out"
    plan_of = json.loads((out / "study.json").read_text())
    assert plan_of["protocol"] == {"name": "leave_family_out", "families": ["one", "two"]}
    assert [(job["method"], job["family"]) for job in plan_of["jobs"]] == [
        ("mine", "one"), ("mine", "two"), ("bce", "one"), ("bce", "two"),
    ]  # fmt: skip
    table = pd.read_csv(families / "data" / "manifest.csv").set_index("path")
    photographs = []
    for job_of in plan_of["jobs"]:
        frame = read_predictions(out / job_of["folder"] / "predictions.parquet")[0]
        assert set(frame.loc[frame["label"] == 1, "family"]) == {job_of["family"]}
        assert "test" not in set(table.loc[frame["path"], "split"])
        photographs.append(sorted(frame.loc[frame["label"] == 0, "path"]))
    assert photographs[0] == photographs[1] == photographs[2] == photographs[3]
    assert not list((families / "data").glob("*.jsonl"))
    assert not list(out.glob("*/on_same"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["methods"] == ["mine", "bce"]
    assert (out / "report.html").is_file()
    # Started again, it goes on; compared alone, it is the same.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/run.json")}
    assert study(families, monkeypatch, "protocol=leave_family_out", "model=mine,bce") == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/run.json")} == before
    assert "4 jobs, 4 of them trained before" in capsys.readouterr().out
    assert launch("compare", [f"runs={out}", "output_dir=later", "bootstrap.resamples=20"]) == 0
    assert json.loads((families / "later" / "summary.json").read_text())["values"] == summary["values"]
    # One job alone is what the report says to type; without a family there is none.
    alone = ["--config-dir", "configs", *plan_of["jobs"][0]["overrides"], "output_dir=alone"]
    assert launch("train", [word for word in alone if not word.startswith("data.hold_out_families")]) == 2
    assert "pass data.hold_out_families=[NAME] data.measure=held_out too" in capsys.readouterr().err


def test_scorings_of_the_test_split_are_counted_and_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = place / "data" / "manifest.test-scored.jsonl"
    assert {json.loads(line)["name"] for line in notes.read_text().splitlines()} == {"mine", "ntf_stage1"}
    told = "The test split of this manifest has been scored 2 times (2 runs)."
    assert told in (place / "out" / "report.html").read_text()
    # The trained weights, read back and scored again, are the same run.
    checkpoint = job(place / "out", "mine") / "checkpoints" / "best.ckpt"
    words = [f"checkpoint={checkpoint}", "data.manifest=data/manifest.csv", "output_dir=again", "threads=1"]
    assert launch("evaluate", [*words, "bootstrap.resamples=0", "header_audit=false", "pictures=0"]) == 0
    assert told in capsys.readouterr().out
    assert len(notes.read_text().splitlines()) == 3
    assert read_info(place / "again" / "predictions.parquet")["test_scored"] == {"times": 2, "runs": 2}


MISTAKES = [
    (["model.optimizer.lr=-1"], "study: 'trace': model.optimizer.lr=-1: must be above 0"),
    (
        ["model.optimizer.schedule=cosin"],
        "model.optimizer.schedule: 'cosin' is not known; did you mean 'cosine'?",
    ),
    (["model.optimizr=1"], "no key 'model.optimizr'; did you mean 'model.optimizer'?"),
    (["model=trace,mein"], "model=mein: there is no such config; did you mean 'mine'?"),
    (["data.manifest=none.csv"], "none.csv"),
    (["+also.x=3"], "also.x=3: values of the data node"),
    (["+also.x={manifest: a.csv, rot: b}"], "also.x: there is no key 'data.rot'; did you mean 'root'?"),
    (["study.baseline=mien"], "study.baseline: 'mien' is not among its methods: trace; mine"),
    (["test_after_fit=false"], "study: 'trace': test_after_fit=false: a study compares what its runs scored"),
    (["seed=0,1,0"], "has the seed 0 twice"),
    (["seed=range(0)"], "seed=range(0): a sweep over no value"),
]


@pytest.mark.parametrize(("more", "message"), MISTAKES, ids=lambda value: str(value)[:30])
def test_a_mistake_stops_the_study_before_it_trains(
    more: list[str],
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert study(trained, monkeypatch, "hydra.sweep.dir=fresh", *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert said.count("\n") == 1
    assert not (trained / "fresh").exists()


def test_a_mistake_in_a_file_names_its_method(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(place / "configs", "trace,mine,nothing", "0")
    assert study(place, monkeypatch) == 2
    said = capsys.readouterr().err
    assert "study: the overrides of 'nothing': model=nothing: there is no such config" in said


@pytest.mark.parametrize(("text", "message"), [
    ("study: a word", "study: the file must hold a mapping"),
    ("study: {name: none}\nhydra: {sweeper: {params: {seed: range(0)}}}", "seed=range(0): a sweep over no value"),
])  # fmt: skip
def test_a_study_file_that_holds_something_else_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "odd.yaml").write_text(f"# @package _global_\n{text}\n")
    assert launch("study", ["--config-dir", str(tmp_path), "study=odd"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_experiment_in_a_folder_may_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (("demo/bce", "data.crop_size=0"), ("demo/bcee", "there is no such config")):
        words = ["study=demo", f"experiment={name}", "data.crop_size=0", f"output_dir={tmp_path}/out"]
        assert launch("study", words) == 2
        assert said in capsys.readouterr().err


def test_a_study_is_named_and_is_a_multirun(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(trained)
    assert launch("study", ["threads=1"]) == 2
    assert "which study? pass study=NAME: demo, seeds, " in capsys.readouterr().err
    assert launch("train", ["study=demo", "output_dir=alone"]) == 2
    assert "a study is many jobs: pass -m; for one of them alone, give experiment, seed too" in capsys.readouterr().err
    assert not (trained / "alone").exists()


def test_slurm_where_there_is_none_is_one_line(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert study(trained, monkeypatch, "hydra/launcher=slurm", "hydra.sweep.dir=fresh") == 2
    said = capsys.readouterr().err
    assert said.startswith("fakedet: hydra/launcher=slurm: this machine has no sbatch and no srun")
    assert said.count("\n") == 1
    assert not (trained / "fresh").exists()
