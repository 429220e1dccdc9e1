"""E17: latents need unit variance for the noise schedule to fit them."""

from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.metrics import frechet_distance


def run(lab: Lab, seeds: list[int]) -> Finding:
    captions, rows, worse = lab.test.captions.full(), [], []
    for seed in seeds:
        fds = {}
        for name, unscaled in (("unit variance", False), ("as the autoencoder gives them", True)):
            ldm = lab.base(BaseArm(seed, unscaled=unscaled))
            sampled = lab.measured(lab.sample(ldm, captions))
            fds[name] = frechet_distance(sampled.features, lab.reference)
            acc = (sampled.seen["class"] == lab.test.labels["class"]).float().mean().item()
            std = lab.latents().std().item() / (lab.vae.scale.item() if unscaled else 1)
            rows.append({"seed": seed, "latents": name, "std": std, "FD": fds[name], "ACC_t": acc})
        worse.append(fds["as the autoencoder gives them"] / fds["unit variance"])
    return Finding(
        passed=all(w > 1 for w in worse),
        number="FD without rescaling over FD with it: " + ", ".join(f"{w:.2f}" for w in worse),
        rows=rows,
        control="the std of the latents stands in the table: were it 1 without rescaling, nothing would be tested",
    )


CLAIM = Claim(
    id="E17",
    title="Unit-variance latents",
    sentence="The signal-to-noise ratio that the latents' variance induces matters: they are rescaled to unit variance.",
    source="[LDM, D.1 and G]",
    criterion="FD without rescaling is worse, in every seed",
    setting="same autoencoder, schedule and steps; [LDM] rescales since its KL weight is as small",
    run=run,
)
