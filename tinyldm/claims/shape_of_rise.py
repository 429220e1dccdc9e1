"""Is a rise sudden? A change point against smooth curves, by what each predicts of looks not seen."""

from collections.abc import Callable

import torch
from torch import Tensor

HILLS = torch.tensor(
    [1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
).double()  # exponents; 6 rises from t10 to t90 in .75 t50
RISES = 0.1  # EF0 that an image must gain to count
GRID = 40  # half-times tried


def steps_of(t: Tensor, at: Tensor) -> Tensor:
    """0 before each of the change points (m,), then 1: (m, s) of steps t (s,)."""
    return (t >= at[:, None]).double()


def hill_of(t: Tensor, at: Tensor) -> Tensor:
    """t^h / (t^h + t0^h) for half-times t0 (m,) and every exponent: (m x 6, s)."""
    scaled = t / at[:, None, None].clamp(min=1e-9)  # (m, 1, s)
    power = scaled ** HILLS[:, None]  # (m, 6, s)
    return (power / (1 + power)).flatten(0, 1)


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
        "change point": steps_of(t, t[2:-2]),
        "Hill curve": hill_of(t, grid),
        "parabola": squares(t, vertices),
    }
    return {name: predicted(shape, y) for name, shape in shapes.items()}


def prefers_jump(t: Tensor, y: Tensor) -> Tensor:
    """Does a change point predict the odd looks of y (s, n) at steps t (s,) better than smooth curves?"""
    jump, *smooth = ((y - found)[1::2].square().sum(0) for found in curves(t, y.double()).values())
    return jump < torch.stack(smooth).amin(0)


def levels(t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where y (s, n) begins (the first twentieth of the steps) and ends (the last quarter), (n,) each."""
    return y[t <= t[-1] / 20].mean(0), y[t >= 0.75 * t[-1]].mean(0)


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
    """The first look at which the mean has made this share of its rise and keeps it for three looks."""
    made = share_made(t, y) >= share
    kept = made[:-2] & made[1:-1] & made[2:]
    return t[int(kept.int().argmax())].item() if kept.any() else float("nan")


def within(t: Tensor, y: Tensor, width: float = 0.25) -> float:
    """The largest share of the mean's rise that falls within `width` x t50."""
    made, t50 = share_made(t, y), time_of(t, y, 0.5)
    last = torch.searchsorted(t.double(), t.double() + width * t50, right=True) - 1
    return (made[last] - made).max().clamp(0, 1).item()


def simulated(kind: str, t: Tensor, noise: float, images: int, seed: int) -> Tensor:
    """Curves (s, images) that rise by .3 as a "jump" in a twentieth of t50, a "ramp", or a "quadratic"."""
    draw = torch.Generator().manual_seed(seed)
    t50 = t[-1] / 6 * (0.95 + 0.1 * torch.rand(images, generator=draw))
    x = t[:, None].double() / t50
    shapes: dict[str, Callable[[Tensor], Tensor]] = {
        "jump": lambda x: (x >= 1).double(),
        "ramp": lambda x: (x / 2).clamp(0, 1),
        "quadratic": lambda x: 1 - (1 - (x / 3.4).clamp(0, 1)) ** 2,
    }
    return 0.2 + 0.3 * shapes[kind](x) + noise * torch.randn(len(t), images, generator=draw)
