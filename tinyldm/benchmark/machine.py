"""What times belong to: the machine that they were measured on."""

import os
import platform
import re
from pathlib import Path

import torch

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what decides a matrix product's speed


def proc(file: str, entry: str) -> str:
    """The first such entry of a file in /proc; "" where there is none, as on other systems than Linux."""
    path = Path("/proc") / file
    text = path.read_text() if path.exists() else ""
    found = re.search(rf"^{entry}\s*:\s*(.*)", text, re.MULTILINE)
    return found[1] if found else ""


def load() -> float:
    """How many processes ran in the last minute, on average; nan where the system does not tell."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else float("nan")


def describe(device: torch.device) -> dict[str, object]:
    """Processor and which of FEATURES it has, as far as Linux tells; cores, load, versions, GPU."""
    flags = proc("cpuinfo", "flags").split()
    about: dict[str, object] = {
        "processor": proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "features": " ".join(feature for feature in FEATURES if feature in flags) or "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": load(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about
