"""wandb, offline: the run's own file is read back to see what a dashboard would show; MLflow, by its own client."""

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from wandb.proto import wandb_internal_pb2

from fakedet.cli.app import launch, register_resolvers
from fakedet.evaluation.predictions import read_predictions
from fakedet.training.loggers import has_wandb_key
from fakedet.training.train import train


def records(data: bytes) -> Iterator[bytes]:
    """Split wandb's transaction log: LevelDB's log format, after a header of seven bytes."""
    if not data:
        return
    assert data[:4] == b":W&B"
    block, place, parts = 32768, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block  # a record's header never straddles two blocks
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if place + 7 + length > len(data):
            return  # still being written
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield parts
            parts = b""


def finished_records(file: Path) -> list[wandb_internal_pb2.Record]:
    """Read all records once the last one, "exit", is there: wandb's own process writes on after finish()."""
    for _ in range(300):
        found = []
        for data in records(file.read_bytes()):
            found.append(wandb_internal_pb2.Record())
            found[-1].ParseFromString(data)
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} never got its last record")


def read_offline_run(folder: Path) -> tuple[dict, set[str], dict]:
    """Give the run's header, every key that was logged, and the last value of each."""
    files = list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1, files
    header, keys, last = {}, set(), {}
    for record in finished_records(files[0]):
        if record.HasField("run"):
            header = {"name": record.run.display_name, "group": record.run.run_group, "tags": list(record.run.tags),
                      "job_type": record.run.job_type, "project": record.run.project,
                      "config": {item.key: item.value_json for item in record.run.config.update}}  # fmt: skip
        for item in record.history.item:
            path = list(item.nested_key) or [item.key]
            keys.add(path[0])
            value = json.loads(item.value_json)
            # Media are logged part by part under their key.
            last[path[0]] = {**last.get(path[0], {}), "/".join(path[1:]): value} if path[1:] else value
    return header, keys, last


@pytest.mark.slow
def test_offline_run_holds_a_readable_dashboard(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc: no key
    register_resolvers()
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        config = compose("train", overrides=[
            "model=ntf", "data=manifest", f"data.manifest={tiny_manifest}", "data.crop_size=32",
            "data.batch_size=16", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "logger=wandb",
            "logger.tags=[a,b]", "logger.group=sweep1", "bootstrap.resamples=20", "threads=1", "name=mine",
            "stage1_cache=null", f"output_dir={tmp_path / 'run'}"])  # fmt: skip
    train(config)

    header, keys, last = read_offline_run(tmp_path / "run")
    assert header["name"] == "mine-seed0 run", "the folder's name tells runs of one name and seed apart"
    assert (header["group"], header["tags"], header["job_type"]) == ("sweep1", ["a", "b"], "train")
    assert header["project"] == "fakedet"
    told = {key: json.loads(value) for key, value in header["config"].items()}
    assert told["seed"] == 0
    assert told["data"]["crop_size"] == 32
    assert told["augment"]["recipe"] == config.augment.recipe
    # As text: what the config names is not built for the dashboard.
    assert told["model"]["encoder"]["_target_"] == "fakedet.models.encoders.SmallEncoder"
    assert set(told["git"] or {"commit", "dirty"}) == {"commit", "dirty"}
    curves = pd.read_csv(tmp_path / "run" / "logs" / "metrics.csv")["val/map"].dropna().tolist()
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["kept_epoch"]
    assert (last["best/epoch"], last["last/epoch"]) == (kept, 2)
    assert last["best/val/map"] == pytest.approx(curves[kept - 1]) == pytest.approx(max(curves))
    assert last["last/val/map"] == pytest.approx(curves[-1])
    wanted = {"train/loss", "val/loss", "val/map", "val/ap/gen_a", "test/map", "test/ap/gen_a",
              "test/ap/gen_c", "test/per_generator", "test/scores_real", "test/scores_fake",
              "test/examples", "test/embedding"}  # fmt: skip
    assert wanted <= keys, wanted - keys
    assert 0 <= last["test/ap/gen_c"] <= 1
    assert last["test/per_generator"]["nrows"] == 3
    assert last["test/scores_real"]["_type"] == "histogram"
    assert last["test/examples"]["_type"] == "images/separated"
    # Errors alone, or where there are none, those nearest to one.
    frame, info = read_predictions(tmp_path / "run" / "predictions.parquet")
    wrong = (frame["logit"] > info["operating_point"]["threshold"]) != (frame["label"] == 1)
    captions = last["test/examples"]["captions"]
    assert captions
    assert all(("taken for" in caption) == bool(wrong.any()) for caption in captions)
    # Stage 1 of the same command is a run of its own.
    stage1, stage1_keys, _ = read_offline_run(tmp_path / "run" / "stage1")
    assert stage1["name"].startswith("mine-stage1")
    assert "collapse/mean_cosine" in stage1_keys


def test_offline_is_the_default_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert not has_wandb_key()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not has_wandb_key()


def test_mlflow_is_told_where_it_is_missing(
    tiny_manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("mlflow"):
        pytest.skip("mlflow is installed")
    assert launch("train", ["model=bce", "data=manifest", "data.crop_size=32", f"data.manifest={tiny_manifest}",
                            f"output_dir={tmp_path / 'run'}", "logger=mlflow", "header_audit=false"]) == 2  # fmt: skip
    (said,) = capfd.readouterr().err.strip().splitlines()
    assert 'pip install "fakedet[mlflow]"' in said


@pytest.mark.slow
def test_mlflow_holds_the_run(tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert launch("train", [
        "model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=2", "name=mine",
        "threads=1", "bootstrap.resamples=0", "header_audit=false", f"data.manifest={tiny_manifest}",
        f"output_dir={tmp_path / 'run'}", "logger=mlflow",
    ]) == 0  # fmt: skip
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("fakedet").experiment_id])
    assert run.info.run_name == "mine-seed0 run"
    assert (run.data.params["seed"], run.data.params["data/crop_size"]) == ("0", "32")
    assert "git/commit" in run.data.params or run.data.params["git"] == "None"
    assert {"best/val/map", "last/val/map", "test/map", "val/ap/gen_a"} <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "val/map")) == 2
    assert "scores.png" in {item.path for item in client.list_artifacts(run.info.run_id)}
