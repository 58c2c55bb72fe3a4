"""Hard supervised contrast against a loop written from Khosla et al. 2020, eq. 2."""

import math

import pytest
import torch
import torch.nn.functional as F

from fakedet.losses import ExtendedSupCon, supervised_contrastive_loss

TAU = 0.1


def rows(count, seed=0, dim=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def naive(z, labels, tau):
    z, terms = z.tolist(), []
    e = [[math.exp(sum(a * b for a, b in zip(x, y, strict=True)) / tau) for y in z] for x in z]
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        if positives:
            below = sum(e[i][a] for a in range(len(z)) if a != i)
            terms.append(-sum(math.log(e[i][p] / below) for p in positives) / len(positives))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1], [0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2, 3]])
@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_is_equation_2_over_anchors_with_a_positive(labels, tau):
    z = rows(len(labels))
    expected = naive(z, labels, tau)
    assert float(supervised_contrastive_loss(z, torch.tensor(labels), tau)) == pytest.approx(expected, rel=1e-10)


def test_two_views_with_own_labels_are_nt_xent():
    from fakedet.losses import heterogeneous_loss

    z = rows(8)
    labels = torch.arange(4).repeat(2)
    assert torch.allclose(supervised_contrastive_loss(z, labels, TAU), heterogeneous_loss(z, TAU))


def test_gradients_are_those_of_finite_differences():
    z = rows(5, dim=3).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda x: supervised_contrastive_loss(x, labels, TAU), (z,))


@pytest.mark.parametrize("labels", [[], [0], [0, 1, 2]])
def test_no_positive_at_all_is_a_zero_with_a_graph(labels):
    z = rows(3)[: len(labels)].requires_grad_()
    loss = supervised_contrastive_loss(z, torch.tensor(labels, dtype=torch.long), TAU)
    assert loss == 0.0
    loss.backward()
    assert (z.grad == 0).all()


def test_stays_finite_and_outside_autocast():
    z = rows(6, dtype=torch.float32).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    supervised_contrastive_loss(z, labels, 1e-3).backward()
    assert torch.isfinite(z.grad).all()
    plain = supervised_contrastive_loss(z, labels, TAU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, supervised_contrastive_loss(z, labels, TAU))


def test_one_label_a_row():
    with pytest.raises(ValueError, match="5 rows and labels"):
        supervised_contrastive_loss(rows(5), torch.zeros(4), TAU)


def test_the_extended_loss_counts_the_traces_of_reals_as_further_reals():
    z, traces, labels = rows(5), rows(5, seed=1), [0, 1, 0, 1, 1]
    wanted = naive(torch.stack([*z, traces[0], traces[2]]), [*labels, 0, 0], 0.3)
    loss = ExtendedSupCon(0.3)
    assert float(loss(z, torch.tensor(labels), traces)) == pytest.approx(wanted, rel=1e-10)
    assert float(loss(z, torch.tensor(labels), None)) == pytest.approx(naive(z, labels, 0.3), rel=1e-10)
