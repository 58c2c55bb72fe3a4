"""Check numbers and command lines, name the nearest key for a mistake, and build objects from configs.

Only :func:`build` calls Hydra's ``instantiate``. A user's config may name any class; a checkpoint may not.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra._internal.utils import _locate, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from fakedet.errors import UserError, nearest, one_line
from fakedet.methods.base import check_optimiser
from fakedet.utils import plain, written

LEAST = {
    "threads": 1, "data.crop_size": 16,  # smaller crops leave strided encoders nothing to look at
    "bootstrap.resamples": 0, "bootstrap.seed": 0, "trainer.check_val_every_n_epoch": 1,
    "trainer.accumulate_grad_batches": 1, "callbacks.resume.every_steps": 1, "seed": 0, "pictures": 0,
}  # fmt: skip
# Not bf16-true and its like: weights in 16 bits lose what small steps add.
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "64-true", "32", "16", "bf16", "64")
POSITIVE = ("temperature", "weight_temperature", "epochs", "hidden_dim", "projection_dim", "bank_size", "lr")
NOT_NEGATIVE = ("contrastive_weight", "weight_decay", "heterogeneous_weight", "homogeneous_weight")


def check_config(config: DictConfig) -> None:
    """Refuse numbers that no run could use: UserError for the first one, with what would be valid."""
    for key, least in LEAST.items():
        _at_least(config, key, least)
    seed = OmegaConf.select(config, "seed", default=0)
    if seed is None or seed >= 2**32:
        raise UserError(f"seed={written(seed)}: must be below {2**32}; valid: 0 to {2**32 - 1}")
    held_out = OmegaConf.select(config, "data.hold_out_families"), OmegaConf.select(config, "data.measure")
    if config.get("protocol") and not (held_out[0] and held_out[1] == "held_out"):
        raise UserError(f"protocol={config.protocol.name}: it makes many jobs of each job of a study, fakedet study "
                        "study=NAME; for one of them alone, pass data.hold_out_families=[NAME] data.measure=held_out "
                        "too")  # fmt: skip
    if OmegaConf.select(config, "model") is not None:
        _check_length(config)
        every, epochs = config.trainer.check_val_every_n_epoch, config.trainer.max_epochs
        if every is not None and epochs is not None and every > epochs:
            raise UserError(f"trainer.check_val_every_n_epoch={every}: with {epochs} epochs nothing would ever be "
                            f"validated or kept; valid: 1 to {epochs}")  # fmt: skip
        for node in ("model", "stage1"):
            _check_model(config, node)
    if OmegaConf.select(config, "trainer") is None:
        return
    _check_devices(config)
    precision = config.trainer.get("precision")
    if precision is not None and str(precision) not in PRECISIONS:
        raise UserError(f"trainer.precision={precision}: valid: {', '.join(PRECISIONS)}")


def _check_devices(config: DictConfig) -> None:
    """Refuse more processes than CPU cores; Lightning itself refuses more GPUs than there are."""
    devices, asked, cores = config.trainer.devices, config.trainer.accelerator, os.cpu_count() or 1
    on_cpu = asked == "cpu" or (asked == "auto" and not torch.accelerator.is_available())
    if on_cpu and isinstance(devices, int) and not 1 <= devices <= cores:
        found = "no GPU and " if asked == "auto" else ""
        raise UserError(f"trainer.devices={devices}: this machine has {found}{cores} CPU cores; valid: 1 to {cores}")


def _check_length(config: DictConfig) -> None:
    """Refuse a training without an end, or one that would keep nothing."""
    if config.trainer.max_epochs is None:
        raise UserError("trainer.max_epochs=null: name a number of epochs; the learning rate's schedule needs an end")
    _at_least(config, "trainer.max_epochs", 1)
    checkpoint = config.callbacks.get("checkpoint") or DictConfig({})
    if checkpoint.get("save_top_k") == 0:
        raise UserError("callbacks.checkpoint.save_top_k=0: no weights would be kept; valid: 1")
    if checkpoint.get("monitor") and config.trainer.limit_val_batches == 0:
        raise UserError(f"trainer.limit_val_batches=0: {checkpoint.monitor} chooses the kept epoch, and nothing would "
                        "be validated; callbacks.checkpoint.monitor=null keeps the last epoch's weights")  # fmt: skip


def _check_model(config: DictConfig, node: str) -> None:
    if "optimizer" in config[node]:
        check_optimiser(config[node].optimizer, f"{node}.optimizer")
    for key, value in _walk(plain(config[node]), f"{node}."):
        name = key.rpartition(".")[2]
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if name in POSITIVE and value <= 0:
            raise UserError(f"{key}={value}: must be above 0")
        if name in NOT_NEGATIVE and value < 0:
            raise UserError(f"{key}={value}: must not be negative")


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested mappings, joined with dots, and their values."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        yield f"{prefix}{key}", value
        yield from _walk(value, f"{prefix}{key}.")


def _at_least(config: DictConfig, key: str, least: int) -> None:
    value = OmegaConf.select(config, key)
    if value is not None and value < least:
        raise UserError(f"{key}={value}: must be at least {least}")


def build(config: Mapping[str, Any], where: str, **parts: Any) -> Any:
    """Build the object that a user's own config names as its ``_target_``, from any package that can be imported.

    This runs the code that the config names: what a checkpoint or a published file names goes through
    :func:`fakedet.checkpoint.load_detector` instead. ``where`` is the config's place in the whole, for messages;
    ``parts`` are objects passed beside its values. UserError for a name that cannot be imported and refused values.
    """
    content = {key: value for key, value in plain(config).items() if key not in parts}
    try:
        return instantiate(content, **parts, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, MisconfigurationException):
            hint = "; without one: trainer=cpu" if "No supported gpu" in str(cause) else ""
            raise UserError(f"{where}: {one_line(cause)}{hint}") from error
        if isinstance(cause, TypeError | ValueError | ImportError | AttributeError) or cause is None:
            nested = re.search(r"full_key: (\S+)", str(error))
            place = f"{where}.{nested[1]}" if nested else where
            told = one_line(cause or error) + _own_line(cause)
            if " missing " in told and place.endswith(("augment", "optimizer", "schedule")):
                told += "; what is called later needs _partial_: true beside its _target_"
            raise UserError(f"{place}: {told}") from error
        raise


def _own_line(error: BaseException | None) -> str:
    """Name the line of the user's own code that raised an error, in brackets; nothing if it was not raised there."""
    lines = traceback.extract_tb(error.__traceback__) if error else []
    others = ("site-packages", str(Path(__file__).parent), os.path.dirname(os.__file__))
    own = [line for line in lines if not any(other in line.filename for other in others)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def target_of(config: Mapping[str, Any], where: str) -> Any:
    """Import what a config names as its ``_target_``, without calling it; UserError if it cannot be imported."""
    if not isinstance(config, Mapping):
        raise UserError(f"{where}={config}: name a class by {where}._target_=package.module.Class")
    name = config.get("_target_")
    if not isinstance(name, str) or "." not in name:
        raise UserError(f"{where}._target_={name}: name a class as package.module.Class")
    module, _, attribute = name.rpartition(".")
    try:
        return _locate(name)
    except Exception as error:  # whatever importing a user's module raises
        try:
            known = [one for one, value in vars(importlib.import_module(module)).items() if callable(value)]
        except Exception as cause:
            raise UserError(f"{where}._target_: '{name}' cannot be imported: {one_line(cause)}; it must be in an "
                            "installed package, or in a folder beside --config-dir") from cause  # fmt: skip
        hint = nearest(attribute, known)
        raise UserError(f"{where}._target_: there is no '{attribute}' in {module}; {hint}") from error


def check_kind(config: Mapping[str, Any], where: str, kind: type, wanted: str) -> None:
    """Raise UserError unless a config names a subclass of ``kind`` or a function, whose result is not known yet."""
    target = target_of(config, where)
    if isinstance(target, type) and not issubclass(target, kind):
        raise UserError(f"{where}._target_: {config['_target_']} is no {wanted} (no subclass of {kind.__name__})")
    if not callable(target):
        raise UserError(f"{where}._target_: {config['_target_']} is neither a class nor a function")


def packages_of(config: Any) -> set[str]:
    """Return the packages that a config's targets come from: what its user runs already, and so trusts."""
    if isinstance(config, Mapping):
        found = {str(config["_target_"]).partition(".")[0]} if "_target_" in config else set()
        return found.union(*(packages_of(value) for value in config.values()))
    return set().union(*map(packages_of, config)) if isinstance(config, list | tuple) else set()


def use_config_folder(folder: str) -> Path:
    """Make packages beside a ``--config-dir`` importable, also in child processes; UserError for a missing folder."""
    path = Path(folder).absolute()
    if not os.path.isdir(path) or not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"--config-dir={folder}: there is no such folder that can be read")
    beside = str(path.parent)
    if beside not in sys.path:
        sys.path.insert(0, beside)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [beside, os.environ.get("PYTHONPATH")]))
    return path


def expand_encoders(arguments: list[str]) -> list[str]:
    """Turn ``model/encoder=resnet18``, timm's name, into ``model/encoder=timm model.encoder.name=resnet18``.

    A config of that name comes first. UserError if there is neither; it gives the nearest name of both.
    """
    group = "model/encoder"
    folders = [files("fakedet.conf").joinpath(group)]
    if given := get_args_parser().parse_known_args(arguments)[0].config_dir:
        folders.append(Path(given) / group)
    options = {entry.name.removesuffix(".yaml") for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    expanded = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != group or not value or all(name in options for name in value.split(",")):
            expanded.append(argument)
            continue
        if "," in value:
            raise UserError(f"{argument}: to sweep over timm's encoders, write {group}=timm model.encoder.name={value}")
        import timm

        known = timm.list_models()
        if value.split(".")[0] not in known:
            raise UserError(f"{group}: '{value}' is neither a config nor a model of timm; "
                            f"{nearest(value, [*options, *known])[:300]}")  # fmt: skip
        expanded += [f"{group}=timm", f"model.encoder.name={value}"]
    return expanded


MISSING_HINTS = {
    "data.manifest": "a parquet or CSV table with the columns path, label, generator; data=demo has its own",
    "source": "the images: a file, a folder, a table ..., see --help",
    "name": "a benchmark, such as forensynths or genimage; docs/benchmarks.md lists them",
    "output": "the file to write",
    "predictions": "a predictions.parquet that `fakedet train` or `evaluate` wrote, or a list of them",
    "output_dir": "the folder to write into",
    "checkpoint": "the .ckpt file that `fakedet train` wrote, or detector=NAME weights=FILE for a published one",
}
# Keys that only another option than the default has.
ELSEWHERE = dict.fromkeys(("data.manifest", "data.root"), "data=demo makes its own images; pass data=manifest as well")
# What a value looks like where the default is null.
INSTEAD_OF_NULL = {
    "threads": 1, "data.steps_per_epoch": 1, "data.crop_size": 1, "data.match.size": 1, "data.eval_batch_size": 1,
    **{f"trainer.limit_{split}_batches": 1.0 for split in ("train", "val", "test")},
}  # fmt: skip


@contextmanager
def without_hydra() -> Iterator[None]:
    """Allow composing inside of a Hydra application."""
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


# Keys whose values are files, folders or names, whatever node they stand in; those of NAMED_LISTS also take lists.
NAMED_LISTS = ("source", "predictions", "runs", "reals", "fakes", "unseen")
NAMED = (
    *NAMED_LISTS, "manifest", "root", "cache", "shard_cache", "checkpoint", "stage1_checkpoint", "stage1_cache", "run",
    "output_dir", "output", "heatmaps", "report", "weights", "backbone", "head", "dir", "save_dir", "dirpath", "path",
    "file", "baseline", "title", "group",
)  # fmt: skip
# Text that stands for itself as the value of such a key.
LITERAL = re.compile(r"(?!(null|true|false|\?\?\?)$)[^~'\"\[{\\$\s]([^'\"\\$\n]*[^'\"\\$\s])?")
QUOTED = re.compile(r"""(?P<quote>['"])(?:\\.|(?!(?P=quote)|\\).)*(?P=quote)""", re.DOTALL)
CLOSED = re.compile(r"([^\[\],:]*:\s*)?\[[^\[\]]*\]|\$\{[^{}]*\}", re.DOTALL)
SWEPT_BY = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\(.*\)", re.DOTALL)


def shown_command(verb: str, *words: str, **names: object) -> str:
    """Write a command that a shell takes as it is printed; ``names`` are values of keys of :data:`NAMED`."""
    for key, value in names.items():
        text = f"./{value}" if str(value).startswith("~") else str(value)  # a relative path, and nobody's home folder
        words = (*words, f"{key}={text if LITERAL.fullmatch(text) else written(text)}")
    return shlex.join(["fakedet", verb, *words])


def again(command: Iterable[str]) -> str:
    """Write a command for a shell that makes once more, in the same folder, what it has made."""
    words = list(command)
    replaces = any(word.startswith("output_dir=") for word in words) and "overwrite=true" not in words
    return shlex.join([*words, "overwrite=true"] if replaces else words)


def as_typed(arguments: Iterable[str], multirun: bool = False) -> list[str]:
    """Quote the values of :data:`NAMED` keys for Hydra, whose grammar takes few signs in text, and expand ``~``.

    Such a value is taken as it was typed, commas and all, unless quotes enclose it, it is a list in brackets, or
    ``${...}`` is in it. Of what can be read in two ways, a list or one name with commas, say, an existing file decides.
    """
    return [_typed(argument, multirun) for argument in arguments]


def _typed(argument: str, multirun: bool) -> str:
    key, equals, value = argument.partition("=")
    if key == "--config-dir":
        return f"{key}{equals}{os.path.expanduser(value)}"
    name = key.lstrip("+").rpartition(".")[2]
    if name not in NAMED or key.startswith(("-", "~", "columns.")) or value in ("", "null", "true", "false", "???"):
        return argument
    if not os.path.lexists(value):
        several = multirun and key != "hydra.sweep.dir"
        is_list = name in NAMED_LISTS and value.startswith("[") and value.endswith("]")
        if is_list and not (several and len(_split(value)) > 1):
            return f"{key}={_listed(value)}"
        if name in ("predictions", "runs") and ":" in value and value.startswith("{") and value.endswith("}"):
            entries = [one.partition(":") for one in _split(value[1:-1])]
            return f"{key}={{{','.join(f'{label}:{_listed(given.strip())}' for label, _, given in entries)}}}"
        if name not in NAMED_LISTS and re.fullmatch(r"\[.*\]|\{.*:.*\}", value, re.DOTALL):
            return argument  # a list or a mapping for a class of the user's own
        if several:
            if SWEPT_BY.fullmatch(value):
                return argument
            swept = [_typed(f"{key}={one}", False) for one in _split(value)]
            return f"{key}={','.join(one.partition('=')[2] for one in swept)}"
    return f"{key}={_named(value)}"


def _split(text: str) -> list[str]:
    """Split a list at its commas, but not within an existing path, quotes or brackets."""
    parts, found = text.split(","), list[str]()
    while parts and text.strip():
        joined = [",".join(parts[:count]).strip() for count in range(1, min(len(parts), 20) + 1)]
        paths = [one for one in joined if os.path.lexists(one) or os.path.lexists(one.partition(":")[2].strip())]
        closed = [one for one in joined if CLOSED.fullmatch(one) or QUOTED.fullmatch(one)]
        found.append([*paths[-1:], *closed, joined[0]][0])
        del parts[: joined.index(found[-1]) + 1]
    return found


def _listed(text: str) -> str:
    is_list = text.startswith("[") and text.endswith("]") and not os.path.lexists(text)
    return f"[{','.join(map(_named, _split(text[1:-1])))}]" if is_list else _named(text)


def _named(text: str) -> str:
    there = os.path.lexists(text)
    if "${" in text:
        if there:
            raise UserError(f"{text}: a name with ${{ cannot be given, because configs read ${{...}} as the value of a "
                            "key; rename it, or make a link to it")  # fmt: skip
        return text
    if not there and (QUOTED.fullmatch(text) or "\\" in text):
        try:
            value = OverridesParser.create().parse_override(f"x={text}").value()
        except HydraException:
            value = text
        if isinstance(value, str) and (QUOTED.fullmatch(text) or os.path.lexists(value)):
            text = value
    home = os.path.expanduser(text)
    return written(text if os.path.lexists(text) and not os.path.lexists(home) else home)


def refusal(error: OSError, config: DictConfig) -> UserError | None:
    """Say which file was refused and which key named it or its folder; None for an error that does not refuse one."""
    forbidden = error.errno in (errno.EACCES, errno.EPERM)
    refused = forbidden or error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
    if not refused or not isinstance(error.filename, str | bytes):
        return None
    file = os.fsdecode(error.filename)
    place = f"{os.path.abspath(file)}/"
    given = [("", "", ""), *_places(OmegaConf.to_container(config, resolve=False))]
    key, value, found = max((one for one in given if place.startswith(one[2])), key=lambda one: len(one[2]))
    where = f"{key}={value}" if place == found else f"{key}={value}: {file}" if key else file
    written_there = key.rpartition(".")[2] in (
        "output",
        "output_dir",
        "heatmaps",
        "report",
        "dir",
        "save_dir",
        "dirpath",
    )
    why = f"no permission to {'write' if written_there else 'read'} it" if forbidden else error.strerror
    return UserError(f"{where}: {why}")


def _places(node: Any) -> Iterator[tuple[str, str, str]]:
    """Yield each path of a config: its key, itself, and its absolute place with a slash behind it."""
    for key, value in _walk(node):
        for one in value if isinstance(value, list) else [value]:
            if key.rpartition(".")[2] in NAMED and isinstance(one, str) and one:
                yield key, one, f"{os.path.abspath(one)}/".replace("//", "/")


def check_command_line(verb: str, arguments: list[str]) -> None:
    """Raise UserError for the first unknown key or option, value of the wrong type, or missing one."""
    flags = get_args_parser().parse_args(arguments)
    if flags.help or flags.hydra_help or flags.info or flags.shell_completion or flags.cfg:
        return
    for text in flags.overrides:
        if verb in ("predict", "index") and "=" not in text and os.path.exists(text):
            raise UserError(f"'{text}' is not of the form key=value; did you mean {shlex.quote(f'source={text}')}?")
    overrides = _parse(flags.overrides)
    search = [str(item.input_line) for item in overrides if item.key_or_group == "hydra.searchpath"]
    if flags.config_dir:
        search.append(f"hydra.searchpath=[{written(f'file://{use_config_folder(flags.config_dir)}')}]")
    with without_hydra(), initialize_config_module("fakedet.conf", version_base="1.3"):

        def options(group: str) -> list[str]:
            return GlobalHydra.instance().config_loader().get_group_options(group, config_name=verb, overrides=search)

        groups = [item for item in overrides if not item.is_hydra_override() and options(item.key_or_group)]
        for override in groups:
            _check_option(override, options)
        config = compose(verb, overrides=[*search, *(texts_of(override)[0] for override in groups)])
        for override in overrides:
            if override not in groups:
                _check_value(override, config)
        given = [texts_of(override)[0] for override in overrides if not override.is_hydra_override()]
        whole = compose(verb, overrides=[*search, *given])
        instead = {"checkpoint"} if whole.get("detector") else set[str]()  # a published one takes its place
        for key in sorted(OmegaConf.missing_keys(whole) - instead):
            hint = f": {MISSING_HINTS[key]}" if key in MISSING_HINTS else ""
            raise UserError(f"{key} is not given; pass {key}=...{hint}")


def _parse(overrides: list[str]) -> list[Override]:
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"'{text}' is not of the form key=value")
    try:
        return list(OverridesParser.create().parse_overrides(overrides))
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise UserError(f"an override cannot be read: {first}; put values with special signs into quotes: "
                        "'key=\"a b\"'") from error  # fmt: skip


def _values(override: Override) -> list[Any]:
    """List the value of an override, or all values that it sweeps over."""
    if not override.is_sweep_override():
        return [override.value()]
    return list(override.sweep_iterator(transformer=Transformer.identity)) if override.is_discrete_sweep() else []


def texts_of(override: Override) -> list[str]:
    """Write an override once for each value that it sweeps over, or as it is if it is no sweep.

    Raises:
        UserError: a sweep over no value.
    """
    if not override.is_discrete_sweep():
        return [str(override.input_line)]
    if not (texts := [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]):
        raise UserError(f"{override.input_line}: a sweep over no value")
    return texts


def _check_option(override: Override, options: Callable[[str], list[str]]) -> None:
    key = override.key_or_group
    for value in _values(override):
        for name in value if isinstance(value, list) else [value]:
            if name is None and not override.is_delete():
                raise UserError(f"{key}=null: a group is left out with ~{key}")
            folder, _, own = str(name).rpartition("/")
            if name is not None and own not in options(f"{key}/{folder}" if folder else key):
                raise UserError(f"{key}={name}: there is no such config; {nearest(str(name), options(key))}")


def _check_value(override: Override, config: DictConfig) -> None:
    if override.is_hydra_override() or override.is_add() or override.is_force_add():
        return
    key = override.key_or_group
    _check_followed(key, config)
    above, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(config, above) if above else config
    if not isinstance(parent, DictConfig) or leaf not in list(parent):
        hint = ELSEWHERE.get(key) or _nearest_key(key, config)
        raise UserError(f"there is no key '{key}'; {hint}")
    if override.is_delete() or OmegaConf.is_missing(parent, leaf):
        return
    default = OmegaConf.select(config, key)
    default = INSTEAD_OF_NULL.get(key) if default is None else default
    for value in _values(override):
        _check_type(key, value, default)


def _check_followed(key: str, config: DictConfig) -> None:
    """Refuse a key below an interpolated node: Hydra finds none there, although the printed config shows it."""
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
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, int):
        expected, fits = "a whole number", is_number and (isinstance(value, int) or value.is_integer())
    elif isinstance(default, float):
        expected, fits = "a number", is_number
    else:
        expected, fits = "a list or mapping", isinstance(value, dict | list) or not OmegaConf.is_config(default)
    if not fits and value is not None and "${" not in str(value):
        raise UserError(f"{key}={value}: expected {expected}, like {default}")


def _nearest_key(key: str, config: DictConfig) -> str:
    groups = GlobalHydra.instance().config_loader().list_groups("")
    known = [*(name for name, _ in _walk(OmegaConf.to_container(config, resolve=False))), *map(str, groups)]
    hint = nearest(key, known)
    if hint.startswith("did you mean"):
        return hint
    parent, _, leaf = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    return nearest(leaf, siblings) if siblings else nearest(key, list(config))  # type: ignore[arg-type]
