"""What a comparison says, in sentences."""

from __future__ import annotations

import math

from fakedet.evaluation.comparison import Comparison
from fakedet.metrics.bootstrap import Interval

# Below this many groups a bootstrap over groups is known to give intervals that are too narrow.
FEW_GROUPS = 20
# The same for seeds; the bootstrap over k seeds finds (k − 1) / k of their variance, with one seed none.
FEW_SEEDS = 5


def verdict(comparison: Comparison) -> list[str]:
    """Say in sentences whether differences exceed their intervals, and what these leave out."""
    told = [
        *_sentences(comparison, "map_unseen", "unseen generators"),
        *_sentences(comparison, "map_seen", "seen generators"),
    ] or _sentences(comparison, "map", "all generators")
    return told + _reservations(comparison)


def _sentences(comparison: Comparison, mean: str, words: str) -> list[str]:
    members = comparison.members(mean)
    if not members:
        return []
    fakes = sum(comparison.generators[name].n_fake for name in members)
    base = _text(comparison.values["ap"][mean][comparison.baseline])
    told = [f"On {words} ({len(members)}, with {fakes} fakes), {comparison.baseline} reaches mAP {base}."]
    for method, difference in comparison.differences["ap"][mean].items():
        value, gap = comparison.values["ap"][mean][method], _text(difference.interval, "+.3f")
        says = (
            f"is {difference.way} it by more than the interval"
            if difference.way
            else "cannot be told from it"
        )
        told.append(f"{method} ({_text(value)}) {says}: {gap}.")
    return [*told, _areas(comparison, mean)]


def _areas(comparison: Comparison, mean: str) -> str:
    """Tell the mean AUCs, which do not depend on how many fakes there are for a real."""
    gaps = comparison.differences["auc"][mean]
    told = []
    for method, value in comparison.values["auc"][mean].items():
        gap = gaps.get(method)
        way = f", {gap.way} it by more than the interval" if gap and gap.way else ""
        told.append(f"{method} {_text(value)}" + (f" ({_text(gap.interval, '+.3f')}{way})" if gap else ""))
    return f"Mean AUC there, where a guess is 0.5 however many fakes there are: {'; '.join(told)}."


def _reservations(comparison: Comparison) -> list[str]:
    told = []
    few = [
        groups
        for mean, groups in comparison.support.items()
        if comparison.members(mean) and groups < FEW_GROUPS
    ]
    if few:
        told.append(
            f"The intervals rest on only {min(few)} photographs or prompts: over so few, they are a lower "
            "bound of the uncertainty, and no difference here settles a question."
        )
    fewest = min(len(seeds) for seeds in comparison.seeds.values())
    if fewest == 1:
        told.append("With one seed a method, the intervals leave out how much training varies.")
    elif fewest < FEW_SEEDS:
        told.append(f"With {fewest} seeds a method, the intervals understate how much training varies.")
    base = comparison.seeds[comparison.baseline]
    for method, seeds in comparison.seeds.items():
        if seeds != base:
            shared = ", ".join(str(seed) for seed in seeds if seed in base)
            over = (
                f"over the seeds that both have ({shared})"
                if shared
                else "not paired over seeds: they share none"
            )
            told.append(
                f"{method} and {comparison.baseline} have not the same seeds; their difference is {over}."
            )
    if comparison.n_left_out:
        told.append(f"{comparison.n_left_out} images that not every run has scored are left out of all.")
    return told


def _text(interval: Interval, form: str = ".3f") -> str:
    if math.isnan(interval.low):
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
