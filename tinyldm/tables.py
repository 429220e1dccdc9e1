"""Numbers as Markdown tables."""

from collections.abc import Mapping, Sequence


def cell(value: object) -> str:
    """Three significant digits of a float, "-" for what is not there, else as it prints."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as Markdown, a table for each set of columns."""
    tables: list[list[str]] = []
    keys: list[str] = []
    for row in rows:
        if list(row) != keys:
            keys = list(row)
            tables.append(["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)])
        tables[-1].append("| " + " | ".join(map(cell, row.values())) + " |")
    return "\n\n".join("\n".join(lines) for lines in tables)
