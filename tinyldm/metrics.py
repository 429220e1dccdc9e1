"""What is measured: edges, distances between sets of images, and the uncertainty of a mean."""

from collections.abc import Callable

import torch
from torch import Tensor

from tinyldm.errors import UserError


def edge_f1(edges: Tensor, hint: Tensor) -> Tensor:
    """F1 score (n,) of two edge maps (n, 1, H, W) in {0, 1}, at tolerance 0; 1 where both are empty.

    F1 = 2 TP / (edge pixels of the one + of the other).
    """
    both, either = (edges * hint).sum((1, 2, 3)), (edges + hint).sum((1, 2, 3))
    return torch.where(either > 0, 2 * both / either.clamp(min=1), torch.ones_like(both))


def gain(ef0: Tensor | float, ch: Tensor | float, ce: Tensor | float) -> Tensor | float:
    """(EF0 - CH) / (CE - CH): how far control goes from chance (0) to what the autoencoder allows (1)."""
    return (ef0 - ch) / (ce - ch)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (n,) in dB of images (n, k, H, W) in [-1, 1], whose peak-to-peak range is 2."""
    return 10 * torch.log10(4 / (x - y).pow(2).mean((1, 2, 3)))


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features (n, d), (m, d) (Heusel et al. 2017, eq. 6).

    By torch-fidelity, with our features: so it is FD, not FID. Raises UserError if torch-fidelity is not installed.
    """
    try:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    except ImportError as error:
        raise UserError("the Fréchet distance needs torch-fidelity: pip install 'tinyldm[report]'") from error
    statistics = [fid_features_to_statistics(f.double()) for f in (features, reference)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def interval(
    *columns: Tensor, statistic: Callable[..., Tensor] = lambda mean: mean, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap confidence interval of statistic(mean of each column), columns (n,) resampled together by image."""
    picks = torch.randint(len(columns[0]), (resamples, len(columns[0])), generator=torch.Generator().manual_seed(seed))
    values = statistic(*(column.double()[picks].mean(1) for column in columns))
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def partners(allowed: Tensor, seed: int) -> Tensor:
    """For each of n images a random other one j with allowed[i, j] (n, n); any other one where none is allowed."""
    n = len(allowed)
    others = ~torch.eye(n, dtype=torch.bool)
    allowed = allowed & others
    allowed = torch.where(allowed.any(1, keepdim=True), allowed, others)
    noise = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    return (noise * allowed).argmax(1)
