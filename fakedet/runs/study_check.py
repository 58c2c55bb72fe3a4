"""What is wrong with a study, found before it trains for hours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fakedet.errors import UserError, choose
from fakedet.evaluation.rescore import SCORES
from fakedet.runs.resuming import differences
from fakedet.runs.study_job import Job, compose_also, compose_job, short

ANEW = "name another output_dir, or pass overwrite=true to train such jobs anew"


class OverridesError(UserError):
    """The overrides of a method do not compose.

    Args:
        job: whose they are.
        reason: in a line.
    """

    def __init__(self, job: Job, reason: str) -> None:
        super().__init__(f"study: the overrides of '{job.method}': {reason}")
        self.job = job


def check_study(config: Mapping[str, Any]) -> None:
    """Refuse a ``study`` node that no study could follow.

    Raises:
        UserError: the first mistake.
    """
    methods, seeds = config["methods"], config["seeds"]
    if not isinstance(methods, Mapping) or not methods:
        raise UserError("study.methods: name → a list of overrides of `fakedet train`, one or more")
    lists = {f"methods.{name}": overrides for name, overrides in methods.items()}
    lists |= {f"also.{name}": overrides for name, overrides in (config.get("also") or {}).items()}
    for name, overrides in {**lists, "common": config["common"]}.items():
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise UserError(
                f"study.{name}={overrides}: a list of overrides, such as [model=bce]; [] for none"
            )
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"study.seeds={seeds}: a list of whole numbers from 0, one or more")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"study.seeds={seeds}: each seed once; the same seed gives the same run")
    for name in [*(config.get("first") or ()), config["baseline"]]:
        if name not in methods:
            raise UserError(f"study: '{name}' is not among its methods: {', '.join(methods)}")
    _check_derived(config)


def _check_derived(config: Mapping[str, Any]) -> None:
    for name, derived in (config.get("derived") or {}).items():
        if name in config["methods"]:
            raise UserError(f"study.derived.{name}: a method has this name; give it another one")
        if not isinstance(derived, Mapping) or set(derived) != {"of", "score"}:
            raise UserError(f"study.derived.{name}: is {{of: METHOD, score: {' or '.join(SCORES)}}}")
        choose(str(derived["of"]), config["methods"], f"study.derived.{name}.of")
        choose(str(derived["score"]), SCORES, f"study.derived.{name}.score")


def check_jobs(jobs: Sequence[Job]) -> None:
    """Compose each method, read its data, build its encoder; where jobs may be replaced, stale ones count as not done.

    Raises:
        UserError: overrides that no config knows, values that no run could use, data that cannot be read, an encoder
            that cannot be built, or a finished job of a config or of data that have changed since.
    """
    configs = dict(_composed(jobs))
    data = _Manifests()
    for job in jobs:
        config = configs[job.method]
        stale = _stale(job, config, data) if job.is_trained else ""
        if stale and job.replace:
            job.forget()
        elif stale:
            raise UserError(f"{job.folder} was trained by another {stale}; {ANEW}")
    _check_also(jobs, data)
    # Of every method, also of one without a finished job.
    for config in configs.values():
        data.of_training(config)
    _check_encoders({job.method: configs[job.method] for job in jobs if not job.is_trained})


def _composed(jobs: Sequence[Job]) -> Iterator[tuple[str, DictConfig]]:
    from fakedet.runs.checks import check_config

    for job in {job.method: job for job in reversed(jobs)}.values():
        try:
            config = compose_job(job)
        except (HydraException, OmegaConfBaseException) as error:
            raise OverridesError(job, short(error)) from error
        try:
            check_config(config)
        except UserError as error:
            raise UserError(f"study: '{job.method}': {error}") from error
        yield job.method, config


def _stale(job: Job, config: DictConfig, data: _Manifests) -> str:
    """Say in what a finished job differs from what its overrides mean today; "" if in nothing."""
    ours = config.copy()
    ours.output_dir, ours.seed = str(job.folder), job.seed
    if changes := differences(ours):
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        return f"config than '{job.method}' is now: {changes[0]}{more}"
    if job.facts().get("manifest_sha256") != data.of_training(config):
        return f"manifest: {config.data.manifest} has changed since"
    return ""


def _check_also(jobs: Sequence[Job], data: _Manifests) -> None:
    """Read the other manifests; scores of one that has changed since are made anew."""
    for name in jobs[0].also:
        try:
            sha256 = data.of_scoring(compose_also(jobs[0], name))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"study.also.{name}: {short(error)}") from error
        except UserError as error:
            raise UserError(f"study.also.{name}: {error}") from error
        for job in jobs:
            if job.is_scored(name) and job.facts(name).get("manifest_sha256") != sha256:
                job.forget(name)


class _Manifests:
    """The sha256 of each manifest, read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of_training(self, config: DictConfig) -> str:
        from fakedet.runs.fitting import make_datamodule

        return self._sha256(config, lambda: make_datamodule(config))

    def of_scoring(self, config: DictConfig) -> str:
        from fakedet.build import build_datamodule

        settings = {**_plain(config.data), "crop_size": 64, "eval_policy": "crop", "match": None}
        return self._sha256(config, lambda: build_datamodule(settings))

    def _sha256(self, config: DictConfig, make: Any) -> str:
        key = json.dumps(_plain(config.data), sort_keys=True)
        if key not in self._known:
            self._known[key] = make().manifest.sha256
        return self._known[key]


def _check_encoders(configs: Mapping[str, DictConfig]) -> None:
    """Build every encoder that is not the same as one before."""
    from fakedet.build import build_encoder

    seen = set()
    for method, config in configs.items():
        encoder = _plain(config.model.encoder)
        if (key := json.dumps(encoder, sort_keys=True)) in seen:
            continue
        seen.add(key)
        try:
            build_encoder(encoder)
        except UserError as error:
            raise UserError(f"study: '{method}': {error}") from error


def _plain(node: DictConfig) -> dict[str, Any]:
    content: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    return content
