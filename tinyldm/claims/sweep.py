"""Samples of several seeds, and the numbers that are made of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyldm.evaluate.metrics import Estimate, estimate, frechet_distance, gain, spread
from tinyldm.evaluate.panel import Panel, Sampled


def over_seeds(columns: Sequence[Tensor]) -> Tensor:
    """One column (n,) per seed -> their mean image by image: an interval resamples each image once."""
    return torch.stack([column.double() for column in columns]).mean(0)


def shares(seen: Sequence[Tensor], wanted: Tensor) -> Estimate:
    """Share of labels (n,), one column per seed, that equal the wanted ones (n,), with its interval."""
    return estimate(over_seeds([column == wanted for column in seen]))


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> Estimate:
    """Mean of a - b over seeds and images, one column (n,) per seed, paired image by image."""
    return estimate(over_seeds(a) - over_seeds(b))


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a / b, seed by seed."""
    return [x / y for x, y in zip(a, b, strict=True)]


def shuffled(n: int, seed: int = 0) -> list[int]:
    """The indices of n images in a random order: prompts, labels or hints that are not an image's own."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


class Sweep:
    """What the models of some seeds gave for the same prompts, hints and noise, and its measures.

    Lists have an entry per seed. `ce` (n,) is the edge F1 after a round trip through the autoencoder.
    """

    def __init__(self, samples: Sequence[Sampled], panel: Panel, ce: Tensor):
        self.samples = samples
        self.x = samples[0].x  # the first seed's images (n, k, H, W)
        self.images = torch.cat([s.x for s in samples])  # of all seeds
        self.ef0s = [s.ef0 for s in samples]
        self.classes = [s.seen["class"] for s in samples]  # that the judge sees
        self.hits = [seen == panel.labels["class"] for seen in self.classes]
        self.fds = [frechet_distance(s.features, panel.reference) for s in samples]

        ef0, ch = over_seeds(self.ef0s), over_seeds([s.ch for s in samples])
        self.ef0, self.gain = estimate(ef0), estimate(ef0, ch, ce, statistic=gain)
        self.acc = estimate(over_seeds(self.hits))  # the class of the hint's image: ACC_e
        self.fd = spread(self.fds)
