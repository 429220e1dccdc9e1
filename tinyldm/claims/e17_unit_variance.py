"""E17: latents need unit variance for the noise schedule to fit them."""

from tinyldm.claims.claim import Claim, Finding, listed
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.claims.sweep import ratios


def run(lab: Lab) -> Finding:
    unit, plain = lab.sweep(BaseArm()), lab.sweep(BaseArm(unscaled=True))
    worse, std = ratios(plain.fds, unit.fds), lab.latents().std().item()
    arms = (
        ("unit variance", std, unit),
        ("as the autoencoder gives them", std / lab.vae().scale.item(), plain),
    )
    return Finding(
        passed=all(ratio > 1 for ratio in worse),
        number="FD without rescaling over FD with it: " + listed(worse),
        rows=[
            {"latents": name, "std": std, "FD by seed": listed(s.fds), "ACC_t": s.acc}
            for name, std, s in arms
        ],
        control="the std of the latents stands in the table: were it 1 without rescaling, nothing "
        "would be tested",
    )


CLAIM = Claim(
    id="E17",
    title="Unit-variance latents",
    sentence="The signal-to-noise ratio that the latents' variance induces matters: they are "
    "rescaled to unit variance.",
    source="[LDM, D.1 and G]",
    criterion="FD without rescaling is worse, in every seed",
    setting="same autoencoder, schedule and steps; [LDM] rescales since its KL weight is as small",
    run=run,
)
