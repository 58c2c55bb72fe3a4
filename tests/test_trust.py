"""A stranger's file runs no code: each way in is refused in one line, and nothing ran."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import fakedet
from fakedet.checkpoint import read_checkpoint, write_published
from fakedet.cli.app import launch
from fakedet.errors import UserError

PROOF = "FAKEDET_TEST_PROOF"


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once a stranger's code has run, and a package of theirs that would write it."""
    proof = tmp_path / "code-ran"
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(
        f"from pathlib import Path\nfrom torch import nn\nfrom fakedet.models.encoders import SmallEncoder\n"
        f"Path({str(proof)!r}).write_text('imported')\nclass Own(SmallEncoder): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(PROOF, str(proof))
    yield proof
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return read_checkpoint("demo")


def pickle_of(proof: Path, folder: Path) -> Path:
    """A pickle that writes the proof when it is loaded."""
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (Path.write_text, (proof, "unpickled"))

    path = folder / "harm.pkl"
    path.write_bytes(pickle.dumps(Harm()))
    return path


def hostile_encoders(proof: Path, folder: Path) -> dict[str, Any]:
    harm = str(pickle_of(proof, folder))
    small = {"_target_": "fakedet.models.encoders.SmallEncoder", "width": 32, "frontend": "npr"}
    write = {"_target_": "pathlib.Path.write_text", "self": str(proof), "data": "x"}
    return {
        "a module's module": {"_target_": "fakedet.models.backbones.torch.hub.load", "repo_or_dir": str(folder),
                              "model": "x", "source": "local"},
        "a module's function": {"_target_": "fakedet.metrics.per_generator.pd.read_pickle", "filepath": harm},
        "an imported function": {"_target_": "fakedet.models.backbones.load_state_dict", "checkpoint_path": harm},
        "an imported class": {"_target_": "fakedet.models.encoders.nn.Sequential"},
        "a class of another kind": {"_target_": "fakedet.models.features.FeatureFile", "path": str(proof)},
        "a function of ours": {"_target_": "fakedet.models.backbones.create_timm_model", "name": "resnet10t"},
        "the console command": {"_target_": "fakedet.__main__.main"},
        "builtins": {"_target_": "builtins.exec", "source": f"open({str(proof)!r}, 'w')"},
        "lightning": {"_target_": "lightning.pytorch.Trainer", "default_root_dir": str(proof)},
        "torch": {"_target_": "torch.load", "f": harm, "weights_only": False},
        "hydra": {"_target_": "hydra.utils.call", "config": write},
        "another package": {"_target_": "theirs.parts.Own"},
        "positional arguments": {**small, "_args_": [write]},
        "a partial": {**small, "_partial_": True},
        "recursion": {**small, "_recursive_": True},
        "a nested target": {**small, "frontend": write},
        "a target in a list": {**small, "width": [write]},
        "a nested target of ours": {**small, "frontend": {"_target_": "fakedet.models.features.FeatureFile",
                                                          "path": str(proof)}},
        "an object's attribute": {"_target_": "fakedet.models.encoders.SmallEncoder.__init__.__globals__"},
        "no name": {"_target_": "__import__('os').system", "command": "x"},
        "a number": {"_target_": 3},
        "a name of two lines": {"_target_": "fakedet.models.encoders.SmallEncoder\n"},
        "an encoder in the frontend's place": {**small, "frontend": dict(small)},
        "a relative name": {"_target_": "..models.encoders.SmallEncoder"},
        "an interpolation": {**small, "frontend": "${oc.env:HOME}"},
        "values of other kinds": {**small, "width": {1, 2}},
        "no such argument": {**small, "path": str(proof)},
    }  # fmt: skip


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("place", ["model", "stage1"])
def test_an_encoder_that_names_something_else_is_refused(
    place: str, ending: str, content: dict[str, Any], proof: Path, tmp_path: Path
) -> None:
    for name, encoder in hostile_encoders(proof, tmp_path).items():
        changed = copy.deepcopy(content)
        changed["fakedet"][place]["encoder"] = encoder
        path = tmp_path / f"stranger{ending}"
        if ending == ".ckpt":
            torch.save(changed, path)
        elif name == "values of other kinds":
            continue  # JSON has no such
        else:
            write_published(path, changed["state_dict"], changed["fakedet"])
        with pytest.raises(UserError) as told:
            fakedet.load(path)
        assert "\n" not in str(told.value), name
        assert str(path) in str(told.value), name
        assert not proof.exists(), name


def test_a_model_that_names_something_else_is_refused(content: dict[str, Any], proof: Path, tmp_path: Path) -> None:
    for target in (
        "theirs.parts.Own",
        "fakedet.models.encoders.SmallEncoder",
        "fakedet.methods.base.LightningModule",
        "fakedet.checkpoint.AtomicCheckpointIO",
        "os.system",
    ):
        changed = copy.deepcopy(content)
        changed["fakedet"]["model"]["_target_"] = target
        torch.save(changed, tmp_path / "stranger.ckpt")
        with pytest.raises(UserError, match=r"stranger\.ckpt: model names .* which is refused"):
            fakedet.load(tmp_path / "stranger.ckpt")
    assert not proof.exists()


def test_what_only_training_needs_is_not_built(content: dict[str, Any], proof: Path, tmp_path: Path) -> None:
    """Loss, optimiser and copies of a checkpoint may be a user's own: a detector is loaded without them."""
    changed = copy.deepcopy(content)
    for key in ("loss", "optimizer", "copies"):
        changed["fakedet"]["model"][key] = {"_target_": "theirs.parts.Own"}
    torch.save(changed, tmp_path / "own.ckpt")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(fakedet.load(tmp_path / "own.ckpt")(images), fakedet.load("demo")(images))
    assert not proof.exists()


def test_a_package_is_trusted_by_name_and_for_the_right_kind_alone(
    content: dict[str, Any], proof: Path, tmp_path: Path
) -> None:
    changed = copy.deepcopy(content)
    changed["fakedet"]["model"]["encoder"]["_target_"] = "theirs.parts.Own"
    path = tmp_path / "own.ckpt"
    torch.save(changed, path)
    with pytest.raises(UserError, match=r"trust=\[theirs\]"):
        fakedet.load(path, trust=["their", "parts"])
    assert not proof.exists()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(fakedet.load(path, trust=["theirs"])(images), fakedet.load("demo")(images))
    assert proof.read_text() == "imported"
    changed["fakedet"]["model"]["encoder"]["_target_"] = "theirs.parts.Path"
    torch.save(changed, path)
    with pytest.raises(UserError, match="not a class that is defined in theirs"):
        fakedet.load(path, trust=["theirs"])


@pytest.mark.parametrize("verb", ["predict", "evaluate", "export", "serve"])
def test_every_verb_refuses_it_in_one_line(
    verb: str, content: dict[str, Any], proof: Path, tmp_path: Path, tiny_manifest: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    changed = copy.deepcopy(content)
    changed["fakedet"]["model"]["encoder"] = {
        "_target_": "fakedet.metrics.per_generator.pd.read_pickle",
        "filepath": str(pickle_of(proof, tmp_path)),
    }
    torch.save(changed, "stranger.ckpt")
    further = {
        "predict": [f"source={tiny_manifest.parent}"],
        "evaluate": [f"data.manifest={tiny_manifest}", "output_dir=out"],
        "export": ["output=x.safetensors"],
        "serve": ["port=7999"],
    }
    assert launch(verb, ["checkpoint=stranger.ckpt", *further[verb]]) == 2
    said = capfd.readouterr()
    assert "stranger.ckpt: model.encoder names" in said.err
    assert "Traceback" not in said.out + said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not proof.exists()


@pytest.mark.parametrize(
    "point",
    [
        {"_target_": "os.system"},
        [],
        {"threshold": "x"},
        {"threshold": {"_target_": "os.system"}},
        {"calibration": {"kind": "temperature", "scale": "x", "shift": 0, "knots": [[], []]}},
        {"reference": {"centre": [0], "spread": [1, 1], "scores": ["x"]}},
        {"reference": {"centre": [0, 0], "spread": [1, 1], "scores": "x"}},
        {"n_real": "many"},
        {"threshold": float("nan")},
        {"fakes": [float("nan")]},
        {"fakes": ["x"]},
        {"notes": [1]},
        {
            "reference": {
                "centre": [0, 0],
                "spread": [1, 1],
                "scores": [0.0, 1.0],
                "strata": {"names": ["a"], "cells": [0, 10**12], "groups": [0, 1]},
            }
        },
        {
            "reference": {
                "centre": [0, 0],
                "spread": [1, 1],
                "scores": [0.0, 1.0],
                "strata": {"names": ["a"], "cells": [0], "groups": [0]},
            }
        },
        {
            "reference": {
                "centre": [0, 0],
                "spread": [1, 1],
                "scores": [0.0, 1.0],
                "strata": {"names": ["\x1b[2J"], "cells": [0, 0], "groups": [0, 1]},
            }
        },
        {"fakes": [0.0], "families": {"names": ["a"], "cells": ["x"], "groups": [0]}},
        {"fakes": [0.0], "families": {"names": ["a"], "cells": [0], "groups": [10**12]}},
        {"left_out": {"mean": {"value": "x"}, "shares": {"a": 0.1}, "sizes": {"a": 1}}},
        {"left_out": {"mean": {"value": 0.1}, "shares": {"a": "x"}, "sizes": {"a": 1}}},
        {"left_out": {"mean": {"value": 0.1}, "shares": {"\x1b[2J": 0.2}, "sizes": {}}},
        {"left_out": 3},
    ],
    ids=str,
)
def test_an_operating_point_of_other_values_is_refused(point: Any, content: dict[str, Any], tmp_path: Path) -> None:
    changed = copy.deepcopy(content)
    known = changed["fakedet"]["operating_point"]
    changed["fakedet"]["operating_point"] = {**known, **point} if point and "_target_" not in point else point
    torch.save(changed, tmp_path / "stranger.ckpt")
    with pytest.raises(UserError, match=r"stranger\.ckpt is damaged: .*operating.point") as told:
        fakedet.load(tmp_path / "stranger.ckpt")
    assert "\n" not in str(told.value)


def test_pytorch_s_old_format_is_told(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old\.ckpt cannot be read as a checkpoint: it is damaged"):
        fakedet.load(tmp_path / "old.ckpt")


def test_an_older_checkpoint_and_unknown_values_are_told(content: dict[str, Any], tmp_path: Path) -> None:
    for change, told in (
        ({"format": 1}, r"was written by fakedet 0\.1"),
        ({"format": 99}, "was written by another version"),
        ({"crop_size": "64"}, "'crop_size' in it is no int"),
        ({"crop_size": True}, "'crop_size' in it is no int"),
        ({"crop_size": 0}, "'crop_size' in it is 0"),
        ({"crop_size": 2**14}, "'crop_size' in it is 16384"),
        ({"name": "\x1b[31m evil\nx"}, "'name' in it is no str"),
        ({"seen_generators": [1, None, {"a": 1}]}, "'seen_generators' in it is no list"),
        ({"seen_generators": ["\x9b31m"]}, "'seen_generators' in it is no list"),
        ({"training_data": {"jpeg_quality": "abc"}}, "'training_data' in it is no dict"),
        ({"training_data": {"jpeg_quality": [70]}}, "'training_data' in it is no dict"),
        ({"training_data": {"real": 3}}, "'training_data' in it is no dict"),
        ({"training_data": [1]}, "'training_data' in it is no dict"),
        ({"eval_policy": "crops"}, "'eval_policy' in it: 'crops' is not known"),
        ({"seen_generators": {}}, "'seen_generators' in it is no list"),
        ({"more": 1}, "it holds 'more'"),
        ({"model": None}, "'model' in it is no dict"),
        ({"model": {}}, "'model' in it is no model config"),
    ):
        torch.save({**content, "fakedet": {**content["fakedet"], **change}}, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=rf"other\.ckpt.*{told}"):
            fakedet.load(tmp_path / "other.ckpt")


def test_a_resume_point_that_holds_code_is_refused(
    tiny_manifest: Path, proof: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (Path.write_text, (proof, "unpickled"))

    run = tmp_path / "run"
    arguments = ["model=bce", "data=manifest", "data.crop_size=32", "data.batch_size=8", "trainer.max_epochs=1",
                 "threads=1", "bootstrap.resamples=0", "header_audit=false", f"data.manifest={tiny_manifest}",
                 f"output_dir={run}", "data.steps_per_epoch=2"]  # fmt: skip
    assert launch("train", arguments) == 0
    (run / "run.json").unlink()
    torch.save({"fakedet": {}, "state_dict": {}, "harm": Harm()}, run / "checkpoints" / "resume.ckpt")
    capfd.readouterr()
    assert launch("resume", [f"run={run}"]) == 2
    said = capfd.readouterr().err
    assert "holds more than tensors and plain values" in said
    assert len(said.strip().splitlines()) == 1
    assert not proof.exists()


def test_manifests_and_predictions_name_nothing(
    proof: Path, tmp_path: Path, tiny_manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their values are text, whatever it looks like; a pickle under their name is told."""
    harm = pickle_of(proof, tmp_path)
    for name in ("manifest.parquet", "manifest.csv"):
        (tmp_path / name).write_bytes(harm.read_bytes())
        assert launch("audit", [f"data.manifest={tmp_path / name}", f"output_dir={tmp_path / 'audit'}"]) == 2
    (tmp_path / "predictions.parquet").write_bytes(harm.read_bytes())
    report = [f"predictions={tmp_path / 'predictions.parquet'}", f"output_dir={tmp_path / 'report'}"]
    assert launch("report", report) == 2
    frame = pd.DataFrame({"path": ["a.png"], "label": [0], "generator": ["x"], "logit": [0.0]})
    identity = {"model": {"_target_": "theirs.parts.Own"}, "operating_point": {"_target_": "os.system"}}
    table = pa.Table.from_pandas(frame).replace_schema_metadata(
        {
            b"fakedet": json.dumps(identity).encode(),
            b"pandas": b'{"index_columns": [{"_target_": "os.system"}]}',
        }
    )
    pq.write_table(table, tmp_path / "predictions.parquet")
    assert launch("report", report) == 0, "one photograph is reported on, and what the info says is text"
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert len(said.err.strip().splitlines()) == 3
    assert not proof.exists()
