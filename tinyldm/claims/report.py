"""The report: docs/RESULTS.md with its figures, written from what the claims found and from nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from tinyldm import files
from tinyldm.benchmark import machine
from tinyldm.claims.claim import Claim, Cost, Finding, verdict
from tinyldm.claims.lab import Lab
from tinyldm.claims.lessons import lessons
from tinyldm.claims.record import commit
from tinyldm.classifier import accuracy
from tinyldm.dataset import to_float
from tinyldm.errors import UserError
from tinyldm.metrics import frechet_distance, torch_fidelity
from tinyldm.pictures import save_grid
from tinyldm.tables import table

DOCS = Path("docs")
FIRST = {  # of the first page
    "E2": ("e2.png", "e2-samples.png"),
    "E3": ("e3-samples.png", "e3.png"),
    "E10": ("e10.png",),
}
Found = Sequence[tuple[Claim, Finding, Cost]]

MEASURES = """## How to read it

- **PASS**, **FAIL**: the criterion, written into the code before the first full run, holds or not, on three training seeds.
  **REPORTED**: there is nothing to decide. Both verdicts are about this model of this size on these data, not about the papers.
- **EF0**: F1 of the generated image's Canny edges against the hint, no tolerance. **CH**: against another hint of the same
  class: chance. **CE**: of an image after the autoencoder: the ceiling. **GAIN** = (EF0 - CH) / (CE - CH).
- **FD**: Fréchet distance in the features of our own small classifier; not comparable to any FID.
- **ACC_t**, **ACC_e**: share of samples in which that classifier sees the class of the prompt, or of the edges' image.
- Prompts: **none** "", **insufficient** "a photo", **conflicting** another class and tone, **perfect** the true caption.
- Intervals are 95 % bootstrap intervals over test images, of the mean over seeds. They do not hold the spread between
  trainings; where it matters the seeds stand side by side.
- Hints and captions are from the test split. Sample pictures are the first ones, not chosen."""

NOT_HERE = """## What cannot be tested at this scale

User studies ([CN, Tab. 1]); comparison with industrially trained models ([CN, 4.3]); text-to-image at 512 px; training on
3 million images; depth, pose, segmentation and the other conditions of [CN], which need networks that are not ours. E9's and
E14's costs are measured on networks a thousand times smaller, and say little about one A100.

Sources: [CN] Zhang, Rao, Agrawala, *Adding Conditional Control to Text-to-Image Diffusion Models*, ICCV 2023, arXiv 2302.05543,
and its repository. [LDM] Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, CVPR 2022,
arXiv 2112.10752. [DPM-Solver++] Lu et al., arXiv 2211.01095."""


def make_folder(out: Path) -> None:
    """Make the report's folders, and see that what figures and distances need is there. Raises UserError."""
    torch_fidelity("metric_fid")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'tinyldm[report]'") from error
    try:
        (out.parent / "results").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: its folder cannot be made ({error.strerror})") from error


def draw(finding: Finding, path: Path) -> None:
    """The claim's figure as a PNG."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 3.6), layout="constrained")
    finding.draw(figure)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def save_pictures(claim: Claim, finding: Finding, folder: Path) -> None:
    """The claim's figure and samples, as PNGs into `folder`."""
    if finding.draw:
        draw(finding, folder / f"{claim.id.lower()}.png")
    if finding.pictures:
        save_grid(folder / f"{claim.id.lower()}-samples.png", finding.pictures, size=64)


def section(claim: Claim, finding: Finding, cost: Cost, seeds: Sequence[int]) -> str:
    """One claim's part of the report."""
    name = claim.id.lower()
    parts = [f"## {claim.id}. {claim.title}: {verdict(finding, seeds)}", f"{claim.sentence} {claim.source}"]
    parts += [f"**Criterion**, written before the run: {claim.criterion}.", f"**Setting**: {claim.setting}."]
    if claim.paper:
        parts.append(f"**In the paper** (not the same quantity): {claim.paper}.")
    parts += [f"**Found**: {finding.number}.", f"**Control**: {finding.control}."]
    parts += [f"{note}." for note in finding.notes]
    if finding.draw:
        parts.append(f"![{claim.title}](results/{name}.png)")
    if finding.pictures:
        parts.append(
            f"![{claim.title}, samples](results/{name}-samples.png)\n\n*The first images of seed 0, not chosen.*"
        )
    minutes = (
        f"{len(cost.arms)} trainings of its own, {cost.training / 60:.1f} minutes; the rest {cost.measuring / 60:.1f}"
    )
    return "\n\n".join([*parts, table(finding.rows), f"*{minutes} minutes.*"])


def about(lab: Lab, found: Found, seeds: Sequence[int], quick: bool) -> str:
    """What the numbers belong to: commit, seeds, time, machine."""
    arms = [arm for *_, cost in found for arm in cost.arms]
    training, measuring = (
        sum(values) / 3600 for values in zip(*((c.training, c.measuring) for *_, c in found), strict=True)
    )
    m, values = machine(lab.device), {key: sorted({arm[key] for arm in arms}) for key in ("commit", "threads", "load")}
    where = f"{m.get('gpu') or m['processor']}, {m['cores']} cores, torch {m['torch']}"
    trained = f"{len(arms)} trainings by commit {', '.join(values['commit'])}, {training:.2f} hours" if arms else ""
    how = f"in processes of {', '.join(map(str, values['threads']))} thread(s), load {values['load'][0]} to {values['load'][-1]}"
    words = "**--quick: the verdicts mean nothing.** " if quick else ""
    return (
        f"{words}Written by `python -m tinyldm.claims`, commit {commit()}, seeds {', '.join(map(str, seeds))}, on {where}: "
        f"{trained} {how}, and {measuring:.2f} hours of measuring. Hours are of processes; two may run side by side."
    )


def first_page(found: Found, seeds: Sequence[int]) -> list[str]:
    """The table of all claims, then the figures that matter."""
    verdicts = Counter(verdict(finding, seeds) for _, finding, _ in found)
    rows = [{"claim": f"{c.id} {c.title}", "verdict": verdict(f, seeds), "found": f.number} for c, f, _ in found]
    parts = [", ".join(f"{n} {name}" for name, n in verdicts.items()) + ".", table(rows)]
    for claim, finding, _ in found:
        if claim.id in FIRST:
            shown = "\n\n".join(f"![{claim.title}](results/{name})" for name in FIRST[claim.id])
            parts.append(f"**{claim.id}. {claim.title}.** {claim.sentence} Found: {finding.number}.\n\n{shown}")
    return parts


@lru_cache(maxsize=1)
def laboratory(lab: Lab) -> str:
    """What every claim shares: sizes, steps, the ceiling, the floor, the judge."""
    s, ldm = lab.settings, lab.new_base(0)
    networks = {
        "autoencoder": (s.vae_fit, [ldm.vae]),
        "text encoder and U-Net": (s.base_fit, [ldm.text, ldm.unet]),
        "ControlNet": (s.control_fit, [lab.new_control(ldm, 0)]),
    }
    rows = []
    for name, (fit, modules) in networks.items():
        size = sum(p.numel() for module in modules for p in module.parameters())
        rows.append(
            {"network": name, "parameters": size, "steps": fit.steps, "images seen": fit.steps * fit.batch_size}
        )
    floor = frechet_distance(lab.judge(to_float(lab.data("train").images[: s.n]))[0], lab.reference)
    judge = ", ".join(f"{name} {share:.3f}" for name, share in accuracy(lab.judge, lab.data("test")).items())
    return (
        f"## What all claims share\n\n{table(rows)}\n\n"
        f"CE {lab.ce.mean().item():.3f}; FD of {s.n} real training images {floor:.2f}; "
        f"{s.n} test images a measurement; DPM-Solver++ with {s.steps} steps, guidance {s.guidance:g}; the judge on real test "
        f"images: {judge}. Everything else is in [settings.py](../tinyldm/claims/settings.py)."
    )


def write(out: Path, lab: Lab, found: Found, seeds: Sequence[int], quick: bool = False) -> None:
    """RESULTS.md, its figures in `results` beside it, and results.json with the same numbers."""
    folder = out.parent / "results"
    save_pictures(*found[-1][:2], folder)  # those of the claims before it are there
    parts = ["# Results", about(lab, found, seeds, quick), *first_page(found, seeds)]
    parts += [lessons(lab, {claim.id: finding for claim, finding, _ in found}), MEASURES, laboratory(lab)]
    parts += [section(claim, finding, cost, seeds) for claim, finding, cost in found]
    files.write(out, "\n\n".join([*parts, NOT_HERE, ""]).encode())
    numbers = [
        {"id": claim.id, "verdict": verdict(finding, seeds), "criterion": claim.criterion, "number": finding.number}
        | {"rows": finding.rows, "facts": finding.facts}
        | {"seconds": {"training": cost.training, "measuring": cost.measuring}, "arms": len(cost.arms)}
        for claim, finding, cost in found
    ]
    about_it = {
        "commit": commit(),
        "seeds": list(seeds),
        "machine": machine(lab.device),
        "settings": asdict(lab.settings),
    }
    files.write_json(folder / "results.json", {**about_it, "claims": numbers})
