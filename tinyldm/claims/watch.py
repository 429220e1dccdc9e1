"""Trainings that are watched: what their ControlNet does after every 1/25 of them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tinyldm.claims.lab import Lab, Model
from tinyldm.claims.settings import ControlArm
from tinyldm.support import files

PANEL = 48  # test images whose EF0 is followed
SHOWN = 12  # of them in pictures
MOMENTS_RATE = 1e-3
MOMENTS = (16, 32, 64, 128, 256, 400)  # steps at which FD and ACC_t are measured too


def watched(lab: Lab, lr: float, edit: str, optimizer: str) -> ControlArm:
    """A training as in [CN]: AdamW, t drawn evenly, weights not averaged, no warm-up.

    With "muon" it is the default training instead, but for the last two.
    """
    fit = lab.settings.control_fit
    fit = replace(fit, lr=lr, ema=0.0, warmup=1, preview_every=max(1, fit.steps // 25))
    arm = ControlArm(fit=fit, edit=edit, watched=True)
    if optimizer == "muon":
        return arm
    return replace(arm, fit=replace(fit, optimizer="adamw"), density="uniform")


def progress_of(
    lab: Lab, seed: int, lr: float, edit: str = "zero", optimizer: str = "adamw"
) -> list[dict]:
    """Look by look during a training: its step, x of the panel's first images, and EF0 of each of the panel.

    At MOMENTS FD and ACC_t too, if lr is E1's. The hints, captions and z_T are always the same.
    """
    moments = (*MOMENTS, lab.settings.control_fit.steps) if lr == MOMENTS_RATE else ()

    def look(folder: Path, model: Model, step: int) -> None:
        x = lab.sample(model, lab.panel.captions[:PANEL])
        seen = {"x": x[:SHOWN], "ef0": lab.panel.edge_scores(x)[0]}
        if step in moments:
            sweep = lab.sweep([model])
            means = torch.tensor([sweep.fd.mean, sweep.acc.mean], dtype=torch.float64)
            seen["fd"], seen["acc"] = means
        files.write_tensors(folder / f"step-{step:05d}.safetensors", seen)

    model = lab.control(watched(lab, lr, edit, optimizer), seed, look)
    lines = []
    for path in sorted((lab.store.folder / model.key[-1]).glob("step-*.safetensors")):
        seen = files.read_tensors(path, f"delete {path.parent}")
        numbers = {name: values.tolist() for name, values in seen.items()}
        lines.append({"step": int(path.stem.removeprefix("step-")), **numbers})
    return lines


def seen_during(lab: Lab, lr: float) -> dict[str, Tensor]:
    """Step -> images (SHOWN, k, H, W), at eight steps of seed 0's training."""
    lines = progress_of(lab, 0, lr)
    chosen = [lines[round(i)] for i in torch.linspace(0, len(lines) - 1, 8).tolist()]
    return {f"step {line['step']}": torch.tensor(line["x"]) for line in chosen}
