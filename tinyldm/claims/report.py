"""The report: docs/RESULTS.md with its figures, written from what the claims found and from nothing else."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyldm.benchmark.machine import describe
from tinyldm.claims.claim import Claim, Cost, Finding, Plot, verdict
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import QUICK
from tinyldm.data.dataset import to_float
from tinyldm.data.pictures import hint_image, save_grid
from tinyldm.evaluate.metrics import Estimate, frechet_distance, torch_fidelity
from tinyldm.evaluate.tables import plain, table
from tinyldm.support import files
from tinyldm.support.errors import needed

DOCS = Path("docs")
SHOWN = 12  # images of a row
FIRST = {"E2": ("", "-samples"), "E3": ("-samples", ""), "E10": ("",)}  # images of the first page

MEASURES = """## How to read it

- **PASS**, **FAIL**: the criterion, written into the code before the first full run, holds or not,
  on three training seeds. **REPORTED**: there is nothing to decide. Both verdicts are about this
  model of this size on these data, not about the papers.
- **EF0**: F1 of the generated image's Canny edges against the hint, no tolerance. **CH**: against
  another hint of the same class: chance. **CE**: of an image after the autoencoder: the ceiling.
  **GAIN** = (EF0 - CH) / (CE - CH).
- **FD**: Fréchet distance in the features of our own small classifier; not comparable to any FID.
- **ACC_t**, **ACC_e**: share of samples in which that classifier sees the class of the prompt, or
  of the edges' image.
- Prompts: **none** "", **insufficient** "a photo", **conflicting** another class and tone,
  **perfect** the true caption.
- Intervals are 95 % bootstrap intervals over test images, of the mean over seeds. They do not hold
  the spread between trainings; where it matters the seeds stand side by side. Beside FD, recall and
  distances stand the smallest and the largest seed.
- Hints and captions are from the test split. Sample pictures are the first ones, not chosen."""

NOT_HERE = """## What cannot be tested at this scale

User studies ([CN, Tab. 1]); comparison with industrially trained models ([CN, 4.3]); text-to-image
at 512 px; training on 3 million images; depth, pose, segmentation and the other conditions of [CN],
which need networks that are not ours. E9's and E14's costs are measured on networks a thousand
times smaller, and say little about one A100.

Sources: [CN] Zhang, Rao, Agrawala, *Adding Conditional Control to Text-to-Image Diffusion Models*,
ICCV 2023, arXiv 2302.05543, and its repository. [LDM] Rombach et al., *High-Resolution Image
Synthesis with Latent Diffusion Models*, CVPR 2022, arXiv 2112.10752. [DPM-Solver++] Lu et al.,
arXiv 2211.01095."""


class Entry(NamedTuple):
    """A claim's part of the report."""

    claim: Claim
    finding: Finding
    cost: Cost
    verdict: str

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
                mean, *ends = torch.tensor(y).T
                errors = [(end - mean).abs() for end in ends]
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


def section(entry: Entry) -> str:
    """One claim's part of the report."""
    claim, finding, cost, verdict = entry
    trainings = f"{len(cost.arms)} trainings of its own, {cost.training / 60:.1f} minutes"
    parts = [
        f"## {claim.id}. {claim.title}: {verdict}",
        f"{claim.sentence} {claim.source}",
        f"**Criterion**, written before the run: {claim.criterion}.",
        f"**Setting**: {claim.setting}.",
        f"**In the paper** (not the same quantity): {claim.paper}." if claim.paper else "",
        f"**Found**: {finding.number}.",
        f"**Control**: {finding.control}.",
        *(f"{note}." for note in finding.notes),
        entry.image("") if finding.plots else "",
        entry.image("-samples") if finding.pictures else "",
        "*The first images of seed 0, not chosen.*" if finding.pictures else "",
        table(finding.rows),
        f"*{trainings}; the rest {cost.measuring / 60:.1f} minutes.*",
    ]
    return "\n\n".join(filter(None, parts))


def what_is_shared(lab: Lab) -> str:
    """What every claim shares: sizes, steps, the ceiling, the floor, the judge."""
    s, ldm = lab.settings, lab.new_base(0)
    _, controlnet = lab.new_control(ldm, "zero", 0)
    networks = {
        "autoencoder": (s.vae_fit, ldm.vae),
        "text encoder and U-Net": (s.base_fit, nn.ModuleList([ldm.text, ldm.unet])),
        "ControlNet": (s.control_fit, controlnet),
    }
    rows = [
        {
            "network": name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "steps": fit.steps,
            "images seen": fit.steps * fit.batch_size,
        }
        for name, (fit, network) in networks.items()
    ]
    features, _ = lab.panel.judge(to_float(lab.data["train"].images[: s.n]))
    floor = frechet_distance(features, lab.panel.reference)
    shares = lab.panel.accuracy.items()
    return (
        f"## What all claims share\n\n{table(rows)}\n\nCE {lab.ceiling().mean().item():.3f}; FD "
        f"of {s.n} real training images {floor:.2f}; {s.n} test images a measurement; "
        f"DPM-Solver++ with {s.steps} steps, guidance {s.guidance:g}; the judge on real test "
        f"images: {', '.join(f'{name} {share:.3f}' for name, share in shares)}. Everything else "
        "is in [settings.py](../tinyldm/claims/settings.py)."
    )


def each(values: Iterable) -> str:
    return ", ".join(map(str, sorted(set(values))))


class Report:
    """RESULTS.md, its figures in `results` beside it, and results.json with the same numbers."""

    def __init__(self, out: Path, lab: Lab):
        self.out, self.lab, self.shared = out, lab, ""
        self.entries: list[Entry] = []

    def add(self, claim: Claim, finding: Finding, cost: Cost) -> None:
        """Draw a claim's pictures, and write the report anew with it."""
        self.entries.append(Entry(claim, finding, cost, verdict(finding, self.lab.seeds)))
        self.shared = self.shared or what_is_shared(self.lab)
        folder, name = self.out.parent / "results", claim.id.lower()
        folder.mkdir(parents=True, exist_ok=True)
        if finding.plots:
            draw(finding.plots, folder / f"{name}.png")
        if finding.pictures:
            rows = [(label, row_of(images)) for label, images in finding.pictures.items()]
            save_grid(folder / f"{name}-samples.png", rows, size=64)
        first, sections = [*self.first_page(), *self.lessons()], map(section, self.entries)
        parts = ["# Results", self.about(), *first, MEASURES, self.shared, *sections, NOT_HERE, ""]
        files.write(self.out, "\n\n".join(parts).encode())
        files.write_json(folder / "results.json", self.numbers())

    def about(self) -> str:
        """What the numbers belong to: commit, seeds, time, machine."""
        lab, costs = self.lab, [entry.cost for entry in self.entries]
        arms = [arm for cost in costs for arm in cost.arms]
        m, loads = describe(lab.machine.device), [arm["load"] for arm in arms]
        hours = sum(c.training for c in costs) / 3600, sum(c.measuring for c in costs) / 3600
        trained = (
            f"{len(arms)} trainings by commit {each(arm['commit'] for arm in arms)}, "
            f"{hours[0]:.2f} hours in processes of {each(arm['threads'] for arm in arms)} "
            f"thread(s), load {min(loads)} to {max(loads)}, and "
            if arms
            else ""
        )
        quick = "**--quick: the verdicts mean nothing.** " if lab.settings == QUICK else ""
        return (
            f"{quick}Written by `python -m tinyldm.claims`, commit {lab.store.commit}, seeds "
            f"{each(lab.seeds)}, on {m.get('gpu') or m['processor']}, {m['cores']} cores, torch "
            f"{m['torch']}: {trained}{hours[1]:.2f} hours of measuring. "
            "Hours are of processes; two may run side by side."
        )

    def first_page(self) -> list[str]:
        """The table of all claims, then the figures that matter."""
        rows = [
            {"claim": f"{c.id} {c.title}", "verdict": verdict, "found": f.number}
            for c, f, _, verdict in self.entries
        ]
        counts = Counter(entry.verdict for entry in self.entries)
        parts = [", ".join(f"{n} {name}" for name, n in counts.items()) + ".", table(rows)]
        for entry in self.entries:
            c, found = entry.claim, entry.finding.number
            if kinds := FIRST.get(c.id):
                about = f"**{c.id}. {c.title}.** {c.sentence} Found: {found}."
                parts += [about, *map(entry.image, kinds)]
        return parts

    def lessons(self) -> list[str]:
        """What we learned: the findings' own lessons, and the claims that do not hold here."""
        findings = [finding for _, finding, *_ in self.entries]
        failed = [f"- {c.id}: {f.number}" for c, f, *_ in self.entries if f.passed is False]
        return [
            "## What we learned that the papers do not say",
            *(finding.lesson for finding in findings if finding.lesson),
            "**Claims whose criterion is not met at this scale**, with what each section has to "
            "say about why:",
            "\n".join(failed or ["- none"]),
        ]

    def numbers(self) -> dict[str, Any]:
        """The content of results.json, which has no infinities."""
        numbers = {
            "commit": self.lab.store.commit,
            "seeds": self.lab.seeds,
            "machine": describe(self.lab.machine.device),
            "settings": asdict(self.lab.settings),
            "claims": [
                {
                    "id": claim.id,
                    "verdict": verdict,
                    "criterion": claim.criterion,
                    "number": finding.number,
                    "rows": [plain(row) for row in finding.rows],
                    "arms": len(cost.arms),
                    "seconds": {"training": cost.training, "measuring": cost.measuring},
                }
                for claim, finding, cost, verdict in self.entries
            ],
        }
        return json.loads(json.dumps(numbers), parse_constant=lambda name: None)
