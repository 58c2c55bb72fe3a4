"""Find mistakes on the command line before Hydra runs, and say the nearest valid key or value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError, nearest

MISSING_HINTS = {
    "data.manifest": "a parquet or CSV table with the columns path, label, generator; data=demo has its own",
    "source": "the images: a file, a folder, a table ..., see --help",
    "output": "the file to write",
    "predictions": "a predictions.parquet that `fakedet train` or `evaluate` wrote, or a list of them",
    "output_dir": "the folder to write into",
    "checkpoint": "the .ckpt file that `fakedet train` wrote",
}
# What a value looks like where the default is null.
INSTEAD_OF_NULL = {
    "threads": 1,
    "data.steps_per_epoch": 1,
    "data.crop_size": 1,
    "data.match.size": 1,
    "data.max_train_reals": 1,
    "data.eval_batch_size": 1,
    "trainer.limit_train_batches": 1.0,
    "trainer.limit_val_batches": 1.0,
    "trainer.limit_test_batches": 1.0,
}


def check_command_line(verb: str, arguments: list[str]) -> None:
    """Refuse unknown keys, unknown options, values of the wrong type and values that are missing.

    Raises:
        UserError: the first mistake, in one line with the nearest valid name.
    """
    flags = get_args_parser().parse_args(arguments)
    if flags.help or flags.hydra_help or flags.info or flags.shell_completion or flags.cfg:
        return
    overrides = _parse(flags.overrides)
    with initialize_config_module("fakedet.conf", version_base="1.3"):
        if flags.config_dir:
            _add_folder(flags.config_dir)
        groups = [override for override in overrides if _options(override)]
        for override in groups:
            _check_option(override)
        if verb == "study" and not any(override.key_or_group == "study" for override in groups):
            names = ", ".join(GlobalHydra.instance().config_loader().get_group_options("study"))
            raise UserError(f"which study? pass study=NAME: {names}")
        config = compose(verb, overrides=[_first(override) for override in groups])
        for override in overrides:
            if override not in groups:
                _check_value(override, config)
        plain = [_first(override) for override in overrides if not override.is_hydra_override()]
        _check_missing(compose(verb, overrides=plain))


def _add_folder(folder: str) -> None:
    """Let the loader know the configs of ``--config-dir``, as Hydra's own command line does."""
    path = Path(folder).absolute()
    if not path.is_dir():
        raise UserError(f"--config-dir={folder}: there is no such folder")
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    loader.get_search_path().prepend("command-line", f"file://{path}", "schema")
    loader.repository = ConfigRepository(loader.get_search_path())


def _parse(overrides: list[str]) -> list[Override]:
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"'{text}' is not of the form key=value")
    try:
        return list(OverridesParser.create().parse_overrides(overrides))
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"an override cannot be read: {first}; put values with special signs into quotes: 'key=\"a b\"'"
        ) from error


def _options(override: Override) -> list[str]:
    """List the configs of the group that an override chooses from; empty if its key is no group."""
    if override.is_hydra_override():
        return []
    return list(GlobalHydra.instance().config_loader().get_group_options(override.key_or_group))


def _values(override: Override) -> list[Any]:
    """List the value of an override, or all values that it sweeps over."""
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep():
        return []
    return list(override.sweep_iterator(transformer=Transformer.identity))


def _first(override: Override) -> str:
    """Write an override without its sweep, so that it composes into one config."""
    if not override.is_discrete_sweep():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _check_option(override: Override) -> None:
    options = _options(override)
    for value in _values(override):
        for name in value if isinstance(value, list) else [value]:
            if name is None and not override.is_delete():
                key = override.key_or_group
                raise UserError(f"{key}=null: a group is left out with ~{key}")
            if name is not None and str(name) not in options:
                raise UserError(
                    f"{override.key_or_group}={name}: there is no such config; {nearest(str(name), options)}"
                )


def _check_value(override: Override, config: DictConfig) -> None:
    if override.is_hydra_override() or override.is_add() or override.is_force_add():
        return
    key = override.key_or_group
    _check_followed(key, config)
    if not _has(config, key):
        raise UserError(f"there is no key '{key}'; {_nearest_key(key, config)}")
    if override.is_delete() or _is_missing(config, key):
        return
    default = OmegaConf.select(config, key)
    default = INSTEAD_OF_NULL.get(key) if default is None else default
    for value in _values(override):
        _check_type(key, value, default)


def _check_followed(key: str, config: DictConfig) -> None:
    """Refuse a key below a node that is another's: Hydra finds none there, although the config shows it."""
    names = key.split(".")
    for place in range(1, len(names)):
        *above, name = names[:place]
        node = OmegaConf.select(config, ".".join(above)) if above else config
        if not isinstance(node, DictConfig) or name not in node:
            return
        if OmegaConf.is_interpolation(node, name):
            there = node._get_node(name)._value().removeprefix("${").removesuffix("}")  # type: ignore[union-attr]
            rest = ".".join([there, *names[place:]])
            raise UserError(f"{key}: {'.'.join(names[:place])} is the same as {there}; pass {rest}=")


def _check_type(key: str, value: Any, default: Any) -> None:
    expected = None
    if isinstance(default, bool):
        expected = "true or false" if not isinstance(value, bool) else None
    elif isinstance(default, int):
        expected = "a whole number" if not _is_number(value, whole=True) else None
    elif isinstance(default, float):
        expected = "a number" if not _is_number(value, whole=False) else None
    elif OmegaConf.is_config(default) and not isinstance(value, dict | list) and value is not None:
        expected = "a list or mapping" if "${" not in str(value) else None
    if expected and value is not None and "${" not in str(value):
        raise UserError(f"{key}={value}: expected {expected}, like {default}")


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and (not whole or value.is_integer()))


def _check_missing(config: DictConfig) -> None:
    for key in sorted(OmegaConf.missing_keys(config)):
        hint = f": {MISSING_HINTS[key]}" if key in MISSING_HINTS else ""
        raise UserError(f"{key} is not given; pass {key}=...{hint}")


def _nearest_key(key: str, config: DictConfig) -> str:
    known = [*_keys(config), *_groups()]
    hint = nearest(key, known)
    if hint.startswith("did you mean"):
        return hint
    parent, _, leaf = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    return nearest(leaf, siblings) if siblings else nearest(key, list(config))  # type: ignore[arg-type]


def _groups() -> list[str]:
    loader = GlobalHydra.instance().config_loader()
    return [str(name) for name in loader.list_groups("")]


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        name = f"{prefix}{key!s}"
        yield name
        if not OmegaConf.is_missing(config, key) and OmegaConf.is_dict(config._get_node(key)):
            node = config[str(key)]
            if isinstance(node, DictConfig):
                yield from _keys(node, f"{name}.")


def _has(config: DictConfig, key: str) -> bool:
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    return isinstance(parent, DictConfig) and key.rpartition(".")[2] in list(parent)


def _is_missing(config: DictConfig, key: str) -> bool:
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    return bool(OmegaConf.is_missing(parent, key.rpartition(".")[2]))
