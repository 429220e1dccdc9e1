"""Quality against minutes of training, from what `tinyldm.evaluate --json` wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyldm.evaluate.metrics import Estimate, spread
from tinyldm.evaluate.tables import table
from tinyldm.support import files
from tinyldm.support.errors import needed

STAGES = ("vae", "base", "control")
REMEDY = "give files that tinyldm.evaluate --control RUN --json FILE wrote"
CURVES = {  # label of the axis -> key, style and name of each curve
    "GAIN, true captions": [("gain", "ko-", "with ControlNet")],
    "FD in our classifier's features": [
        ("base_fd", "ks--", "base"),
        ("fd", "ko-", "with ControlNet"),
    ],
    "share": [("acc", "ks--", "class as prompted, base"), ("ce", "k^:", "CE of the autoencoder")],
}


def point(path: Path) -> dict[str, Any]:
    """What the curve needs of one run. Raises UserError if the file is not its evaluation."""
    results = files.read_json(path, REMEDY)
    with files.expecting("an evaluation of a base and a ControlNet", path, REMEDY):
        row, base = results["control"]["perfect"], results["base"]
        return {
            "minutes": sum(float(results["seconds"][stage]) for stage in STAGES) / 60,
            "gain": Estimate(*map(float, (row["gain"], *row["gain_interval"]))),
            "fd": float(row["fd"]),
            "base_fd": float(base["fd"]),
            "acc": float(base["acc_class"]),
            "ce": float(results["vae"]["ce"]),
        }


def draw(points: Sequence[dict[str, Any]], out: Path) -> None:
    """A panel for each entry of CURVES, over a logarithmic axis of minutes, as a PNG."""
    plt = needed("matplotlib.pyplot", "curves")
    figure, axes = plt.subplots(1, len(CURVES), figsize=(12, 3.6), layout="constrained")
    x = [p["minutes"] for p in points]
    for ax, (label, curves) in zip(axes, CURVES.items(), strict=True):
        for key, style, name in curves:
            ys = [y if isinstance(y := p[key], Estimate) else Estimate(y, y, y) for p in points]
            errors = [[y.mean - y.low for y in ys], [y.high - y.mean for y in ys]]
            ax.errorbar(x, [y.mean for y in ys], errors, fmt=style, capsize=3, label=name)
        ax.set(xscale="log", xlabel="minutes of training", ylabel=label)
        ax.set_xticks(x, [f"{m:.0f}" for m in x], minor=False)
        ax.minorticks_off()
        ax.legend()
    files.write_figure(out, figure, dpi=120)
    plt.close(figure)


def compare(paths: Sequence[Path], out: Path) -> None:
    """Draw and print GAIN, FD and accuracy of several runs, by the minutes of training, and their spread."""
    points = sorted((point(path) for path in paths), key=lambda p: p["minutes"])
    files.check_writable("--plot", out)
    print(table(points))
    columns = {key: [getattr(p[key], "mean", p[key]) for p in points] for key in points[0]}
    print("\nOver these runs, mean [smallest, largest]:\n")
    print(table([{key: spread(values) for key, values in columns.items()}]))
    draw(points, out)
