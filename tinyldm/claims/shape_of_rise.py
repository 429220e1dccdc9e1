"""Is a rise sudden? A change point against smooth curves, by what each predicts of looks not seen."""

from collections.abc import Callable

import torch
from torch import Tensor

# exponents; 6 rises from t10 to t90 in .75 t50
HILLS = torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0, 6.0]).double()
# rise after the change, in units of it: at least half of the whole is sudden
DRIFTS = (0.0, 0.25, 0.5, 1.0)
RISES = 0.1  # EF0 that an image must gain to count
GRID = 40  # half-times tried


def steps_of(t: Tensor) -> Tensor:
    """0 before a change point, half at it, then 1: (m, s) of steps t (s,), for every odd look but the first.

    So two neighbouring change points never look alike to the even looks.
    """
    at = t[3:-2:2, None]
    return (t > at).double() + 0.5 * (t == at)


def hill_of(t: Tensor, at: Tensor) -> Tensor:
    """t^h / (t^h + t0^h) for half-times t0 (m,) and every exponent: (m x 6, s)."""
    scaled = t / at[:, None, None].clamp(min=1e-9)  # (m, 1, s)
    power = scaled ** HILLS[:, None]  # (m, 6, s)
    return (power / (1 + power)).flatten(0, 1)


def drifting(t: Tensor, shapes: Tensor) -> Tensor:
    """Shapes (m, s) that go on to rise along a line, up to as much again: (m x 4, s)."""
    later = t / t[-1]
    return torch.cat([shapes * (1 + share * later) for share in DRIFTS])


def squares(t: Tensor, at: Tensor) -> Tensor:
    """The quadratic's one shape per vertex: (t - t0)^2, (m, s); with offset and slope any parabola."""
    return (t / t.max() - at[:, None] / t.max()) ** 2


def predicted(shapes: Tensor, y: Tensor) -> Tensor:
    """y (s, n) by the best of offset + slope x shape (m, s), all three fitted to the even looks."""
    fit, seen = shapes[:, ::2], y[::2]
    x, mean = fit - fit.mean(1, keepdim=True), seen.mean(0)
    spread = x.square().sum(1)
    slope = x @ (seen - mean) / spread.clamp(min=1e-12)[:, None]  # (m, n)
    best = (slope.square() * spread[:, None]).argmax(0)  # (n,)
    chosen = slope[best, torch.arange(y.shape[1])]
    return mean + chosen * (shapes[best].T - fit[best].mean(1))


def curves(t: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What a change point, a Hill curve and a parabola make of y (s, n) at steps t (s,)."""
    t, y = t.double(), y.double()
    grid = torch.linspace(0, 1, GRID + 1).double()[1:] * t[-1]
    vertices = torch.linspace(-1, 2, GRID).double() * t[-1]
    shapes = {
        "change point": drifting(t, steps_of(t)),
        "Hill curve": drifting(t, hill_of(t, grid)),
        "parabola": squares(t, vertices),
    }
    return {name: predicted(shape, y) for name, shape in shapes.items()}


def prefers_jump(t: Tensor, y: Tensor) -> Tensor:
    """Does a change point predict the odd looks of y (s, n) at steps t (s,) better than smooth curves?"""
    jump, *smooth = ((y - found)[1::2].square().sum(0) for found in curves(t, y.double()).values())
    return jump < torch.stack(smooth).amin(0)


def levels(t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where y (s, n) begins, by five early looks, and ends, by the last tenth of the steps: (n,) each."""
    return y[t <= t[-1] / 20][:5].mean(0), y[t >= 0.9 * t[-1]].mean(0)


def rising(t: Tensor, y: Tensor) -> Tensor:
    """Which of n images gain at least RISES, (n,)."""
    first, last = levels(t, y)
    return last - first >= RISES


def share_made(t: Tensor, y: Tensor) -> Tensor:
    """Share of its rise that the mean of y (s, n) has made by each look, (s,), smoothed by medians of five."""
    first, last = levels(t, mean := y.double().mean(1, keepdim=True))
    made = ((mean - first) / (last - first).clamp(min=1e-9))[:, 0]
    padded = torch.cat([made[:1].expand(2), made, made[-1:].expand(2)])
    return padded.unfold(0, 5, 1).median(1).values


def time_of(t: Tensor, y: Tensor, share: float) -> float:
    """When the mean had made this share of its rise, for three looks at least; between looks by a line."""
    made = share_made(t, y)
    above = made >= share
    kept = above[:-2] & above[1:-1] & above[2:]
    if not kept.any():
        return float("nan")
    i = int(kept.int().argmax())
    if not i:
        return t[0].item()
    (a, b), (start, end) = made[i - 1 : i + 1].tolist(), t[i - 1 : i + 1].tolist()
    return start + (end - start) * min(1.0, max(0.0, (share - a) / max(1e-9, b - a)))


def within(t: Tensor, y: Tensor, width: float = 0.25) -> float:
    """The largest share of the mean's rise that falls within `width` x t50."""
    made, t50 = share_made(t, y), time_of(t, y, 0.5)
    last = torch.searchsorted(t.double(), t.double() + width * t50, right=True) - 1
    return (made[last] - made).max().clamp(0, 1).item()


def simulated(
    kind: str, t: Tensor, noise: float, images: int, seed: int, t50: float = 0.0
) -> Tensor:
    """Curves (s, images) that rise by .3 about t50, by default a sixth of the steps.

    As a "jump" that comes to all images within a twentieth of t50, a "jump, then a drift", which has a sixth of
    the rise, a "ramp", a "parabola", or a "Hill curve" (exponent 1.5).
    """
    draw = torch.Generator().manual_seed(seed)
    centre = t50 or t[-1].item() / 6
    x = t[:, None].double() / (centre * (0.975 + 0.05 * torch.rand(images, generator=draw)))
    shapes: dict[str, Callable[[Tensor], Tensor]] = {
        "jump": lambda x: (x >= 1).double(),
        "jump, then a drift": lambda x: (x >= 1) * (0.85 + 0.15 * x / x.max()),
        "ramp": lambda x: (x / 2).clamp(0, 1),
        "parabola": lambda x: 1 - (1 - (x / 3.4).clamp(0, 1)) ** 2,
        "Hill curve": lambda x: x**1.5 / (1 + x**1.5),
    }
    return 0.2 + 0.3 * shapes[kind](x) + noise * torch.randn(len(t), images, generator=draw)
