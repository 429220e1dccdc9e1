"""Numbers as Markdown tables and as JSON."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from tinyldm.evaluate.metrics import Estimate


def cell(value: object) -> str:
    """Three significant digits of a float, "-" for what is not there, else as it prints."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as Markdown; those that begin with the same two columns are one table, with all of their columns."""
    tables = []
    for _, found in groupby(rows, key=lambda row: list(row)[:2]):
        group = list(found)
        keys = list(dict.fromkeys(key for row in group for key in row))
        lines = [keys, ["---"] * len(keys), *([cell(row.get(k)) for k in keys] for row in group)]
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


def estimates(row: Mapping[str, Any]) -> dict[str, object]:
    """A row that `plain` wrote and JSON kept: "x" and "x_interval" become an Estimate again, null nan."""
    found: dict[str, object] = {}
    for key, value in row.items():
        if key.endswith("_interval"):
            key = key.removesuffix("_interval")
            value = Estimate(*(math.nan if x is None else x for x in (row[key], *value)))
        found[key] = value
    return found
