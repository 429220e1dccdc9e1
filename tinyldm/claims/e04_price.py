"""E4: how faithful to the edges each way of conditioning is, and what it costs in the quality of pictures."""

from tinyldm.claims.claim import Claim, Finding
from tinyldm.claims.e03_ablation import arm_of
from tinyldm.claims.lab import BaseArm, Lab


def run(lab: Lab) -> Finding:
    found = {"base": lab.sweep(BaseArm())}
    found |= {edit: lab.sweep(arm_of(lab, edit)) for edit in ("lite", "zero", "concat")}
    ef0 = {name: sweep.ef0.mean for name, sweep in found.items()}
    fd = {name: sweep.fd.mean for name, sweep in found.items()}
    fidelity = ef0["zero"] > ef0["lite"] > ef0["base"]
    price = fd["base"] < fd["zero"] < fd["lite"]
    return Finding(
        passed=fidelity and price,
        number=f"EF0 base {ef0['base']:.3f}, lite {ef0['lite']:.3f}, ControlNet "
        f"{ef0['zero']:.3f}; FD base {fd['base']:.2f}, lite {fd['lite']:.2f}, ControlNet "
        f"{fd['zero']:.2f}",
        rows=[{"arm": name, "EF0": s.ef0, "FD": s.fd, "ACC_t": s.acc} for name, s in found.items()],
        control="the base does not see the hints: its EF0 is chance",
        notes=[f"fidelity in the order claimed: {fidelity}; FD in the order claimed: {price}"],
    )


CLAIM = Claim(
    id="E4",
    title="Fidelity and its price",
    sentence="ControlNet follows its condition more closely than the light one, and its pictures "
    "are worse than the base's, but better than the light one's.",
    source="[CN, Tab. 2 and 3]",
    paper="segmentation IoU .35 against .32 (lite); FID 6.09 base, 15.27 ControlNet, 17.92 lite",
    criterion="orderings only: EF0 ControlNet > lite > base, FD base < ControlNet < lite",
    setting="arms of E3, true captions",
    run=run,
)
