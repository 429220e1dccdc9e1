"""E14: diffusion in the latent space is cheaper than in pixels, at equal parameters."""

from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tinyldm.benchmark.measure import count_gflop, in_turn, ratio
from tinyldm.benchmark.steps import FIT, UNET, VAE_PART, Sizes, Step, our_step
from tinyldm.claims.checks import base_ratio, learnt, small, timed
from tinyldm.claims.claim import BASE_GOOD, Claim, Finding, Row
from tinyldm.claims.lab import Lab, Model
from tinyldm.claims.settings import BaseArm
from tinyldm.claims.sweep import fd_ratio
from tinyldm.claims.verdict import Criterion, Noise
from tinyldm.data.dataset import to_float
from tinyldm.ldm import LatentDiffusion
from tinyldm.vae import VAEConfig

OVER = "pixel over latent with autoencoder"
FASTER = "seconds of a training step, pixel over latent"
BETTER = "FD at equal seconds, pixel over latent"


class Pixels(nn.Module):
    """Stands where an autoencoder would: the latent is the image (b, k, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.config = VAEConfig(channels, channels, widths=(1,))

    def decode(self, z: Tensor) -> Tensor:
        return z


def pixel_base(lab: Lab, steps: int, seed: int) -> Model:
    """A base whose U-Net works on pixels, trained for that many steps."""
    s, images = lab.settings, lab.data["train"].images
    pixels, sizes = Pixels(images.shape[1]), (s.text, s.unet, s.resolution)
    torch.manual_seed(seed)
    model = Model(LatentDiffusion.build(pixels, lab.tokenizer, *sizes))  # type: ignore[arg-type]
    arm = BaseArm(replace(s.base_fit, steps=steps))
    train = partial(lab.fit_base, model, arm, seed, to_float(images))
    key = {**lab.base_key(arm, seed), "kind": "pixels"}
    return model._replace(key=(lab.trained(key, model.ldm, train),))


def steps_at(lab: Lab, resolution: int, **how: Any) -> dict[str, Step]:
    """The training steps that are compared."""
    s, k = lab.settings, lab.data["train"].images.shape[1]
    batches = s.base_fit.batch_size, s.vae_fit.batch_size
    vae, device = replace(s.vae, image_channels=k), lab.machine.device.type
    latent = Sizes(s.unet, vae, s.hint_widths, *batches, resolution, device)
    vae, unet = replace(vae, widths=s.vae.widths[:1]), replace(s.unet, channels=k)
    parts = {
        "autoencoder": (latent, VAE_PART),
        "latent": (latent, UNET),
        "pixel": (replace(latent, vae=vae, unet=unet), UNET),
    }
    return {name: our_step(*part, **how) for name, part in parts.items()}


def compute(lab: Lab, resolution: int) -> Row:
    """TFLOP of whole trainings at that resolution."""
    s, steps = lab.settings, steps_at(lab, resolution)
    vae, base = s.vae_fit.steps, s.base_fit.steps
    numbers = {"autoencoder": vae, "latent": base, "pixel": base}
    tflop = {name: n * count_gflop(steps[name]) / 1e3 for name, n in numbers.items()}
    row = {"resolution": resolution, **{f"TFLOP {name}": value for name, value in tflop.items()}}
    return {**row, OVER: tflop["pixel"] / (tflop["autoencoder"] + tflop["latent"])}


def run(lab: Lab) -> Finding:
    """Seconds of a step in pixels over one in latents, and FD of both after as many seconds."""
    lab = small(lab)
    panel = learnt(lab)
    s = lab.settings
    seconds = in_turn(steps_at(lab, s.resolution, **FIT), 5, "E14")
    speed = ratio(seconds["pixel"], seconds["latent"])
    vae, base, pixel = map(median, seconds.values())
    number = max(1, int((s.vae_fit.steps * vae + s.base_fit.steps * base) / pixel))
    key = {**lab.base_key(BaseArm(), 0), "kind": "pixel-steps"}
    number = lab.store.remember(key, number)  # a measured time must not change a trained arm
    counts = [compute(lab, resolution) for resolution in (16, 32, 64)]
    short = BaseArm(replace(s.base_fit, steps=number))
    arms = {
        f"latent, {s.base_fit.steps} steps: equal seconds": lab.models(BaseArm()),
        f"latent, {number} steps: equal steps": lab.models(short),
        f"pixel, {number} steps": [pixel_base(lab, number, seed) for seed in lab.seeds],
    }
    swept = {name: lab.sweep(models, panel=panel) for name, models in arms.items()}
    cheaper = [f"{row['resolution']} px" for row in counts if row[OVER] > 1]
    fds = ", ".join(f"{name} {sweep.fd.mean:.1f}" for name, sweep in swept.items())
    latent, _, pixels = swept.values()
    measured = {FASTER: timed(speed), BETTER: fd_ratio(pixels, latent)}
    return Finding(
        measured,
        {BASE_GOOD.name: base_ratio(lab)},
        f"a latent step is {speed.mean:.1f} times as fast; FD {fds}",
        [
            *counts,
            *({"arm": name, "FD": x.fd, "KD": x.kd, "ACC_t": x.acc} for name, x in swept.items()),
        ],
        notes=[
            "Both sides' steps are timed in turn, in one process; seconds include those of the "
            "autoencoder",
            "Break-even: of the resolutions counted, latents are cheaper from "
            f"{(*cheaper, 'above 64 px')[0]} on, for this number of steps; the autoencoder is paid "
            "once, so longer training moves this down",
        ],
    )


CLAIM = Claim(
    id="E14",
    title="Latent cheaper than pixel",
    sentence="At comparable sizes diffusion in the latent space is at least 2.7 times as fast as "
    "in pixels, with better FID.",
    source="[LDM, 4.5]",
    criteria=(
        Criterion(FASTER, low=2.7, holds=5, fails=1.5, noise=Noise(0.5, 0, 5, 1)),
        Criterion(BETTER, low=1.0, holds=1.5, fails=0.8, noise=Noise(0.15, 0.03, 20, 3)),
    ),
    preconditions=(BASE_GOOD,),
    setting="the same U-Net on 8 x 8 x 4 latents and on 32 x 32 x 3 pixels; three bases of each",
    paper=">= 2.7 times the throughput, with better FID, for inpainting at 256 px",
    run=run,
    before="only reported: the pixel arm was never trained for as many steps",
)
