"""The report: docs/RESULTS.md, written from what the claims found, whatever machine each was found on."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyldm.claims import result
from tinyldm.claims.all import CLAIMS
from tinyldm.claims.claim import Claim, Finding, Plot
from tinyldm.claims.result import Result
from tinyldm.claims.verdict import NOT_TESTED, power
from tinyldm.data.pictures import hint_image, save_grid
from tinyldm.evaluate.metrics import Estimate, torch_fidelity
from tinyldm.evaluate.tables import estimates, table
from tinyldm.support import files
from tinyldm.support.errors import needed

DOCS = Path("docs")
SHOWN = 12  # images of a row
FIRST = {"E2": ("-samples", ""), "E3": ("",), "E19": ("-samples",)}  # images of the first page
COLUMNS = {"E3": ("edit", "training images", "movement of the copy", "EF0", "ACC_e", "FD")}  # there

ABOUT = """What this repository finds of what the papers claim, at small scale: emoji at 64 px in latents of
16 x 16, a U-Net of 2.9 million parameters, and a base that 'make emoji' trains in half an hour on
two cores. Written by `python -m tinyldm.claims` from the files in [results](results), one for each
claim; `make claims` repeats all of it, `python -m tinyldm.claims --only E2` one of them."""

MEASURES = """## How to read it

- **PASS**, **FAIL**: the interval of every quantity that decides lies within, or of one of them outside, the
  bounds that the claim sets it. **INCONCLUSIVE**: it reaches over a bound, or the noise that was found
  is so large that a simulated world where the claim fails would not fail, or one where it holds would
  not pass. **NOT TESTED**: a
  precondition is not met, or there were too few trainings. **REPORTED**: there is nothing to
  decide. All are about a model of this size on these data, not about the papers.
- Criteria and preconditions were committed before the run. Each criterion is tried on simulated
  measurements with the noise that was found: a world where the claim holds must pass it, one where
  it does not must fail it; `tests/test_claims.py` repeats that. The noise of a ratio grows with the
  ratio, and is taken as found: so one that came out far beyond its bound (E6, E14, E17) may decide
  nothing. That is hard on such claims; the rule stays as it was set before the run.
- Intervals are 95 % bootstrap intervals over trainings and drawings (all images of one drawing
  are drawn together); where k quantities are judged together, of level 1 - 0.05 / k (Bonferroni).
  Quantities that are no means, as FD, come in by the jackknife over 20 blocks of drawings. What the
  choice of trainings may do comes in by Student's t, whose tails are long for three. Beside FD and
  KD stand the smallest and the largest training, not an interval.
- **The seeds** are of trainings on one base, unless a section says otherwise.
- **EF0**: F1 of the generated image's Canny edges against the hint, no tolerance. **CH**: against the hint of
  another drawing of the same kind: chance. **CE**: of an image after the autoencoder: the ceiling.
  **GAIN** = (EF0 - CH) / (CE - CH).
- **FD**: Fréchet distance in the features of our own small classifier to the test split, of 2,000 samples;
  not comparable to any FID. **KD**: kernel distance, in the same features. The **floor** of FD is that of
  2,000 training images: the test drawings are others.
- **ACC_t**, **ACC_e**: share of samples in which that classifier sees the kind of the prompt, or of
  the edges' image. Colour is measured without a network.
- Prompts: **none** "", **insufficient** "a photo", **conflicting** another kind and colour,
  **perfect** the true caption, **changed** the same kind in another colour.
- Hints and captions are of drawings that no network here has seen. Sample pictures are the first
  ones, not chosen, unless it is said how."""

WITHDRAWN = """The first edition of this report ran 18 claims on small bases of Fashion-MNIST, and
printed 11 FAIL. Its measures were right, its settings were not the claims'. Its verdicts are
withdrawn, and with them the lesson "When the rise comes", whose t50 was relative to where a cosine
ended."""

NOT_HERE = """## What the small world cannot say

A thousand drawings on white are not the world: no depth, no clutter, one object a picture. The
hint encoder sees edges at full resolution and the latents are 16 x 16, so that a few convolutions
see most of a picture; that depth adds little here does not show that it adds little at 512 px. Trainings
are of thousands of steps, not of hundreds of thousands. The judge of kinds is right in 40 % of
the real drawings, so that ACC separates arms only roughly.

Not tested: user studies ([CN, Tab. 1]); comparison with industrially trained models ([CN, 4.3]);
text-to-image at 512 px; training on 3 million images; depth, pose, segmentation and the other
conditions of [CN], which need networks that are not ours.

Sources: [CN] Zhang, Rao, Agrawala, *Adding Conditional Control to Text-to-Image Diffusion Models*,
ICCV 2023, arXiv 2302.05543, and its repository. [LDM] Rombach et al., *High-Resolution Image
Synthesis with Latent Diffusion Models*, CVPR 2022, arXiv 2112.10752. [DPM-Solver++] Lu et al.,
arXiv 2211.01095."""


class Entry(NamedTuple):
    """A claim with what was found of it."""

    claim: Claim
    result: Result

    @property
    def verdict(self) -> str:
        return result.verdict(self.claim, self.result)

    @property
    def rows(self) -> list[dict[str, object]]:
        """Its table, with intervals."""
        return [estimates(row) for row in self.result.rows]

    def columns(self, names: Sequence[str]) -> str:
        """These columns of the rows that have them all, as a table."""
        return table([{k: row[k] for k in names} for row in self.rows if row.keys() >= set(names)])

    def image(self, kind: str) -> str:
        """Its figure (""), or its "-samples", in Markdown."""
        title, name = self.claim.title, self.claim.id.lower()
        return f"![{title}{kind.replace('-', ', ')}](results/{name}{kind}.png)"


def check(out: Path) -> None:
    """Raise UserError unless the report can be written, and what its figures and distances need is there."""
    torch_fidelity("metric_fid")
    needed("matplotlib", "figures")
    files.check_writable("--out", out)


def draw(plots: Sequence[Plot], path: Path) -> None:
    """Write a claim's figure as a PNG, a panel for each plot."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 3.6), layout="constrained")
    same = len({plot.ylabel for plot in plots}) == 1
    axes = figure.subplots(1, len(plots), sharey=same, squeeze=False)[0]
    for ax, plot in zip(axes, plots, strict=True):
        for style, label, x, y in plot.lines:
            if isinstance(y[0], Estimate):
                mean, *ends = torch.tensor(y).T.numpy()
                errors = [abs(end - mean) for end in ends]
                ax.errorbar(x, mean, errors, fmt=style, capsize=3, label=label)
            else:
                ax.plot(x, y, style, label=label, linewidth=1)
        ax.set(xlabel=plot.xlabel, ylabel=plot.ylabel, xscale=plot.xscale)
        if plot.ticks:
            ax.set_xticks(range(len(plot.ticks)), plot.ticks)
        if any(ax.get_legend_handles_labels()):
            ax.legend(fontsize=7)
    files.write_figure(path, figure, dpi=110)
    plt.close(figure)


def row_of(images: Tensor) -> list[Tensor]:
    """The first of these x or hints (n, k, H, W); all of groups of them (g, n, k, H, W), white between two."""
    x = hint_image(images) if images.dtype == torch.bool else images
    groups = x if x.ndim == 5 else x[None, :SHOWN]
    return list(F.pad(groups, (0, 0, 0, 0, 0, 0, 0, 1), value=1.0).flatten(0, 1)[:-1])


def draw_figures(folder: Path, claim: Claim, finding: Finding) -> None:
    """Write a claim's figure and its samples as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    name = claim.id.lower()
    if finding.plots:
        draw(finding.plots, folder / f"{name}.png")
    if finding.pictures:
        rows = [(label, row_of(images)) for label, images in finding.pictures.items()]
        save_grid(folder / f"{name}-samples.png", rows, size=64)


def judged(entry: Entry) -> str:
    """The criteria with what was found, and how decidable each was, as a table."""
    rows = []
    for each in entry.claim.criteria:
        found, noise = entry.result.found(each.name), entry.result.noise(each.name)
        right, left = power(each, noise)
        verdict = result.decided(each, entry.result) + (
            ", shown to be equal" if each.equal(found) else ""
        )
        rows.append(
            {
                "quantity": each.name,
                "claim": each.bounds,
                "found": found,
                "verdict": verdict,
                "simulated: pass where it is": f"{right:.0%} where {each.holds:g}",
                "simulated: fail": f"{left:.0%} where {each.fails:g}",
            }
        )
    return table(rows)


def preconditions(entry: Entry) -> str:
    """Each with its number."""
    rows = [
        {
            "precondition": each.name,
            "asked": each.bounds,
            "found": (value := entry.result.checks[each.name]),
            "met": "yes" if value is not None and each.met(value) else "**no**",
        }
        for each in entry.claim.preconditions
    ]
    return table(rows)


def circumstances(entry: Entry) -> str:
    """Where a claim's numbers come from."""
    r = entry.result
    cost = r.cost
    return (
        f"*Seeds {', '.join(map(str, r.seeds))}; {cost.trainings} trainings of its own, "
        f"{cost.training / 60:.0f} minutes; the rest {cost.measuring / 60:.0f} minutes; commit "
        f"{', '.join(cost.commits)}; {'; '.join(cost.processors)}, processes of "
        f"{', '.join(map(str, cost.threads))} thread(s), load {cost.load[0]:g} to "
        f"{cost.load[1]:g}.*"
    )


def section(entry: Entry) -> str:
    """One claim's part of the report."""
    claim, r = entry
    why = result.reasons(claim, r)
    parts = [
        f"## {claim.id}. {claim.title}: {entry.verdict}",
        f"{claim.sentence} {claim.source}",
        f"**In the paper** (not the same quantity): {claim.paper}." if claim.paper else "",
        f"**Setting**: {claim.setting}.",
        f"**Not tested**: {'; '.join(why)}." if entry.verdict == NOT_TESTED else "",
        judged(entry),
        preconditions(entry),
        *(f"{note}." for note in r.notes),
        *map(entry.image, r.figures),
        table(entry.rows),
        circumstances(entry),
    ]
    return "\n\n".join(filter(None, parts))


def found_in(entry: Entry) -> str:
    """What a claim found in words, for the first table."""
    why = result.reasons(entry.claim, entry.result) if entry.verdict == NOT_TESTED else []
    return "; ".join([entry.result.number, *why])


def first_page(entries: Sequence[Entry]) -> list[str]:
    """The table of all claims, then the figures that matter."""
    known = {entry.claim.id: entry for entry in entries}
    rows = [
        {
            "claim": f"{claim.id} {claim.title}",
            "verdict": known[claim.id].verdict if claim.id in known else "not run yet",
            "found": found_in(known[claim.id]) if claim.id in known else "-",
        }
        for claim in CLAIMS
    ]
    counts = Counter(row["verdict"] for row in rows)
    title = "## What holds at small scale, what does not, what could not be tested"
    parts = [title, ", ".join(f"{n} {name}" for name, n in counts.items()) + ".", table(rows)]
    for entry in entries:
        if kinds := FIRST.get(entry.claim.id):
            about = f"**{entry.claim.id}. {entry.claim.title}.** {entry.claim.sentence}"
            parts += [f"{about} {entry.verdict}: {entry.result.number}.", *map(entry.image, kinds)]
        if names := COLUMNS.get(entry.claim.id):
            parts.append(entry.columns(names))
    return parts


def lessons(entries: Sequence[Entry]) -> list[str]:
    """What the runs show that the papers do not say; each is repeated by running its claim."""
    told = [
        f"{entry.result.lesson}\n\n(`python -m tinyldm.claims --only {entry.claim.id}`)"
        for entry in entries
        if entry.result.lesson
    ]
    return ["## What we learned that the papers do not say", *told] if told else []


def first_edition() -> str:
    """What was wrong with each claim's criterion before this edition, which replaces it."""
    rows = [
        {"claim": f"{each.id} {each.title}", "its first criterion": each.before}
        for each in CLAIMS
        if each.before
    ]
    return "\n\n".join(["## What was wrong with the first edition", WITHDRAWN, table(rows)])


def write(out: Path, quick: bool = False) -> None:
    """Write RESULTS.md from the files of results in `results` beside it."""
    found = [(claim, result.read(out.parent / "results", claim)) for claim in CLAIMS]
    entries = [Entry(claim, r) for claim, r in found if r]
    warning = "**--quick: the verdicts mean nothing.**" if quick else ""
    parts = ["# Results", warning, ABOUT, *first_page(entries), *lessons(entries), MEASURES]
    parts += [*map(section, entries), first_edition(), NOT_HERE]
    files.write(out, ("\n\n".join(filter(None, parts)) + "\n").encode())
