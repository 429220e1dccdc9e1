"""Measures the memory of trainings on a folder of many pictures: `python tests/many_pictures.py 10000 100000`.

What cannot be given back to the system is RssAnon of /proc, so this runs on Linux only.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, ROOT = 64, Path(__file__).parents[1]
TINY = ("--preset", "tiny", "--device", "cpu")


def make(folder: Path, number: int) -> None:
    """So many pictures of coloured squares, all different, in a hundred folders."""
    for i in range(number):
        path = folder / f"{i % 100:02}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        squares = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((SIZE, SIZE), 0).save(path, compress_level=1)


def peaks(*command: object) -> dict[str, int]:
    """The most MB of memory that the command held, in all and without what files back."""
    most = {"VmRSS": 0, "RssAnon": 0}
    words = [sys.executable, *map(str, command)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        now = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        most = {k: max(v, int(now.get(k, "0 kB").split()[0]) // 1024) for k, v in most.items()}
        time.sleep(0.05)
    assert process.returncode == 0, words
    return most


def main(numbers: list[int]) -> None:
    """Print a row for each training."""
    print("| pictures | training | MB | of which no file backs |\n| --- | --- | --- | --- |")
    for number in numbers:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            base, control = root / "base", root / "control"
            make(root / "pictures", number)
            data = "--dataset", root / "pictures", "--limit", 0, "--resolution", SIZE
            sizes = "--vae.widths", 8, 16, 16
            found = {
                "base": peaks("train_base.py", *TINY, *data, *sizes, "--out", base),
                "control": peaks(
                    *("train_control.py", *TINY, "--hint-widths", 8, 16, 16),
                    *("--base", base, "--out", control),
                ),
            }
        for training, most in found.items():
            row = f"{number:,}", training, f"{most['VmRSS']:,}", f"{most['RssAnon']:,}"
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [10_000, 100_000])
