"""Weights from a file: all of them or an error."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from fakedet.errors import UserError
from fakedet.models.encoders import TimmEncoder


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=10)


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "checkpoint", "data parallel"])
def test_weights_come_from_the_file_and_the_classifier_stays_out(kind, whole, tmp_path):
    state = whole.state_dict()
    if kind == "safetensors":
        file = tmp_path / "w.safetensors"
        save_file(state, file)
    else:
        file = tmp_path / "w.pt"
        wrapped = {"state dict": state, "checkpoint": {"state_dict": state, "epoch": 3}}
        torch.save(wrapped.get(kind, {f"module.{key}": value for key, value in state.items()}), file)
    encoder = TimmEncoder("resnet10t", weights=str(file), pretrained=True)  # the file replaces the download
    loaded = encoder.model.state_dict()
    assert set(state) - set(loaded) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_a_file_without_classifier_fits_too(tmp_path):
    torch.manual_seed(1)
    body = timm.create_model("resnet10t", num_classes=0)
    torch.save(body.state_dict(), tmp_path / "w.pt")
    encoder = TimmEncoder("resnet10t", weights=str(tmp_path / "w.pt"))
    assert torch.equal(encoder.model.conv1[0].weight, body.conv1[0].weight)


def test_three_channels_are_adapted_to_nine(whole, tmp_path):
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    encoder = TimmEncoder("resnet10t", frontend="highpass", weights=str(tmp_path / "w.pt"))
    adapted = encoder.model.conv1[0].weight
    assert adapted.shape[1] == 9
    expected = whole.conv1[0].weight.repeat(1, 3, 1, 1) / 3
    assert torch.allclose(adapted, expected)


def test_positions_are_resampled_to_another_image_size(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "w.pt")
    encoder = TimmEncoder("vit_tiny_patch16_224", weights=str(tmp_path / "w.pt"), img_size=64)
    assert encoder.model.pos_embed.shape == (1, 17, 192)


def changed(state, how):
    state = dict(state)
    if how == "missing":
        del state["layer1.0.conv1.weight"]
    elif how == "left over":
        state["layer9.conv.weight"] = torch.zeros(1)
    elif how == "shape":
        state["layer1.0.conv1.weight"] = torch.zeros(2, 2, 3, 3)
    return state


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", r"1 weights of the model are not in it \(layer1\.0\.conv1\.weight\)"),
        ("left over", r"1 of its weights are not in the model \(layer9\.conv\.weight\)"),
        ("shape", r"does not fit the model: .*layer1\.0\.conv1\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(how, words, whole, tmp_path):
    torch.save(changed(whole.state_dict(), how), tmp_path / "w.pt")
    with pytest.raises(UserError, match=words):
        TimmEncoder("resnet10t", weights=str(tmp_path / "w.pt"))


def test_weights_of_another_model_are_refused(whole, tmp_path):
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    for name in ("mobilenetv3_small_050", "vit_tiny_patch16_224", "resnet18"):
        with pytest.raises(UserError, match=r"w\.pt (is of another model|does not fit)"):
            TimmEncoder(name, weights=str(tmp_path / "w.pt"))


class Harmful:
    def __reduce__(self):
        return (print, ("this code must not run",))


def test_files_that_are_no_weights_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="there is no file"):
        TimmEncoder("resnet10t", weights=str(tmp_path / "absent.pt"))
    contents = {
        "text.pt": lambda file: file.write_text("hello"),
        "text.safetensors": lambda file: file.write_text("hello"),
        "list.pt": lambda file: torch.save([1, 2], file),
        "numbers.pt": lambda file: torch.save({"a": 1}, file),
        "empty.pt": lambda file: torch.save({}, file),
        "harmful.pt": lambda file: torch.save({"a": Harmful()}, file),
    }
    for name, write in contents.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} (cannot be read|does not hold)"):
            TimmEncoder("resnet10t", weights=str(tmp_path / name))
    assert "must not run" not in capsys.readouterr().out
