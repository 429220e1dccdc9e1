"""Progress bars: repainted in a terminal, a line every half minute in a file or a CI log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from tinyldm.support.streams import first

HALF_A_MINUTE = 30.0  # seconds
UP = "\x1b[A"  # tqdm moves the cursor up between nested bars


class Lines:
    """A stream for tqdm that writes each repaint to stderr as a line of its own."""

    def write(self, text: str) -> None:
        if line := text.replace(UP, "").strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Each line is, when it is written."""


def progress(over: Iterable | None = None, **settings: Any) -> tqdm:
    """A tqdm bar over `over`; `settings` are tqdm's. A bar that ends sooner than its first line is silent."""
    settings.setdefault("disable", not first())
    if not sys.stderr.isatty():
        pause = dict.fromkeys(("mininterval", "maxinterval", "delay"), HALF_A_MINUTE)
        settings |= {**pause, "file": Lines(), "miniters": 1}
    return tqdm(over, **settings)
