"""E5: dropping half of the captions teaches the ControlNet to read hints alone."""

from tinyldm.claims.claim import Claim, Finding, under_prompts
from tinyldm.claims.lab import ControlArm, Lab
from tinyldm.claims.sweep import difference

SHARES = (0.0, 0.1, 0.5, 1.0)


def run(lab: Lab) -> Finding:
    arms = {share: ControlArm(caption_drop=share) for share in SHARES}
    found = under_prompts(lab, arms, ("none", "insufficient", "perfect"))
    more, kept = (difference(found[0.5, p].hits, found[0.0, p].hits) for p in ("none", "perfect"))
    return Finding(
        passed=more.low > 0 and kept.high >= 0,
        number=f"ACC_e without a prompt, 50 % - 0 %: {more}; ACC_t with true captions: {kept}",
        rows=[
            {"captions dropped": share, "prompts": prompts, "ACC_e": s.acc, "GAIN": s.gain}
            for (share, prompts), s in found.items()
        ],
        control="with all captions dropped ACC with true captions may fall: the ControlNet never "
        "learnt to read text",
    )


CLAIM = Claim(
    id="E5",
    title="Dropping half of the prompts",
    sentence="Replacing 50 % of the prompts by empty ones makes ControlNet recognise content in "
    "the condition itself.",
    source="[CN, 3.3]; the released training code does not do it",
    criterion="ACC_e without prompts is higher at 0.5 than at 0 (interval above 0), ACC_t with "
    "true captions not lower (interval reaches 0 or above)",
    setting="shares 0, .1, .5, 1; all else equal",
    run=run,
)
