"""X2: why a zero convolution learns, one test per formula of the ControlNet paper and of its FAQ.

Forward, at position p and output channel i:  Z_{p,i} = B_i + sum_j I_{p,j} W_{i,j}.
"""

import pytest
import torch
from torch import nn

from tinyldm.controlnet import zero_conv

CHANNELS = 3


@pytest.fixture
def case():
    """A zero conv, an input (b, c, h, w) that wants its gradient, and some dL/dZ."""
    g = torch.Generator().manual_seed(0)
    conv = zero_conv(CHANNELS).double()
    x = torch.randn(2, CHANNELS, 4, 4, generator=g, dtype=torch.float64).requires_grad_()
    dz = torch.randn(2, CHANNELS, 4, 4, generator=g, dtype=torch.float64)
    return conv, x, dz


def flat(x: torch.Tensor) -> torch.Tensor:
    """(b, c, h, w) -> (p, c): one row per position of any image."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def weight(conv: nn.Module) -> torch.Tensor:
    """W_{i,j}."""
    return conv.weight.detach()[:, :, 0, 0]


def randomised(conv: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in conv.parameters():
        nn.init.normal_(p)
    return conv


def test_x2_forward_is_bias_plus_a_sum_over_input_channels(case):
    conv, x, _ = case
    assert torch.equal(conv(x), torch.zeros_like(x))
    conv = randomised(conv)
    torch.testing.assert_close(flat(conv(x)), conv.bias.detach() + flat(x) @ weight(conv).T)


@pytest.mark.parametrize("prepare", [lambda conv: conv, randomised], ids=["at zero", "elsewhere"])
def test_x2_gradient_of_the_bias_sums_over_positions(case, prepare):
    conv, x, dz = case
    prepare(conv)(x).backward(dz)
    torch.testing.assert_close(conv.bias.grad, flat(dz).sum(0))


@pytest.mark.parametrize("prepare", [lambda conv: conv, randomised], ids=["at zero", "elsewhere"])
def test_x2_gradient_of_the_weight_is_input_times_output_gradient(case, prepare):
    conv, x, dz = case
    prepare(conv)(x).backward(dz)
    torch.testing.assert_close(
        conv.weight.grad[:, :, 0, 0], flat(dz).T @ flat(x)
    )  # dL/dW_{i,j}: i from dZ, j from I
    assert conv.weight.grad.abs().min() > 0


def test_x2_gradient_of_the_input_is_zero_at_zero_and_the_transpose_elsewhere(case):
    conv, x, dz = case
    conv(x).backward(dz)
    assert torch.equal(x.grad, torch.zeros_like(x))
    x.grad = None
    randomised(conv)(x).backward(dz)
    torch.testing.assert_close(flat(x.grad), flat(dz) @ weight(conv))  # sum_i dL/dZ_{p,i} W_{i,j}


def test_x2_one_gradient_step_makes_the_weight_exactly_minus_lr_times_its_gradient(case):
    conv, x, dz = case
    conv(x).backward(dz)
    gradient = conv.weight.grad.clone()
    torch.optim.SGD(conv.parameters(), lr=0.1).step()
    assert torch.equal(conv.weight, -0.1 * gradient)
    assert conv.weight.abs().min() > 0
    x.grad = None
    conv(x).backward(dz)
    assert x.grad.abs().max() > 0  # from now on the layers before it learn, too


def test_x2_without_input_or_without_output_gradient_nothing_is_learned(case):
    conv, x, dz = case
    conv(torch.zeros_like(x)).backward(dz)
    assert torch.equal(conv.weight.grad, torch.zeros_like(conv.weight))
    conv.zero_grad()
    conv(x).backward(torch.zeros_like(dz))
    assert torch.equal(conv.weight.grad, torch.zeros_like(conv.weight))
    conv.zero_grad()
    one_channel = x.detach() * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)[:, None, None]
    conv(one_channel).backward(dz)
    assert (conv.weight.grad[:, 1] != 0).all() and (conv.weight.grad[:, [0, 2]] == 0).all()
