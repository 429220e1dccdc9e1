"""Numbers as Markdown tables and as JSON."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from tinyldm.evaluate.metrics import Estimate


def cell(value: object) -> str:
    """Three significant digits of a float, "-" for what is not there, else as it prints."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as Markdown, a table for each set of columns."""
    tables = []
    for keys, group in groupby(rows, key=list):
        lines = [keys, ["---"] * len(keys), *(map(cell, row.values()) for row in group)]
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def plain(row: Mapping[str, object]) -> dict[str, object]:
    """A row, or rows by name, for JSON: an Estimate "x" becomes its mean and "x_interval", [low, high]."""
    found: dict[str, object] = {}
    for key, value in row.items():
        if isinstance(value, Estimate):
            found |= {key: value.mean, f"{key}_interval": [value.low, value.high]}
        else:
            found[key] = plain(value) if isinstance(value, Mapping) else value
    return found
