"""A wrong key or value is one clear line that names the nearest valid one."""

from pathlib import Path

import pytest

from fakedet.config import check_command_line, expand_encoders
from fakedet.errors import UserError

MISTAKES = [
    (["modle=trace"], "no key 'modle'; did you mean 'model'?"),
    (["model=nft"], "model=nft: there is no such config; did you mean 'ntf'?"),
    (["experiment=nft"], "did you mean 'ntf'?"),
    (["trainer=gpus"], "did you mean 'gpu'?"),
    (["model.temprature=0.3"], "no key 'model.temprature'; did you mean 'model.loss.temperature'?"),
    (["stage1.optimizer.lrr=1"], "did you mean 'stage1.optimizer.lr'?"),
    (["trainer.max_epochs=ten"], "trainer.max_epochs=ten: expected a whole number"),
    (["trainer.max_epochs=1.5"], "expected a whole number"),
    (["model.loss.temperature=warm"], "expected a number"),
    (["trainer.deterministic=1"], "expected true or false"),
    (["threads=many"], "threads=many: expected a whole number"),
    (["seed=1,x", "-m"], "seed=x: expected a whole number"),
    (["model=ntf_stage1,bse", "-m"], "model=bse: there is no such config; did you mean 'bce'?"),
    (["data=manifest"], "data.manifest is not given; pass data.manifest="),
    (["stage1.encoder.width=9"], "stage1.encoder is the same as model.encoder; pass model.encoder.width="),
    (["seed"], "'seed' is not of the form key=value"),
    (["logger=null"], "logger=null: a group is left out with ~logger"),
    (["model.optimizer=adam"], "expected a list or mapping"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistake_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_command_line("train", arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model=ntf_stage1,bce", "seed=1,2,3", "-m"],
        ["seed=range(3)", "-m"],
        ["model.loss.temperature=1", "threads=2", "trainer.limit_train_batches=0.5"],
        ["~logger", "+note=hello"],
        ["data=manifest", "data.manifest=a.csv", "data.pairs={a: [b, c*]}"],
        ["hydra.verbose=true", "output_dir=/tmp/x", "name='a b'"],
        ["stage1_checkpoint=some/file.ckpt"],
        ["--help"],
    ],
    ids=str,
)
def test_valid_command_lines_pass(arguments: list[str]) -> None:
    check_command_line("train", arguments)


def test_evaluate_needs_a_checkpoint() -> None:
    with pytest.raises(UserError, match=r"checkpoint is not given; pass checkpoint=\.\.\.: the \.ckpt file"):
        check_command_line("evaluate", ["data.manifest=x.csv"])


def test_any_timm_name_is_an_encoder() -> None:
    assert expand_encoders(["seed=1", "model/encoder=resnet18"]) == [
        "seed=1", "model/encoder=timm", "model.encoder.name=resnet18"]  # fmt: skip
    assert expand_encoders(["model/encoder=small"]) == ["model/encoder=small"]
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        expand_encoders(["model/encoder=resnet81"])
    with pytest.raises(UserError, match=r"model\.encoder\.name=small,resnet18"):
        expand_encoders(["model/encoder=small,resnet18"])


def test_configs_of_your_own_folder_are_known(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("defaults: [bce, _self_]\nname: wide\nencoder: {width: 64}\n")
    check_command_line("train", ["--config-dir", str(tmp_path), "model=wide", "model.encoder.width=48"])
    with pytest.raises(UserError, match="did you mean 'wide'"):
        check_command_line("train", ["--config-dir", str(tmp_path), "model=wid"])
    with pytest.raises(UserError, match="there is no such folder"):
        check_command_line("train", ["--config-dir", str(tmp_path / "nothing")])
