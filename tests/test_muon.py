"""Muon: what Newton-Schulz gives, equality with torch's own Muon and AdamW, and that a stopped run goes on."""

import copy

import pytest
import torch
from torch import nn

from tinyldm.training.optimizer import Muon, orthogonal, unwide, wide


def test_orthogonal_keeps_the_singular_vectors_and_brings_the_values_near_1():
    x = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    values = u.mT @ orthogonal(x) @ vt.mT  # diagonal, if the vectors are kept
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    torch.testing.assert_close(values, torch.diag_embed(diagonal), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (32, 8, 3, 3), (16, 16, 3, 3)])
def test_wide_and_back(shape):
    x = torch.randn(shape)
    assert wide(x).shape[0] <= wide(x).shape[1]
    assert torch.equal(unwide(wide(x), x), x)


def trained(
    optimizer: torch.optim.Optimizer, network: nn.Module, steps: int = 5
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(12, 24, generator=generator)
        (network(x) - x.flip(1)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in network.parameters()]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(24, 24), (24, 40)])
def test_a_matrix_steps_as_with_torchs_muon(shape):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(*shape, bias=False), nn.Linear(shape[1], 24, bias=False))
    theirs, start = copy.deepcopy(ours), [p.detach().clone() for p in ours.parameters()]
    reference = torch.optim.Muon(
        theirs.parameters(), lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    a = trained(
        Muon(ours.parameters(), lr=0.1, weight_decay=0.2, momentum=0.9, dtype=torch.bfloat16), ours
    )
    b = trained(reference, theirs)
    for x, y, before in zip(
        a, b, start, strict=True
    ):  # both iterate in bf16, rounded in another order
        torch.testing.assert_close(x, y, rtol=0.02, atol=0.02)
        assert (x - before).abs().max() > 0.1  # far beyond the tolerance


def test_what_is_no_matrix_steps_as_with_adamw():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(24, 8), nn.Linear(8, 24), nn.LayerNorm(24))
    theirs = copy.deepcopy(ours)  # 8 < SMALLEST, so all of it is AdamW's
    a = trained(Muon(ours.parameters(), lr=0.1, weight_decay=0.2), ours)
    b = trained(
        torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.2, fused=True), theirs
    )
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_convolution_steps_as_the_matrix_that_it_is_in_any_memory_format():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 20, 3, bias=False)
    weights = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network = copy.deepcopy(conv).to(memory_format=memory_format)
        optimizer = Muon(network.parameters(), lr=0.1, weight_decay=0.0)
        network(torch.ones(1, 8, 5, 5).cumsum(3)).pow(2).mean().backward()
        gradient = network.weight.grad.clone()
        optimizer.step()
        weights.append(network.weight.detach())
    matrix = nn.Parameter(conv.weight.detach().flatten(1))
    matrix.grad = gradient.flatten(1)
    Muon([matrix], lr=0.1, weight_decay=0.0).step()
    for weight in weights:
        torch.testing.assert_close(weight.flatten(1), matrix.detach())


def test_a_matrix_without_a_gradient_stays_as_it_is():
    torch.manual_seed(0)
    used, unused = nn.Linear(24, 24), nn.Linear(24, 24)
    before = unused.weight.detach().clone(), used.weight.detach().clone()
    optimizer = Muon([*used.parameters(), *unused.parameters()], lr=0.1, weight_decay=0.1)
    used(torch.ones(2, 24)).pow(2).mean().backward()
    optimizer.step()
    assert torch.equal(unused.weight, before[0]) and not torch.equal(used.weight, before[1])
