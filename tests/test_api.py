"""`import fakedet`: the same verdicts from paths, PIL images, arrays and tensors, and the verbs from Python."""

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import fakedet
from fakedet.cli.app import launch
from fakedet.detector import COLUMNS, Rules

CONF = Path(__file__).parent.parent / "conf"
NUMBERS = ["score", "p_value", "stability", "logit", "tile_score"]


@pytest.fixture(scope="module")
def detector() -> fakedet.Detector:
    return fakedet.load("demo", device="cpu")


@pytest.fixture
def multi_crop() -> fakedet.Detector:
    changed = fakedet.load("demo", device="cpu")
    changed.crop_policy = "multi-crop"
    return changed


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


# --- the package ---------------------------------------------------------------------------------------------


def test_import_is_light_and_every_name_is_there() -> None:
    heavy = "[name for name in ('torch', 'numpy', 'hydra') if name in sys.modules]"
    program = f"import fakedet, sys; print({heavy}, fakedet.__version__)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.split("]")[0] == "["
    assert told.split()[-1] == fakedet.__version__
    assert set(fakedet.__all__) <= set(dir(fakedet))
    assert all(getattr(fakedet, name) is not None for name in fakedet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = fakedet.lod


def test_type_checkers_see_what_the_interpreter_sees() -> None:
    source = Path(fakedet.__file__)
    seen = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fakedet")
        for alias in node.names
    }
    assert {name for _, name in seen} == set(fakedet.__all__) - {"__version__"}
    assert all(getattr(fakedet, name).__module__ == module for module, name in seen)
    assert (source.parent / "py.typed").is_file()


# --- predict -------------------------------------------------------------------------------------------------


def test_one_image_in_any_form_gets_the_same_prediction(detector: fakedet.Detector, tmp_path: Path) -> None:
    image, path = noise(90, 120), tmp_path / "a.png"
    Image.fromarray(image).save(path)
    from_path = detector.predict(path)
    assert isinstance(from_path, fakedet.Prediction)
    assert from_path.path == str(path)
    assert from_path.verdict in ("real", "fake", "undecided")
    assert 0 <= from_path.score <= 1
    assert 0 < from_path.p_value <= 1
    assert (from_path.width, from_path.height, from_path.format) == (120, 90, "PNG")
    assert from_path.error is None
    forms = [str(path), path.read_bytes(), Image.open(path), Image.fromarray(image), image]
    for prediction in map(detector.predict, forms):
        for name in ("verdict", "reason", "width", "height", *NUMBERS):
            assert getattr(prediction, name) == getattr(from_path, name), name
    # A tensor is a batch: one row.
    for batch in (as_tensor(image), as_tensor(image) / 255, (as_tensor(image) / 255).double()):
        (row,) = detector.predict(batch).to_dict("records")
        assert {name: row[name] for name in NUMBERS} == {name: getattr(from_path, name) for name in NUMBERS}


def test_a_turned_jpeg_is_one_image_whoever_opens_it(detector: fakedet.Detector, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(90, 150)).save(path, quality=90, exif=exif)
    from_path, opened = detector.predict(path), detector.predict(Image.open(path))
    assert (opened.logit, opened.jpeg_quality) == (from_path.logit, 90)
    unturned = Image.open(path)
    unturned.getexif().clear()
    unturned.info.pop("exif")
    assert detector.predict(unturned).logit != from_path.logit


def test_many_images_are_a_table_in_their_order(detector: fakedet.Detector, tmp_path: Path) -> None:
    for number, name in enumerate(("b.png", "a.png", "deep/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(80, 80, number)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("not an image")
    table = detector.predict(tmp_path)
    assert tuple(table.columns) == COLUMNS
    assert [Path(path).name for path in table["path"]] == ["a.png", "b.png", "broken.jpg", "notes.txt", "c.png"]
    assert table["error"][3] == "not looked at: a text file is no image"
    mixed = detector.predict([noise(80, 80, 1), tmp_path / "b.png", Image.fromarray(noise(80, 80, 2)), "gone.png"])
    assert mixed["logit"][:3].tolist() == pytest.approx(table["logit"][[0, 1, 4]].tolist(), abs=1e-5)
    assert mixed["path"].tolist() == ["", str(tmp_path / "b.png"), "", "gone.png"]
    assert mixed["error"].isna().tolist() == [True, True, True, False]
    assert mixed["error"][3] == "no such file"
    of_series = detector.predict(table["path"][:2])
    assert of_series["logit"].tolist() == pytest.approx(table["logit"][:2].tolist(), abs=1e-5)
    assert detector.predict([]).empty
    assert tuple(detector.predict([]).columns) == COLUMNS
    (tmp_path / "empty").mkdir()
    with pytest.raises(fakedet.UserError, match="there are no images"):
        detector.predict(tmp_path / "empty")


def test_a_file_that_cannot_be_read_says_why(detector: fakedet.Detector, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    prediction = detector.predict(tmp_path / "text.png")
    assert prediction.verdict is None
    assert np.isnan(prediction.score)
    assert "not an image" in str(prediction.error)
    with pytest.raises(fakedet.UserError, match=r"text\.png cannot be read: not an image"):
        detector.embed(tmp_path / "text.png")
    with pytest.raises(fakedet.UserError, match=r"text\.png cannot be read: not an image"):
        detector.heatmap(tmp_path / "text.png")


def test_rows_are_those_of_the_command_line(detector: fakedet.Detector, tmp_path: Path) -> None:
    for number, suffix in enumerate((".png", ".jpg", ".webp")):
        Image.fromarray(noise(100, 200, number)).save(tmp_path / f"{number}{suffix}")
    output = tmp_path.with_name(f"{tmp_path.name}.csv")
    assert launch("predict", ["checkpoint=demo", f"source={tmp_path}", f"output={output}", "device=cpu"]) == 0
    told, table = pd.read_csv(output), detector.predict(tmp_path)
    assert tuple(told.columns) == tuple(table.columns)
    for name in NUMBERS:
        np.testing.assert_allclose(told[name], table[name], rtol=1e-5)
    assert told["verdict"].tolist() == table["verdict"].tolist()
    assert told["jpeg_quality"].fillna(0).tolist() == table["jpeg_quality"].fillna(0).tolist()


@pytest.mark.parametrize("verb", ["predict", "serve"])
def test_defaults_are_those_of_the_command_line(verb: str) -> None:
    config: Any = OmegaConf.load(CONF / f"{verb}.yaml")
    given = (config.false_alarm, config.miss, tuple(config.views), config.tiles)
    assert Rules(*given, frames=config.get("frames", 8), all_views=config.all_views) == Rules()
    parameters = inspect.signature(fakedet.Detector.predict).parameters
    assert {name: parameters[name].default for name in asdict(Rules())} == asdict(Rules())
    heatmap_tiles = inspect.signature(fakedet.Detector.heatmap).parameters["tiles"].default
    assert verb == "serve" or heatmap_tiles == config.heatmap_tiles


def test_settings_are_checked_and_count(detector: fakedet.Detector) -> None:
    image = noise(200, 200)
    assert np.isnan(detector.predict(image, views=[], tiles=0).stability)
    assert detector.predict(image, views=["jpeg/80", "blur/1", "webp/50"], tiles=0).stability in (
        0,
        1 / 3,
        2 / 3,
        1,
    )
    with pytest.raises(fakedet.UserError, match="false_alarm=2: a share between 0 and 1"):
        detector.predict(image, false_alarm=2)
    with pytest.raises(fakedet.UserError, match="did you mean 'jpeg'"):
        detector.predict(image, views=["jpg/80"])
    with pytest.raises(fakedet.UserError, match="tiles=-1"):
        detector.predict(image, tiles=-1)
    assert detector.predict(image, views="jpeg/80", tiles=0) == detector.predict(image, views=["jpeg/80"], tiles=0)
    for call in (detector.predict, detector.embed):
        with pytest.raises(fakedet.UserError, match="batch_size=0: must be at least 1"):
            call(image, batch_size=0)


def test_a_detector_without_an_operating_point_gives_logits_alone(detector: fakedet.Detector) -> None:
    bare = fakedet.load("demo", device="cpu")
    bare.operating_point = None
    images = as_tensor(noise(64, 64)) / 255
    assert torch.equal(bare(images), detector(images))
    with pytest.raises(fakedet.UserError, match="no operating point"):
        bare.predict(noise(64, 64))


def test_the_heatmap_is_the_image_and_a_legend(detector: fakedet.Detector) -> None:
    image = noise(400, 600)
    drawn = detector.heatmap(image)
    assert drawn.shape[1:] == (600, 3)
    assert 420 < drawn.shape[0] < 520
    assert drawn.dtype == np.uint8
    assert not np.array_equal(drawn[:400], image)
    grey = [cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).ravel() for one in (drawn[:400], image)]
    assert np.corrcoef(grey)[0, 1] > 0.8, "the image can be seen through the colours"


def test_views_that_cannot_change_the_verdict_are_scored_on_request_alone(
    detector: fakedet.Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    blurs = np.random.default_rng(0).uniform(0.1, 3, 24)
    images = [cv2.GaussianBlur(noise(150, 200, seed), (0, 0), blur) for seed, blur in enumerate(blurs)]
    counts: list[int] = []
    score = detector.module.score_views
    monkeypatch.setattr(detector.module, "score_views", lambda views: (counts.append(len(views)), score(views))[1])
    quick = detector.predict(images)
    needed = sum(counts)
    whole = detector.predict(images, all_views=True)
    assert quick["verdict"].tolist() == whole["verdict"].tolist()
    clear = detector.predict(images, views=[], tiles=0)["verdict"] != "undecided"
    assert 0 < clear.sum() < len(images), "some are undecided by themselves, some are not"
    columns = ["score", "p_value", "logit"]
    pd.testing.assert_frame_equal(quick[columns], whole[columns])
    assert quick["stability"].isna().tolist() == (~clear).tolist()
    assert not whole["stability"].isna().any()
    same = (quick["verdict"] != "undecided") | ~clear  # of the others all that disagree are named only on request
    assert quick["reason"][same].tolist() == whole["reason"][same].tolist()
    assert needed < sum(counts) - needed


# --- logits and embeddings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 100), (200, 70)])
def test_logits_are_of_the_centre(detector: fakedet.Detector, height: int, width: int) -> None:
    images = as_tensor(noise(height, width, 0), noise(height, width, 1)) / 255
    top, left = (height - 64) // 2, (width - 64) // 2
    with torch.no_grad():
        expected = detector.module(images[:, :, top : top + 64, left : left + 64]).logit
    logits = detector(images)
    assert logits.shape == (2,)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    table = detector.predict(list((images * 255).round().byte().permute(0, 2, 3, 1).numpy()), views=[], tiles=0)
    np.testing.assert_allclose(logits, table["logit"], atol=1e-5)


def test_small_images_are_padded_by_reflection(detector: fakedet.Detector) -> None:
    image = noise(40, 1)
    padded = np.pad(image, [(12, 12), (31, 32), (0, 0)], mode="reflect")
    torch.testing.assert_close(detector(as_tensor(image) / 255), detector(as_tensor(padded) / 255), rtol=0, atol=1e-5)


def test_multi_crop_averages_five_crops(multi_crop: fakedet.Detector) -> None:
    image = noise(100, 130)
    places = [(18, 33), (0, 0), (0, 66), (36, 0), (36, 66)]
    crops = as_tensor(*(image[top : top + 64, left : left + 64] for top, left in places)) / 255
    with torch.no_grad():
        scores = multi_crop.module(crops)
    torch.testing.assert_close(multi_crop(as_tensor(image) / 255), scores.logit.mean()[None], rtol=0, atol=1e-5)
    for form in (image, as_tensor(image), as_tensor(image) / 255):
        np.testing.assert_allclose(multi_crop.embed(form), scores.embedding.mean(dim=0)[None], atol=1e-5)


def test_a_detector_that_resizes_takes_tensors_of_its_size_only() -> None:
    resizing = fakedet.load("demo", device="cpu")
    resizing.crop_policy = "resize"
    image = noise(64, 64)
    assert float(resizing(as_tensor(image) / 255)) == pytest.approx(resizing.predict(image).logit, abs=1e-5)
    with pytest.raises(fakedet.UserError, match="resizes images to 64 x 64 first"):
        resizing(as_tensor(noise(64, 65)) / 255)
    assert resizing.predict(noise(64, 65)).verdict


def test_embeddings_keep_the_order(detector: fakedet.Detector, tmp_path: Path) -> None:
    images = [noise(70, 80, number) for number in range(3)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    found = detector.embed(tmp_path, batch_size=2)
    assert found.dtype == np.float32
    assert len(found) == 3
    with torch.no_grad():
        expected = detector.module(as_tensor(*images)[:, :, 3:67, 8:72] / 255).embedding
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(detector.embed(images[1]), expected[1:2], atol=1e-5)
    assert detector.embed([]).shape == (0, expected.shape[1])
    assert detector.embed(as_tensor(*images)[:0]).shape == (0, expected.shape[1])
    assert detector(as_tensor(*images)[:0].float()).shape == (0,)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_will_do(detector: fakedet.Detector, kind: torch.dtype) -> None:
    images = torch.full((1, 3, 64, 64), 0.5)  # exact in all of them
    torch.testing.assert_close(detector(images.to(kind)), detector(images))
    with pytest.raises(fakedet.UserError, match="its values run from"):
        detector((images + 1).to(kind))


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "divide uint8 by 255"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.int64), r"torch\.int64"),
        (torch.full((2, 3, 64, 64), 255.0), "from 255 to 255: divide 0 ... 255 by 255"),
        (torch.randn(2, 3, 64, 64), "do not normalise"),
        (torch.full((2, 3, 64, 64), torch.nan), "from nan to nan"),
        (torch.zeros(3, 64, 64), r"as in image\[None\]"),
        (torch.zeros(2, 64, 64, 3), r"images\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(2, 1, 64, 64), r"wanted \(N, 3, H, W\)"),
        (torch.zeros(2, 4, 64, 64), r"wanted \(N, 3, H, W\)"),
        (torch.zeros(2, 3, 0, 64), r"wanted \(N, 3, H, W\)"),
        (np.zeros((2, 3, 64, 64), np.float32), "wanted a float tensor"),
        ("a.png", "predict and embed take other images"),
    ],
)
def test_a_call_refuses_what_is_not_a_float_batch(detector: fakedet.Detector, given: Any, message: str) -> None:
    with pytest.raises(fakedet.UserError, match=message):
        detector(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), r"array of float32 .* wanted uint8 \(H, W, 3\) in RGB"),
        (np.zeros((64, 64, 3), np.int64), "array of int64"),
        (np.zeros((3, 64, 64), np.uint8), r"channels last, as in image\.transpose\(1, 2, 0\)"),
        (np.zeros((64, 64), np.uint8), r"convert\('RGB'\)"),
        (np.zeros((64, 64, 4), np.uint8), r"convert\('RGB'\)"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"as a list, as in predict\(list\(images\)\)"),
        (np.zeros((0, 64, 3), np.uint8), "at least one pixel"),
        (torch.zeros(3, 64, 64), r"image\[None\]"),
        (torch.zeros(1, 64, 64, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.full((1, 3, 64, 64), 2.0), "divide 0 ... 255 by 255"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int32), r"torch\.int32"),
        (7, "an object of type int is not an image; wanted: a path, a folder"),
        (None, "an object of type NoneType is not an image"),
        ([np.zeros((9, 9, 3), np.uint8), 7], "an object of type int is not an image"),
        ([torch.zeros(1, 3, 9, 9)], r"torch\.Tensor is not an image"),
    ],
)
def test_predict_and_embed_refuse_what_is_no_image(detector: fakedet.Detector, given: Any, message: str) -> None:
    for method in (detector.predict, detector.embed):
        with pytest.raises(fakedet.UserError, match=message):
            method(given)


def test_loading_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(fakedet.UserError, match="no checkpoint at"):
        fakedet.load(tmp_path / "gone.ckpt")
    with pytest.raises(fakedet.UserError, match="device=tpu9"):
        fakedet.load("demo", device="tpu9")


# --- training and evaluation ---------------------------------------------------------------------------------


def test_train_load_evaluate(tiny_manifest_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared = {"data__crop_size": 32, "header_audit": False, "bootstrap__resamples": 10, "threads": 1}
    run = fakedet.train(
        "debug=step",
        model="bce",
        data="manifest",
        data__manifest=tiny_manifest_module,
        output_dir="runs/a, b=c",
        **shared,
    )
    assert run.folder == tmp_path / "runs" / "a, b=c"
    assert run.checkpoint.is_file()
    assert run.metrics == json.loads((run.folder / "metrics.json").read_text())
    written = OmegaConf.load(run.folder / "overrides.yaml")
    assert "model=bce" in list(written)
    detector = run.load(device="cpu")
    assert detector.generators == ["gen_a", "gen_b"]
    found = fakedet.evaluate(run.checkpoint, tiny_manifest_module, output_dir=Path("runs/e"), **shared)
    assert found.folder == tmp_path / "runs" / "e"
    assert found.metrics == json.loads((found.folder / "metrics.json").read_text())
    assert found.metrics["map"]["value"] == pytest.approx(run.metrics["map"]["value"])
    frame = found.predictions
    assert len(frame) == 24
    own = detector.predict([tiny_manifest_module.parent / path for path in frame["path"]], views=[], tiles=0)
    np.testing.assert_allclose(own["logit"], frame["logit"], atol=1e-4)
    again = fakedet.average_precision(frame, resamples=0)
    assert again.generators["gen_c"].ap.value == pytest.approx(found.metrics["per_generator"]["gen_c"]["ap"]["value"])


def test_compose_takes_any_value_and_refuses_unknown_keys() -> None:
    for text in (
        "a=b, c",
        "it's",
        "back\\slash\\",
        "{x}",
        "~",
        "1",
        "true",
        "null",
        "",
        "a b",
        "100%",
        "e'\\'",
    ):
        assert fakedet.compose("train", name=text).name == text
    config = fakedet.compose("train", "~logger", "model/encoder=resnet18", seed=3, trainer__max_epochs=2, threads=None)
    assert (config.seed, config.trainer.max_epochs, config.threads) == (3, 2, None)
    assert config.model.encoder.name == "resnet18"
    assert fakedet.compose("evaluate", checkpoint="x", data="demo", data__hold_out=["a", "b=c"]).data.hold_out == [
        "a",
        "b=c",
    ]
    for settings, message in (
        ({"sed": 3}, "did you mean 'seed'"),
        ({"model": "bcee"}, "did you mean 'bce'"),
        ({"seed": "x"}, "expected a whole number"),
        ({"name": pd.DataFrame({"path": ["a.png"]})}, "a DataFrame cannot stand in a config"),
        ({"data__manifest": "m.csv"}, "pass data=manifest as well"),
    ):
        with pytest.raises(fakedet.UserError, match=message):
            fakedet.compose("train", **settings)
    assert fakedet.compose("train", seed=np.int64(3)).seed == 3
    with pytest.raises(fakedet.UserError, match="an override is text, as on the command line, not a dict"):
        fakedet.compose("train", {"seed": 3})  # type: ignore[arg-type]


def test_composing_works_inside_of_a_hydra_application() -> None:
    from hydra import compose, initialize_config_module

    with initialize_config_module("fakedet.conf", version_base="1.3"):
        assert fakedet.compose("train", seed=5).seed == 5
        assert compose("train", overrides=["seed=6"]).seed == 6
