"""The source of stage 2 is frozen."""

import torch

from fakedet.methods.ntf import TraceSource
from fakedet.models.encoders import SmallEncoder
from fakedet.models.heads import ProjectionHead


def parts():
    torch.manual_seed(0)
    encoder = SmallEncoder(4)
    return encoder, ProjectionHead(encoder.embedding_dim, 8, 6)


def test_traces_are_the_heads_in_evaluation_mode():
    encoder, head = parts()
    source = TraceSource(encoder, head)
    x = torch.rand(5, 3, 16, 16)
    traces = source(x)
    encoder.eval(), head.eval()
    assert torch.equal(traces, head(encoder(x)))
    assert torch.allclose(traces.norm(dim=1), torch.ones(5), atol=1e-6)


def test_training_mode_never_reaches_it():
    source = TraceSource(*parts())
    before = {key: value.clone() for key, value in source.state_dict().items()}
    method = torch.nn.ModuleDict({"source": source})
    method.train()
    assert not any(module.training for module in source.modules())
    source(torch.rand(4, 3, 16, 16))
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())


def test_nothing_in_it_learns_and_what_was_passed_still_does():
    encoder, head = parts()
    source = TraceSource(encoder, head)
    assert not any(p.requires_grad for p in source.parameters())
    x = torch.rand(4, 3, 16, 16).requires_grad_()
    assert not source(x).requires_grad
    assert all(p.requires_grad for p in (*encoder.parameters(), *head.parameters()))
    assert encoder.training
    traces = source(x)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    assert torch.equal(source(x), traces)
