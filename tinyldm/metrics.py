"""What is measured: edges, distances between sets of images, and the uncertainty of a mean."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

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


def torch_fidelity(module: str) -> ModuleType:
    """A module of torch-fidelity, which computes what follows. Raises UserError if it is not installed."""
    try:
        return import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise UserError(
            "distances between sets of images need torch-fidelity: pip install 'tinyldm[report]'"
        ) from error


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features (n, d), (m, d) (Heusel et al. 2017, eq. 6).

    With features of our own classifier: so it is FD, not FID.
    """
    fid = torch_fidelity("metric_fid")
    statistics = [fid.fid_features_to_statistics(f.double()) for f in (features, reference)]
    return fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kernel_distance(features: Tensor, reference: Tensor, subset: int = 250) -> float:
    """Kernel distance of two sets of features: MMD^2, cubic kernel, mean over 100 subsets (Binkowski et al. 2018)."""
    kid = torch_fidelity("metric_kid")
    size = min(subset, len(features), len(reference))
    result = kid.kid_features_to_metric(
        features, reference, kid_subsets=100, kid_subset_size=size, verbose=False, rng_seed=0
    )
    return result["kernel_inception_distance_mean"]


def precision_recall(features: Tensor, reference: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of the features inside the reference's manifold, and the reverse (Kynkaanniemi et al. 2019)."""
    prc = torch_fidelity("metric_prc")
    result = prc.prc_features_to_metric(
        features, reference, prc_neighborhood=neighbours, prc_batch_size=5000, save_cpu_ram=False, verbose=False
    )
    return result["precision"], result["recall"]


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
