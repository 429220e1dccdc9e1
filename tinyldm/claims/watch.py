"""Trainings that are watched: what their ControlNet does, look by look."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinyldm.claims.lab import Lab, Model, distance
from tinyldm.claims.settings import ControlArm
from tinyldm.support import files
from tinyldm.training.settings import FitSettings

SHOWN = 12  # drawings in pictures
CONSTANT: dict[str, Any] = {"lr": 5e-4, "lr_scheduler": "constant"}
EVERY, DENSE, SPARSE = 8, 840, 80  # a look every EVERY steps up to DENSE, then every SPARSE
MOMENTS = (56, 120, 240, 480, 960, 2000)  # steps whose weights are kept, for FD


def watched(lab: Lab, **changes: Any) -> ControlArm:
    """A training as in [CN]: AdamW at a constant rate, t drawn evenly, weights not averaged, no warm-up."""
    fit = lab.settings.control_fit
    steps, every = min(2000, 4 * fit.steps), min(EVERY, fit.preview_every)
    how: dict[str, Any] = {"ema": 0.0, "warmup": 1, "steps": steps, "preview_every": every}
    fit = replace(fit, **CONSTANT | how | changes)
    return ControlArm(fit=fit, density="uniform", watched=True)


def watched_images(lab: Lab) -> Tensor:
    """The images (n,) of the panel that are looked at: the first of each drawing."""
    first: dict[int, int] = {}
    for i, origin in enumerate(lab.wide.origins.tolist()):
        first.setdefault(origin, i)
    return torch.tensor([*first.values()][: lab.settings.panel])


def movement(model: Model) -> float:
    """How far the copy is from the base's encoder, |copy - base| / |base|."""
    encoder = model.nets[0].encoder  # type: ignore[attr-defined]
    return distance(model.ldm.unet.encoder, encoder)


def wanted(step: int, fit: FitSettings) -> bool:
    """Is this step one to look at?"""
    return step <= DENSE or step % SPARSE < fit.preview_every or step == fit.steps


def progress_of(lab: Lab, seed: int, arm: ControlArm) -> list[dict]:
    """Look by look during a training: its step, x of the first images, EF0 (images, noises), movement ().

    The hints, captions and z_T are always the same; samples are of true captions without guidance. From
    step 0, before any training, on.
    """
    chosen, noises = watched_images(lab), lab.settings.noises
    captions = [lab.wide.captions[i] for i in chosen.tolist()] * noises
    hints, fit = lab.wide.hints[chosen], lab.fit_of(arm)

    def seen(model: Model) -> dict[str, Tensor]:
        x = lab.sample(model, captions, [hints.repeat(noises, 1, 1, 1)], guidance=1.0, steps=6)
        panel = lab.wide
        ef0 = panel.edge_f1(x, hints.repeat(noises, 1, 1, 1)).unflatten(0, (noises, -1)).T
        return {"x": x[:SHOWN], "ef0": ef0.contiguous(), "moved": torch.tensor(movement(model))}

    def look(folder: Path, model: Model, step: int) -> None:
        if wanted(step, fit):
            files.write_tensors(folder / f"step-{step:05d}.safetensors", seen(model))
        if step in (*MOMENTS, fit.steps) and isinstance(net := model.nets[0], nn.Module):
            files.write_tensors(folder / f"weights-{step:05d}.safetensors", net.state_dict())

    model = lab.control(arm, seed, look)
    folder = lab.store.folder / model.key[-1]
    start = folder / "step-00000.safetensors"
    if not start.exists():
        look(folder, lab.untrained(arm, seed), 0)
    lines = []
    for path in sorted(folder.glob("step-*.safetensors")):
        step = int(path.stem.removeprefix("step-"))
        lines.append({"step": step, **files.read_tensors(path, f"delete {path.parent}")})
    return lines


def at_moment(lab: Lab, seed: int, arm: ControlArm, step: int) -> Model:
    """The model as it was after that step of a watched training."""
    progress_of(lab, seed, arm)
    done, model = lab.control(arm, seed), lab.untrained(arm, seed)
    if step:
        path = lab.store.folder / done.key[-1] / f"weights-{step:05d}.safetensors"
        for net in model.nets:
            assert isinstance(net, nn.Module)
            net.load_state_dict(files.read_tensors(path, f"delete {path.parent}"))
    return model._replace(key=(*done.key, f"step {step}"))


class Curve(NamedTuple):
    """What was seen during a training."""

    t: Tensor  # steps (s,)
    ef0: Tensor  # (s, images, noises)
    moved: Tensor  # (s,) of the copy; nan where nobody looked


def curve(lab: Lab, seed: int, arm: ControlArm) -> Curve:
    """That of an arm."""
    lines, nothing = progress_of(lab, seed, arm), torch.tensor(torch.nan)
    t = torch.tensor([line["step"] for line in lines])
    moved = torch.stack([line.get("moved", nothing) for line in lines])
    return Curve(t, torch.stack([line["ef0"] for line in lines]), moved)
