"""The ablations of a ControlNet, as edits of a built one, and an LDM that sees edges by concatenation."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from tinyldm import files
from tinyldm.claims.lab import BaseArm, ControlArm, Lab
from tinyldm.controlnet import ControlNet
from tinyldm.ldm import LatentDiffusion
from tinyldm.metrics import frechet_distance
from tinyldm.sizes import UNetConfig
from tinyldm.unet import UNet


def gaussian(controlnet: ControlNet) -> None:
    """Every zero conv starts as a Gaussian of std 1 / sqrt(c_in), so that it keeps its input's size; [CN] gives no std."""
    for conv in (*controlnet.zero_convs, controlnet.hint_encoder[-1]):
        nn.init.normal_(conv.weight, std=(conv.weight.shape[1] * conv.weight[0, 0].numel()) ** -0.5)


def random_copy(controlnet: ControlNet) -> None:
    """The copy starts anew, not from the base's weights."""
    for module in controlnet.encoder.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


class LiteEncoder(nn.Module):
    """One convolution for each block of the encoder it stands for; the same features' shapes, no time, no text."""

    def __init__(self, encoder: nn.Module, sizes: list[int]):
        super().__init__()
        self.channels = encoder.channels
        pairs = zip(self.channels, self.channels[1:], sizes, sizes[1:], strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=i // j, padding=1) for a, b, i, j in pairs)

    def forward(self, h: Tensor, t_emb: Tensor, context: Tensor) -> list[Tensor]:
        features = [h]
        for conv in self.convs:
            features.append(torch.nn.functional.silu(conv(features[-1])))
        return features


@torch.no_grad()
def lite(controlnet: ControlNet) -> None:
    """Each block of the copy is one convolution: "ControlNet-lite" [CN, 4.2]."""
    c, d = controlnet.stem.in_channels, 8
    context_width = next(m.k.in_features for n, m in controlnet.named_modules() if n.endswith("cross_attention"))
    z, t = torch.zeros(1, c, d, d), torch.ones(1)
    h = controlnet.stem(z)
    sizes = [f.shape[-1] for f in controlnet.encoder(h, controlnet.time_embed(t), torch.zeros(1, 1, context_width))]
    controlnet.encoder = LiteEncoder(controlnet.encoder, sizes)


class ConcatUNet(UNet):
    """A U-Net whose stem also sees the hint, f x f pixels folded into channels: an LDM conditioned by concatenation."""

    def __init__(self, config: UNetConfig, f: int):
        super().__init__(config)
        self.f = f
        self.stem = nn.Conv2d(config.channels + f * f, config.widths[0], 3, padding=1)

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, hints: list[Tensor]) -> Tensor:
        """`hints` is one "control": a list with the hint (b, 1, H, W)."""
        folded = rearrange(hints[0], "b 1 (h i) (w j) -> b (i j) h w", i=self.f, j=self.f)
        t_emb = self.time_embed(t)
        features = self.encoder(self.stem(torch.cat([z_t, folded.to(z_t.dtype)], dim=1)), t_emb, context)
        return self.head(self.decoder(features, t_emb, context))


class JustHint(nn.Module):
    """Stands where a ControlNet would, and hands the hint on: its one "residual" is the hint."""

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        return [hint]


def concat_ldm(lab: Lab, arm: ControlArm) -> tuple[LatentDiffusion, nn.Module]:
    """A U-Net that sees edges by concatenation, trained from scratch; the text encoder is the base's, and frozen."""
    base = lab.base(arm.base)
    torch.manual_seed(arm.seed + 1)
    unet = ConcatUNet(lab.settings.unet, lab.vae.f)
    ldm = LatentDiffusion(base.vae, base.tokenizer, base.text, unet, base.schedule, base.resolution)
    lab.fitted(unet, ldm, JustHint(), arm)
    hint = JustHint()
    ldm.kept_as, hint.kept_as = unet.kept_as, "hint"
    return ldm, hint


LEARNING_RATES = (2e-3, 4e-3, 8e-3)  # every arm that is compared gets the best of these


def best_rate(loss_at: Callable[[float], float]) -> float:
    """The learning rate with the lowest validation loss."""
    losses = {lr: loss_at(lr) for lr in LEARNING_RATES}
    return min(losses, key=losses.get)


EDITS = {"zero": lambda controlnet: None, "gaussian": gaussian, "lite": lite, "random copy": random_copy}
PANEL = 48  # test images whose EF0 is followed
SHOWN = 10  # of them in pictures
MOMENTS_RATE = 1e-3
MOMENTS = (16, 32, 64, 128, 256, 400)  # steps at which FD and ACC_t are measured too


def note_progress(
    lab: Lab, ldm: LatentDiffusion, moments: bool, folder: Path, controlnet: ControlNet, step: int
) -> None:
    """Append the panel's EF0 per image, with `moments` at MOMENTS FD and ACC_t too: always the same hints, captions and z_T."""
    captions = lab.test.captions.full()
    line: dict = {"step": step, "ef0": lab.controlled(ldm, controlnet, captions[:PANEL]).ef0.tolist()}
    if moments and (step in MOMENTS or step == lab.settings.control_fit.steps):
        sampled = lab.controlled(ldm, controlnet, captions)
        line["fd"] = frechet_distance(sampled.features, lab.reference)
        line["acc"] = (sampled.seen["class"] == lab.test.labels["class"]).float().mean().item()
    with open(folder / "progress.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def watched(lab: Lab, seed: int, lr: float, name: str, optimizer: str, watch: str) -> ControlArm:
    """A training as in [CN]: AdamW, t drawn evenly, weights not averaged, no warm-up; seen after every 1/25 of it.

    With "muon" it is the default training instead, but for the last two.
    """
    fit = lab.settings.control_fit
    fit = replace(fit, optimizer=optimizer, lr=lr, ema=0.0, warmup=1, preview_every=max(1, fit.steps // 25))
    timesteps, edit = "uniform" if optimizer == "adamw" else "logit-normal", "" if name == "zero" else name
    return ControlArm(BaseArm(seed), seed, fit, timesteps=timesteps, edit=edit, watch=watch)


def progress(lab: Lab, seed: int, lr: float, name: str = "zero", optimizer: str = "adamw") -> list[dict]:
    """What `note_progress` saw during a training; FD and ACC_t only at E1's learning rate."""
    arm = watched(lab, seed, lr, name, optimizer, "progress")
    lab.control(arm, EDITS[name], partial(note_progress, lab, lab.base(arm.base), lr == MOMENTS_RATE))
    lines = map(json.loads, (lab.folder_of(arm) / "progress.jsonl").read_text().splitlines())
    return sorted({line["step"]: line for line in lines}.values(), key=lambda line: line["step"])


def note_pictures(lab: Lab, ldm: LatentDiffusion, folder: Path, controlnet: ControlNet, step: int) -> None:
    """Keep the first images of the panel."""
    x = lab.controlled(ldm, controlnet, lab.test.captions.full()[:SHOWN]).x
    files.write_tensors(folder / f"pictures-{step:05d}.safetensors", {"x": x})


def seen_during(lab: Lab, lr: float) -> dict[int, Tensor]:
    """step -> images (SHOWN, k, H, W) of the panel, at eight steps of seed 0's training, seen once more for them."""
    arm = watched(lab, 0, lr, "zero", "adamw", "pictures")
    lab.control(arm, watch=partial(note_pictures, lab, lab.base(arm.base)))
    paths = sorted(lab.folder_of(arm).glob("pictures-*.safetensors"))
    paths = [paths[round(i)] for i in torch.linspace(0, len(paths) - 1, min(8, len(paths))).tolist()]
    return {int(path.stem.split("-")[1]): files.read_tensors(path, f"delete {path.parent}")["x"] for path in paths}
