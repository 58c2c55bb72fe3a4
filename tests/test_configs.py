"""Every config composes, and every experiment and model takes one step from end to end."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from fakedet.checkpoint import load_detector
from fakedet.cli.app import register_resolvers
from fakedet.training.sweep import plan
from fakedet.training.train import train

CONF = Path(__file__).parent.parent / "conf"
GROUPS = [
    "data",
    "model",
    "model/encoder",
    "augment",
    "trainer",
    "logger",
    "callbacks",
    "experiment",
    "debug",
]
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
OPTIONS += [
    ("experiment", f"{path.parent.name}/{path.stem}") for path in sorted((CONF / "experiment").glob("*/*.yaml"))
]
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKEDET_CORPUS", "/nowhere")
    monkeypatch.setenv("FAKEDET_WIDE", "/nowhere")


def composed(verb: str, *overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        return compose(verb, overrides=list(overrides))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_every_option_composes(group: str, option: str) -> None:
    config = composed("train", f"{group}={option}", "data.manifest=x.csv" if option == "manifest" else "seed=0")
    if group == "experiment" and OmegaConf.is_missing(config.data, "manifest"):
        config.data.manifest = "x.csv"
    OmegaConf.resolve(config)
    assert not OmegaConf.missing_keys(config)


@pytest.mark.parametrize("path", sorted((CONF / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_composes_and_names_its_methods(path: Path) -> None:
    register_resolvers()
    _, study = plan("train", [f"study={path.stem}", "~protocol"])  # a protocol reads the data
    assert study is not None
    assert study.settings["title"]
    folders = [job.folder.name for job in study.jobs]
    assert len(set(folders)) == len(folders) > 2
    assert all("seed=" in name for name in folders), "more seeds later leave finished jobs where they are"
    for job in study.jobs:
        OmegaConf.resolve(job.config)


def test_evaluate_composes() -> None:
    assert composed("evaluate", "checkpoint=x.ckpt", "data.manifest=x.csv").data.crop_size is None


# No weights can be fetched here; a small transformer stands in for the frozen backbones.
FROZEN = [
    "model.encoder.pretrained=false",
    "model.encoder.weights=null",
    "model.encoder.name=test_vit",
    "model.encoder.input_size=160",
    "model.encoder.levels=[-1]",
]
TINY = ["model.encoder.pretrained=false", "model.encoder.name=test_vit", "data.crop_size=160"]
STAND_INS = {
    **{name: [*TINY, "model.encoder.weights=null"] for name in ("attentive_probe", "lora", "norm_tuned")},
    "effort": TINY,
    "linear_probe": FROZEN,
    "ntf_paper": [
        f"{node}.encoder.{value}" for node in ("model", "stage1") for value in ("pretrained=false", "name=resnet10t")
    ]
    + ["data.num_workers=0", "trainer.precision=32-true"],
    "frozen": FROZEN,
    "ntf_frozen": FROZEN,
    "cnndet": ["model.encoder.pretrained=false", "model.encoder.name=resnet10t"],
    "univfd": ["model.encoder.pretrained=false", "model.encoder.name=test_vit", "data.crop_size=160"],
}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_a_step(model: str, tiny_manifest: Path, tmp_path: Path) -> None:
    config = composed("train", f"model={model}", "data=manifest", f"data.manifest={tiny_manifest}",
                      "data.crop_size=32", "data.batch_size=16", "debug=step", f"output_dir={tmp_path / 'run'}",
                      f"stage1_cache={tmp_path / 'stage1'}", *STAND_INS.get(model, []))  # fmt: skip
    done = train(config)
    assert done.checkpoint.is_file()
    assert done.metrics is not None
    assert set(done.metrics["per_generator"]) == {"gen_a", "gen_b", "gen_c"}
    assert load_detector(done.checkpoint).info["model"]["name"] == config.model.name


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_takes_a_step(path: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    config = composed("train", f"experiment={path.stem}", "data=manifest", f"data.manifest={tiny_manifest}",
                      "data.crop_size=32", "data.batch_size=16", "debug=step", f"output_dir={tmp_path / 'run'}",
                      f"stage1_cache={tmp_path / 'stage1'}", *STAND_INS.get(path.stem, []))  # fmt: skip
    assert train(config).metrics is not None


@pytest.mark.parametrize("frontend", ["rgb", "npr", "highpass"])
def test_any_timm_encoder_behind_any_frontend(frontend: str, tiny_manifest: Path, tmp_path: Path) -> None:
    config = composed("train", "model=bce", "model/encoder=timm", "model.encoder.name=resnet10t",
                      f"model.encoder.frontend={frontend}", "data=manifest", f"data.manifest={tiny_manifest}",
                      "data.crop_size=32", "data.batch_size=16", "debug=step", "test_after_fit=false",
                      f"output_dir={tmp_path / 'run'}")  # fmt: skip
    assert train(config).checkpoint.is_file()
