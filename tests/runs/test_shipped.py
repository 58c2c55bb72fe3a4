"""The detectors that come with fakedet: the default one, what it needs, and the demonstration."""

import json
import logging
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import fakedet
from fakedet.checkpoint import read_checkpoint
from fakedet.cli.app import launch
from fakedet.errors import UserError
from fakedet.models.backbones import FrozenBackbone, MissingWeights, create_timm_model, public_backbones
from fakedet.models.features import check_backbones
from fakedet.shipped import BACKBONES, DEFAULT, SHIPPED

ROOT = Path(fakedet.__file__).parents[1]
QUICK = """
import sys
from fakedet.cli import main
sys.argv = ["fakedet", *sys.argv[1:]]
status = main()
assert not {"torch", "lightning", "timm"} & set(sys.modules), "slow imports before the message"
sys.exit(status)
"""


def quickly(*words: str) -> tuple[int, str]:
    """Run the command without its slow imports; the hub does not answer."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("FAKEDET_", "HF_"))}
    known |= {"HF_HOME": "/none", "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", QUICK, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=known)
    return done.returncode, done.stderr.strip()


def test_the_default_detector_lies_in_the_repository_without_its_backbone() -> None:
    file = ROOT / "experiments" / "wide" / "detector.safetensors"
    assert SHIPPED[DEFAULT] == file
    assert file.stat().st_size <= 5_000_000
    content = read_checkpoint(DEFAULT)
    assert not [name for name in content["state_dict"] if ".backbone.model." in name]
    assert content["fakedet"]["operating_point"]
    for one in content["fakedet"]["backbones"].values():
        assert timm.get_pretrained_cfg(one["name"]).hf_hub_id == BACKBONES[one["name"]].repository
        assert {"sha256", "vectors"} <= set(one)
    card = file.with_suffix(".md").read_text()
    for name in (*content["fakedet"]["training_data"]["real"], *content["fakedet"]["training_data"]["fake"]):
        assert f"| {name} |" in card
    assert len(card.splitlines()) <= 110, "two screens"
    published = card.encode() + file.read_bytes()
    assert not [word for word in (b"/work/", b"/tmp/", b"/home/") if word in published], "folders of one machine"


@pytest.mark.parametrize("verb", ["predict", "serve"])
def test_where_the_backbone_is_missing_one_line_says_what_to_fetch(verb: str) -> None:
    for more in ([], ["checkpoint=wide"]):
        status, said = quickly(verb, "source=x", *more) if verb == "predict" else quickly(verb, *more)
        assert status == 2
        assert len(said.splitlines()) == 1, said
        for told in (
            "huggingface.co/timm/vit_base_patch16_clip_224.openai/", "backbone=FILE", "FAKEDET_CLIP=FILE",
            "experiments/clip/README.md", "checkpoint=demo works without", "simulated fakes only",
        ):  # fmt: skip
            assert told in said
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("FAKEDET_CLIP", raising=False)
        patched.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*FAKEDET_CLIP=FILE"):
            fakedet.load()


def test_what_names_a_file_of_weights_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKEDET_CLIP", "/nowhere/clip.safetensors")
    with pytest.raises(UserError, match=r"FAKEDET_CLIP: there is no file /nowhere/clip.safetensors"):
        fakedet.load()
    with pytest.raises(UserError, match=r"backbone: there is no file /nowhere/other.safetensors"):
        fakedet.load(backbone="/nowhere/other.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint at demoo; .* wide and demo come with fakedet"):
        fakedet.load("demoo")


def test_where_the_weights_are_missing_one_line_says_which_file_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHIPPED, DEFAULT, tmp_path / "experiments" / "wide" / "detector.safetensors")
    for verb, more in (("predict", ["source=x"]), ("serve", []), ("export", ["checkpoint=wide"])):
        assert launch(verb, more) == 2
        said = capfd.readouterr().err.strip()
        assert len(said.splitlines()) == 1, said
        assert "fetch experiments/wide/detector.safetensors from fakedet's repository and pass checkpoint=FILE" in said
        assert "checkpoint=demo works without" in said


def test_the_demonstration_says_once_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", np.zeros((80, 80, 3), np.uint8))
    cv2.imwrite("b.png", np.zeros((80, 80, 3), np.uint8))
    assert launch("predict", ["checkpoint=demo", "source=."]) == 0
    assert capfd.readouterr().out.count("demonstration, trained on simulated generators") == 1
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(f"{record.levelname}: {record.getMessage()}")
    monkeypatch.setattr(logging.getLogger("fakedet"), "handlers", [handler])
    detector = fakedet.load("demo")
    detector.predict("a.png")
    assert len(heard) == 1
    assert heard[0].startswith("WARNING: checkpoint=demo is a demonstration")


@pytest.mark.slow
def test_the_page_says_what_the_demonstration_is(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "fakedet", "serve", "checkpoint=demo", "threads=1"], text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)},
    ) as running:  # fmt: skip
        try:
            assert running.stdout is not None
            address = next(found[1] for line in running.stdout if (found := re.search(r"the page is at (\S+)", line)))
            with urllib.request.urlopen(address) as answer:
                page = answer.read().decode()
        finally:
            running.terminate()
    assert page.count("Demonstration: this detector knows simulated fakes only") == 1


def test_without_the_hub_timm_loads_from_its_cache_and_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "test_efficientnet.r160_in1k"
    begun = time.monotonic()
    with pytest.raises(MissingWeights, match=r"127\.0\.0\.1:9: .*refused"):
        create_timm_model(name, pretrained=True, cache_dir=tmp_path)
    assert time.monotonic() - begun < 5
    repository = tmp_path / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    folder = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder.mkdir(parents=True)
    made = timm.create_model(name.split(".")[0])
    save_file(made.state_dict(), folder / "model.safetensors")
    begun = time.monotonic()
    loaded = create_timm_model(name, pretrained=True, cache_dir=tmp_path)
    assert time.monotonic() - begun < 5
    assert torch.equal(loaded.state_dict()["conv_stem.weight"], made.state_dict()["conv_stem.weight"])
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "later downloads must be tried"


def test_a_backbone_whose_matrices_are_rounded_will_do_and_another_one_will_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP's weights from a file of 8 bits stand in for OpenAI's own, and the other way round."""
    monkeypatch.setattr(logging.getLogger("fakedet"), "propagate", True)
    model = timm.create_model("test_vit", num_classes=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rounded, other = dict(state), dict(state)
    for name, value in state.items():
        if value.ndim == 2:
            step = value.abs().amax(dim=1, keepdim=True) / 127
            rounded[name] = (value / step).round() * step
    other["norm.weight"] = state["norm.weight"] * 1.1
    infos = []
    for number, weights in enumerate((state, rounded, other)):
        save_file(weights, tmp_path / f"{number}.safetensors")
        backbone = FrozenBackbone("test_vit", True, str(tmp_path / f"{number}.safetensors"), None, [0])
        infos.append({"backbones": public_backbones(torch.nn.ModuleDict({"encoder": backbone}))})
    check_backbones(infos[1], infos[0], "x.ckpt", "backbone", rounded=True)
    assert "x.ckpt was trained over its backbone 'test_vit' with other rounding" in caplog.text
    for wanted, found, may_round in ((infos[1], infos[0], False), (infos[1], infos[2], True)):
        with pytest.raises(UserError, match="over other weights"):
            check_backbones(wanted, found, "x.ckpt", "backbone", rounded=may_round)
    old = {"backbones": {place: {key: value for key, value in one.items() if key != "vectors"}
                         for place, one in infos[1]["backbones"].items()}}  # fmt: skip
    with pytest.raises(UserError, match="over other weights"):
        check_backbones(old, infos[0], "x.ckpt", "backbone", rounded=True)
    assert json.dumps(infos)
