"""The cascade: how the gradient reaches a ControlNet from its output backwards."""

import torch
from torch import nn

from tinyldm.claims.lab import Lab, noise_loss
from tinyldm.claims.settings import BaseArm, ControlArm
from tinyldm.controlnet import ControlNet

STEPS = (0, 1, 2, 5, 20)


def gradient_groups(controlnet: ControlNet) -> dict[str, list[nn.Parameter]]:
    """The parts of a ControlNet, from its output back to its hint: name -> parameters, each in one part."""
    *inner, last = controlnet.hint_encoder
    parts: dict[str, list[nn.Module]] = {
        "output zero convs": [controlnet.zero_convs],
        "copy": [controlnet.stem, controlnet.encoder, controlnet.time_embed],
        "last hint conv": [last],
        "inner hint convs": inner,
    }
    return {name: [p for m in modules for p in m.parameters()] for name, modules in parts.items()}


def gradient_norms(controlnet: ControlNet) -> dict[str, float]:
    """Part -> norm of its gradient."""
    parts, norm = gradient_groups(controlnet).items(), nn.utils.get_total_norm
    return {name: norm([p.grad for p in part if p.grad is not None]).item() for name, part in parts}


def cascade(lab: Lab) -> list[dict[str, float]]:
    """The norms in a fresh ControlNet at its first optimizer steps, by AdamW on one batch."""
    tokens = lab.tokenizer.encode(lab.data["train"].captions.full()[:64])
    batch = lab.machine.load((lab.latents()[:64], lab.hints()[:64], tokens))
    model, controlnet = lab.new_control(lab.base(BaseArm(), 0).ldm, "zero", 0)
    assert isinstance(controlnet, ControlNet)
    lab.machine.place(controlnet)
    optimizer, rows = torch.optim.AdamW(controlnet.parameters(), lr=1e-3), []
    for step in range(STEPS[-1] + 1):
        optimizer.zero_grad()
        noise_loss(model, ControlArm(density="uniform"), *batch).backward()
        if step in STEPS:
            rows.append({"optimizer step": step, **gradient_norms(controlnet)})
        optimizer.step()
    return rows
