"""The numbers of preconditions that several claims share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyldm.claims.claim import BASE_GOOD, CONVERGED, COPY_KEPT
from tinyldm.claims.lab import Lab, Model
from tinyldm.claims.settings import FASHION, SMALL, BaseArm, ControlArm
from tinyldm.claims.verdict import Measured, Noise
from tinyldm.data.dataset import to_float
from tinyldm.evaluate.metrics import Estimate, frechet_distance
from tinyldm.evaluate.panel import Panel


def floor(lab: Lab) -> float:
    """FD of as many real training images as `wide` has."""
    images = lab.data["train"].images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    features, _ = lab.panel.judge(to_float(images[order[: lab.settings.wide]]))
    return frechet_distance(features, lab.wide.reference)


def base_ratio(lab: Lab, models: list[Model] | None = None) -> float:
    """FD of the worst base over the floor: of these, or else of those that the lab trains things on."""
    models = models or ([lab.base(BaseArm(), 0)] if lab.ground else lab.models(BaseArm()))
    return max(lab.sweep(models, panel=lab.wide).fds) / floor(lab)


def moved(lab: Lab, arms: Sequence[ControlArm]) -> float:
    """The largest movement of a copy that starts as the base's: of all these arms and seeds."""
    return max(lab.moved(arm, seed) for arm in arms for seed in lab.seeds)


def common(lab: Lab, arms: Sequence[ControlArm]) -> dict[str, float]:
    """The numbers of COMMON: a good base; arms whose copies are still copies, and that have converged."""
    return copied(lab, arms) | {CONVERGED.name: last_quarter(lab, arms)}


def copied(lab: Lab, arms: Sequence[ControlArm]) -> dict[str, float]:
    """The first two of these."""
    return {BASE_GOOD.name: base_ratio(lab), COPY_KEPT.name: moved(lab, arms)}


def last_quarter(lab: Lab, arms: Sequence[ControlArm]) -> float:
    """The largest share of the loss's fall that is made in the last quarter: of all these arms and seeds."""
    return max(lab.last_quarter(arm, seed) for arm in arms for seed in lab.seeds)


def room(ceiling: Tensor, chance: Tensor) -> float:
    """Ceiling minus chance, of columns."""
    return (ceiling.double().mean() - chance.double().mean()).item()


def fashion(lab: Lab) -> Lab:
    """The default base of Fashion-MNIST, one training of it."""
    return Lab(lab.store, FASHION, lab.machine, [0]) if lab.ground else lab


def small(lab: Lab) -> Lab:
    """The world of claims about bases: at 32 px, where each seed trains its own."""
    return Lab(lab.store, SMALL, lab.machine, lab.seeds) if lab.ground else lab


def learnt(lab: Lab) -> Panel:
    """As `wide`, of images that a base was trained on: how well it learnt what it was taught."""
    data, n = lab.data["train"], lab.settings.wide
    return Panel(data, lab.panel.judge, lab.panel.condition, n, repeated=True)


def timed(found: Estimate, rounds: int = 5) -> Measured:
    """A ratio of times with its interval over rounds; there are no trainings in it."""
    spread = (found.high - found.low) / (2 * 1.96) * rounds**0.5
    return Measured(found, Noise(spread, 0.0, rounds, 1))
