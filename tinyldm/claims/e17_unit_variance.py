"""E17: latents need unit variance for the noise schedule to fit them."""

from tinyldm.claims.checks import base_ratio, learnt, small
from tinyldm.claims.claim import BASE_GOOD, Claim, Finding, found
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import BaseArm
from tinyldm.claims.sweep import fd_ratio
from tinyldm.claims.verdict import Criterion, Noise, Precondition

WORSE = "FD without rescaling over FD with it"
FAR = "std of the latents without rescaling, at least its inverse"
ARMS = {
    "unit variance": BaseArm(),
    "as the autoencoder gives them": BaseArm(unscaled=True),
    "the same, but the U-Net sees z_t divided by its std": BaseArm(
        unscaled=True, scaled_input=True
    ),
}


def run(lab: Lab) -> Finding:
    """FD of bases trained on latents that are not scaled, over that of bases on scaled ones."""
    lab = small(lab)
    panel = learnt(lab)
    swept = {name: lab.sweep(arm, panel=panel) for name, arm in ARMS.items()}
    unit, plain, _ = swept.values()
    std = lab.latents().std().item() / lab.vae().scale.item()
    measured = {WORSE: fd_ratio(plain, unit)}
    checks = {BASE_GOOD.name: base_ratio(lab), FAR: max(std, 1 / std)}
    return Finding(
        measured,
        checks,
        found(measured),
        [
            {
                "latents": name,
                "FD": s.fd,
                "over unit variance": fd_ratio(s, unit).estimate,
                "KD": s.kd,
                "ACC_t": s.acc,
            }
            for name, s in swept.items()
        ],
        notes=[
            f"The std of the latents as the autoencoder gives them is {std:.2f}",
            "The third arm tells whether the schedule or merely the scale of the network's input "
            "is to blame",
        ],
    )


CLAIM = Claim(
    id="E17",
    title="Unit-variance latents",
    sentence="The signal-to-noise ratio that the latents' variance induces matters: they are "
    "rescaled to unit variance.",
    source="[LDM, D.1 and G]",
    criteria=(Criterion(WORSE, low=1.1, holds=1.5, fails=0.9, noise=Noise(0.15, 0.04, 20, 3)),),
    preconditions=(BASE_GOOD, Precondition(FAR, low=1.5)),
    setting="three bases of each at 32 px, captions and FD as in E15; the same autoencoder, "
    "schedule and steps; an arm whose input alone is scaled",
    run=run,
    before="PASS, without an arm that tells the schedule from the scale of the input",
)
