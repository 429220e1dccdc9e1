"""Fetching what is not here: into a cache, complete or not at all, and never waiting for a silent network."""

import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from http.client import HTTPException
from pathlib import Path
from threading import Thread

from tinyldm.support.errors import UserError

SILENCE = 12.0  # seconds without progress that are waited for
Source = Callable[[Path], None]  # puts files into a folder


def cache(name: str) -> Path:
    """Where a fetched copy is kept; among the system's temporary files if there is no home."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        root = tempfile.gettempdir()
    return Path(root) / "tinyldm" / name


def from_mirror(url: str, names: list[str]) -> Source:
    """Downloads these files from below `url`."""

    def get(folder: Path) -> None:
        for name in names:
            with (
                urllib.request.urlopen(url + name, timeout=SILENCE) as response,
                open(folder / name, "wb") as file,
            ):
                shutil.copyfileobj(response, file)

    return get


def from_debian(package: str, installed: Path) -> Source:
    """Unpacks the folder `installed` of a Debian package, without installing it and without root."""

    def get(folder: Path) -> None:
        run = partial(subprocess.run, cwd=folder, check=True, capture_output=True, timeout=120)
        run(["apt-get", "download", package])
        archive = next(folder.glob("*.deb"))
        run(["dpkg-deb", "-x", archive.name, "package"])
        for path in folder.glob(f"package{installed}/*"):
            path.rename(folder / path.name)
        archive.unlink()
        shutil.rmtree(folder / "package")

    return get


def watched(get: Source, folder: Path) -> None:
    """Run get(folder) in a thread; raises what that raises.

    Raises TimeoutError, and leaves the thread behind, as soon as the folder grew by less than 64 KiB in
    SILENCE seconds: so where no network answers it takes that long, and a slow download still ends well.
    """
    ended: Future = Future()

    def run() -> None:
        try:
            get(folder)
            ended.set_result(None)
        except Exception as error:
            ended.set_exception(error)

    Thread(target=run, daemon=True).start()
    size = 0
    while wait([ended], SILENCE).not_done:
        before, size = size, sum(map(os.path.getsize, filter(os.path.isfile, folder.iterdir())))
        if size < before + 2**16:
            raise TimeoutError
    ended.result()


def fetch(name: str, sources: Mapping[str, Source], check: Callable[[Path], object]) -> list[str]:
    """Put a dataset into its cache, complete or not at all; returns what was tried, and why it failed.

    `check` raises UserError for a folder that is not what it should be. Without a network this takes at
    most SILENCE seconds a source.
    """
    folder, failures = cache(name), []
    for source, get in sources.items():
        print(f"{name}: fetching from {source}", flush=True)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=folder.parent, ignore_cleanup_errors=True
            ) as temporary:
                part = Path(temporary) / "part"
                part.mkdir()
                watched(get, part)
                check(part)
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)
            break
        except (
            OSError,
            HTTPException,
            subprocess.SubprocessError,
            StopIteration,
            UserError,
        ) as error:
            failures.append(f"{source} ({type(error).__name__})")
    return failures
