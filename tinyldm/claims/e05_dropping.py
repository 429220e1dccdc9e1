"""E5: dropping half of the captions teaches the ControlNet to read hints alone."""

from tinyldm.claims.claim import Claim, Finding, difference, gain_of, share_of, with_interval
from tinyldm.claims.lab import BaseArm, ControlArm, Lab
from tinyldm.evaluate import prompt_settings

SHARES = (0.0, 0.1, 0.5, 1.0)


def run(lab: Lab, seeds: list[int]) -> Finding:
    settings, label = prompt_settings(lab.test, 0), lab.test.labels["class"]
    rows, hits = [], {}
    for share in SHARES:
        for prompts in ("none", "insufficient", "perfect"):
            samples = []
            for seed in seeds:
                controlnet = lab.control(ControlArm(BaseArm(seed), seed, caption_drop=share))
                samples.append(lab.controlled(lab.base(BaseArm(seed)), controlnet, settings[prompts][0]))
            seen = [s.seen["class"] for s in samples]
            hits[share, prompts] = [column == label for column in seen]
            acc = share_of(seen, label)
            row = {"captions dropped": share, "prompts": prompts, "ACC of the image's class": with_interval(*acc)}
            rows.append({**row, "GAIN": with_interval(*gain_of(lab, *samples))})
    more = difference(hits[0.5, "none"], hits[0.0, "none"])
    kept = difference(hits[0.5, "perfect"], hits[0.0, "perfect"])
    return Finding(
        passed=more[1][0] > 0 and kept[1][1] >= 0,
        number=f"ACC_e without a prompt, 50 % - 0 %: {with_interval(*more, digits=3)}; "
        f"ACC_t with true captions: {with_interval(*kept, digits=3)}",
        rows=rows,
        control="with all captions dropped ACC with true captions may fall: the ControlNet never learnt to read text",
    )


CLAIM = Claim(
    id="E5",
    title="Dropping half of the prompts",
    sentence="Replacing 50 % of the prompts by empty ones makes ControlNet recognise content in the condition itself.",
    source="[CN, 3.3]; the released training code does not do it",
    criterion="ACC_e without prompts is higher at 0.5 than at 0 (interval above 0), ACC_t with true captions not lower (interval "
    "reaches 0 or above)",
    setting="shares 0, .1, .5, 1; all else equal",
    run=run,
)
