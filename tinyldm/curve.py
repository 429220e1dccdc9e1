"""`python -m tinyldm.curve`: quality against minutes of training, from what `tinyldm.evaluate --json` wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from tinyldm import files
from tinyldm.cli import parse, run_command
from tinyldm.errors import UserError
from tinyldm.tables import table

STAGES = ("vae", "base", "control")


@dataclass(frozen=True)
class CurveConfig:
    """Draw GAIN, FD and accuracy of several runs against the minutes that their three trainings took."""

    evaluations: Annotated[tuple[Path, ...], Positional]
    """Files that `tinyldm.evaluate --control RUN --json FILE` wrote, one per run."""
    out: Path = Path("docs/curve.png")
    """The PNG to write."""


def point(path: Path) -> dict[str, float]:
    """What the curve needs of one run. Raises UserError if the file is no evaluation of a base and a ControlNet."""
    results = files.read_json(path, "give files that tinyldm.evaluate --control RUN --json FILE wrote")
    try:
        row, minutes = results["control"]["perfect"], sum(results["seconds"][stage] for stage in STAGES) / 60
        low_high = row["gain_interval"]
        found = {"minutes": minutes, "gain": row["gain"], "low": low_high[0], "high": low_high[1], "fd": row["fd"]}
        return found | {
            "base_fd": results["base"]["fd"],
            "acc": results["base"]["acc_class"],
            "ce": results["vae"]["ce"],
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no evaluation of a base and a ControlNet ({error} is missing)") from error


def main(config: CurveConfig) -> None:
    """Three panels over a logarithmic axis of minutes; printed as a table too."""
    points = sorted((point(path) for path in config.evaluations), key=lambda p: p["minutes"])
    if not points:
        raise UserError("give at least one evaluation")
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise UserError("curves need matplotlib: pip install 'tinyldm[report]'") from error
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    x, gains = [p["minutes"] for p in points], [p["gain"] for p in points]
    errors = [[p["gain"] - p["low"] for p in points], [p["high"] - p["gain"] for p in points]]
    left.errorbar(x, gains, errors, fmt="ko-", capsize=3)
    left.set_ylabel("GAIN, true captions")
    middle.plot(x, [p["base_fd"] for p in points], "ks--", label="base")
    middle.plot(x, [p["fd"] for p in points], "ko-", label="with ControlNet")
    middle.set_ylabel("FD in our classifier's features")
    right.plot(x, [p["acc"] for p in points], "ks--", label="class as prompted, base")
    right.plot(x, [p["ce"] for p in points], "k^:", label="CE of the autoencoder")
    for ax in (left, middle, right):
        ax.set(xscale="log", xlabel="minutes of training")
        ax.set_xticks(x, [f"{m:.0f}" for m in x], minor=False)
        ax.minorticks_off()
    middle.legend()
    right.legend()
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out, dpi=120)
    print(table(points))


if __name__ == "__main__":
    run_command(lambda: main(parse(CurveConfig)))
