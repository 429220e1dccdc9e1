"""E16: DDIM and DPM-Solver++ need few steps."""

from tinyldm.claims.claim import Claim, Finding, Plot, Row, line, named, where
from tinyldm.claims.lab import BaseArm, Lab

ARMS = (
    *(("dpm++", n, 0.0) for n in (5, 10, 15, 25)),
    *(("ddim", n, 0.0) for n in (10, 25, 50)),
    *(("ddim", 50, eta) for eta in (0.5, 1.0)),
    *(("ddpm", n, 1.0) for n in (50, 200, 1000)),
)
DRAWN = (("ko-", "dpm++", 0.0), ("ks--", "ddim", 0.0), ("k^:", "ddpm", 1.0))
NOISY = [arm for arm in ARMS if arm[:2] == ("ddim", 50) or arm[0] == "ddpm"]


def run(lab: Lab) -> Finding:
    models, rows = lab.models(BaseArm()), list[Row]()
    for sampler, steps, eta in ARMS:
        how: Row = {"sampler": sampler, "steps": steps, "eta": eta}
        rows.append({**how, "FD": lab.sweep(models, guidance=1.0, **how).fd})
    fd = {arm: row["FD"].mean for arm, row in zip(ARMS, rows, strict=True)}
    ddim, ddpm, dpm = fd["ddim", 50, 0.0], fd["ddpm", 1000, 1.0], fd["dpm++", 15, 0.0]
    noisy = {f"{s} {n}, eta {eta:g}": fd[s, n, eta] for s, n, eta in NOISY}
    lines = []
    for style, sampler, eta in DRAWN:
        points = where(rows, sampler=sampler, eta=eta)
        lines.append(line(points, "steps", "FD", style, sampler))
    return Finding(
        passed=ddim <= 1.1 * ddpm and dpm <= ddim,
        number=f"FD: DDIM 50 {ddim:.2f}, DDPM 1000 {ddpm:.2f}, DPM-Solver++ 15 {dpm:.2f}",
        rows=rows,
        control=f"too few steps are seen: DPM-Solver++ with 5 has {fd['dpm++', 5, 0.0]:.2f}",
        notes=[
            f"Compare these before blaming few steps: at 50 steps FD is {ddim:.2f} with eta 0, "
            f"{fd['ddim', 50, 0.5]:.2f} with 0.5, {fd['ddim', 50, 1.0]:.2f} with 1; DDPM with 50 "
            f"has {fd['ddpm', 50, 1.0]:.2f}, with 200 {fd['ddpm', 200, 1.0]:.2f}"
        ],
        plots=[Plot("steps", "FD, all seeds", lines, "log")],
        lesson="**Fresh noise can matter more than the number of steps.** FD without guidance, "
        f"from a base this little trained, by sampler, steps and eta: {named(noisy, '; ')}. A "
        "likely reason: noise that is added anew is removed together with earlier errors.",
    )


CLAIM = Claim(
    id="E16",
    title="Few sampling steps",
    sentence="A few dozen DDIM steps give nearly the quality of many more; DPM-Solver++ needs 15 "
    "to 20.",
    source="[LDM, Fig. 7], [DPM-Solver++]",
    criterion="FD of DDIM-50 within 10 % of DDPM-1000's; FD of DPM-Solver++ at 15 not above "
    "DDIM's at 50",
    setting="the base alone, test captions, no guidance, as in the paper",
    run=run,
)
