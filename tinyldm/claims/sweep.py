"""Samples of several seeds, and the numbers that are made of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinyldm.claims.verdict import Measured, measure, pseudo_values
from tinyldm.evaluate.metrics import Estimate, frechet_distance, gain, kernel_distance, spread
from tinyldm.evaluate.panel import Panel, Sampled


def stacked(columns: Sequence[Tensor]) -> Tensor:
    """One column (n,) per seed -> (s, n)."""
    return torch.stack([column.double() for column in columns])


def ratio(over: Tensor, under: Tensor) -> Tensor:
    """A statistic of two means."""
    return over / under


def net_ratio(own: Tensor, chance: Tensor, whole: Tensor, whole_chance: Tensor) -> Tensor:
    """A statistic of four means: how far above chance the first is, over the same of the third."""
    return (own - chance) / (whole - whole_chance)


def shuffled(n: int, seed: int = 0) -> list[int]:
    """The indices of n images in a random order: prompts, labels or hints that are not an image's own."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


class Sweep:
    """What the models of some seeds gave for the same prompts, hints and noise, and its measures.

    Columns are (s, n), a row per seed. `ce` (n,) is the edge F1 after a round trip through the autoencoder.
    """

    def __init__(self, samples: Sequence[Sampled], panel: Panel, ce: Tensor):
        self.samples, self.panel = samples, panel
        self.x = samples[0].x  # the first seed's images (n, k, H, W)
        self.ef0s = stacked([s.ef0 for s in samples])
        self.chs = stacked([s.ch for s in samples])
        self.ces = ce.double().expand(len(samples), -1)
        self.seen = {
            name: torch.stack([s.seen[name] for s in samples]) for name in samples[0].seen
        }  # label -> (s, n)

    @property
    def images(self) -> Tensor:
        """Of all seeds (s n, k, H, W)."""
        return torch.cat([s.x for s in self.samples])

    def measure(self, *columns: Tensor, **how: object) -> Measured:
        """Of columns (s, n) of these images: `measure`, all images of one drawing together."""
        return measure(*columns, origins=self.panel.origins, **how)  # type: ignore[arg-type]

    def hits(self, label: str, wanted: Tensor | None = None) -> Tensor:
        """Where the label (s, n) is the wanted one (n,), by default that of the hint's image."""
        wanted = self.panel.labels[label] if wanted is None else wanted
        return (self.seen[label] == wanted).double()

    @property
    def ef0(self) -> Estimate:
        return self.measure(self.ef0s).estimate

    @property
    def gain(self) -> Estimate:
        return self.measure(self.ef0s, self.chs, self.ces, statistic=gain).estimate

    @property
    def acc(self) -> Estimate:
        """ACC_e: the class of the hint's image."""
        return self.measure(self.hits("class")).estimate

    @property
    def fds(self) -> list[float]:
        return [frechet_distance(s.features, self.panel.reference) for s in self.samples]

    @property
    def fd(self) -> Estimate:
        return spread(self.fds)

    @property
    def kd(self) -> Estimate:
        return spread([kernel_distance(s.features, self.panel.reference) for s in self.samples])

    def pseudo_fds(self, distance: Callable[[Tensor, Tensor], float] = frechet_distance) -> Tensor:
        """FD as columns (s, blocks), for `measure`."""
        panel = self.panel

        def column(features: Tensor) -> Tensor:
            return pseudo_values(lambda i: distance(features[i], panel.reference), panel.origins)

        return stacked([column(s.features) for s in self.samples])


def fd_ratio(over: Sweep, under: Sweep, family: int = 1) -> Measured:
    """FD of one over FD of the other, by the same blocks of images."""
    return measure(over.pseudo_fds(), under.pseudo_fds(), statistic=ratio, family=family)
