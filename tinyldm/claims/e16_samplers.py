"""E16: DDIM and DPM-Solver++ need few steps."""

from tinyldm.claims.claim import Claim, Finding, errorbars, spread
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.metrics import frechet_distance

ARMS = (
    *(("dpm++", n, 0.0) for n in (5, 10, 15, 25)),
    *(("ddim", n, 0.0) for n in (10, 25, 50)),
    *(("ddim", 50, eta) for eta in (0.5, 1.0)),
    *(("ddpm", n, 1.0) for n in (50, 200, 1000)),
)


def run(lab: Lab, seeds: list[int]) -> Finding:
    captions, fds = lab.test.captions.full(), {}
    for sampler, steps, eta in ARMS:
        values = []
        for seed in seeds:
            settings = {"sampler": sampler, "steps": steps, "eta": eta, "guidance": 1.0}
            x = lab.sample(lab.base(BaseArm(seed)), captions, **settings)
            values.append(frechet_distance(lab.measured(x).features, lab.reference))
        fds[sampler, steps, eta] = spread(values)
    fd = {arm: mean for arm, (mean, _) in fds.items()}
    rows = [
        {
            "sampler": s,
            "steps": n,
            "eta": eta,
            "FD": fd[s, n, eta],
            "smallest and largest": "{:.2f}, {:.2f}".format(*ends),
        }
        for (s, n, eta), (_, ends) in fds.items()
    ]
    ddim, ddpm, dpm = fd["ddim", 50, 0.0], fd["ddpm", 1000, 1.0], fd["dpm++", 15, 0.0]

    def draw(figure) -> None:
        ax = figure.subplots()
        for name, eta, style in (("dpm++", 0.0, "ko-"), ("ddim", 0.0, "ks--"), ("ddpm", 1.0, "k^:")):
            points = {n: found for (s, n, e), found in fds.items() if s == name and e == eta}
            ax.errorbar(list(points), *errorbars(list(points.values())), fmt=style, capsize=3, label=name)
        ax.set(xscale="log", xlabel="steps", ylabel="FD, all seeds")
        ax.legend()

    return Finding(
        passed=ddim <= 1.1 * ddpm and dpm <= ddim,
        number=f"FD: DDIM 50 {ddim:.2f}, DDPM 1000 {ddpm:.2f}, DPM-Solver++ 15 {dpm:.2f}",
        rows=rows,
        control=f"too few steps are seen: DPM-Solver++ with 5 has {fd['dpm++', 5, 0.0]:.2f}",
        notes=[
            "Compare these before blaming few steps: at 50 steps FD is "
            f"{ddim:.2f} with eta 0, {fd['ddim', 50, 0.5]:.2f} with 0.5, {fd['ddim', 50, 1.0]:.2f} with 1; DDPM with 50 has "
            f"{fd['ddpm', 50, 1.0]:.2f}, with 200 {fd['ddpm', 200, 1.0]:.2f}"
        ],
        facts={f"{s} {n}, eta {eta:g}": value for (s, n, eta), value in fd.items()},
        draw=draw,
    )


CLAIM = Claim(
    id="E16",
    title="Few sampling steps",
    sentence="A few dozen DDIM steps give nearly the quality of many more; DPM-Solver++ needs 15 to 20.",
    source="[LDM, Fig. 7], [DPM-Solver++]",
    criterion="FD of DDIM-50 within 10 % of DDPM-1000's; FD of DPM-Solver++ at 15 not above DDIM's at 50",
    setting="the base alone, test captions, no guidance, as in the paper",
    run=run,
)
