"""Less memory for more time."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from tinyldm.blocks import ResBlock
from tinyldm.unet import Block


def recompute(network: nn.Module) -> None:
    """Have each block keep only what it is given, and compute its activations again for its gradient.

    T. Chen et al. 2016, arXiv 1604.06174. There is no dropout, so that they are the same.
    """
    if not isinstance(network, Block | ResBlock):
        for module in network.children():
            recompute(module)
        return
    again = partial(checkpoint, network.forward, use_reentrant=False, preserve_rng_state=False)
    network.forward = again  # type: ignore[method-assign]
