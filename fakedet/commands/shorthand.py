"""Short forms on the command line that Hydra's grammar does not know."""

from __future__ import annotations

from importlib.resources import files

from fakedet.errors import UserError, nearest

GROUP = "model/encoder"


def expand_encoders(arguments: list[str]) -> list[str]:
    """Turn ``model/encoder=resnet18`` into ``model/encoder=timm model.encoder.name=resnet18``.

    Any name of timm's stands where no config of ours has that name.

    Raises:
        UserError: neither; the nearest name of both is given.
    """
    expanded = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != GROUP or value in _options() or not value:
            expanded.append(argument)
        elif "," in value:
            if any(part not in _options() for part in value.split(",")):
                raise UserError(
                    f"{argument}: to sweep over timm's encoders, write "
                    f"model/encoder=timm model.encoder.name={value}"
                )
            expanded.append(argument)
        else:
            expanded += [f"{GROUP}=timm", f"model.encoder.name={_timm_name(value)}"]
    return expanded


def _options() -> set[str]:
    folder = files("fakedet.conf").joinpath("model", "encoder")
    return {entry.name.removesuffix(".yaml") for entry in folder.iterdir()}


def _timm_name(value: str) -> str:
    import timm

    known = timm.list_models()
    if value.split(".")[0] not in known:
        raise UserError(f"{GROUP}: '{value}' is neither a config nor a model of timm; "
                        f"{nearest(value, [*_options(), *known])[:300]}")  # fmt: skip
    return value
