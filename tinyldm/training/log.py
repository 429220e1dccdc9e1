"""metrics.jsonl: the losses of a run, and their curves."""

import json
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tinyldm.support import files
from tinyldm.support.errors import UserError, warned


class Log:
    """Appends lines to metrics.jsonl, and keeps them; keeps the losses since the last one, on the device."""

    def __init__(self, path: Path, stage: str, every: int, device: torch.device):
        self.path, self.stage = path, stage
        self.losses, self.pending = torch.zeros(every, device=device), 0  # and how many are in use
        self.norm = torch.zeros(())  # of the last gradient
        self.start = self.reported = time.perf_counter()
        self.entries: list[dict] = []  # of the whole file

    def rewind(self, step: int) -> None:
        """Resume the log after `step`: drop its later lines, and count the seconds of the earlier process."""
        self.pending = step % len(self.losses)
        with files.expecting("the log of a run", self.path, "delete it"):
            self.entries = [
                entry
                for entry in files.read_lines(self.path)
                if entry["stage"] != self.stage or entry["step"] <= step
            ]
            earlier = [e["seconds"] for e in self.entries if e["stage"] == self.stage]
            self.start -= max(earlier, default=0.0)
        files.write_lines(self.path, self.entries)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Keep the loss of a step, and the norm of its gradient."""
        self.losses[self.pending], self.norm = loss.detach(), norm
        self.pending += 1

    def entry(self, **values: float | str) -> dict:
        """A line, with the seconds of training so far."""
        seconds = round(time.perf_counter() - self.start, 2)
        return {"stage": self.stage, **values, "seconds": seconds}

    def write(self, entry: dict) -> None:
        """Append a line; a file that cannot be written costs a warning only."""
        self.entries.append(entry)
        with warned(f"writing {self.path}"), open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")

    def check(self, loss: Tensor, norm: Tensor, step: int, lr: float) -> None:
        """Raise UserError if the loss of a step or the norm of its gradient is not finite."""
        if not (loss + norm).isfinite():
            found = f"loss is {loss.item()}, gradient norm {norm.item()}"
            where = f"in step {step}, learning rate {lr:.1e}"
            raise UserError(f"{self.stage}: {found} {where}; lower the learning rate")

    def check_pending(self, step: int, lr: float) -> None:
        """The same for the steps since the last report: once one is not finite, all later ones are not."""
        if self.pending:
            self.check(self.losses[self.pending - 1], self.norm, step, lr)

    def report(self, bar: tqdm, step: int, lr: float, batch_size: int, now: bool) -> None:
        """Write the mean of the losses since the last report, and show it, every so many steps or `now`."""
        if self.pending < len(self.losses) and not now:
            return
        loss = self.losses[: self.pending].mean()
        self.check_pending(step, lr)
        seconds = time.perf_counter() - self.reported
        speed = batch_size * self.pending / seconds
        self.pending, self.reported = 0, time.perf_counter()
        values = {"loss": loss.item(), "lr": lr, "grad_norm": self.norm.item()}
        self.write(self.entry(step=step, **values, images_per_second=round(speed, 1)))
        bar.set_postfix(loss=f"{loss.item():.4f}", images_per_s=f"{speed:.0f}", refresh=False)


def seconds_of(run: Path) -> dict[str, float]:
    """stage -> seconds of training, from a run folder; {} where nothing was trained. Raises UserError."""
    path = run / "metrics.jsonl"
    with files.expecting("the log of a run", path, "delete it"):
        return {line["stage"]: float(line["seconds"]) for line in files.read_lines(path)}


def plot_losses(run: Path) -> None:
    """Draw loss.png from metrics.jsonl, a panel per stage; needs matplotlib (the extra `report`)."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no loss.png: pip install 'tinyldm[report]' for it")
        return
    lines = files.read_lines(run / "metrics.jsonl")
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    size = (6 * len(stages), 4)
    figure, axes = plt.subplots(1, len(stages), figsize=size, squeeze=False, layout="constrained")
    for ax, stage in zip(axes[0], stages, strict=True):
        for key, style in (("loss", "-"), ("validation_loss", "o--")):
            points = [(x["step"], x[key]) for x in lines if x["stage"] == stage and key in x]
            if points:
                label = key.replace("_", " ")
                ax.plot(*zip(*points, strict=True), style, label=label, color="black", linewidth=1)
        ax.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        ax.legend()
    files.write_figure(run / "loss.png", figure, dpi=120)
    plt.close(figure)
