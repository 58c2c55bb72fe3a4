"""AP and AUC of every generator, their means, and intervals from one bootstrap of whole groups.

:func:`average_precision` is the public function, :func:`evaluate_frame` gives the same numbers in the form of
metrics.json. :func:`bootstrap_statistics` measures several scorers on the same resamples: differences are paired.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from fakedet.errors import UserError, choose
from fakedet.metrics.bootstrap import Interval, percentile_interval, resample_chunks, stratify_groups
from fakedet.metrics.matched import matched_auc, pairs_by_generator, split_by_source
from fakedet.metrics.pairing import Counterparts, Pairs, column, group_cells, real_counterparts
from fakedet.metrics.ranking import Ranking, descending, mean_of_defined, rank, running_sum, weighted_statistics

METRICS = ("ap", "auc", "auc_matched")
# Mean -> the values of ``seen`` that its generators have.
MEANS = {"map": (True, False, None), "map_seen": (True,), "map_unseen": (False,)}


@dataclass(frozen=True)
class GeneratorSummary:
    """The images that a generator was measured on."""

    seen: bool | None  # whether the detector saw its fakes in training; None if unknown
    n_real: int
    n_fake: int
    n_groups: int  # photographs or prompts that its fakes and their counterparts come from
    reals: list[str]  # generators of its counterparts
    rule: str  # why these; see :class:`fakedet.metrics.pairing.Counterparts`
    n_matched: int  # fakes that have reals of the same content, for the matched AUC


@dataclass(frozen=True)
class GeneratorResult(GeneratorSummary):
    """AP and AUC of one generator, with intervals; NaN where it has no reals."""

    ap: Interval
    auc: Interval
    auc_matched: Interval  # among fakes and reals of the same content; NaN where it has none


@dataclass(frozen=True)
class MeanResult:
    """Plain means over generators, with intervals; NaN where there is no generator."""

    ap: Interval
    auc: Interval
    auc_matched: Interval
    generators: list[str]  # those that the means are over, with both classes
    left_out: list[str]  # those without reals


@dataclass(frozen=True)
class AveragePrecision:
    """What :func:`average_precision` measured."""

    generators: dict[str, GeneratorResult]
    means: dict[str, MeanResult]
    """Over "all", the "seen" and the "unseen" generators."""
    matched_by: str | None
    """What says which images show the same, for ``auc_matched``: "features" (see
    :func:`fakedet.metrics.matched.content_pairs`), "source" (the AUC within each source, weighted by its fakes), or
    None (nothing does)."""

    def to_frame(self) -> pd.DataFrame:
        """Return a table for display: a row per generator, then a row per mean that has any.

        The index is the generator's name, or "mean", "mean, seen", "mean, unseen". The columns are n_real, n_fake (of a
        mean missing), and ap, ap_low, ap_high, auc, auc_low, auc_high.
        """
        named: dict[str, GeneratorResult | MeanResult] = {**self.generators}
        for kind, mean in self.means.items():
            if mean.generators:
                named["mean" if kind == "all" else f"mean, {kind}"] = mean
        rows: dict[str, dict[str, Any]] = {}
        for name, row in named.items():
            rows[name] = {key: getattr(row, key, pd.NA) for key in ("n_real", "n_fake")}
            for metric, gap in (("ap", row.ap), ("auc", row.auc)):
                rows[name] |= {metric: gap.value, f"{metric}_low": gap.low, f"{metric}_high": gap.high}
        columns = ["n_real", "n_fake", "ap", "ap_low", "ap_high", "auc", "auc_low", "auc_high"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("generator")
        return table.astype({"n_real": "Int64", "n_fake": "Int64"})

    def to_dict(self) -> dict[str, Any]:
        """Return the form of metrics.json; see :func:`evaluate_frame`."""
        result: dict[str, Any] = {"per_generator": {}, "matched_by": self.matched_by}
        for name, row in self.generators.items():
            intervals = {metric: getattr(row, metric).to_dict() for metric in METRICS}
            result["per_generator"][name] = {**asdict(row), **intervals}
        for metric in METRICS:
            for kind, mean in self.means.items():
                counts = {"n_generators": len(mean.generators), "left_out": mean.left_out}
                key = f"m{metric}" if kind == "all" else f"m{metric}_{kind}"
                result[key] = getattr(mean, metric).to_dict() | counts
        return result


def average_precision(
    labels: ArrayLike | torch.Tensor | pd.DataFrame, scores: ArrayLike | torch.Tensor | None = None,
    generators: ArrayLike | None = None, *, groups: ArrayLike | torch.Tensor | None = None,
    sources: ArrayLike | None = None, pairs: Pairs | None = None, seen: Collection[str] | None = None,
    resamples: int = 1000, seed: int = 0, level: float = 0.95,
) -> AveragePrecision:  # fmt: skip
    """Measure AP and AUC of every generator, and their means, with bootstrap intervals.

    The fakes of each generator are ranked among their real counterparts: those that ``pairs`` names, else reals with
    the generator's name, else reals from the same source, else all reals. The intervals resample whole groups.

    Example:
        >>> frame = pd.read_parquet("runs/ntf/predictions.parquet")
        >>> average_precision(frame[frame["view"] == "original"]).to_frame()
        >>> average_precision([0, 0, 1, 1], [-2.0, 0.5, 0.1, 3.0], ["photo", "photo", "sdxl", "flux"])

    Args:
        labels: (n,) 0 = real, 1 = fake; or a DataFrame with the columns label, generator, logit (or score) and,
            where known, group and source, such as the predictions file of a run.
        scores: (n,) higher = more likely fake. Prefer logits: close to 1, float32 probabilities merge.
        generators: (n,) name of each fake's generator; that of a real matters for pairing only and may be None.
        groups: (n,) photograph or prompt that each image comes from; None: every image is a group of its own.
        sources: (n,) data set or collection that each image comes from.
        pairs: generator (name or glob) -> names or globs of its reals, as for
            :func:`fakedet.metrics.pairing.real_counterparts`.
        seen: generators that the detector was trained on; None where unknown: only the mean over all is defined.
        resamples: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.
        level: of the intervals, in (0, 1).

    Raises:
        UserError: lengths differ, a label is not 0 or 1, a score is NaN, a fake has no generator, or a column or
            argument is missing.
    """
    frame, values = _as_frame(labels, scores, generators, groups, sources)
    if not 0 < level < 1:
        raise UserError(f"average_precision: level={level} must be between 0 and 1")
    if resamples < 0:
        raise UserError(f"average_precision: resamples={resamples} must be 0 or more")
    known = None if seen is None else {str(name) for name in seen}
    return bootstrap_statistics(frame, {"scores": values}, pairs, known, resamples, seed).result("scores", level)


def evaluate_frame(
    frame: pd.DataFrame, pairs: Pairs | None, seen: Collection[str] | None, n_resamples: int = 1000, seed: int = 0,
    known_reals: Collection[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a detector on every generator of a predictions frame.

    Args and errors are those of :func:`bootstrap_statistics`; the frame has a column logit.

    Returns:
        {"per_generator": {name: {"seen", "n_real", "n_fake", "n_groups", "reals", "rule", "n_matched", "ap", "auc",
        "auc_matched"}}, "matched_by", and the means "map", "mauc", "mauc_matched", each also with "_seen" and
        "_unseen"}: plain values with None for NaN. "ap", "auc" and "auc_matched" are {"value", "low", "high"}; the
        means also have "n_generators" and "left_out" (one class only). Where ``seen`` is None, so are every "seen" and
        the means over the seen and the unseen.
    """
    if "logit" not in frame:
        raise UserError("predictions: no column 'logit'; a predictions file has label, generator and logit")
    logits = {"logit": frame["logit"].to_numpy()}
    return bootstrap_statistics(frame, logits, pairs, seen, n_resamples, seed, known_reals).result("logit").to_dict()


@dataclass(frozen=True)
class BootstrapTable:
    """Point values and resamples of AP and AUC, by scorer, metric and name.

    A name is a generator, or "map", "map_seen", "map_unseen": the plain mean of the metric over all, the seen and the
    unseen generators. Row r of every sample comes from the same resample of the groups, so that differences between
    scorers and between names are paired.
    """

    generators: dict[str, GeneratorSummary]
    matched_by: str | None  # see :class:`AveragePrecision`
    points: dict[tuple[str, str], NDArray[np.float64]]  # (scorer, metric) -> (G,) in the order of ``generators``
    resamples: dict[tuple[str, str], NDArray[np.float64]]  # (scorer, metric) -> (R, G)

    def value(self, scorer: str, metric: str, name: str) -> float:
        """Return the value on the data themselves, NaN where undefined; UserError for an unknown name."""
        return mean_of_defined(self._pick(self.points, scorer, metric, name).tolist())

    def samples(self, scorer: str, metric: str, name: str) -> NDArray[np.float64]:
        """Return the (R,) values of the resamples; a mean is NaN where that of one of its generators is."""
        # The mean over the other generators would measure something else.
        picked = self._pick(self.resamples, scorer, metric, name)
        return picked.mean(axis=1) if picked.shape[1] else np.full(len(picked), np.nan)

    def interval(self, scorer: str, metric: str, name: str, level: float = 0.95) -> Interval:
        """Return the value with its percentile interval."""
        return percentile_interval(self.value(scorer, metric, name), self.samples(scorer, metric, name), level)

    def difference(self, first: str, second: str, metric: str, name: str, level: float = 0.95) -> Interval:
        """Return value(first) − value(second) with its paired interval."""
        value = self.value(first, metric, name) - self.value(second, metric, name)
        samples = self.samples(first, metric, name) - self.samples(second, metric, name)
        return percentile_interval(value, samples, level)

    def result(self, scorer: str, level: float = 0.95) -> AveragePrecision:
        """Return all values and intervals of one scorer."""
        results = {
            name: GeneratorResult(*vars(row).values(), *(self.interval(scorer, key, name, level) for key in METRICS))
            for name, row in self.generators.items()
        }
        means = {}
        for kind, name in zip(("all", "seen", "unseen"), MEANS, strict=True):
            ap, auc, matched = (self.interval(scorer, metric, name, level) for metric in METRICS)
            means[kind] = MeanResult(ap, auc, matched, *mean_members(self.generators, name))
        return AveragePrecision(results, means, self.matched_by)

    def _pick(
        self, table: dict[tuple[str, str], NDArray[np.float64]], scorer: str, metric: str, name: str
    ) -> NDArray[np.float64]:
        values = table[choose(scorer, {key for key, _ in table}, "scorer"), choose(metric, METRICS, "metric")]
        names = list(self.generators)
        own = mean_members(self.generators, name)[0] if name in MEANS else [name]
        if metric == "auc_matched" and name in MEANS:  # some may have no fakes that show what a real does
            own = [one for one in own if self.generators[one].n_matched]
        return values[..., [names.index(choose(one, [*names, *MEANS], "generator")) for one in own]]


def mean_members(generators: Mapping[str, GeneratorSummary], mean: str) -> tuple[list[str], list[str]]:
    """Return the generators that a mean is over, and those that it leaves out because they have one class only."""
    own = [name for name, row in generators.items() if row.seen in MEANS[mean]]
    measured = [name for name in own if generators[name].n_real and generators[name].n_fake]
    return measured, [name for name in own if name not in measured]


def bootstrap_statistics(
    frame: pd.DataFrame, logits: Mapping[str, ArrayLike], pairs: Pairs | None, seen: Collection[str] | None,
    n_resamples: int = 1000, seed: int = 0, known_reals: Collection[str] | None = None,
) -> BootstrapTable:  # fmt: skip
    """Compute AP and AUC per generator on the data and on the same resamples for every scorer.

    Args:
        frame: a row per image: label (0/1), generator, group and, where known, source and content, a (D,) array that
            says what the image shows (see :func:`fakedet.metrics.matched.content_pairs`). A row without a group is a
            group of its own. The resamples depend on its groups and cells and on the seed, not on its order or the
            logits.
        logits: scorer (a method, or a method and seed) -> (n,) logits of the frame's rows in their order.
        pairs: as for :func:`fakedet.metrics.pairing.real_counterparts`, like ``known_reals``.
        seen: generators whose fakes the detector saw in training; None where nobody knows.
        n_resamples: R >= 0, drawn by ``seed``; 0 for no intervals.

    Raises:
        UserError: a column is missing, the frame holds several views, a label is not 0 or 1, logits are NaN
            or not one for each row, or ``pairs`` names reals that are not there.
    """
    keys = _checked(frame, logits)
    counterparts = real_counterparts(frame, pairs, known_reals)
    strata = stratify_groups(*group_cells(frame))
    scorers = {key: _Scorer(values, counterparts, strata.codes) for key, values in keys.items()}
    matched = _Matched(frame, keys, counterparts, strata.codes)
    generators = {
        name: GeneratorSummary(
            None if seen is None else name in seen, len(rows.real_rows), len(rows.fake_rows),
            len(np.unique(strata.codes[np.concatenate([rows.fake_rows, rows.real_rows])])), rows.reals, rows.rule,
            matched.fakes[name],
        )
        for name, rows in counterparts.items()
    }  # fmt: skip

    def measured(chunks: Iterable[NDArray[np.int32]], rows: int) -> dict[tuple[str, str], NDArray[np.float64]]:
        table = {(key, metric): np.empty((rows, len(generators))) for key in scorers for metric in METRICS}
        start = 0
        for weights in chunks:
            part = slice(start, start := start + len(weights))
            for key, scorer in scorers.items():
                table[key, "ap"][part], table[key, "auc"][part] = scorer.statistics(weights)
            plain = {key: table[key, "auc"][part] for key in scorers}
            for key, values in matched.statistics(weights, plain).items():
                table[key, "auc_matched"][part] = values
        return table

    itself = measured([np.ones((1, sum(strata.sizes)), dtype=np.int32)], 1)
    resamples = measured(resample_chunks(strata, n_resamples, seed), n_resamples)
    points = {place: values[0] for place, values in itself.items()}
    return BootstrapTable(generators, matched.by, points, resamples)


class _Matched:
    """The AUC among images of the same content, of all generators by all scorers."""

    def __init__(
        self, frame: pd.DataFrame, keys: Mapping[str, NDArray[np.float64]], counterparts: Mapping[str, Counterparts],
        codes: NDArray[np.int64],
    ) -> None:  # fmt: skip
        self.codes, self.keys = codes, keys
        self.pairs = pairs_by_generator(frame, counterparts, codes)
        self.parts = split_by_source(frame, counterparts) if self.pairs is None else None
        self.by = "features" if self.pairs is not None else "source" if self.parts is not None else None
        self.fakes = dict.fromkeys(counterparts, 0)
        if self.pairs is not None:
            self.logits = -np.stack(list(keys.values()), axis=1)
            self.fakes = {name: len(np.unique(pairs[:, 0])) for name, pairs in self.pairs.items()}
        if self.parts is not None:
            self.fakes = {name: sum(len(part.fake_rows) for part in parts) for name, parts in self.parts.items()}
            # Where there is one source only, this is the plain AUC.
            self.scorers = {
                name: {key: _Scorer(own, {str(i): part for i, part in enumerate(parts)}, codes)
                       for key, own in keys.items()}
                for name, parts in self.parts.items() if not self._whole(parts, counterparts[name])
            }  # fmt: skip

    @staticmethod
    def _whole(parts: list[Counterparts], all_of_it: Counterparts) -> bool:
        sizes = [(len(one.fake_rows), len(one.real_rows)) for one in (*parts[:1], all_of_it)]
        return len(parts) == 1 and sizes[0] == sizes[1]

    def statistics(
        self, weights: NDArray[np.int32], plain: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, NDArray[np.float64]]:
        """Compute, by scorer, (R, G) from the (R, groups) weights of the groups; ``plain``: the AUC over all pairs."""
        if self.pairs is not None:
            rows = weights.take(self.codes, axis=1)
            values = np.empty((len(weights), len(self.pairs), len(self.keys)))
            for place, pairs in enumerate(self.pairs.values()):
                values[:, place] = matched_auc(pairs, self.logits, rows)
            return {key: values[:, :, place] for place, key in enumerate(self.keys)}
        found = {key: values.copy() if self.parts else np.full_like(values, np.nan) for key, values in plain.items()}
        for place, (name, parts) in enumerate((self.parts or {}).items()):
            if name in self.scorers:
                fakes = [weights.take(self.codes[part.fake_rows], axis=1).sum(axis=1) for part in parts]
                for key, scorer in self.scorers[name].items():
                    found[key][:, place] = _mean_of_parts(scorer.statistics(weights)[1], fakes)
        return found


def _mean_of_parts(values: NDArray[np.float64], sizes: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Average (R, P) values over parts, weighted by their (R,) sizes; NaN where no part is defined."""
    known = ~np.isnan(values)
    weight = np.stack(sizes, axis=1) * known if sizes else np.zeros(values.shape)
    total = weight.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(known, values * weight, 0.0).sum(axis=1) / total  # type: ignore[no-any-return]


class _Scorer:
    """The rankings of all generators by one scorer; generators with the same reals share their sums."""

    def __init__(
        self, keys: NDArray[np.float64], counterparts: Mapping[str, Counterparts], codes: NDArray[np.int64]
    ) -> None:
        self.real_groups: list[NDArray[np.int64]] = []
        self.rankings: list[tuple[int, NDArray[np.int64], Ranking]] = []
        places: dict[bytes, int] = {}
        sorted_reals: list[NDArray[np.float64]] = []
        for rows in counterparts.values():
            place = places.setdefault(rows.real_rows.tobytes(), len(places))
            if place == len(sorted_reals):
                order = rows.real_rows[np.argsort(keys[rows.real_rows], kind="stable")]
                self.real_groups.append(codes[order])
                sorted_reals.append(keys[order])
            ranking = rank(keys[rows.fake_rows], sorted_reals[place])
            self.rankings.append((place, codes[rows.fake_rows[ranking.fake_order]], ranking))

    def statistics(self, weights: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute (R, G) AP and AUC from the (R, groups) weights of the groups."""
        ap = np.empty((len(weights), len(self.rankings)))
        auc = np.empty_like(ap)
        # By set of reals, so that one running sum is held at a time however many sets there are.
        for place, groups in enumerate(self.real_groups):
            real_sums = running_sum(weights.take(groups, axis=1))
            for i, (own, fakes, ranking) in enumerate(self.rankings):
                if own == place:
                    ap[:, i], auc[:, i] = weighted_statistics(ranking, weights.take(fakes, axis=1), real_sums)
        return ap, auc


def _checked(frame: pd.DataFrame, logits: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    if missing := [name for name in ("label", "generator") if name not in frame]:
        raise UserError(f"predictions: no column {missing}; a predictions file has label, generator and logit")
    if not frame["label"].isin((0, 1)).all():
        raise UserError("predictions: labels are 0 (real) or 1 (fake), and some are neither")
    if "view" in frame and frame["view"].nunique() > 1:
        raise UserError("predictions: rows of several views; measure one view at a time, for example 'original'")
    if taken := sorted(set(MEANS) & set(column(frame, "generator"))):
        raise UserError(f"predictions: a generator is named {taken}, which is the name of a mean; rename it")
    keys = {}
    for key, values in logits.items():
        if np.shape(values) != (len(frame),):
            raise UserError(f"logits of '{key}': shape {np.shape(values)} for {len(frame)} rows")
        try:
            keys[key] = descending(values)
        except ValueError as error:
            raise UserError(f"logits of '{key}': {error}; the detector diverged on them") from error
    return keys


def _as_frame(
    labels: Any, scores: Any, generators: Any, groups: Any, sources: Any
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Check the arguments of :func:`average_precision` and bring them to a frame and its (n,) scores."""
    given: dict[str, Any] = {"scores": scores, "generators": generators, "groups": groups, "sources": sources}
    if isinstance(labels, pd.DataFrame):
        if extra := [name for name, values in given.items() if values is not None]:
            raise UserError(f"average_precision: with a DataFrame, {', '.join(extra)} must be among its columns")
        scores = next((labels[name] for name in ("logit", "score") if name in labels), None)
        missing = [name for name in ("label", "generator") if name not in labels]
        if missing or scores is None:
            raise UserError(
                f"average_precision: the DataFrame has no column {', '.join(missing or ['logit or score'])}; "
                "label, generator and logit (or score) are needed"
            )
        frame = labels.assign(label=_numbers("labels", labels["label"]))
    else:
        if missing := [name for name in ("scores", "generators") if given[name] is None]:
            raise UserError(
                f"average_precision: {' and '.join(missing)} missing; give labels, scores and generators, or a "
                "DataFrame with the columns label, logit and generator"
            )
        parts = {"labels": _numbers("labels", labels), "scores": _numbers("scores", scores)}
        for name in ("generators", "groups", "sources"):
            if given[name] is not None:
                parts[name] = _one_per_image(name, given[name], object)
        lengths = {name: len(values) for name, values in parts.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise UserError(f"average_precision: {told}; one of each per image is needed")
        scores = parts.pop("scores")
        frame = pd.DataFrame({name.removesuffix("s"): values for name, values in parts.items()})
    label, values = frame["label"].to_numpy(), _numbers("scores", scores)
    checks = (
        (~np.isin(label, (0, 1)), "labels are neither 0 (real) nor 1 (fake)"),
        (np.isnan(values), "scores are NaN and cannot be ranked"),
        ((label == 1) & (column(frame, "generator") == ""), "fakes have no generator; name one for each"),
    )
    for wrong, told in checks:
        if wrong.any():
            first = int(np.argmax(wrong))
            raise UserError(f"average_precision: {int(wrong.sum())} of {len(label)} {told}, first in row {first}")
    return frame, values


def _numbers(name: str, values: Any) -> NDArray[np.float64]:
    try:
        return _one_per_image(name, values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"average_precision: {name} must be numbers: {error}") from error


def _one_per_image(name: str, values: Any, dtype: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().tolist()  # also of bfloat16, which numpy does not know
    array = np.asarray(values, dtype=dtype)
    if array.ndim != 1:
        raise UserError(f"average_precision: {name} have the shape {array.shape}; one value per image, (n,), is wanted")
    return array
