"""A package of a user's own, examples/plugin, is trained and loaded again with no edit of fakedet."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fakedet
from fakedet.build import build_augmentation, build_datamodule
from fakedet.data.decode import read_image
from fakedet.data.transforms import evaluation_views
from fakedet.errors import UserError

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"
SMALL = ["data.crop_size=32", "data.batch_size=16", "debug=step", "threads=1", "header_audit=false",
         "bootstrap.resamples=0", "stage1_cache=null"]  # fmt: skip


WRONG = """
from own_forensics.encoder import DifferenceEncoder
from own_forensics.method import Hinge
from torch import nn


class TwoArguments(nn.Module):
    def __init__(self, margin):
        super().__init__()

    def forward(self, z, labels):
        return z.sum()


class Wide(DifferenceEncoder):
    embedding_dim = property(lambda self: 99, lambda self, dim: None)


class Broken(DifferenceEncoder):
    def __init__(self, width):
        super().__init__(width)
        self.first = width[0]


class OneColumn(Hinge):
    def forward(self, images):
        scores = super().forward(images)
        return scores._replace(logit=scores.logit[:, None])


class NoTensor(nn.Module):
    def forward(self, z, labels, traces):
        return 1.0


def scheduled_later(crop, rng):
    return crop
"""


def run(verb: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fakedet", verb, "--config-dir", str(folder / "plugin" / "conf"), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=900, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(PLUGIN, tmp_path / "plugin")
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_forensics"]:
        del sys.modules[name]  # another test's copy
    return tmp_path


@pytest.mark.slow
def test_everything_of_ones_own_at_once(folder: Path, tiny_manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = f"data.manifest={tiny_manifest}"
    done = run("train", "experiment=own", manifest, *SMALL, "output_dir=run", "trainer.log_every_n_steps=1",
               folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int((folder / "run" / "steps.txt").read_text()) > 0
    curves = (folder / "run" / "logs" / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss_pull", "train/loss_push"} <= set(curves.split(","))
    checkpoint = folder / "run" / "checkpoints" / "best.ckpt"
    again = ["evaluate", f"checkpoint={checkpoint}", manifest, "output_dir=evaluated", "threads=1",
             "header_audit=false", "bootstrap.resamples=0"]  # fmt: skip
    refused = run(*again, folder=folder)
    assert refused.returncode == 2
    assert "trust=[own_forensics]" in refused.stderr
    assert run(*again, "trust=[own_forensics]", folder=folder).returncode == 0
    monkeypatch.syspath_prepend(str(folder / "plugin"))
    with pytest.raises(UserError, match=r"trust=\[own_forensics\]"):
        fakedet.load(checkpoint)
    detector = fakedet.load(checkpoint, trust=["own_forensics"])
    assert detector(torch.rand(2, 3, 32, 32)).shape == (2,)


def test_data_and_augmentation_of_ones_own_make_the_batches(
    tiny_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))
    augment = build_augmentation({"_target_": "own_forensics.augment.Posterise", "levels": 4, "p": 1.0})
    settings = {"_target_": "own_forensics.data.UpsideDown", "manifest": str(tiny_manifest), "crop_size": 32}
    data = build_datamodule(settings, augment=augment, views=1, real_only=False, seed=0)
    for batch in data.train_dataloader():
        assert set(np.unique(batch["image"])) <= {0, 64, 128, 192}
    (batch,) = data.subset_dataloader(np.array([0, 1]))
    for row, image in zip(batch["id"].tolist(), batch["image"], strict=True):
        plain = read_image(tiny_manifest.parent / data.manifest.frame["path"][row])
        (crop,) = evaluation_views(plain[::-1], 32, "crop")
        np.testing.assert_array_equal(image[0].numpy().transpose(1, 2, 0), crop)


@pytest.mark.slow
def test_a_method_from_the_base_class_with_an_optimiser_of_torchs(folder: Path, tiny_manifest: Path) -> None:
    done = run("train", "model=hinge", "data=manifest", f"data.manifest={tiny_manifest}", *SMALL, "output_dir=run",
               folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = torch.load(folder / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert "momentum" in weights["optimizer_states"][0]["param_groups"][0], "it is SGD"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model._target_=own_forensics.encoder.DifferenceEncoder", "model._target_: .* is no method"),
        (
            "model.encoder._target_=own_forensics.callback.CountSteps",
            "model.encoder._target_: .* is no encoder",
        ),
        ("model.loss._target_=own_forensics.loss.PrototypLoss", "model.loss._target_: .*mean 'PrototypeLoss'"),
        ("model.loss._target_=own_forensics.wrong.TwoArguments", r"model.loss: .*forward takes \(self, z, labels\)"),
        ("data._target_=own_forensics.loss.PrototypeLoss", "data._target_: .* is no data module"),
        ("callbacks.steps._target_=own_forensics.loss.PrototypeLoss", "callbacks.steps._target_: .*callback"),
        ("logger._target_=own_forensics.loss.PrototypeLoss", "logger._target_: .* is no Lightning logger"),
        ("model.encoder._target_=not_installed.Encoder", "model.encoder._target_: .*installed package"),
        ("model.encoder._target_=own_forensics", "model.encoder._target_"),
        ("model.encoder._target_=own_forensics.wrong.Wide", r"model.encoder: Wide maps .* to \(2, 16\)"),
        ("model.encoder._target_=own_forensics.wrong.Broken", r"model.encoder: .*wrong.py, line 22\)"),
        (
            "+callbacks.more=own_forensics.callback.CountSteps",
            "callbacks.more=.*name a class by callbacks.more._target_",
        ),
        ("model.encoder._target_=torch.nn.Identity", "has the whole number embedding_dim|embedding_dim"),
    ],
)
def test_what_a_part_lacks_is_said_before_data_are_read(
    override: str, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fakedet.cli.app import launch

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    (folder / "none.csv").write_text("path,label,generator\nnone.png,0,x\n")
    (folder / "plugin" / "own_forensics" / "wrong.py").write_text(WRONG)
    status = launch("train", ["--config-dir", str(folder / "plugin" / "conf"), "experiment=own",
                              "data.manifest=none.csv", *SMALL, "output_dir=run", override])  # fmt: skip
    said = capfd.readouterr().err
    assert status == 2
    assert re.search(told, said), said
    assert len(said.strip().splitlines()) == 1


def test_what_a_part_returns_is_checked(
    folder: Path, tiny_manifest: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fakedet.cli.app import launch

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    (folder / "plugin" / "own_forensics" / "wrong.py").write_text(WRONG)
    for words, told in (
        (["model=hinge", "model._target_=own_forensics.wrong.OneColumn"],
         r"OneColumn.forward returned \[\(\d+, 1\), .*Scores: logit"),
        (["model=hinge", "model.optimizer._partial_=false"], "model.optimizer: .*needs _partial_: true"),
        (["model=hinge", "augment=posterise", "~augment.levels", "~augment.p",
          "augment._target_=own_forensics.wrong.scheduled_later"], "augment: .*needs _partial_: true"),
        (["model=bce", "model.contrastive_weight=1", "~model.loss.temperature",
          "model.loss._target_=own_forensics.wrong.NoTensor"], "contrastive loss returned a float; it must return"),
    ):  # fmt: skip
        status = launch("train", ["--config-dir", str(folder / "plugin" / "conf"), "data=manifest",
                                  f"data.manifest={tiny_manifest}", *SMALL, "output_dir=run", "overwrite=true", *words]
                        )  # fmt: skip
        said = capfd.readouterr().err
        assert status == 2, words
        assert re.search(told, said.splitlines()[-1]), said


def test_a_config_folder_of_ones_own_from_python(
    folder: Path, tiny_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    config = fakedet.compose(
        "train", f"--config-dir={folder / 'plugin' / 'conf'}", "model=hinge", data="manifest", data__manifest="m.csv"
    )
    assert config.model._target_ == "own_forensics.method.Hinge"
    assert str(folder / "plugin") in sys.path


@pytest.mark.slow
def test_a_misspelt_class_is_told_in_one_line_by_a_process_of_its_own(folder: Path, tiny_manifest: Path) -> None:
    done = run("train", "experiment=own", f"data.manifest={tiny_manifest}", *SMALL, "output_dir=run",
               "model.encoder._target_=own_forensics.encoder.DifferenceEncoders", folder=folder)  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
