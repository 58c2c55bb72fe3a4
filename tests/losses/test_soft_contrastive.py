"""The soft contrastive loss against loops written from its formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from fakedet.losses import SoftContrastive, fake_rows_loss, real_rows_loss

TAU, TAU_W = 0.2, 0.3


def rows(count, seed, dim=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def both_terms(z, t, zf, tf, tau, tau_w):
    """Call the loss as a method does: one batch of reals and fakes in any order."""
    order = torch.randperm(len(z) + len(zf), generator=torch.Generator().manual_seed(9))
    labels = torch.tensor([0] * len(z) + [1] * len(zf), dtype=torch.long)
    return SoftContrastive(tau, tau_w)(torch.cat([z, zf])[order], labels[order], torch.cat([t, tf])[order])


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def naive_real(z, t, fakes, tau, tau_w):
    z, t, fakes = z.tolist(), t.tolist(), fakes.tolist()
    total = 0.0
    for i in range(len(z)):
        against = sum(math.exp(dot(z[i], f) / tau) for f in fakes)
        weights = [math.exp(dot(t[i], t[j]) / tau_w) for j in range(len(t))]
        for j in range(len(t)):
            c = math.exp(dot(z[i], t[j]) / tau)
            total -= weights[j] / sum(weights) * math.log(c / (c + against))
    return total / len(z)


def naive_fake(z, t_fake, t, tau):
    z, t_fake, t = z.tolist(), t_fake.tolist(), t.tolist()
    total = 0.0
    for i in range(len(z)):
        v = 1 - sum(max(0.0, dot(t_fake[i], row)) for row in t) / len(t)
        total += sum(v * tau * math.log(1 + math.exp(dot(z[i], row) / tau)) for row in t) / len(t)
    return total / len(z)


@pytest.mark.parametrize(("reals", "fakes"), [(5, 3), (1, 1), (2, 7)])
def test_both_terms_are_the_documented_formulas(reals, fakes):
    z, t, zf, tf = rows(reals, 0), rows(reals, 1), rows(fakes, 2), rows(fakes, 3)
    terms = both_terms(z, t, zf, tf, TAU, TAU_W)
    assert float(terms["real"]) == pytest.approx(naive_real(z, t, zf, TAU, TAU_W), rel=1e-10)
    assert float(terms["fake"]) == pytest.approx(naive_fake(zf, tf, t, TAU), rel=1e-10)


def test_alike_traces_weigh_more():
    t = torch.eye(3, dtype=torch.float64)
    z, zf = t[[1, 2, 0]], rows(2, 4, dim=3)  # every row lies on a neighbour's trace, not on its own
    soft = real_rows_loss(z, t, zf, TAU, 0.05)
    # A high temperature gives every real trace the same weight.
    assert float(soft) > float(real_rows_loss(z, t, zf, TAU, 1e6))


def test_a_fake_that_the_source_finds_natural_is_not_pushed():
    t = rows(1, 0).expand(3, -1)
    natural, unnatural = t[:1], -t[:1]
    z = rows(1, 5)
    assert float(fake_rows_loss(z, natural, t, TAU)) == pytest.approx(0.0, abs=1e-12)
    pushed = float(fake_rows_loss(z, unnatural, t, TAU))
    assert pushed == pytest.approx(TAU * math.log1p(math.exp(float(z[0] @ t[0]) / TAU)))


def test_gradients_are_those_of_finite_differences():
    z, t, zf, tf = (rows(n, seed, dim=3).requires_grad_() for n, seed in ((4, 0), (4, 1), (3, 2), (3, 3)))
    assert torch.autograd.gradcheck(lambda *x: real_rows_loss(*x, TAU, TAU_W), (z, t, zf))
    assert torch.autograd.gradcheck(lambda *x: fake_rows_loss(*x, TAU), (zf, tf, t))


def test_no_fakes_or_no_reals_is_a_zero_with_finite_gradients():
    for reals, fakes in ((4, 0), (0, 3), (0, 0)):
        z, zf = rows(4, 0)[:reals].requires_grad_(), rows(3, 1)[:fakes].requires_grad_()
        terms = both_terms(z, rows(4, 2)[:reals], zf, rows(3, 3)[:fakes], TAU, TAU_W)
        assert terms["real"] == 0.0
        assert terms["fake"] == 0.0
        (terms["real"] + terms["fake"]).backward()
        assert (z.grad == 0).all()
        assert (zf.grad == 0).all()


def test_tiny_temperatures_stay_finite():
    z, zf = (rows(4, seed, dtype=torch.float32).requires_grad_() for seed in (0, 1))
    t, tf = rows(4, 2, dtype=torch.float32), rows(4, 3, dtype=torch.float32)
    terms = both_terms(z, t, zf, tf, 1e-3, 1e-3)
    (terms["real"] + terms["fake"]).backward()
    assert torch.isfinite(terms["real"] + terms["fake"])
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(zf.grad).all()
    # Far from its traces a fake costs next to nothing, but not nothing.
    away = fake_rows_loss(-t[:1], -t[:1], t[:1], 1 / 30)
    assert float(away) == pytest.approx(math.exp(-30) / 30, rel=1e-3)


def test_autocast_changes_nothing():
    z, t, zf, tf = (rows(6, seed, dim=32, dtype=torch.float32) for seed in range(4))
    plain = both_terms(z, t, zf, tf, 0.07, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = both_terms(z, t, zf, tf, 0.07, 0.07)
    assert torch.equal(plain["real"], mixed["real"])
    assert torch.equal(plain["fake"], mixed["fake"])
    assert plain["real"].dtype == torch.float32
