"""What a training's time belongs to: the commit, the threads, the machine's load."""

import os
import subprocess
from functools import lru_cache
from pathlib import Path

import torch


@lru_cache
def commit() -> str:
    """The commit of the code, "-dirty" if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def circumstances(seconds: float) -> dict:
    found = {"seconds": round(seconds, 1), "threads": torch.get_num_threads(), "commit": commit()}
    return {**found, "load": round(os.getloadavg()[0], 1)}


commit()  # that of the code as it is loaded, whatever is edited while it runs
