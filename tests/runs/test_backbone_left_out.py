"""Checkpoints over a public backbone hold their own weights and its name and hash; no weights are kept twice."""

import hashlib
import json
import os
import re
import signal
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

import fakedet
from fakedet import utils
from fakedet.checkpoint import read_checkpoint
from fakedet.cli.app import launch, register_resolvers
from fakedet.errors import Preempted, UserError
from fakedet.evaluation.predictions import read_predictions
from fakedet.methods.ntf import NaturalTraceForensics
from fakedet.metrics.matched import content_pairs, matched_auc
from fakedet.models.features import FeatureCache
from fakedet.shipped import BACKBONES, DEFAULT, SHIPPED
from fakedet.training.train import train

NAME = "test_efficientnet"


def weights(file: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), file)
    return file


def composed(folder: Path, manifest: Path, file: Path, *more: str) -> DictConfig:
    register_resolvers()
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        return compose("train", overrides=[
            "experiment=ntf_frozen", "model/encoder=frozen", f"data.manifest={manifest}", "data.crop_size=32",
            "data.batch_size=8", "data.steps_per_epoch=2", f"model.encoder.name={NAME}",
            f"model.encoder.weights={file}", "model.encoder.input_size=null", "model.encoder.hidden=8",
            "model.score=logit", "stage1.epochs=1", "model.epochs=2", "threads=1", "bootstrap.resamples=0",
            "header_audit=false", "pictures=0", "model.bank_size=8", "stage1.bank_size=8",
            f"output_dir={folder}", f"stage1_cache={folder.parent / 'stage1'}",
            *more])  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("left_out")
    FeatureCache.clear()  # another test of this process may have computed the same images
    trained = train(composed(root / "run", tiny_manifest_module, weights(root / "w.safetensors")))
    assert trained.load("cpu").info["backbones"]  # its own config names the file
    return root


def best(run: Path) -> Path:
    return run / "run" / "checkpoints" / "best.ckpt"


def test_no_checkpoint_holds_the_backbone_and_each_tells_its_hash(run: Path) -> None:
    files = [*run.glob("**/*.ckpt")]
    assert len(files) == 5
    digest = hashlib.sha256()
    model = timm.create_model(NAME, num_classes=0)
    model.load_state_dict(load_file(run / "w.safetensors"))
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + value.numpy().tobytes())
    for path in files:
        content = read_checkpoint(path)
        assert not [name for name in content["state_dict"] if ".backbone." in name], path
        assert path.stat().st_size < (run / "w.safetensors").stat().st_size, path
        for place, one in content["fakedet"]["backbones"].items():
            assert place.endswith("encoder.backbone.model")
            assert len(one.pop("vectors")) == 64
            assert one == {"name": NAME, "file": "w.safetensors", "sha256": digest.hexdigest()}
    assert set(read_checkpoint(best(run))["fakedet"]["backbones"]) == {
        "encoder.backbone.model", "source.encoder.backbone.model"
    }  # fmt: skip


def test_the_same_weights_are_one_file(run: Path) -> None:
    stage1, kept = run / "run" / "stage1" / "checkpoints", json.loads((run / "run" / "run.json").read_text())
    cached = next((run / "stage1").glob("*.ckpt"))
    assert (stage1 / "best.ckpt").samefile(stage1 / "last.ckpt")
    assert (stage1 / "best.ckpt").samefile(cached)
    assert best(run).samefile(best(run).with_name("last.ckpt")) == (kept["kept_epoch"] == 2)


def test_the_log_says_how_far_the_features_are(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = (run / "run" / "run.log").read_text()
    assert re.search(r"features of training photographs: 16 of 16, [\d.,]+ a second \(16 computed", told), told
    lines: list[str] = []
    monkeypatch.setattr(utils.log, "info", lambda text, *values: lines.append(text % values))
    now = [100.0]
    monkeypatch.setattr(utils.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    shown = utils.Bar("features", 4000)
    for done in range(0, 4001, 20):  # four a second
        shown.show(done)
        now[0] += 5
    assert lines[0] == "features: 40 of 4,000, 4.0 a second, 16 min left"
    assert 25 < len(lines) < 40, "one every 30 seconds"
    assert lines[-1].endswith(" s left")


def test_it_is_refused_in_one_line_without_its_backbone_or_over_another(
    run: Path, tiny_manifest_module: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(run / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    other, foreign = weights(run / "other.safetensors", 1), run / "foreign.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), foreign)
    further = {"predict": [f"source={tiny_manifest_module.parent}", f"output={run}/p.csv"],
               "evaluate": [f"data.manifest={tiny_manifest_module}", f"output_dir={run}/no"],
               "export": [f"output={run}/no.safetensors"], "serve": ["port=7999"]}  # fmt: skip
    for verb, more in further.items():
        for file, told in (
            (None, f"leaves out its backbone '{NAME}'.* pass backbone=FILE"),
            (other, f"over other weights of its backbone '{NAME}' .*w.safetensors.* pass backbone=FILE"),
            (foreign, r"backbone: .*foreign.safetensors (is of another model|does not fit)"),
            (run / "none.pt", "backbone: there is no file .*none.pt"),
        )[: 4 if verb == "predict" else 1]:
            given = [f"backbone={file}"] if file else []
            assert launch(verb, [f"checkpoint={best(run)}", *more, *given]) == 2
            said = capfd.readouterr().err.strip()
            assert len(said.splitlines()) == 1, said
            assert str(best(run)) in said
            assert re.search(told, said), said


def test_the_default_is_taken_once_its_backbone_is_named(
    run: Path, tiny_manifest_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHIPPED, DEFAULT, best(run))
    images = tiny_manifest_module.parent / "gen_a"
    known = fakedet.load(best(run), "cpu", backbone=run / "w.safetensors").predict(images)
    words = [f"backbone={run / 'w.safetensors'}", f"source={images}", f"output={run}/default.csv"]
    assert launch("predict", words) == 0
    assert pd.read_csv(run / "default.csv")["score"].tolist() == pytest.approx(known["score"].tolist(), abs=1e-5)
    monkeypatch.setitem(BACKBONES, NAME, BACKBONES["tf_efficientnet_lite2.in1k"])
    monkeypatch.setenv("FAKEDET_LITE", str(run / "w.safetensors"))
    assert fakedet.load(device="cpu").predict(images)["score"].tolist() == known["score"].tolist()


@pytest.mark.slow
def test_every_verb_works_over_the_file_and_gives_the_same(run: Path, tiny_manifest_module: Path) -> None:
    given = [f"checkpoint={best(run)}", f"backbone={run / 'w.safetensors'}"]
    assert launch("evaluate", [*given, f"data.manifest={tiny_manifest_module}", f"output_dir={run}/again", "threads=1",
                               "header_audit=false", "bootstrap.resamples=0"]) == 0  # fmt: skip
    first, again = (read_predictions(run / name / "predictions.parquet")[0]["logit"] for name in ("run", "again"))
    assert first.tolist() == again.tolist()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    known = fakedet.load(best(run), "cpu", backbone=run / "w.safetensors").module(images)
    sizes = {}
    for name, more in (("without", []), ("whole", ["embed_backbone=true"])):
        path = run / f"{name}.safetensors"
        assert launch("export", [*given, f"output={path}", "check=3", *more]) == 0
        assert b"w.safetensors" in path.read_bytes()
        assert str(run).encode() not in path.read_bytes(), "a folder of this machine"
        sizes[name] = path.stat().st_size
        detector = fakedet.load(path, "cpu", backbone=None if more else run / "w.safetensors")
        for one, two in zip(detector.module(images), known, strict=True):
            assert torch.equal(one, two)
    # The backbone that both stages share is there once.
    assert sizes["whole"] - sizes["without"] < 1.2 * (run / "w.safetensors").stat().st_size


def test_embedded_it_is_one_file(run: Path, tiny_manifest_module: Path) -> None:
    """Over the cached stage 1, which leaves the backbone out."""
    config = composed(run / "whole", tiny_manifest_module, run / "w.safetensors", "embed_backbone=true",
                      "model.epochs=1", "test_after_fit=false")  # fmt: skip
    train(config)
    assert not (run / "whole" / "stage1").exists()
    fakedet.load(run / "whole" / "checkpoints" / "best.ckpt", "cpu").embed(torch.rand(1, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those that the console hides
def test_a_stopped_run_goes_on_exactly_and_over_the_same_backbone_alone(
    run: Path, tiny_manifest_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = weights(run / "w3.safetensors")
    configs = [composed(run / name, tiny_manifest_module, file, "callbacks.resume.every_steps=1",
                        "test_after_fit=false") for name in ("through", "stopped")]  # fmt: skip
    train(configs[0])
    step, left = NaturalTraceForensics.training_step, [3]

    def stopping(self, *args):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, *args)

    monkeypatch.setattr(NaturalTraceForensics, "training_step", stopping)
    with pytest.raises(Preempted):
        train(configs[1])
    weights(file, 1)
    with pytest.raises(UserError, match=f"over other weights of its backbone '{NAME}'"):
        train(configs[1])
    weights(file)
    train(configs[1])
    states = [read_checkpoint(run / name / "checkpoints" / "best.ckpt")["state_dict"] for name in
              ("through", "stopped")]  # fmt: skip
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_predictions_hold_what_the_backbone_says_of_each_image(run: Path, tiny_manifest_module: Path) -> None:
    """By timm alone: the last level's means over each crop; no head and no standardisation of training is in them."""
    frame, _ = read_predictions(run / "run" / "predictions.parquet")
    model = timm.create_model(NAME, num_classes=0).eval()
    model.load_state_dict(load_file(run / "w.safetensors"))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    rows = []
    for path in frame["path"]:
        image = cv2.imread(str(tiny_manifest_module.parent / path))[..., ::-1].copy()
        top, left = ((side - 32) // 2 for side in image.shape[:2])
        crop = torch.from_numpy(image[top : top + 32, left : left + 32]).permute(2, 0, 1) / 255
        with torch.no_grad():
            levels = model.forward_intermediates(((crop - mean) / std)[None], intermediates_only=True)
        rows.append(levels[-1].mean(dim=(2, 3))[0].double().numpy())
    given = np.stack(rows)
    given = (given - given.mean(axis=0)) / given.std(axis=0)
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    content = np.stack(frame["content"].tolist()).astype(float)
    np.testing.assert_allclose(content @ content.T, given @ given.T, atol=2e-2)
    metrics = json.loads((run / "run" / "metrics.json").read_text())
    assert metrics["matched_by"] == "features"
    pairs = {name: content_pairs(content[rows], frame["label"][rows], frame["group"][rows])
             for name in metrics["per_generator"]
             for rows in [np.flatnonzero((frame["label"] == 0) | (frame["generator"] == name))]}  # fmt: skip
    for name, entry in metrics["per_generator"].items():
        assert entry["n_matched"] == len(set(pairs[name][:, 0]))
        own = frame[(frame["label"] == 0) | (frame["generator"] == name)].reset_index(drop=True)
        assert entry["auc_matched"]["value"] == pytest.approx(matched_auc(pairs[name], own["logit"])[0], abs=1e-9)
