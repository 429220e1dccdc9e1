"""E4: how faithful to the edges each way of conditioning is, and what it costs in the quality of pictures."""

from tinyldm.claims import e03_ablation as e03
from tinyldm.claims.claim import Claim, Finding, over_seeds, share_of, with_interval
from tinyldm.claims.lab import BaseArm, Lab
from tinyldm.metrics import frechet_distance, interval

ARMS = ("lite", "zero", "concat")


def run(lab: Lab, seeds: list[int]) -> Finding:
    captions, label = lab.test.captions.full(), lab.test.labels["class"]
    found = {"base": [lab.measured(lab.sample(lab.base(BaseArm(s)), captions), lab.hints) for s in seeds]}
    for name in ARMS:
        found[name] = e03.samples_of(lab, name, seeds, e03.tuned(lab, name), ("perfect",))["perfect"]
    rows, fd, ef0 = [], {}, {}
    for name, samples in found.items():
        distances = [frechet_distance(s.features, lab.reference) for s in samples]
        column = over_seeds([s.ef0 for s in samples])
        fd[name], ef0[name] = sum(distances) / len(distances), column.mean().item()
        acc = share_of([s.seen["class"] for s in samples], label)
        row = {"arm": name, "EF0": with_interval(ef0[name], interval(column)), "FD": fd[name]}
        rows.append({**row, "FD by seed": ", ".join(f"{d:.2f}" for d in distances), "ACC_t": with_interval(*acc)})
    fidelity = ef0["zero"] > ef0["lite"] > ef0["base"]
    price = fd["base"] < fd["zero"] < fd["lite"]
    return Finding(
        passed=fidelity and price,
        number=f"EF0 base {ef0['base']:.3f}, lite {ef0['lite']:.3f}, ControlNet {ef0['zero']:.3f}; "
        f"FD base {fd['base']:.2f}, lite {fd['lite']:.2f}, ControlNet {fd['zero']:.2f}",
        rows=rows,
        control="the base does not see the hints: its EF0 is chance",
        notes=[f"fidelity in the order claimed: {fidelity}; FD in the order claimed: {price}"],
    )


CLAIM = Claim(
    id="E4",
    title="Fidelity and its price",
    sentence="ControlNet follows its condition more closely than the light one, and its pictures are worse than the base's, but "
    "better than the light one's.",
    source="[CN, Tab. 2 and 3]",
    paper="segmentation IoU .35 against .32 (lite); FID 6.09 base, 15.27 ControlNet, 17.92 lite",
    criterion="orderings only: EF0 ControlNet > lite > base, FD base < ControlNet < lite",
    setting="arms of E3, true captions",
    run=run,
)
