"""Signs of collapse against loops and cases with a known answer."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fakedet.losses import collapse_statistics


def test_agrees_with_loops():
    a = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    found = collapse_statistics(a)
    n = a.numpy()
    cosines = [n[i] @ n[j] for i in range(7) for j in range(7) if i != j]
    share = np.linalg.svd(n, compute_uv=False)
    share = share / share.sum()
    assert float(found["mean_cosine"]) == pytest.approx(np.mean(cosines))
    assert float(found["std"]) == pytest.approx(n.std(axis=0, ddof=1).mean())
    assert float(found["effective_rank"]) == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)))


def test_known_cases():
    point = F.normalize(torch.ones(6, 4), dim=1)
    found = collapse_statistics(point)
    assert float(found["mean_cosine"]) == pytest.approx(1.0, abs=1e-6)
    assert float(found["std"]) == pytest.approx(0.0, abs=1e-6)
    assert float(found["effective_rank"]) == pytest.approx(1.0, abs=1e-4)
    spread = collapse_statistics(torch.cat([torch.eye(4), -torch.eye(4)]))
    assert float(spread["mean_cosine"]) == pytest.approx(-1 / 7, abs=1e-6)
    assert float(spread["effective_rank"]) == pytest.approx(4.0, abs=1e-4)


def test_one_row_is_undefined_and_nothing_carries_gradients():
    assert all(torch.isnan(value) for value in collapse_statistics(torch.ones(1, 4)).values())
    found = collapse_statistics(torch.eye(3).requires_grad_())
    assert not any(value.requires_grad for value in found.values())


def test_low_precision_is_widened():
    a = F.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collapse_statistics(a.bfloat16())
    exact = collapse_statistics(a.bfloat16().double())
    for key, value in found.items():
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(exact[key]), rel=1e-3, abs=1e-5)
