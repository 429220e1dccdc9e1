"""Attach a ControlNet to a frozen base and train it on hints taken from the images [CN, arXiv 2302.05543]."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tinyldm.cli import parse_with_preset, run_command
from tinyldm.conditions import CONDITIONS
from tinyldm.config import CONTROL_PRESETS, ControlConfig
from tinyldm.controlnet import ControlNet
from tinyldm.data import Columns, to_float
from tinyldm.ldm import LatentDiffusion, bind_hint, generate, last, save_control
from tinyldm.pictures import hint_image, save_grid
from tinyldm.runs import encode_all, finish_run, hints_of, load_run, open_run
from tinyldm.stages import ControlStage
from tinyldm.training import compile_networks, fit, pick_device

PANEL = 8  # validation hints and captions in every preview


def preview_control(
    ldm: LatentDiffusion, controlnet: ControlNet, hints: Tensor, prompts: list[str], out: Path, step: int
) -> None:
    hints = hints[:PANEL].to(ldm.device).float()
    control = bind_hint(controlnet, hints.repeat_interleave(4, dim=0))
    x = ldm.vae.decode(last(generate(ldm, [p for p in prompts[:PANEL] for _ in range(4)], controls=[control])))
    rows = [(p, [hint_image(hints[i]), *x[4 * i : 4 * i + 4]]) for i, p in enumerate(prompts[:PANEL])]
    save_grid(out / "previews" / f"control-{step:06}.png", rows)


def main(config: ControlConfig) -> None:
    ldm, train, validation = load_run(config.base, "train", "validation")
    device = pick_device(config.run.device)
    open_run(config.out, config)
    torch.manual_seed(config.run.seed)
    ldm = ldm.to(device)
    settings = {"hint_channels": 1, "hint_widths": config.hint_widths, "condition": config.condition}
    controlnet = ControlNet(ldm.unet, settings["hint_channels"], settings["hint_widths"])
    compile_networks(config.run, ldm.unet, controlnet)

    condition = CONDITIONS[config.condition]
    z, hints = encode_all(ldm.vae, train.images, device), hints_of(condition, train.images)
    prompts, panel_hints = validation.captions.full()[:256], hints_of(condition, validation.images[:256])
    panel = (encode_all(ldm.vae, validation.images[:256], device), panel_hints, prompts)
    preview = partial(preview_control, ldm, controlnet, panel_hints, prompts, config.out)

    stage = ControlStage(ldm, controlnet, config.caption_drop)
    data = Columns(z, hints, train.captions)
    fit(stage, data, config.fit, config.run, config.out, "control", panel, preview)

    save_control(controlnet, config.base, config.out, settings)
    for i, caption in enumerate(validation.captions.full()[:PANEL]):
        name = caption.replace(" ", "-")
        save_grid(config.out / "hints" / f"{name}.png", [("", [to_float(validation.images[i])])])
    finish_run(config.out)


if __name__ == "__main__":
    run_command(lambda: main(parse_with_preset(CONTROL_PRESETS)))
