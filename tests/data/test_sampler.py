"""Samplers: balance, coverage, random access, ranks; counted, not trusted."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from fakedet.data.sampler import BalancedBatchSampler, Draw, EvaluationSampler
from fakedet.errors import UserError


def rows(counts: dict[tuple[int, str, str], int]) -> dict:
    """Give the sampler's columns for {(label, generator, source): count}; ids are not positions."""
    keys = [key for key, count in counts.items() for _ in range(count)]
    return {"ids": np.arange(len(keys)) * 3 + 100, "labels": np.array([key[0] for key in keys]),
            "generators": [key[1] for key in keys], "sources": [key[2] for key in keys]}  # fmt: skip


PLAIN = {(0, "real", ""): 23, (1, "a", ""): 7, (1, "b", ""): 11, (1, "c", ""): 3}
SOURCED = {(0, "real", "cat"): 5, (0, "real", "dog"): 9, (0, "real", "sky"): 4, (1, "a", "cat"): 6,
           (1, "a", "dog"): 3, (1, "b", "dog"): 4, (1, "b", "fish"): 2, (1, "c", ""): 5}  # fmt: skip


def sampler(counts: dict = PLAIN, batch_size: int = 8, steps: int = 6, seed: int = 0, **settings):
    return BalancedBatchSampler(**rows(counts), batch_size=batch_size, steps=steps, seed=seed, **settings)


def names(counts: dict) -> dict[int, tuple[int, str, str]]:
    columns = rows(counts)
    values = zip(columns["labels"].tolist(), columns["generators"], columns["sources"], strict=True)
    return dict(zip(columns["ids"].tolist(), values, strict=True))


def epochs(of: BalancedBatchSampler, count: int) -> list[list[Draw]]:
    drawn = []
    for epoch in range(count):
        of.set_epoch(epoch)
        drawn += list(of)
    return drawn


def test_batches_are_half_real_and_generators_equal_over_any_window() -> None:
    kind = names(PLAIN)
    batches = epochs(sampler(), 5)
    assert all(sum(kind[draw.id][0] for draw in batch) == 4 for batch in batches)
    fakes = [kind[draw.id][1] for batch in batches for draw in batch if kind[draw.id][0]]
    for width in range(1, 40):
        for start in range(len(fakes) - width):
            counts = [fakes[start : start + width].count(name) for name in "abc"]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("counts", [PLAIN, SOURCED], ids=["plain", "sourced"])
def test_every_image_of_a_stratum_is_used_before_one_is_repeated(counts: dict) -> None:
    kind = names(counts)
    batches = epochs(sampler(counts), 12)
    fakes = [draw.id for batch in batches for draw in batch if kind[draw.id][0]]
    for generator in "abc":
        drawn = [row for row in fakes if kind[row][1] == generator]
        size = sum(count for key, count in counts.items() if key[1] == generator)
        for start in range(0, len(drawn) - size + 1, size):
            assert len(set(drawn[start : start + size])) == size
    # Reals, by the source of the fake beside them.
    asked: dict[str, list[int]] = {}
    for batch in batches:
        for real, fake in zip(batch[::2], batch[1::2], strict=True):
            source = kind[fake.id][2] if kind[fake.id][2] in ("cat", "dog") else ""
            asked.setdefault(source, []).append(real.id)
    for source, drawn in asked.items():
        size = sum(n for key, n in counts.items() if key[0] == 0 and (not source or key[2] == source))
        assert len(drawn) > size
        for start in range(0, len(drawn) - size + 1, size):
            assert len(set(drawn[start : start + size])) == size, source


def test_reals_stand_beside_fakes_of_their_source() -> None:
    kind = names(SOURCED)
    unmatched = set()
    for batch in epochs(sampler(SOURCED), 10):
        for real, fake in zip(batch[::2], batch[1::2], strict=True):
            assert (kind[real.id][0], kind[fake.id][0]) == (0, 1)
            if kind[fake.id][2] in ("cat", "dog"):
                assert kind[real.id][2] == kind[fake.id][2]
            else:
                unmatched.add(kind[real.id][2])
    assert unmatched == {"cat", "dog", "sky"}, "a fake without counterpart stands beside any real"


def test_a_step_is_a_pure_function_of_seed_epoch_and_step() -> None:
    for counts in (PLAIN, SOURCED):
        whole = epochs(sampler(counts), 4)
        for epoch, step in ((3, 5), (0, 0), (2, 1), (1, 4), (2, 0)):
            assert sampler(counts).batch(epoch, step) == whole[epoch * 6 + step]
    assert sampler(seed=1).batch(0, 0) != sampler(seed=0).batch(0, 0)
    assert all(a != b for a, b in pairwise(epochs(sampler(), 4)))


def test_seeds_of_draws_do_not_repeat() -> None:
    seeds = [draw.seed for batch in epochs(sampler(), 20) for draw in batch]
    assert len(set(seeds)) == len(seeds)
    assert all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds)


def test_resuming_begins_one_epoch_late_and_no_other() -> None:
    whole = epochs(sampler(), 3)
    resumed = sampler()
    resumed.set_epoch(1)
    resumed.set_start_step(4)
    iter(resumed)  # Lightning makes an iterator that it throws away
    resumed.set_epoch(1)
    assert list(resumed) == whole[10:12]
    assert len(resumed) == 6
    resumed.set_epoch(2)
    assert list(resumed) == whole[12:18]
    with pytest.raises(ValueError, match="step 6"):
        resumed.set_start_step(6)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("real_only", [False, True])
def test_ranks_together_draw_what_one_process_draws(world_size: int, real_only: bool) -> None:
    kind = names(SOURCED)
    alone = epochs(sampler(SOURCED, 16, real_only=real_only), 3)
    ranks = [epochs(sampler(SOURCED, 16, real_only=real_only, rank=rank, world_size=world_size), 3)
             for rank in range(world_size)]  # fmt: skip
    for step, batch in enumerate(alone):
        assert [draw for rank in ranks for draw in rank[step]] == batch
        for rank in ranks:
            assert sum(kind[draw.id][0] for draw in rank[step]) == (0 if real_only else 8 // world_size)
    if not real_only:
        for rank in ranks:
            assert {kind[draw.id][1] for batch in rank for draw in batch} == {"real", "a", "b", "c"}


def test_stage_1_draws_reals_alone_each_once_a_round() -> None:
    kind = names(SOURCED)
    drawn = [draw.id for batch in epochs(sampler(SOURCED, 5, real_only=True), 3) for draw in batch]
    assert {kind[row][0] for row in drawn} == {0}
    for start in range(0, len(drawn) - 17, 18):
        assert len(set(drawn[start : start + 18])) == 18
    only_reals = {(0, "real", ""): 4}
    assert len(list(sampler(only_reals, 4, real_only=True))) == 6


@pytest.mark.parametrize(("settings", "message"), [
    ({"batch_size": 7}, "batch_size: 7 .* multiple of 2, such as 6"),
    ({"batch_size": 6, "world_size": 2}, "multiple of 4, such as 4"),
    ({"batch_size": 0}, "multiple of 2, such as 2"),
    ({"batch_size": 5, "world_size": 2, "real_only": True}, "multiple of 2"),
    ({"counts": {(0, "real", ""): 4}}, "no fake images"),
    ({"counts": {(1, "a", ""): 4}}, "no real images"),
])  # fmt: skip
def test_mistakes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sampler(**settings)


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_yields_each_row_once_in_equally_many_steps(n: int, world_size: int) -> None:
    ids = np.arange(n) * 2 + 1
    ranks = [EvaluationSampler(ids, 2, rank, world_size) for rank in range(world_size)]
    drawn = [[draw.id for batch in rank for draw in batch] for rank in ranks]
    assert Counter(row for rank in drawn for row in rank) == Counter(ids.tolist())
    for rank, own in enumerate(drawn):
        assert own == ids[rank::world_size].tolist()
    assert len({len(list(rank)) for rank in ranks}) == 1, "a rank with fewer steps would be waited for"
    assert all(len(rank) == len(list(rank)) for rank in ranks)


def test_large_tables_are_drawn_from_quickly() -> None:
    import time

    n = 300_000
    of = BalancedBatchSampler(np.arange(n), np.arange(n) % 2, [f"g{i % 20}" for i in range(n)],
                              [f"s{i % 1000 // 2}" for i in range(n)], 64, 100, 0)  # fmt: skip
    of.batch(0, 0)
    start = time.perf_counter()
    for step in range(10):
        of.batch(0, step)
    assert (time.perf_counter() - start) / 10 < 0.1
