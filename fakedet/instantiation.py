"""Building what a config names: the only caller of Hydra's instantiate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError

# A config or a checkpoint may name only these as _target_: anything else could run a stranger's code.
ALLOWED_TARGETS = ("fakedet.", "lightning.pytorch.")


def instantiated(config: Mapping[str, Any], where: str, **parts: Any) -> Any:
    """Build the object that a config names as its ``_target_``.

    Args:
        config: resolved, or a DictConfig to resolve; what it holds is passed on as plain values.
        where: its place in the whole config, for messages.
        **parts: objects passed beside its values.

    Raises:
        UserError: a class that may not be named, or values that it refuses.
    """
    container = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    assert isinstance(container, Mapping)
    _check_targets(container, where)
    try:
        return instantiate(dict(container), **parts, _convert_="all", _recursive_=False)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, MisconfigurationException):
            hint = "; without one: trainer=cpu" if "No supported gpu" in str(cause) else ""
            raise UserError(f"{where}: {_one_line(cause)}{hint}") from error
        if isinstance(cause, TypeError | ValueError) or cause is None:
            raise UserError(f"{where}: {_one_line(cause or error)}") from error
        raise


def _check_targets(node: Any, where: str) -> None:
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and not str(target).startswith(ALLOWED_TARGETS):
            raise UserError(
                f"{where}._target_: '{target}' is refused; only {' and '.join(ALLOWED_TARGETS)} are built"
            )
        for key, value in node.items():
            _check_targets(value, f"{where}.{key}")
    elif isinstance(node, list | tuple):
        for value in node:
            _check_targets(value, where)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
