"""Attach a ControlNet to a frozen base and train it on hints taken from the images [CN, arXiv 2302.05543]."""

from tinyldm.cli import parse_with_preset, run_command
from tinyldm.config import CONTROL_PRESETS, ControlConfig, check

if __name__ == "__main__":  # before torch is imported: --help and mistakes answer at once
    config = run_command(lambda: parse_with_preset(CONTROL_PRESETS))

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tinyldm.conditions import CONDITIONS
from tinyldm.controlnet import ControlNet
from tinyldm.dataset import Columns, Dataset, to_float
from tinyldm.errors import UserError
from tinyldm.ldm import LatentDiffusion, bind_hint, generate, last, save_control
from tinyldm.pictures import hint_image, save_grid, save_image
from tinyldm.runs import encode_all, finish_run, hints_of, load_run, open_run, train_latents
from tinyldm.stages import ControlStage
from tinyldm.training import compile_networks, fit, pick_device, plot_losses

PANEL = 8  # validation hints and captions in every preview


def preview_control(
    ldm: LatentDiffusion, controlnet: ControlNet, hints: Tensor, prompts: list[str], out: Path, step: int
) -> None:
    hints = hints[:PANEL].to(ldm.device).float()
    control = bind_hint(controlnet, hints.repeat_interleave(4, dim=0))
    x = ldm.vae.decode(last(generate(ldm, [p for p in prompts[:PANEL] for _ in range(4)], controls=[control])))
    rows = [(p, [hint_image(hints[i]), *x[4 * i : 4 * i + 4]]) for i, p in enumerate(prompts[:PANEL])]
    save_grid(out / "previews" / f"control-{step:06}.png", rows)


def save_examples(folder: Path, validation: Dataset) -> None:
    """The first validation image of each class as CLASS.png: pictures to try as --hint."""
    for value, name in enumerate(validation.names["class"]):
        found = (validation.labels["class"] == value).nonzero()
        if len(found):
            save_image(folder / f"{name.replace(' ', '-')}.png", to_float(validation.images[found[0, 0]]))


def main(config: ControlConfig) -> None:
    """A frozen base, a copy of its encoder, latents and hints, run folder."""
    check(config)
    device = pick_device(config.run.device)
    ldm, train, validation = load_run(config.base, "train", "validation")
    if len(config.hint_widths) != len(ldm.vae.config.widths):
        raise UserError(f"--hint-widths: give {len(ldm.vae.config.widths)}, as many as the VAE of {config.base} has")
    open_run(config.out, config)
    torch.manual_seed(config.run.seed)
    ldm = ldm.to(device)
    settings = {"hint_channels": 1, "hint_widths": config.hint_widths, "condition": config.condition}
    controlnet = ControlNet(ldm.unet, settings["hint_channels"], settings["hint_widths"])
    compile_networks(config.run, ldm.unet, controlnet)

    condition = CONDITIONS[config.condition]
    z, hints = train_latents(config.base, ldm.vae, train.images, device), hints_of(condition, train.images)
    prompts, panel_hints = validation.captions.full()[:256], hints_of(condition, validation.images[:256])
    panel = (encode_all(ldm.vae, validation.images[:256], device), panel_hints, prompts)
    preview = partial(preview_control, ldm, controlnet, panel_hints, prompts, config.out)

    captions = [*prompts, *(caption for choices in train.captions.choices for caption in choices)]
    stage = ControlStage(ldm, controlnet, captions, config.caption_drop, config.timesteps)
    data = Columns(z, hints, train.captions)
    fit(stage, data, config.fit, config.run, config.out, "control", panel, preview)

    plot_losses(config.out)
    save_examples(config.out / "hints", validation)
    save_control(controlnet, config.base, config.out, settings)
    finish_run(config.out)


if __name__ == "__main__":
    run_command(lambda: main(config))
