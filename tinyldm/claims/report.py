"""The report: docs/RESULTS.md with its figures, written from what the claims found and from nothing else."""

from collections.abc import Sequence
from pathlib import Path

from tinyldm import files
from tinyldm.claims.claim import Claim, Finding, verdict
from tinyldm.pictures import save_grid


def cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[dict]) -> str:
    """Rows as Markdown; columns in the order in which they first appear."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    return "\n".join(lines + ["| " + " | ".join(cell(row.get(key)) for key in keys) + " |" for row in rows])


def draw(finding: Finding, path: Path) -> None:
    """The claim's figure as a PNG."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 3.6), layout="constrained")
    finding.draw(figure)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def section(claim: Claim, finding: Finding, seeds: Sequence[int], seconds: float, folder: Path) -> str:
    """One claim's part of the report; writes its pictures into `folder`."""
    name = claim.id.lower()
    parts = [f"## {claim.id}. {claim.title}: {verdict(finding, seeds)}", f"{claim.sentence} {claim.source}"]
    parts += [f"**Criterion**, written before the run: {claim.criterion}.", f"**Setting**: {claim.setting}."]
    if claim.paper:
        parts.append(f"**In the paper** (not the same quantity): {claim.paper}.")
    parts += [f"**Found**: {finding.number}.", f"**Control**: {finding.control}."]
    parts += [f"{note}." for note in finding.notes]
    if finding.draw:
        draw(finding, folder / f"{name}.png")
        parts.append(f"![{claim.title}]({folder.name}/{name}.png)")
    if finding.pictures:
        save_grid(folder / f"{name}-samples.png", finding.pictures, size=64)
        parts.append(
            f"![{claim.title}, samples]({folder.name}/{name}-samples.png)\n\n*The first images of the first seed, not chosen.*"
        )
    parts += [
        table(finding.rows),
        f"*{seconds / 60:.1f} minutes of this command's time, arms that were there already not counted.*",
    ]
    return "\n\n".join(parts)


def write(out: Path, about: str, found: Sequence[tuple[Claim, Finding, float]], seeds: Sequence[int]) -> None:
    """RESULTS.md: a table of all verdicts, then each claim; its figures beside it in a folder of their own."""
    folder = out.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    overview = [
        {
            "claim": f"{c.id} {c.title}",
            "verdict": verdict(f, seeds),
            "found": f.number,
            "criterion": c.criterion,
            "source": c.source,
        }
        for c, f, _ in found
    ]
    sections = [section(claim, finding, seeds, seconds, folder) for claim, finding, seconds in found]
    files.write(out, "\n\n".join(["# Results", about, table(overview), *sections, ""]).encode())
    numbers = [{"id": c.id, "verdict": verdict(f, seeds), "number": f.number, "rows": f.rows} for c, f, _ in found]
    files.write_json(folder / "results.json", numbers)
