"""Both losses of stage 1 against loops written from their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from fakedet.losses import heterogeneous_loss, homogeneous_loss

TAU = 0.2


def rows(count, dim=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def naive_heterogeneous(b, tau):
    b, total, n = b.tolist(), 0.0, len(b) // 2
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        e = [math.exp(sum(x * y for x, y in zip(b[i], b[k], strict=True)) / tau) for k in range(2 * n)]
        total -= math.log(e[partner] / sum(e[k] for k in range(2 * n) if k != i))
    return total / (2 * n)


def naive_homogeneous(a, b, destroyed, tau):
    def e(x, y):
        return math.exp(sum(p * q for p, q in zip(x, y, strict=True)) / tau)

    a, b, d = a.tolist(), b.tolist(), [] if destroyed is None else destroyed.tolist()
    terms = []
    for i in range(len(a)):
        for j in range(len(a)):
            if j != i:
                own = e(a[i], a[j])
                below = own + sum(e(a[i], row) for row in b) + sum(e(a[i], row) for row in d)
                terms.append(-math.log(own / below))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_heterogeneous_is_nt_xent(n, tau):
    b = rows(2 * n, seed=n)
    assert float(heterogeneous_loss(b, tau)) == pytest.approx(naive_heterogeneous(b, tau), rel=1e-10)


def test_heterogeneous_pairs_are_half_the_rows_apart():
    apart = torch.eye(4, dtype=torch.float64)
    together = torch.cat([apart, apart])
    assert float(heterogeneous_loss(together, 0.05)) < 1e-6
    assert float(heterogeneous_loss(apart.repeat_interleave(2, dim=0), 0.05)) > 1.0
    with pytest.raises(ValueError, match="two views"):
        heterogeneous_loss(rows(3), TAU)


@pytest.mark.parametrize("destroyed", [None, 0, 3])
@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_homogeneous_is_the_documented_formula(destroyed, tau):
    a, b = rows(6, seed=1), rows(4, seed=2)
    copies = None if destroyed is None else rows(destroyed, seed=3)
    expected = naive_homogeneous(a, b, copies, tau)
    assert float(homogeneous_loss(a, b, copies, tau)) == pytest.approx(expected, rel=1e-10)


def test_gradients_are_those_of_finite_differences():
    a, b, d = (rows(n, dim=3, seed=n).requires_grad_() for n in (4, 6, 2))
    assert torch.autograd.gradcheck(lambda x: heterogeneous_loss(x, TAU), (b,))
    assert torch.autograd.gradcheck(lambda x, y: homogeneous_loss(x, y, None, TAU), (a, b))
    assert torch.autograd.gradcheck(lambda x, y, z: homogeneous_loss(x, y, z, TAU), (a, b, d))


def test_tiny_temperatures_neither_overflow_nor_vanish():
    a = rows(4, dtype=torch.float32).requires_grad_()
    b = rows(6, seed=1, dtype=torch.float32).requires_grad_()
    for loss in (heterogeneous_loss(b, 1e-3), homogeneous_loss(a, b, None, 1e-3)):
        loss.backward()
        assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()
    # Even where the negatives have almost no weight, the loss keeps its first digits: e^-30, not 0.
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss = homogeneous_loss(one, -one[:1], None, 2 / 30)
    assert float(loss) == pytest.approx(math.exp(-30), rel=1e-3)


def test_without_pairs_or_negatives_the_loss_is_a_zero_with_a_graph():
    a, empty = rows(4).requires_grad_(), rows(4)[:0].requires_grad_()
    for loss in (
        homogeneous_loss(a, empty, None, TAU),
        homogeneous_loss(a[:1], rows(3), None, TAU),
        heterogeneous_loss(empty, TAU),
    ):
        assert loss == 0.0
        loss.backward()
    assert (a.grad == 0).all()


def test_float32_is_the_least_precision_also_under_autocast():
    a, b, d = (rows(n, dim=32, seed=n, dtype=torch.float32) for n in (6, 8, 4))
    plain = homogeneous_loss(a, b, d, 0.07), heterogeneous_loss(b, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = homogeneous_loss(a, b, d, 0.07), heterogeneous_loss(b, 0.07)
    for one, other in zip(plain, mixed, strict=True):
        assert torch.equal(one, other)
    low = homogeneous_loss(a.bfloat16(), b.bfloat16(), d.bfloat16(), 0.07)
    assert low.dtype == torch.float32
    wide = homogeneous_loss(*(x.bfloat16().double() for x in (a, b, d)), 0.07)
    assert float(low) == pytest.approx(float(wide), rel=1e-5)
    assert homogeneous_loss(a.double(), b, d, 0.07).dtype == torch.float64
