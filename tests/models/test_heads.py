"""Heads against their formulas."""

import pytest
import torch

from fakedet.models.heads import Classifier, ProjectionHead


def test_projection_is_the_mlp_on_the_unit_sphere():
    torch.manual_seed(0)
    head = ProjectionHead(6, 5, 4).eval()
    x = torch.randn(3, 6)
    first, norm, _, last = head.layers
    hidden = (x @ first.weight.T) / (1 + norm.eps) ** 0.5  # fresh running statistics: mean 0, variance 1
    projected = hidden.clamp(min=0) @ last.weight.T + last.bias
    expected = projected / projected.norm(dim=1, keepdim=True)
    assert torch.allclose(head(x), expected, atol=1e-6)


def test_a_zero_projection_has_finite_gradients():
    head = ProjectionHead(6, 5, 4)
    torch.nn.init.zeros_(head.layers[3].weight)
    torch.nn.init.zeros_(head.layers[3].bias)
    projected = head(torch.randn(3, 6))
    assert (projected == 0).all()
    projected.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_classifier_is_linear():
    head = Classifier(6)
    x = torch.randn(5, 6)
    logits = head(x).detach()
    assert logits.shape == (5,)
    for i in range(5):
        assert float(logits[i]) == pytest.approx(
            float(x[i] @ head.linear.weight[0].detach() + head.linear.bias.detach()), abs=1e-6
        )


def test_outputs_are_float32_under_autocast():
    x = torch.randn(64, 32)
    projection, classifier = ProjectionHead(32, 16, 8), Classifier(32)
    exact = classifier(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(classifier(x), exact)
        projected = projection(x)
        assert classifier(x.bfloat16()).dtype == torch.float32
    assert projected.dtype == torch.float32
    assert torch.allclose(projected.norm(dim=1), torch.ones(64), atol=1e-6)
    assert classifier.bfloat16()(x.bfloat16()).dtype == torch.float32
