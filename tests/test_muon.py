"""Muon: what Newton-Schulz gives, equality with torch's own Muon and AdamW, and that a stopped run goes on."""

import copy
import math

import pytest
import torch
from torch import nn

from tinyldm.training.optimizer import Muon, build_optimizer, orthogonal, unwide, wide
from tinyldm.training.settings import FitSettings
from tinyldm.training.step import set_lr


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


def plain(x: torch.Tensor) -> torch.Tensor:
    """The five iterations as they are defined, in float64."""
    x = x.double()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(20, 50), (64, 64), (64, 576)])
@pytest.mark.parametrize("smallest", [1.0, 1e-4])
def test_orthogonal_is_five_plain_iterations_for_small_singular_values_too(shape, smallest):
    """From 1 down to `smallest`; all in one round, rounding errors of the Gram matrix outgrow the smallest."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.logspace(0, math.log10(smallest), shape[0]) @ vt
    errors = [(orthogonal(x, rounds) - plain(x)).abs().max() for rounds in ((2, 3), (5,))]
    assert errors[0] < 1e-5 and (smallest == 1 or errors[1] > 3 * errors[0])


@pytest.mark.parametrize("shape", [(32, 8, 3, 3), (64, 4, 3, 3)])
def test_wide_of_a_weight_in_channels_last_is_a_view_and_so_is_its_inverse(shape):
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    matrix = wide(x)
    assert matrix.data_ptr() == unwide(matrix, x).data_ptr() == x.data_ptr()
    assert unwide(matrix, x).stride() == x.stride()
    assert wide(x.contiguous()).equal(matrix)


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
    a = trained(Muon(ours.parameters(), lr=0.1, weight_decay=0.2, momentum=0.9), ours)
    b = trained(reference, theirs)
    for x, y, before in zip(a, b, start, strict=True):  # theirs iterates in bf16
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


def muon_step(p: torch.Tensor, gradient: torch.Tensor, m: torch.Tensor, lr, decay, momentum):
    """One step on a matrix, written out: Nesterov momentum, five iterations, the length of AdamW's."""
    m = momentum * m + (1 - momentum) * gradient
    x = (1 - momentum) * gradient + momentum * m
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    length = 0.2 * max(x.shape) ** 0.5
    x = x.T if flip else x
    return (1 - lr * decay) * p - lr * length * x, m


@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (16, 40), (32, 4, 3, 3)])
def test_three_steps_of_a_matrix_by_hand(shape):
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(shape, generator=generator))
    expected = p.detach().flatten(1).clone()
    m = torch.zeros_like(expected)
    optimizer = Muon([p], lr=0.1, weight_decay=0.3)
    for _ in range(3):
        p.grad = torch.randn(shape, generator=generator)
        expected, m = muon_step(expected, p.grad.flatten(1), m, 0.1, 0.3, 0.95)
        optimizer.step()
        assert p.grad is None
        torch.testing.assert_close(p.detach().flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_the_momentum_and_the_learning_rate_of_the_group_are_used():
    p, gradient = nn.Parameter(torch.eye(16)), torch.randn(16, 16)
    optimizer = Muon([p], lr=9.0, weight_decay=0.5, momentum=0.5)
    optimizer.param_groups[0]["lr"] = 0.01  # as the warm-up does
    p.grad = gradient.clone()
    expected, _ = muon_step(torch.eye(16), gradient, torch.zeros(16, 16), 0.01, 0.5, 0.5)
    optimizer.step()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-5)


def test_matrices_are_those_with_16_rows_and_columns():
    shapes = [(16, 16), (15, 99), (99, 15), (16, 2, 3, 3), (16, 1, 4, 4), (64, 1, 3, 3), (300,)]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = Muon(parameters, lr=0.1, weight_decay=0.0)
    grouped = {id(p) for group in optimizer.shapes.values() for p in group}
    assert [id(p) in grouped for p in parameters] == [True, False, False, True, True, False, False]
    assert {shape: len(group) for shape, group in optimizer.shapes.items()} == {
        (16, 16): 2,
        (16, 18): 1,
    }


def test_orthogonal_of_nothing_is_nothing_and_takes_five_iterations():
    assert torch.equal(orthogonal(torch.zeros(2, 16, 20)), torch.zeros(2, 16, 20))
    x = torch.randn(2, 16, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(orthogonal(x), orthogonal(x, (2, 3)))
    torch.testing.assert_close(orthogonal(x, ()), x / x.norm(dim=(1, 2), keepdim=True))
    torch.testing.assert_close(orthogonal(x[1:]), orthogonal(x)[1:])  # each on its own


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_optimizer_of_the_settings(name):
    settings = FitSettings(optimizer=name, lr=0.03, weight_decay=0.07)
    optimizer = build_optimizer(settings, nn.Linear(20, 20).parameters())
    assert isinstance(optimizer, torch.optim.AdamW) and isinstance(optimizer, Muon) == (
        name == "muon"
    )
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.03, 0.07) and group["fused"]
    if isinstance(optimizer, Muon):
        assert optimizer.momentum == 0.95


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_learning_rate_that_is_a_tensor_steps_as_a_number_and_is_set_in_place(name):
    settings = FitSettings(optimizer=name, lr=9.0, weight_decay=0.07)
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 24), nn.LayerNorm(24))
    two, lr = copy.deepcopy(one), torch.tensor(9.0)
    optimizers = [
        build_optimizer(settings, one.parameters()),
        build_optimizer(settings, two.parameters(), lr),
    ]
    for optimizer in optimizers:
        set_lr(optimizer, 0.01)
    assert lr.item() == pytest.approx(0.01) and optimizers[1].param_groups[0]["lr"] is lr
    assert optimizers[0].param_groups[0]["lr"] == 0.01
    before = [p.detach().clone() for p in one.parameters()]
    pairs = zip(trained(optimizers[0], one), trained(optimizers[1], two), before, strict=True)
    for x, y, z in pairs:
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
        assert (x - z).abs().max() > 0.01  # far beyond the tolerance
