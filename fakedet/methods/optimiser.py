"""The optimiser and its learning-rate schedule, from scalars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import timm.optim
import torch
from torch import nn

from fakedet.errors import UserError, choose

SHAPE = ("factor", "steps", "patience", "plateau_metric")

SCHEDULES = ("cosine", "constant", "step", "plateau")


def configure_optimiser(
    parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], total_steps: int
) -> dict[str, Any]:
    """Build the optimiser and its per-step schedule in the form that Lightning takes.

    Args:
        parameters: what is learned; frozen ones are left out.
        settings: ``name`` (any optimiser of timm), ``lr``, ``weight_decay``, ``warmup`` (share of all steps)
            and ``schedule``; everything else goes to the optimiser itself. Schedules: "cosine"; "constant";
            "step", times ``factor`` after each of ``steps`` equal parts of the training; "plateau", times ``factor``
            when ``plateau_metric`` of the validation has not risen for ``patience`` epochs.
        total_steps: optimiser steps of the whole training.

    Raises:
        UserError: an unknown optimiser or schedule, or settings that the optimiser does not take.
    """
    name, schedule = check_names(settings)
    options = {key: value for key, value in settings.items() if key not in ("name", "schedule")}
    warmup = float(options.pop("warmup", 0.0))
    shape = {key: options.pop(key) for key in SHAPE if key in options}
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        optimiser = timm.optim.create_optimizer_v2(learned, opt=name, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer: '{name}' does not take these settings: {error}") from error
    if schedule == "plateau":
        return _plateau(optimiser, shape)
    warmup_steps = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant":
            return 1.0
        if schedule == "step":
            return float(shape["factor"] ** (step * shape["steps"] // max(1, total_steps)))
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def check_names(settings: Mapping[str, Any], where: str = "model.optimizer") -> tuple[str, str]:
    """Give the names of optimiser and schedule.

    Raises:
        UserError: one is unknown; the message names the nearest.
    """
    known = map(str, timm.optim.list_optimizers())
    name = choose(str(settings["name"]).lower(), known, f"{where}.name")
    return name, choose(str(settings.get("schedule", "constant")), SCHEDULES, f"{where}.schedule")


def _plateau(optimiser: torch.optim.Optimizer, shape: Mapping[str, Any]) -> dict[str, Any]:
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=float(shape["factor"]), patience=int(shape["patience"])
    )
    every = {"scheduler": scheduler, "interval": "epoch", "monitor": shape["plateau_metric"]}
    return {"optimizer": optimiser, "lr_scheduler": every}
