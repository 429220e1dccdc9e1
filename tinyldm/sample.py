"""`python -m tinyldm.sample`: prompts, and perhaps a hint, to a PNG of images."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tinyldm.data.conditions import Condition
from tinyldm.data.hints import HintKind, read_hint
from tinyldm.data.pictures import hint_image, save_grid, save_image
from tinyldm.ldm import Control, LatentDiffusion, Passes, generate, last
from tinyldm.support import files
from tinyldm.support.command_line import parse, run_command
from tinyldm.support.errors import UserError
from tinyldm.support.progress import progress
from tinyldm.text import Tokenizer, words
from tinyldm.training.machine import Machine, process
from tinyldm.training.networks import check_steps, load_base, load_control
from tinyldm.training.settings import within


@dataclass(frozen=True)
class SampleSettings:
    """Generate images from prompts, steered by the edges of a picture if a ControlNet and a hint are given."""

    base: Path = Path("runs/base")
    """Run folder of train_base.py."""
    control: Path | None = None
    """Run folder of train_control.py; needs --hint."""
    transfer: bool = False
    """Use the control even if it was trained on another base."""
    hint: tuple[Path, ...] = ()
    """Pictures to take the edges from: one for all prompts, or one for each; needs --control."""
    hint_kind: HintKind = "auto"
    """How hints are read: a photo, whose edges are taken; lines, dark or bright or on a transparent layer,
    which are thinned; or edges, a map that is taken as it is. auto tells them apart."""
    prompt: tuple[str, ...] = ("",)
    """What to draw, a row of images each: one for all hints, or one for each."""
    num_images: int = 4
    """Images per row."""
    guidance: float = 2.0
    """Classifier-free guidance: 1 is off, more obeys the prompt more."""
    control_scale: float = 1.0
    """Strength of the control: 0 is none, 1 is as trained."""
    control_passes: Passes = "prompted"
    """Which passes of guidance the control acts on: the prompted one only [CN, 3.4], which follows the edges
    more closely, or both, which leaves more to the prompt."""
    sampler: Literal["dpm++", "ddim", "ddpm"] = "dpm++"
    steps: int = 20
    """Steps of the sampler; ddim wants about 50, ddpm hundreds."""
    eta: float = 0.0
    """Noise of the ddim sampler: 0 is deterministic, 1 is ddpm."""
    seed: int = 0
    """Image i of a row is a function of seed + i."""
    out: Path = Path("samples.png")
    """The PNG to write; in each row the hint stands first. Hints as the network sees them come beside it, as
    OUT-hint-1.png, ..."""
    device: str = "auto"

    def __post_init__(self) -> None:
        within(self, 0, 2**63 - 1, "seed")
        within(self, 1, 10_000, "num_images", "steps")
        within(self, 0, 1, "eta")
        within(self, -1000, 1000, "guidance", "control_scale")


def check(settings: SampleSettings) -> None:
    """Raise UserError for flags that do not fit together, before any work."""
    hints, prompts, out = settings.hint, settings.prompt, settings.out
    if bool(settings.control) != bool(hints):
        raise UserError("--control and --hint go together: give both or neither")
    if not prompts:
        raise UserError('--prompt: give at least one; "" is the empty prompt')
    if len({len(hints), len(prompts)} - {0, 1}) > 1:
        found = f"{len(hints)} --hint and {len(prompts)} --prompt"
        raise UserError(f"{found}: give one of either, or as many")
    if settings.eta and settings.sampler != "ddim":
        raise UserError(f"--eta {settings.eta}: only the sampler ddim has it; give --sampler ddim")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: name a file that ends in .png")
    files.check_writable("--out", out)


def read_hints(
    settings: SampleSettings, ldm: LatentDiffusion, condition: Condition
) -> list[Tensor]:
    """Each picture's hint, bool (1, 1, H, W), at the resolution of the base, also written beside the result."""
    hints, channels = [], ldm.vae.config.image_channels
    for i, path in enumerate(settings.hint):
        hint = read_hint(path, channels, ldm.resolution, condition, settings.hint_kind)
        for note in hint.notes:
            print(f"note: {path} {note}", file=sys.stderr)
        out = settings.out
        save_image(out.with_name(f"{out.stem}-hint-{i + 1}.png"), hint_image(hint.edges[0]))
        hints.append(hint.edges)
    return hints


def unknown_words(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """The words of the prompts that are not in the vocabulary, each once."""
    found = dict.fromkeys(words(" ".join(prompts)))
    return [word for word in found if word not in tokenizer.token]


def read_controls(
    settings: SampleSettings, ldm: LatentDiffusion, machine: Machine
) -> list[Control]:
    """One control for each --hint."""
    if not settings.control:
        return []
    controlnet, condition = load_control(settings.control, settings.base, ldm, settings.transfer)
    machine.place(controlnet)
    hints, weight = read_hints(settings, ldm, condition), settings.control_scale
    return [Control(controlnet, hint.to(machine.device), weight) for hint in hints]


@torch.no_grad()
def rows_of(settings: SampleSettings, machine: Machine) -> list[tuple[str, list[Tensor]]]:
    """The grid's rows: row i has prompt i and hint i, or the only one."""
    s, ldm = settings, load_base(settings.base)
    check_steps(s.steps, ldm)
    machine.place(ldm)
    controls = [[control] for control in read_controls(s, ldm, machine)] or [[]]
    for word in unknown_words(ldm.tokenizer, s.prompt):
        print(f"note: the base was never trained with the word {word!r}", file=sys.stderr)
    for prompt in s.prompt:
        if len(words(prompt)) > (most := ldm.tokenizer.length):
            print(f"note: {prompt!r} is cut after {most} words", file=sys.stderr)
    rows, number = [], max(len(controls), len(s.prompt))
    for i, prompt, control in zip(range(number), cycle(s.prompt), cycle(controls)):
        z = generate(
            ldm,
            [prompt] * s.num_images,
            guidance=s.guidance,
            sampler=s.sampler,
            steps=s.steps,
            seed=s.seed,
            eta=s.eta,
            controls=control,
            control_passes=s.control_passes,
        )
        bar = progress(z, total=s.steps, desc=f"{i + 1}/{number} {prompt}", unit="step")
        hints = [hint_image(c.hint[0]) for c in control]
        rows.append((prompt, [*hints, *ldm.vae.decode(last(bar))]))
    return rows


def main(settings: SampleSettings) -> None:
    """Write the grid as a PNG."""
    check(settings)
    with process(settings.device, "fp32", threads=torch.get_num_threads()) as machine:
        save_grid(settings.out, rows_of(settings, machine))
    print(settings.out)


def command() -> None:
    """The console command tinyldm-sample."""
    run_command(lambda: main(parse(SampleSettings)))


if __name__ == "__main__":
    command()
