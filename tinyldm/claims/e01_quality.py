"""E1: with zero convolutions the pictures stay good all through the training."""

from tinyldm.claims.arms import MOMENTS, MOMENTS_RATE, progress
from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.metrics import frechet_distance

NAMES = ("zero", "gaussian")


def curve(lab: Lab, name: str, seed: int) -> list[dict]:
    """The moments of a training at which FD and ACC_t were measured."""
    lines = progress(lab, seed, MOMENTS_RATE, name)
    return [{k: line[k] for k in ("step", "fd", "acc")} for line in lines if "fd" in line]


def base_fd(lab: Lab, seed: int, noise: int) -> float:
    """FD of the base, from the claim's own noise (0) or other noise."""
    x = lab.sample(lab.base(BaseArm(seed)), lab.test.captions.full(), seed=noise * 1_000_000)
    return frechet_distance(lab.measured(x).features, lab.reference)


def run(lab: Lab, seeds: list[int]) -> Finding:
    rows, worst, same, curves = [], [], [], {}
    for seed in seeds:
        fd, *others = (base_fd(lab, seed, noise) for noise in range(5))
        same += [other / fd for other in others]
        curves[seed] = {name: curve(lab, name, seed) for name in NAMES}
        for name, lines in curves[seed].items():
            rows += [{"arm": name, "seed": seed, **line, "FD over the base's": line["fd"] / fd} for line in lines]
        worst.append({name: max(line["fd"] for line in lines) / fd for name, lines in curves[seed].items()})

    peaks = {n: ", ".join(str(max(curves[s][n], key=lambda x: x["fd"])["step"]) for s in seeds) for n in NAMES}

    def draw(figure) -> None:
        for ax, key in zip(figure.subplots(1, 2), ("fd", "acc"), strict=True):
            for name, style in (("zero", "k-"), ("gaussian", "k:")):
                for seed in seeds:
                    lines = curves[seed][name]
                    ax.plot([x["step"] for x in lines], [x[key] for x in lines], style, label=f"{name}, seed {seed}")
            ax.set(xscale="log", xlabel="optimizer step", ylabel={"fd": "FD", "acc": "ACC_t"}[key])
        ax.legend(fontsize=7)

    return Finding(
        passed=all(w["zero"] <= 1.1 for w in worst),
        number="largest FD over the base's: " + ", ".join(f"{w['zero']:.2f}" for w in worst),
        rows=rows,
        control="Gaussian instead of zero, whose noise the measure should see: "
        + ", ".join(f"{w['gaussian']:.2f}" for w in worst),
        notes=[
            f"What no training at all gives: the bases' own FD from other noise is {min(same):.2f} to {max(same):.2f} of itself; "
            f"so much the choice of {lab.settings.n} samples alone does to it",
            f"FD is largest at step {peaks['zero']} with zero convolutions, at step {peaks['gaussian']} with Gaussian ones",
        ],
        draw=draw,
    )


CLAIM = Claim(
    id="E1",
    title="Good pictures all through the training",
    sentence="Since the zero convolutions add no noise, the model always predicts high-quality images during training.",
    source="[CN, 3.3 and Fig. 4]",
    criterion="largest FD over the steps <= 1.1 x the base's, in every seed",
    setting=f"as E2, learning rate {MOMENTS_RATE:g}; test captions and hints, at steps {', '.join(map(str, MOMENTS))}",
    run=run,
)
