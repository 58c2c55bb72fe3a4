"""Distances to the bank against naive loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fakedet.errors import UserError
from fakedet.methods.ntf import DISTANCES, TraceBank


def rows(count, seed=0, dim=6):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator) + 0.3, dim=1)


def fitted(traces, **settings):
    bank = TraceBank(traces.shape[1], **settings)
    bank.fit(traces)
    return bank


def naive(z, bank, kind, k):
    z, bank, out = z.double().numpy(), bank.double().numpy(), []
    for row in z:
        if kind == "prototype":
            mean = bank.mean(axis=0)
            out.append(1 - row @ mean / np.linalg.norm(mean))
        else:
            out.append(1 - np.sort([row @ member for member in bank])[::-1][:k].mean())
    return out


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("members", [2, 7, 40])
def test_distance_and_its_standardisation(kind, members):
    traces, z = rows(members), rows(9, seed=1)
    bank = fitted(traces, size=64)
    expected = naive(z, traces, kind, 10)
    assert bank.distance(z, kind).numpy() == pytest.approx(expected, abs=1e-5)
    own = [  # each member to all the others
        naive(traces[i : i + 1], torch.cat([traces[:i], traces[i + 1 :]]), kind, 10)[0] for i in range(members)
    ]
    standard = (np.array(expected) - np.mean(own)) / max(np.std(own, ddof=1), 1e-6)
    if members > 2:  # of two, both distances are one number
        assert bank.standardised(z, kind).numpy() == pytest.approx(standard, rel=1e-3, abs=1e-3)


def test_knn_is_the_default_and_k_is_a_setting():
    traces, z = rows(20), rows(4, seed=1)
    assert torch.equal(fitted(traces).distance(z), fitted(traces).distance(z, "knn"))
    assert fitted(traces, neighbours=3).distance(z).numpy() == pytest.approx(naive(z, traces, "knn", 3), abs=1e-5)


def test_more_traces_than_fit_are_evenly_spaced():
    traces = rows(103)
    bank = fitted(traces, size=10)
    kept = [int((traces == member).all(dim=1).nonzero()) for member in bank.bank]
    assert kept == [0, 10, 20, 30, 41, 51, 61, 72, 82, 92]
    again = fitted(traces, size=10)
    assert torch.equal(bank.bank, again.bank)


def test_refitting_forgets_the_old_traces():
    bank = fitted(rows(50), size=64)
    bank.fit(rows(5, seed=2))
    z = rows(4, seed=3)
    assert bank.distance(z).numpy() == pytest.approx(naive(z, rows(5, seed=2), "knn", 10), abs=1e-5)


def test_a_state_dict_carries_the_bank_into_a_fresh_one():
    bank, fresh, z = fitted(rows(30), size=64), TraceBank(6, size=64), rows(4, seed=1)
    fresh.load_state_dict(bank.state_dict())
    for kind in DISTANCES:
        assert torch.equal(fresh.standardised(z, kind), bank.standardised(z, kind))
    assert not list(bank.parameters())


def test_an_empty_bank_and_unusable_traces_are_refused():
    bank = TraceBank(6)
    for call in (bank.distance, bank.standardised):
        with pytest.raises(RuntimeError, match="trace bank is empty"):
            call(rows(3))
    with pytest.raises(UserError, match="at least 2 real training photographs, got 1"):
        bank.fit(rows(1))
    with pytest.raises(UserError, match="NaN"):
        bank.fit(torch.full((4, 6), float("nan")))
    with pytest.raises(UserError, match=r"model\.distance: 'kn'.*did you mean 'knn'"):
        fitted(rows(4)).distance(rows(3), "kn")
    with pytest.raises(UserError, match=r"model\.bank_size"):
        TraceBank(6, size=1)


def test_a_collapsed_source_gives_finite_scores():
    bank = fitted(F.normalize(torch.ones(20, 6), dim=1))
    assert torch.isfinite(bank.standardised(rows(5))).all()


def test_autocast_changes_nothing():
    traces, z = rows(40, dim=64), rows(9, seed=1, dim=64)
    bank = fitted(traces)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fitted(traces)
        for kind in DISTANCES:
            assert torch.equal(mixed.standardised(z, kind), bank.standardised(z, kind))
            assert bank.distance(z.bfloat16(), kind).dtype == torch.float32
