"""Attach a ControlNet to a frozen base and train it [CN, Zhang et al. 2023, arXiv 2302.05543].

As step 3 of train_base.py, but the base is frozen, a trainable copy of its encoder sees the hint c_f,
and half of the captions are dropped, so that it learns to read the hint alone [CN, 3.3]:

    min || eps - eps_theta(alpha_t z_0 + sigma_t eps, t, tau(y), c_f) ||^2     [CN, eq. 5]
"""

from functools import partial

import tinyldm  # noqa: F401, before torch: it sets how threads wait

# isort: split
import torch
from torch import Tensor

from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data.conditions import Condition
from tinyldm.data.dataset import Columns, Tokens, drop_captions
from tinyldm.ldm import Control
from tinyldm.support.command_line import parse_with_preset, run_command
from tinyldm.training.caches import cached_latents, hints_of
from tinyldm.training.fit import fit
from tinyldm.training.machine import process
from tinyldm.training.networks import base_checksum, check_levels, save_control
from tinyldm.training.presets import CONTROL_PRESETS
from tinyldm.training.previews import PANEL, save_examples, watch_samples
from tinyldm.training.run_folder import check_out, load_run, open_run
from tinyldm.training.settings import ControlSettings


def main(settings: ControlSettings) -> None:
    """Train a ControlNet for the base `settings.base` into the run folder `settings.out`."""
    run, base = settings.run, settings.base
    memory = run.gradient_accumulation_steps, run.gradient_checkpointing
    with process(run.device, run.precision, run.threads, *memory) as machine:
        check_out(settings, machine)
        base_sha256 = base_checksum(base)
        ldm, (data, validation) = load_run(base, "train", "validation")
        config = ControlNetConfig(hint_widths=settings.hint_widths)
        check_levels("--hint-widths", config, ldm)
        torch.manual_seed(run.seed)
        controlnet = ControlNet(ldm.unet, config)
        machine.place(ldm, controlnet)
        with open_run(settings, machine) as checkpoints:
            out = checkpoints.folder
            name = settings.condition if data.hints is None else "given"
            condition = Condition(name, settings.canny_low, settings.canny_high)
            find = partial(hints_of, condition)
            z_0, hints = cached_latents(base, ldm, data.images), find(data.images, data.hints)

            def noise_loss(z_0: Tensor, hint: Tensor, tokens: Tensor) -> Tensor:
                tokens = drop_captions(tokens, settings.caption_drop)
                return ldm.loss(z_0, tokens, [Control(controlnet, hint)], settings.t_density)

            shown = validation.subset(torch.arange(min(PANEL, len(validation))))
            control = Control(controlnet, find(shown.images, shown.hints))
            watch = watch_samples(ldm, validation, out, "control", control)
            columns = Columns(z_0, hints, Tokens.of(data.captions, ldm.tokenizer.encode))
            minimise = partial(fit, checkpoints=checkpoints, seed=run.seed, machine=machine)
            minimise(noise_loss, [controlnet], columns, settings.fit, name="control", **watch)

            hint = save_examples(out / "hints", validation)[0]
            if machine.team.rank == 0:
                save_control(out, controlnet, condition, base_sha256)
    sample = f"python -m tinyldm.sample --base {base} --control {settings.out} --hint {hint}"
    print(f'{settings.out}: done. Next:\n    {sample} --prompt "{validation.captions.full()[0]}"')


if __name__ == "__main__":
    run_command(lambda: main(parse_with_preset(CONTROL_PRESETS)))
