"""What a training run promises: same command same numbers, stage 1 reused, mistakes refused early."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from safetensors.torch import save_file

from fakedet.build import build_trainer
from fakedet.checkpoint import load_detector, load_stage1
from fakedet.cli.app import register_resolvers
from fakedet.data.manifest import load_manifest
from fakedet.errors import UserError
from fakedet.evaluation.evaluate import evaluate
from fakedet.evaluation.predictions import read_predictions
from fakedet.metrics.decisions import OperatingPoint
from fakedet.training.stage1 import stage1_config, stage1_key
from fakedet.training.train import train


def composed(folder: Path, *overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        return compose("train", overrides=[
            "data=manifest", "data.crop_size=32", "data.batch_size=16", "trainer.max_epochs=2", "threads=1",
            "bootstrap.resamples=20", f"output_dir={folder}", f"stage1_cache={folder.parent / 'stage1'}",
            *overrides])  # fmt: skip


@pytest.fixture(scope="module")
def transfer_run(tiny_manifest_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "transfer"
    train(composed(folder, "model=ntf", f"data.manifest={tiny_manifest_module}"))
    return folder


def test_a_run_leaves_all_that_is_needed(transfer_run: Path) -> None:
    for name in ("config.yaml", "run.json", "run.log", "metrics.json", "predictions.parquet",
                 "checkpoints/best.ckpt", "logs/metrics.csv", "curves.png", "embedding.png", "scores.png"):  # fmt: skip
        assert (transfer_run / name).stat().st_size > 0, name
    frame, info = read_predictions(transfer_run / "predictions.parquet")
    assert info["seen_generators"] == ["gen_a", "gen_b"]
    assert frame["trace_distance"].between(0, 2).all()
    checkpoint = torch.load(transfer_run / "checkpoints" / "best.ckpt", weights_only=True)
    point = OperatingPoint.from_dict(checkpoint["fakedet"]["operating_point"])
    np.testing.assert_allclose(frame["score"], point.calibration(frame["logit"]), rtol=1e-12)
    assert ((frame["verdict"] == "fake") == (frame["logit"] > point.threshold)).all()
    assert frame["p_value"].between(1 / (point.n_real + 1), 1).all()
    assert (point.n_real, point.n_fake, point.split) == (8, 8, "val")
    metrics = json.loads((transfer_run / "metrics.json").read_text())
    assert metrics["per_generator"]["gen_c"]["seen"] is False
    assert metrics["per_generator"]["gen_a"]["seen"] is True
    facts = json.loads((transfer_run / "run.json").read_text())
    assert facts["seed"] == 0
    assert facts["packages"]["torch"]


def test_validation_is_logged_as_validation_and_the_test_once(transfer_run: Path) -> None:
    curves = pd.read_csv(transfer_run / "logs" / "metrics.csv")
    assert curves["val/map"].notna().sum() == 2, "one value an epoch"
    assert curves["test/map"].notna().sum() == 1
    metrics = json.loads((transfer_run / "metrics.json").read_text())
    assert curves["test/ap/gen_c"].dropna().item() == pytest.approx(metrics["per_generator"]["gen_c"]["ap"]["value"])
    stage1 = pd.read_csv(transfer_run / "stage1" / "logs" / "metrics.csv")
    assert not [name for name in stage1 if name.startswith("test/")]


def test_a_training_reads_and_describes_its_manifest_once(tiny_manifest: Path, tmp_path: Path) -> None:
    table = pd.read_csv(tiny_manifest).assign(camera="x")
    table.to_csv(tiny_manifest, index=False)
    train(composed(tmp_path / "run", "model=ntf", f"data.manifest={tiny_manifest}", "debug=step"))
    assert (tmp_path / "run" / "run.log").read_text().count("columns not used: camera") == 1


def test_same_command_same_numbers_with_any_number_of_workers(transfer_run: Path, tiny_manifest_module: Path) -> None:
    for workers in (0, 2):
        again = transfer_run.parent / f"again{workers}"
        config = composed(again, "model=ntf", f"data.manifest={tiny_manifest_module}", "stage1_cache=null",
                          f"data.num_workers={workers}")  # fmt: skip
        train(config)
        first, second = (read_predictions(run / "predictions.parquet")[0] for run in (transfer_run, again))
        pd.testing.assert_frame_equal(first, second)


def test_stage1_is_trained_as_itself_and_not_as_its_transfer(tiny_manifest_module: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = composed(folder, "model=ntf", f"data.manifest={tiny_manifest_module}", "stage1_cache=null",
                      "trainer.max_epochs=${model.epochs}", "model.epochs=1", "stage1.epochs=3")  # fmt: skip
    train(config)
    curves = pd.read_csv(folder / "stage1" / "logs" / "metrics.csv")
    assert curves["epoch"].max() == 2, "stage 1 has its own number of epochs"
    last = torch.load(folder / "stage1" / "checkpoints" / "last.ckpt", weights_only=True)
    kept = torch.load(folder / "stage1" / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["epoch"] == last["epoch"] == 2, "no fake may choose stage 1's weights: the last epoch's are kept"
    assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0


def test_stage1_is_reused_when_identical_and_only_then(transfer_run: Path, tiny_manifest_module: Path) -> None:
    manifest = f"data.manifest={tiny_manifest_module}"
    cached = list((transfer_run.parent / "stage1").glob("*.ckpt"))
    assert len(cached) == 1
    reused = train(composed(transfer_run.parent / "reused", "model=bce", "model.init=stage1", manifest))
    assert not (reused.folder / "stage1").exists()
    other = train(composed(transfer_run.parent / "other", "model=bce", "model.init=stage1", manifest,
                           "stage1.temperature=0.3"))  # fmt: skip
    assert (other.folder / "stage1").exists()
    assert len(list((transfer_run.parent / "stage1").glob("*.ckpt"))) == 2


def test_stage1_is_trained_anew_when_a_photograph_changed(tiny_manifest: Path, tmp_path: Path) -> None:
    def run(name: str) -> bool:
        config = composed(tmp_path / name, "model=bce", "model.init=stage1", f"data.manifest={tiny_manifest}",
                          "trainer.limit_train_batches=1", "test_after_fit=false")  # fmt: skip
        return (train(config).folder / "stage1").exists()

    assert run("first")
    assert not run("second")
    frame = pd.read_csv(tiny_manifest)
    photo = frame.loc[(frame["label"] == 0) & (frame["split"] == "train"), "path"].iloc[0]
    other = frame.loc[(frame["label"] == 0) & (frame["split"] == "val"), "path"].iloc[0]
    shutil.copyfile(tiny_manifest.parent / other, tiny_manifest.parent / photo)
    assert run("third")


def test_pretrained_weights_are_known_by_their_content_and_needed_once(tiny_manifest: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"

    def run(name: str, seed: int) -> bool:
        torch.manual_seed(seed)
        save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), file)
        config = composed(tmp_path / name, "experiment=ntf_frozen", "model/encoder=frozen", "data=manifest",
                          f"data.manifest={tiny_manifest}", "data.crop_size=32", "data.batch_size=16",
                          "model.encoder.name=test_efficientnet", f"model.encoder.weights={file}",
                          "model.encoder.input_size=null", "model.encoder.hidden=8", "model.score=logit",
                          "stage1.epochs=1", "model.epochs=1", "trainer.max_epochs=1", "embed_backbone=true",
                          "test_after_fit=false")  # fmt: skip
        return (train(config).folder / "stage1").exists()

    assert run("first", 0)
    assert not run("second", 0)
    assert run("third", 1), "other weights under the same name"
    file.unlink()
    method = load_detector(tmp_path / "third" / "checkpoints" / "best.ckpt")
    torch.manual_seed(1)
    wanted = timm.create_model("test_efficientnet", num_classes=0).conv_stem.weight
    for encoder in (method.encoder, method.source.encoder):
        (found,) = (value for name, value in encoder.state_dict().items() if name.endswith("conv_stem.weight"))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("trainer.log_every_n_steps=3", True),
        ("+trainer.overfit_batches=1", False),
        ("trainer.gradient_clip_val=2", False),
        ("model.hidden_dim=8", True),
        ("stage1.hidden_dim=8", False),
        ("data.hold_out=[gen_a]", True),
    ],
)
def test_a_stage1_is_named_by_what_changes_its_weights(
    change: str, same: bool, tiny_manifest_module: Path, tmp_path: Path
) -> None:
    def key(*changes: str) -> str:
        given = f"data.manifest={tiny_manifest_module}"
        wanted = stage1_config(composed(tmp_path / "run", "model=ntf", given, *changes), tmp_path)
        return stage1_key(wanted, load_manifest(tiny_manifest_module))

    assert (key(change) == key()) is same


def test_a_stage1_that_the_clock_stopped_is_not_handed_on(tiny_manifest: Path, tmp_path: Path) -> None:
    train(composed(tmp_path / "run", "model=bce", "model.init=stage1", f"data.manifest={tiny_manifest}",
                   "+trainer.max_time={minutes: 9}", "debug=step", "test_after_fit=false"))  # fmt: skip
    assert not list((tmp_path / "stage1").glob("*.ckpt"))


def test_stage1_trained_or_reused_gives_the_same_detector(transfer_run: Path, tiny_manifest_module: Path) -> None:
    reused = transfer_run.parent / "reused_transfer"
    train(composed(reused, "model=ntf", f"data.manifest={tiny_manifest_module}"))
    first, second = (read_predictions(run / "predictions.parquet")[0] for run in (transfer_run, reused))
    pd.testing.assert_frame_equal(first, second)


def test_transfer_from_a_given_checkpoint_keeps_the_source_frozen(
    transfer_run: Path, tiny_manifest_module: Path
) -> None:
    trace = next((transfer_run.parent / "stage1").glob("*.ckpt"))
    run = train(composed(transfer_run.parent / "given", "model=ntf", f"stage1_checkpoint={trace}",
                         f"data.manifest={tiny_manifest_module}"))  # fmt: skip
    detector, source = load_detector(run.checkpoint), load_stage1(trace)
    trained = dict(detector.source.encoder.named_parameters())  # type: ignore[union-attr]
    for name, parameter in source.encoder.named_parameters():
        assert torch.equal(trained[name], parameter), name
    assert any(not torch.equal(a, b) for a, b in zip(detector.encoder.parameters(),  # type: ignore[union-attr]
                                                     source.encoder.parameters(), strict=True))  # fmt: skip


def test_evaluate_gives_the_run_s_own_numbers(transfer_run: Path, tiny_manifest_module: Path, tmp_path: Path) -> None:
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        config = compose("evaluate", overrides=[
            f"checkpoint={transfer_run / 'checkpoints/best.ckpt'}", f"data.manifest={tiny_manifest_module}",
            f"output_dir={tmp_path / 'eval'}", "threads=1", "bootstrap.resamples=20"])  # fmt: skip
    metrics = evaluate(config, [])
    assert metrics is not None
    own = json.loads((transfer_run / "metrics.json").read_text())
    assert metrics["map"] == own["map"]
    first, second = (read_predictions(run / "predictions.parquet")[0] for run in (transfer_run, tmp_path / "eval"))
    # Another batch size sums in another order.
    np.testing.assert_allclose(first["logit"], second["logit"], atol=1e-4)


def test_an_occupied_folder_is_refused_and_left_alone(transfer_run: Path, tiny_manifest_module: Path) -> None:
    before = (transfer_run / "run.json").read_text()
    with pytest.raises(UserError, match=r"holds a finished run.* overwrite=true"):
        train(composed(transfer_run, "model=bce", f"data.manifest={tiny_manifest_module}"))
    assert (transfer_run / "run.json").read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="label"), "label"),
        (lambda frame: frame.assign(label=frame["label"] + 1), "label"),
        (lambda frame: frame[frame["split"] != "val"], "val"),
        (lambda frame: frame[frame["label"] == 0], "fake"),
        (lambda frame: frame[(frame["label"] == 0) | (frame["split"] != "val")], "split 'val' has no fake"),
        (lambda frame: frame.iloc[:0], "no rows|empty"),
    ],
    ids=[
        "no label column",
        "labels 1 and 2",
        "no val split",
        "no fakes",
        "no fakes to validate on",
        "no rows",
    ],
)
def test_bad_manifests_are_refused_before_training(change, message: str, tiny_manifest: Path, tmp_path: Path) -> None:
    bad = tiny_manifest.with_name("bad.csv")
    change(pd.read_csv(tiny_manifest)).to_csv(bad, index=False)
    with pytest.raises(UserError, match=message):
        train(composed(tmp_path / "run", "model=bce", f"data.manifest={bad}"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_missing_manifest_or_folder_is_named(tiny_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        train(composed(tmp_path / "a", "model=bce", f"data.manifest={tmp_path / 'nowhere.csv'}"))
    with pytest.raises(UserError, match="no_such_folder"):
        train(composed(tmp_path / "b", "model=bce", f"data.manifest={tiny_manifest}",
                       f"data.root={tmp_path / 'no_such_folder'}"))  # fmt: skip


def test_one_unreadable_image_does_not_stop_a_run_and_is_named(tiny_manifest: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(tiny_manifest)
    victims = [frame[frame["split"] == split]["path"].iloc[0] for split in ("train", "test")]
    for victim in victims:
        (tiny_manifest.parent / victim).write_bytes(b"not an image")
    done = train(composed(tmp_path / "run", "model=bce", f"data.manifest={tiny_manifest}", "data.max_quarantine=0.1"))
    named = pd.read_csv(done.folder / "quarantine.csv")
    assert set(victims) == set(named["path"])
    predictions, _ = read_predictions(done.folder / "predictions.parquet")
    assert victims[1] not in set(predictions["path"])
    assert len(predictions) == (frame["split"] == "test").sum() - 1


def test_a_run_fails_when_too_many_images_are_unreadable(tiny_manifest: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(tiny_manifest)
    for path in frame[frame["split"] == "test"]["path"].iloc[:5]:
        (tiny_manifest.parent / path).write_bytes(b"")
    with pytest.raises(UserError, match="max_quarantine"):
        train(composed(tmp_path / "run", "model=bce", f"data.manifest={tiny_manifest}"))
    assert (tmp_path / "run" / "quarantine.csv").is_file(), "the list must be there to act on"
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file(), "the hours of training must not be lost"


def test_checkpoints_of_others_are_refused(transfer_run: Path, tiny_manifest_module: Path, tmp_path: Path) -> None:
    manifest = f"data.manifest={tiny_manifest_module}"
    best = transfer_run / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="checkpoint of 'ntf', not of stage 1"):
        train(composed(tmp_path / "a", "model=ntf", f"stage1_checkpoint={best}", manifest))
    trace = next((transfer_run.parent / "stage1").glob("*.ckpt"))
    with pytest.raises(UserError, match="stage 1 has another encoder"):
        train(composed(tmp_path / "b", "model=ntf", f"stage1_checkpoint={trace}", manifest,
                       "model.encoder.width=16"))  # fmt: skip
    with pytest.raises(UserError, match="no checkpoint at"):
        load_detector(tmp_path / "nothing.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="not a checkpoint that fakedet wrote"):
        load_detector(tmp_path / "foreign.ckpt")
    (tmp_path / "torn.ckpt").write_bytes(best.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_detector(tmp_path / "torn.ckpt")
    (tmp_path / "best.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(UserError, match=r"best.onnx is an export for other programs; .* the \.ckpt"):
        load_detector(tmp_path / "best.onnx")
    changed = torch.load(best, weights_only=True)
    changed["state_dict"].pop(next(iter(changed["state_dict"])))
    torch.save(changed, tmp_path / "changed.ckpt")
    with pytest.raises(UserError, match="weights do not fit"):
        load_detector(tmp_path / "changed.ckpt")


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (shutil.rmtree, (str(tmp_path / "precious"),))

    (tmp_path / "precious").mkdir()
    torch.save({"fakedet": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_detector(tmp_path / "evil.ckpt")
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=0", "trainer.max_epochs=0: must be at least 1"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: must be at least 1"),
        ("model.optimizer.lr=-1", r"model.optimizer.lr=-1.*: must be above 0"),
        ("stage1.temperature=0", r"stage1.temperature=0.*: must be above 0"),
        ("model.contrastive_weight=-0.5", "must not be negative"),
        ("threads=0", "threads=0: must be at least 1"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("seed=4294967296", "must be below"),
        ("data.crop_size=1", "data.crop_size=1: must be at least 16"),
        ("trainer.devices=9999", r"trainer.devices=9999: this machine has \d+ CPU cores"),
        ("trainer=ddp trainer.devices=9999", "trainer.devices=9999: this machine has no GPU and"),
        ("data.batch_size=15", "data.batch_size: 15 does not divide"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true: valid: 32-true"),
        ("trainer.precision=bf17", "trainer.precision=bf17: valid: 32-true"),
        ("trainer=gpu", "trainer: .*gpu"),
    ],
)
def test_values_that_cannot_work_are_refused(override: str, message: str, tiny_manifest: Path, tmp_path: Path) -> None:
    if override.startswith("trainer=") and torch.accelerator.is_available():
        pytest.skip("this machine has a GPU; Lightning counts them")
    with pytest.raises(UserError, match=message):
        train(composed(tmp_path / "run", "model=bce", f"data.manifest={tiny_manifest}", *override.split()))


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_weights_under_the_same_names(
    tiny_manifest_module: Path, tmp_path: Path
) -> None:
    states = []
    for name, more in (("plain", []), ("compiled", ["compile=eager"])):
        config = composed(tmp_path / name, "model=bce", f"data.manifest={tiny_manifest_module}", *more)
        train(config)
        states.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value)


@pytest.mark.parametrize(("supported", "given"), [(True, "bf16-mixed"), (False, "32-true")])
def test_bfloat16_is_taken_only_where_it_is(supported: bool, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    trainer = build_trainer(
        {"_target_": "lightning.pytorch.Trainer", "accelerator": "cpu", "precision": "bf16-mixed", "logger": False,
         "enable_checkpointing": False, "enable_progress_bar": False}
    )  # fmt: skip
    assert trainer.precision == given


def test_a_loss_is_not_kept_where_it_is_highest(tiny_manifest: Path, tmp_path: Path) -> None:
    given = ("model=bce", f"data.manifest={tiny_manifest}", "model.monitor=val/loss")
    with pytest.raises(UserError, match=r"callbacks\.checkpoint\.mode=min"):
        train(composed(tmp_path / "max", *given))
    done = train(composed(tmp_path / "min", *given, "callbacks.checkpoint.mode=min"))
    losses = pd.read_csv(done.folder / "logs" / "metrics.csv")["val/loss"]
    assert done.validation == pytest.approx(losses.min())


def test_validation_batches_of_one_class_end_in_a_run(tiny_manifest: Path, tmp_path: Path) -> None:
    done = train(composed(tmp_path / "run", "model=bce", f"data.manifest={tiny_manifest}", "data.eval_batch_size=8",
                          "trainer.limit_val_batches=1"))  # fmt: skip
    assert done.validation is None
    point = torch.load(done.checkpoint, weights_only=True)["fakedet"]["operating_point"]
    assert (point["n_real"], point["n_fake"]) == (8, 8), "the operating point is fitted on the whole split"
    assert json.loads((done.folder / "run.json").read_text())["validation"] is None


def test_a_damaged_checkpoint_is_refused(transfer_run: Path, tmp_path: Path) -> None:
    path = transfer_run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    largest = max(content["state_dict"].values(), key=lambda value: value.numel()).numpy().tobytes()
    raw = bytearray(path.read_bytes())
    start = raw.find(largest[:64]) + 100
    raw[start : start + 4] = bytes(255 - value for value in raw[start : start + 4])
    (tmp_path / "damaged.ckpt").write_bytes(raw)
    with pytest.raises(UserError, match="checksum"):
        load_detector(tmp_path / "damaged.ckpt")
    for key in ("model", "crop_size"):
        info = {name: value for name, value in content["fakedet"].items() if name != key}
        torch.save({**content, "fakedet": info}, tmp_path / "less.ckpt")
        with pytest.raises(UserError, match=f"lacks {key}"):
            load_detector(tmp_path / "less.ckpt")


@pytest.mark.parametrize("mistake", [
    "trainer.check_val_every_n_epoch=5", "trainer.check_val_every_n_epoch=0", "trainer.accumulate_grad_batches=0",
    "callbacks.resume.every_steps=0", "bootstrap.seed=-1", "seed=null", "trainer.max_epochs=null",
    "trainer.limit_val_batches=0", "callbacks.checkpoint.save_top_k=0",
])  # fmt: skip
def test_values_that_fail_only_later_are_refused_at_once(mistake: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=mistake.partition("=")[0]):
        train(composed(tmp_path / "run", "model=bce", "data.manifest=none.csv", mistake))


@pytest.mark.parametrize(("mistake", "told"), [
    ("model.monitor=val/nothing", "val/nothing"),
    pytest.param("+trainer.max_steps=1", "max_steps=1 ended the training",
                 marks=pytest.mark.filterwarnings("ignore:.*could not find the monitored key")),
])  # fmt: skip
def test_what_only_the_trainer_finds_is_one_line(
    tiny_manifest_module: Path, mistake: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        train(composed(tmp_path / "run", "model=bce", f"data.manifest={tiny_manifest_module}", "header_audit=false",
                       mistake))  # fmt: skip
    assert "\n" not in str(caught.value)


def test_a_torn_resume_point_says_what_to_do(tiny_manifest_module: Path, tmp_path: Path) -> None:
    config = composed(tmp_path / "run", "model=bce", f"data.manifest={tiny_manifest_module}", "header_audit=false",
                      "trainer.max_epochs=1")  # fmt: skip
    train(config)
    (tmp_path / "run" / "run.json").unlink()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.with_name("resume.ckpt").write_bytes(last.read_bytes()[:5000])
    with pytest.raises(UserError, match="overwrite=true"):
        train(config)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("model.copies_per_real=-1", "copies_per_real"),
        ("model.copies_per_real=nan", "copies_per_real"),
        ("data.hold_out=[gen_a,gen_b]", "no fake images"),
        (
            "stage1.encoder={_target_:fakedet.models.encoders.SmallEncoder,width:16,frontend:npr}",
            "another encoder",
        ),
    ],
)
def test_mistakes_of_stage_2_are_found_before_stage_1_and_cost_no_folder(
    wrong: str, told: str, tiny_manifest: Path, tmp_path: Path
) -> None:
    settings = ("model=ntf", f"data.manifest={tiny_manifest}")
    with pytest.raises(UserError, match=told):
        train(composed(tmp_path / "run", *settings, wrong))
    assert not list(tmp_path.glob("**/*.ckpt"))
    assert train(composed(tmp_path / "run", *settings, "test_after_fit=false")).checkpoint.is_file()
