"""Detectors to hand on: the same bits as the checkpoint, damage told, and a card that says what metrics.json says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fakedet
from fakedet.checkpoint import read_checkpoint
from fakedet.cli.app import launch
from fakedet.errors import UserError
from fakedet.export import model_card


@pytest.fixture(scope="module")
def run(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("FAKEDET_VAE", raising=False)  # an export leaves out where a file lies
        assert launch("train", [
            "model=ntf", "data=manifest", "data.crop_size=32", "data.batch_size=16", "debug=step", "threads=1",
            "header_audit=false", f"data.manifest={tiny_manifest_module}", f"output_dir={root}/run",
            "stage1_cache=null", "bootstrap.resamples=50",
        ]) == 0  # fmt: skip
    checkpoint = root / "run" / "checkpoints" / "best.ckpt"
    assert launch("export", [f"checkpoint={checkpoint}", f"output={root}/one.safetensors", "check=5"]) == 0
    return root


def test_it_is_the_checkpoint_bit_for_bit(run: Path) -> None:
    original = read_checkpoint(run / "run" / "checkpoints" / "best.ckpt")
    handed = read_checkpoint(run / "one.safetensors")
    assert handed["fakedet"] == json.loads(json.dumps(original["fakedet"]))
    assert set(handed["state_dict"]) == set(original["state_dict"])
    for name, tensor in original["state_dict"].items():
        assert torch.equal(handed["state_dict"][name], tensor), name
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, two = (fakedet.load(run / path, "cpu").module(images) for path in
                ("one.safetensors", "run/checkpoints/best.ckpt"))  # fmt: skip
    assert torch.equal(one.logit, two.logit)
    assert torch.equal(one.trace_distance, two.trace_distance)


def test_the_card_says_what_metrics_say(run: Path) -> None:
    card = (run / "one.md").read_text()
    metrics = json.loads((run / "run" / "metrics.json").read_text())
    for name, row in metrics["per_generator"].items():
        seen = "seen" if row["seen"] else "unseen"
        ap = row["ap"]
        told = f"| {name} ({seen}) | {row['n_real']} / {row['n_fake']} | {ap['value']:.2f} [{ap['low']:.2f}, "
        assert told in card
    assert "Trained by `fakedet train model=ntf" in card
    assert "output_dir" not in card
    assert "pretrained" not in card, "its encoder began from nothing"
    counts = read_checkpoint(run / "one.safetensors")["fakedet"]["training_data"]
    for name, count in counts["fake"].items():
        assert f"| fake: {name} | {count} |" in card


def test_the_card_names_a_pretrained_encoder(run: Path) -> None:
    detector = fakedet.load(run / "one.safetensors", "cpu")
    encoder = {"_target_": "fakedet.models.backbones.FrozenEncoder", "name": "vit_tiny", "pretrained": True}
    for weights, told in (
        (None, "timm's weights of that name"),
        ("/somewhere/clip.safetensors", "`clip.safetensors`"),
    ):
        detector.info["model"]["encoder"] = {**encoder, "weights": weights}
        card = " ".join(model_card(detector, "two").split())
        assert f"timm's `vit_tiny`, pretrained ({told})" in card
        assert "/somewhere" not in card


def test_others_may_read_what_was_handed_on(run: Path) -> None:
    plain = run / "plain.txt"
    plain.touch()
    assert (run / "one.safetensors").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("place", [0, 20, 100, 1000, 2000, 3000, -5, -4000])
def test_a_damaged_file_is_told(run: Path, tmp_path: Path, place: int) -> None:
    content = bytearray((run / "one.safetensors").read_bytes())
    content[place] ^= 0x10
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"copy it anew|weights alone|lacks"):
        read_checkpoint(broken)
    broken.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(UserError, match="copy it anew"):
        read_checkpoint(broken)


def test_weights_of_others_are_no_detector(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(1, 8)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds weights alone, not a detector"):
        fakedet.load(tmp_path / "other.safetensors")


def test_the_demo_detector_comes_with_fakedet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    detector = fakedet.load("demo")
    assert detector.info["seen_generators"] == ["nearest", "shuffle", "transposed"]
    assert detector.info["training_data"]["manifest"] == "manifest.csv"
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(picture).save("picture.png")
    assert launch("predict", ["checkpoint=demo", "source=picture.png"]) == 0
    assert "picture.png" in Path("predictions.csv").read_text()
    # A file of that name goes first.
    Path("demo").write_text("not a detector")
    with pytest.raises(UserError, match="cannot be read"):
        fakedet.load("demo")
