"""E10: ControlNet can be trained on few images."""

from itertools import pairwise

import torch

from tinyldm.claims.claim import Claim, Finding, errorbars, gain_of, spread, with_interval
from tinyldm.claims.lab import BaseArm, ControlArm, Lab, Sampled
from tinyldm.dataset import to_float
from tinyldm.metrics import frechet_distance
from tinyldm.pictures import hint_image

SIZES = (100, 1_000, 10_000, 0)  # 0 is all


def nearest(lab: Lab, x: torch.Tensor, images: int) -> float:
    """Median distance (root mean square, images in [-1, 1]) of x (n, k, H, W) to the nearest of the training images used."""
    train = to_float(lab.data("train").images[: images or None]).flatten(1)
    return (torch.cdist(x.flatten(1), train).min(1).values / train.shape[1] ** 0.5).median().item()


def diversity(a: Sampled, b: Sampled) -> float:
    """Mean distance of two samples of one hint, from different noise."""
    return (a.x - b.x).pow(2).mean((1, 2, 3)).sqrt().mean().item()


def run(lab: Lab, seeds: list[int]) -> Finding:
    captions, rows, gains, ratios, pictures = lab.test.captions.full(), [], {}, {}, []
    for size in SIZES:
        samples, fds, divs = [], [], []
        for seed in seeds:
            ldm, controlnet = lab.base(BaseArm(seed)), lab.control(ControlArm(BaseArm(seed), seed, images=size))
            samples.append(lab.controlled(ldm, controlnet, captions))
            divs.append(diversity(samples[-1], lab.controlled(ldm, controlnet, captions, seed=1_000_000)))
            base = frechet_distance(lab.measured(lab.sample(ldm, captions)).features, lab.reference)
            fds.append(frechet_distance(samples[-1].features, lab.reference) / base)
        gains[size], ratios[size] = gain_of(lab, *samples), spread(fds)
        row = {"training images": size or len(lab.data("train")), "GAIN": with_interval(*gains[size])}
        row |= {"FD over the base's, worst seed": max(fds), "DIV": sum(divs) / len(divs)}
        near = [nearest(lab, x, size) for x in (samples[0].x, to_float(lab.test.images))]
        rows.append({**row, "NN": near[0], "NN of real test images": near[1]})
        pictures.append((f"{row['training images']} training images", list(samples[0].x[:12])))
    rising = all(gains[b][1][1] >= gains[a][1][0] for a, b in pairwise(SIZES))

    def draw(figure) -> None:
        (ax, right), x = figure.subplots(1, 2), [row["training images"] for row in rows]
        ax.errorbar(x, *errorbars([gains[size] for size in SIZES]), fmt="ko-", capsize=3)
        ax.set(xscale="log", xlabel="training images", ylabel="GAIN, true captions")
        right.errorbar(x, *errorbars([ratios[size] for size in SIZES]), fmt="ks--", capsize=3)
        right.set(xscale="log", xlabel="training images", ylabel="FD over the base's, all seeds")

    return Finding(
        passed=gains[1_000][1][0] > 0 and ratios[1_000][1][1] <= 1.2 and rising,
        number=f"GAIN with 1,000 images {with_interval(*gains[1_000])}, FD at most {ratios[1_000][1][1]:.2f} x the base's",
        rows=rows,
        control="NN is the median distance to the nearest of the training images used: samples far below real test images would "
        "be copies",
        draw=draw,
        pictures=[("hints", list(hint_image(lab.hints[:12]))), *pictures],
    )


CLAIM = Claim(
    id="E10",
    title="Few training images",
    sentence="The training does not collapse with 1,000 images.",
    source="[CN, 4.4 and Fig. 10]",
    criterion="GAIN(1,000) > 0 (interval) with FD <= 1.2 x the base's in every seed; GAIN does not fall with more images, within "
    "intervals",
    setting="100, 1,000, 10,000 and all images, equal optimizer steps; the base saw all of them",
    run=run,
)
