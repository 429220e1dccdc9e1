"""E14: diffusion in the latent space is cheaper than in pixels, at equal parameters."""

import time
from dataclasses import replace

from torch import nn

from tinyldm.benchmark import count_gflop, in_turn, ratio
from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.dataset import Columns, to_float
from tinyldm.ldm import LatentDiffusion
from tinyldm.metrics import frechet_distance
from tinyldm.stages import BaseStage
from tinyldm.training import fit
from tinyldm.unet import UNet
from tinyldm.workloads import Sizes, our_unet


class Pixels(nn.Module):
    """Stands where an autoencoder would: the latent is the image."""

    f = 1

    def encode(self, x):
        return x

    def decode(self, z):
        return z


def pixel_base(lab: Lab, seed: int, steps: int) -> LatentDiffusion:
    """A base whose U-Net works on pixels, trained for that many steps."""
    ldm = lab.new_base(seed)
    k = lab.data("train").images.shape[1]
    ldm.vae, ldm.unet = Pixels(), UNet(replace(lab.settings.unet, channels=k))
    config = replace(lab.settings.base_fit, steps=steps)
    columns = Columns(to_float(lab.data("train").images), lab.data("train").captions)

    def train(folder) -> None:
        fit(BaseStage(ldm, 0.1, "logit-normal"), columns, config, lab.run(seed), folder, "pixels")

    return lab.kept("pixels", ldm, train, seed, steps)


def run(lab: Lab, seeds: list[int]) -> Finding:
    s, captions = lab.settings, lab.test.captions.full()
    latent = Sizes(s.unet, s.vae, s.hint_widths, batch=s.base_fit.batch_size, device=lab.device.type)
    pixel = replace(latent, vae=replace(s.vae, widths=s.vae.widths[:1]), unet=replace(s.unet, channels=1))
    steps = {"latent": our_unet(latent), "pixel": our_unet(pixel)}
    times = in_turn(steps, 5, "E14")
    speed, gflop = ratio(times["pixel"], times["latent"]), {name: count_gflop(step) for name, step in steps.items()}
    rows, fds = [], []
    for seed in seeds:
        ldm = lab.base(BaseArm(seed))
        budget = lab.seconds[lab.folder_of(BaseArm(seed)).name] + lab.seconds[f"vae-{lab.key()}"]
        number = max(1, int(budget / (sum(times["pixel"]) / len(times["pixel"])))) if s.limit == 0 else 3
        number = lab.remember(f"pixel-steps-{seed}", number)
        start = time.perf_counter()
        models = {"latent": ldm, "pixel": pixel_base(lab, seed, number)}
        fd = {}
        for name, model in models.items():
            fd[name] = frechet_distance(lab.measured(lab.sample(model, captions)).features, lab.reference)
            rows.append({"seed": seed, "space": name, "GFLOP a step": gflop[name], "FD at equal seconds": fd[name]})
        fds.append(fd)
        rows[-1]["pixel steps in that time"] = number
        rows[-1]["seconds here"] = time.perf_counter() - start
    fold = lab.vae.f**2
    return Finding(
        passed=None,
        number=f"latent steps are {speed['median']:.1f} times as fast; FD latent / pixel at equal seconds, autoencoder included: "
        + ", ".join(f"{f['latent']:.2f} / {f['pixel']:.2f}" for f in fds),
        rows=rows,
        control=f"operations differ by {gflop['pixel'] / gflop['latent']:.1f}; at f = {lab.vae.f} positions differ by {fold}",
        notes=[
            "Break-even: the autoencoder's seconds are paid once; at twice the resolution a pixel step costs at least 4 times as "
            "much, a latent one too, but its share of the autoencoder stays the same"
        ],
    )


CLAIM = Claim(
    id="E14",
    title="Latent cheaper than pixel",
    sentence="Diffusion in the latent space takes at least 2.7 times less compute than in pixels for the same quality.",
    source="[LDM, 4.1 and 4.5]",
    criterion="none: the ratio is reported, with FD at equal seconds of training, the autoencoder's included",
    setting="the same U-Net on 8 x 8 x 4 latents and on 32 x 32 x 1 pixels",
    paper=">= 2.7 times the throughput, with better FID, for inpainting at 256 px",
    run=run,
)
