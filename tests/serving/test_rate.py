"""The rate limit counts a sliding minute, visitor by visitor."""

import numpy as np

from fakedet.cli.server import RateLimit


def test_it_agrees_with_counting_all_of_the_last_minute() -> None:
    rng, now = np.random.default_rng(0), [0.0]
    limit = RateLimit(7, clock=lambda: now[0])
    taken: dict[str, list[float]] = {"a": [], "b": []}
    refused = 0
    for _ in range(600):
        now[0] += float(rng.exponential(5.0))
        visitor, count = str(rng.choice(["a", "b"])), int(rng.integers(1, 4))
        last = [time for time in taken[visitor] if time > now[0] - 60]
        wait = limit.wait(visitor, count)
        assert (wait == 0) == (len(last) + count <= 7)
        if wait:
            refused += 1
            assert len([time for time in last if time > now[0] + wait - 60 + 1e-6]) + count <= 7
            assert len([time for time in last if time > now[0] + wait - 60.01]) + count > 7
        else:
            taken[visitor] += [now[0]] * count
    assert refused > 20


def test_more_than_a_minute_allows_is_never_welcome_and_nobody_is_remembered_for_long() -> None:
    now = [0.0]
    limit = RateLimit(2, clock=lambda: now[0])
    assert limit.wait("a", 3) == float("inf")
    for number in range(50):
        assert limit.wait(f"v{number}") == 0
    now[0] = 61.0
    limit.wait("z")
    assert len(limit._times) == 1
