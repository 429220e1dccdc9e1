"""What is measured: edges, distances between sets of images, and the uncertainty of a mean."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyldm.support.errors import needed


class Estimate(NamedTuple):
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def estimate(
    *columns: Tensor,
    statistic: Callable = lambda mean: mean,
    origins: Tensor | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """statistic(mean of each column), with its 95 % bootstrap interval over images.

    Columns are (n,); each resample takes the same images of all of them, and all images of one origin
    together, if origins (n,) are given: they are no independent draws.
    """
    every, n = torch.stack(columns).double(), len(columns[0])
    number: dict[int, int] = {}  # of a group, in the order in which they come
    every_origin = range(n) if origins is None else origins.tolist()
    group = torch.tensor([number.setdefault(origin, len(number)) for origin in every_origin])
    counts = group.bincount().double()  # (m,)
    sums = torch.zeros(len(columns), len(counts)).double().index_add_(1, group, every)
    draw = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(counts), (resamples, len(counts)), generator=draw)
    values = statistic(*(sums[:, picks].sum(2) / counts[picks].sum(1)))
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(statistic(*every.mean(1)).item(), low, high)


def spread(values: Sequence[float]) -> Estimate:
    """The mean of a few values, with the smallest and the largest."""
    return Estimate(sum(values) / len(values), min(values), max(values))


def edge_f1(edges: Tensor, hint: Tensor) -> Tensor:
    """F1 (n,) of two edge maps bool (n, 1, H, W), at tolerance 0; 1 where both are empty.

    F1 = 2 TP / (edge pixels of the one + of the other).
    """
    both = (edges & hint).sum((1, 2, 3)).float()
    either = edges.sum((1, 2, 3)) + hint.sum((1, 2, 3))
    return torch.where(either > 0, 2 * both / either, 1.0)


def gain(ef0: Any, ch: Any, ce: Any) -> Any:
    """(EF0 - CH) / (CE - CH): from chance (0) to what the autoencoder allows (1)."""
    return (ef0 - ch) / (ce - ch)


def share(a: Tensor, b: Tensor, origins: Tensor | None = None) -> Estimate:
    """Share of the entries of a and b (n,) that are equal, with its interval."""
    return estimate((a == b).float(), origins=origins)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (n,) in dB of images (n, k, H, W) in [-1, 1]: the peak is 2."""
    return 10 * torch.log10(4 / (x - y).pow(2).mean((1, 2, 3)))


def torch_fidelity(module: str) -> Any:
    """A module of torch-fidelity. Raises UserError if it is not installed."""
    return needed(f"torch_fidelity.{module}", "distances between sets of images")


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of the Gaussians of features (n, d), (m, d) (Heusel et al. 2017, eq. 6).

    With features of our own classifier: so it is FD, not FID.
    """
    fid = torch_fidelity("metric_fid")
    statistics = [fid.fid_features_to_statistics(f.double()) for f in (features, reference)]
    return fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kernel_distance(features: Tensor, reference: Tensor, subset: int = 250) -> float:
    """Kernel distance: MMD^2, cubic kernel, mean over 100 subsets (Binkowski et al. 2018)."""
    kid = torch_fidelity("metric_kid")
    result = kid.kid_features_to_metric(
        features,
        reference,
        kid_subsets=100,
        kid_subset_size=min(subset, len(features), len(reference)),
        rng_seed=0,
        verbose=False,
    )
    return result["kernel_inception_distance_mean"]


def precision_recall(
    features: Tensor, reference: Tensor, neighbours: int = 3
) -> tuple[float, float]:
    """Share of features inside the reference's manifold, and the reverse (Kynkäänniemi et al. 2019)."""
    prc = torch_fidelity("metric_prc")
    result = prc.prc_features_to_metric(
        features,
        reference,
        prc_neighborhood=neighbours,
        prc_batch_size=5000,
        save_cpu_ram=False,
        verbose=False,
    )
    return result["precision"], result["recall"]


def different(labels: Tensor) -> Tensor:
    """labels (n,) -> (n, n): do images i and j differ?"""
    return labels[:, None] != labels


def partners(allowed: Tensor, seed: int, others: Tensor | None = None) -> Tensor:
    """For each of n images a random other j with allowed[i, j] (n, n); any other where none is.

    `others` (n, n) tells which images are others; by default all but itself.
    """
    others = ~torch.eye(len(allowed), dtype=torch.bool) if others is None else others
    allowed = allowed & others
    allowed = torch.where(allowed.any(1, keepdim=True), allowed, others)
    noise = torch.rand(allowed.shape, generator=torch.Generator().manual_seed(seed))
    return (noise * allowed).argmax(1)
