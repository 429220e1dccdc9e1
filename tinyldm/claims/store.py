"""What was trained and sampled before, in a folder: nothing is made twice."""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyldm.benchmark.machine import describe, load
from tinyldm.support import files
from tinyldm.support.sealed import Sealed, is_sealed, seal
from tinyldm.training.checkpoint import Checkpoints

TRAINED, WEIGHTS = "trained.json", "weights.safetensors"
CPU = torch.device("cpu")
Key = Mapping[str, Any]  # "kind", and everything else that determines what is stored under it


def commit() -> str:
    """The commit of the code, "-dirty" if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def name_of(key: Key) -> str:
    """KIND-HASH, the hash of the whole key; configurations in it count as they print."""
    text = json.dumps(key, sort_keys=True, default=str)
    return f"{key['kind']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def digest(x: Tensor) -> str:
    """What stands for a tensor in a key."""
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


class Store:
    """Tensors and numbers by key, in a folder that several processes may share."""

    def __init__(self, folder: Path, device: torch.device = CPU):
        self.folder = folder
        self.commit = commit()  # of the code as it is loaded, whatever is edited while it runs
        about = describe(device)
        self.processor = about.get("gpu") or f"{about['processor']}, {about['features']}"
        self.trained: dict[str, dict] = {}  # name -> circumstances of its training, once used
        self.aside = 0.0  # seconds in which this process trained, or waited for another

    def get(self, key: Key, train: Callable[[Path], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The tensors stored under the key; `train(folder)` returns them if there are none yet.

        Waits for another process that trains them. What `train` leaves in the folder stays there, but
        for checkpoints, from which an interrupted training is resumed.
        """
        start, folder = time.perf_counter(), self.folder / name_of(key)
        with files.locked(folder / "lock"):
            if not is_sealed(folder):
                files.write_json(folder / "arm.json", key)
                tensors = train(folder)
                circumstances = {
                    "seconds": round(time.perf_counter() - start, 1),
                    "commit": self.commit,
                    "threads": torch.get_num_threads(),
                    "load": load(),
                    "processor": self.processor,
                }
                sums = {TRAINED: files.write_json(folder / TRAINED, circumstances)}
                sums[WEIGHTS] = files.write_tensors(folder / WEIGHTS, tensors)
                seal(folder, sums)
                Checkpoints(folder).clear()
        self.aside += time.perf_counter() - start
        sealed = Sealed(folder, f"delete {folder}")
        self.trained[folder.name] = sealed.decoded(TRAINED, dict[str, Any])
        return sealed.tensors(WEIGHTS)

    def has(self, key: Key) -> bool:
        """Was this trained to its end?"""
        return is_sealed(self.folder / name_of(key))

    def keep(self, key: Key, make: Callable[[], Tensor]) -> Tensor:
        """The tensor stored under the key, made if there is none yet."""
        path = self.folder / f"{name_of(key)}.safetensors"
        if not path.exists():
            files.write_tensors(path, {"x": make()})
        return files.read_tensors(path, f"delete {path}")["x"]

    def remember(self, key: Key, value: float, which: Callable = lambda old, new: old) -> Any:
        """`which(old, new)` of the number stored under the key and this one, stored in its place."""
        path = self.folder / f"{name_of(key)}.json"
        old = files.read_json(path, f"delete {path}") if path.exists() else value
        files.write_json(path, which(old, value))
        return which(old, value)
