"""The machinery of the claims: arms, measures, verdicts, what is kept, and that every claim runs. Never a verdict."""

import json
import threading
from dataclasses import replace

import pytest
import torch
from conftest import small_controlnet, small_inputs, small_unet

from tinyldm import files
from tinyldm.claims.__main__ import ClaimsConfig, chosen, main, timed
from tinyldm.claims.all import CLAIMS
from tinyldm.claims.arms import ConcatUNet, JustHint, gaussian, lite, random_copy
from tinyldm.claims.claim import Finding, difference, verdict
from tinyldm.claims.e02_sudden import sharpness
from tinyldm.claims.e07_composition import iou
from tinyldm.claims.e12_strength import between
from tinyldm.claims.lab import Lab
from tinyldm.claims.lessons import slope
from tinyldm.claims.settings import QUICK, BaseArm, ControlArm, Settings
from tinyldm.errors import UserError
from tinyldm.tables import table


def test_the_claims_are_e1_to_e18_each_with_its_criterion():
    assert [claim.id for claim in CLAIMS] == [f"E{i}" for i in range(1, 19)]
    for claim in CLAIMS:
        assert claim.sentence and claim.source.startswith("[") and claim.criterion and claim.setting


@pytest.mark.parametrize(
    ("passed", "seeds", "expected"),
    [(True, 3, "PASS"), (False, 3, "FAIL"), (True, 2, "UNDECIDED"), (False, 1, "UNDECIDED"), (None, 1, "REPORTED")],
)
def test_verdicts_need_three_seeds(passed, seeds, expected):
    assert verdict(Finding(passed, "", [], ""), range(seeds)) == expected


def test_sharpness_of_a_ramp_a_jump_and_of_nothing():
    steps = torch.arange(1, 101)
    ramp, jump = torch.linspace(0.3, 0.6, 100), torch.where(steps < 40, 0.3, 0.6)
    values = sharpness(steps, torch.stack([ramp, jump, torch.full((100,), 0.3)], dim=1))
    assert len(values) == 2  # what does not rise is left out
    assert values[0].item() == pytest.approx(1.6, abs=0.05) and values[1].item() == pytest.approx(0, abs=0.05)


def test_paired_differences_and_iou():
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.5, 2.5])
    assert difference([a, a + 2], [b, b]) == (1.5, (1.5, 1.5))
    left, all_of_it = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    left[..., 0] = 1
    assert iou(left, all_of_it).item() == 0.5 and iou(left, left).item() == 1 and iou(left, 1 - left).item() == 0


@pytest.mark.parametrize("edit", [lite, random_copy])
def test_arms_with_zero_convs_start_as_the_base(edit):
    unet, controlnet = small_unet(), small_controlnet(small_unet())
    before = [p.detach().clone() for p in controlnet.encoder.parameters()]
    edit(controlnet)
    after = list(controlnet.encoder.parameters())
    assert len(after) != len(before) or any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    z_t, t, context, hint = small_inputs()
    residuals = controlnet(z_t, t, context, hint)
    assert torch.equal(unet(z_t, t, context, residuals), unet(z_t, t, context))


def test_the_gaussian_arm_changes_the_output_at_once():
    unet, controlnet = small_unet(), small_controlnet(small_unet())
    gaussian(controlnet)
    z_t, t, context, hint = small_inputs()
    assert not torch.allclose(unet(z_t, t, context, controlnet(z_t, t, context, hint)), unet(z_t, t, context))
    conv = controlnet.zero_convs[-1]
    assert conv.weight.std().item() == pytest.approx(conv.in_channels**-0.5, rel=0.1)


def test_the_concat_arm_sees_its_hint():
    unet = ConcatUNet(small_unet().config, f=4)
    torch.nn.init.normal_(unet.head[-1].weight)
    z_t, t, context, hint = small_inputs()
    out = unet(z_t, t, context, JustHint()(z_t, t, context, hint))
    assert out.shape == z_t.shape
    assert not torch.allclose(out, unet(z_t, t, context, JustHint()(z_t, t, context, 1 - hint)))


def test_control_between_two_moments():
    gated = between(lambda z, t, c: [torch.ones(1)], start=1.0, end=0.5, T=1000)
    assert [gated(None, torch.tensor([t]), None)[0].item() for t in (1000, 501, 500, 1)] == [1, 1, 0, 0]


def test_an_arm_is_trained_once_and_its_key_tells_everything(tmp_path):
    lab, edits = Lab(tmp_path, QUICK, "cpu"), []
    arm = ControlArm(BaseArm(0), 0)
    first = lab.control(arm)
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("weights.safetensors")}
    again = Lab(tmp_path, QUICK, "cpu").control(arm)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("weights.safetensors")} == weights
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    keys = {lab.key(arm), lab.key(replace(arm, seed=1)), lab.key(replace(arm, edit="lite"))}
    keys |= {lab.key(replace(arm, base=BaseArm(1))), Lab(tmp_path, replace(QUICK, n=13)).key(arm)}
    assert len(keys) == 5
    lab.control(replace(arm, edit="noted"), edits.append)
    assert len(edits) == 1


def test_samples_are_kept_under_what_made_them(tmp_path):
    lab = Lab(tmp_path, QUICK, "cpu")
    ldm, prompts = lab.base(BaseArm(0)), lab.test.captions.full()
    x = lab.sample(ldm, prompts)
    assert torch.equal(lab.sample(ldm, prompts), x) and len(list(tmp_path.glob("samples-*"))) == 1
    others = [lab.sample(ldm, prompts, seed=1), lab.sample(ldm, prompts[::-1]), lab.sample(ldm, prompts, guidance=5.0)]
    assert len(list(tmp_path.glob("samples-*"))) == 4
    assert not any(torch.equal(x, other) for other in others)


def test_another_process_is_waited_for_while_it_trains(tmp_path):
    order = []

    def second():
        with files.locked(tmp_path / "arm" / "lock"):
            order.append("second")

    with files.locked(tmp_path / "arm" / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_claim_pays_only_for_arms_that_none_before_it_used(tmp_path):
    lab = Lab(tmp_path, QUICK, "cpu")
    use = replace(CLAIMS[0], run=lambda lab, seeds: lab.base(BaseArm(0)))
    (_, first), (_, again) = timed(lab, use, [0]), timed(lab, replace(use, id="again"), [0])
    assert len(first.arms) == 2 and not again.arms  # the autoencoder and the base
    assert first.training > 0 and again.training == 0
    assert first.measuring < first.training + 60
    _, later = timed(Lab(tmp_path, QUICK, "cpu"), use, [0])
    assert later.arms == first.arms and later.measuring >= first.measuring


def test_the_convergence_exponent_and_tables():
    rates = (3e-4, 1e-3, 3e-3)
    assert slope(rates, [rate**-0.5 for rate in rates]) == pytest.approx(0.5)
    assert table([{"a": 1, "b": 0.12345}, {"a": 2, "b": None}, {"c": "x"}]) == (
        "| a | b |\n| --- | --- |\n| 1 | 0.123 |\n| 2 | - |\n\n| c |\n| --- |\n| x |"
    )


def test_a_report_that_cannot_be_written_is_known_before_hours_are_spent(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        main(ClaimsConfig(quick=True, folder=tmp_path, out=tmp_path / "file" / "RESULTS.md"))
    assert not list(tmp_path.glob("base-*"))


def test_an_unknown_claim_is_a_clear_error():
    assert [claim.id for claim in chosen("e3, E2")] == ["E3", "E2"]
    with pytest.raises(UserError, match="--only E99"):
        chosen("E99")


def test_every_claim_runs_and_is_reported(tmp_path):
    main(ClaimsConfig(quick=True, folder=tmp_path / "arms", out=tmp_path / "docs" / "RESULTS.md", device="cpu"))
    text = (tmp_path / "docs" / "RESULTS.md").read_text()
    assert all(f"## {claim.id}. {claim.title}: " in text and claim.criterion in text for claim in CLAIMS)
    assert "--quick" in text and ": PASS" not in text and ": FAIL" not in text
    numbers = json.loads((tmp_path / "docs" / "results" / "results.json").read_text())["claims"]
    assert len(numbers) == 18 and all(entry["rows"] for entry in numbers)
    for name in ("e2.png", "e3-samples.png"):
        assert (tmp_path / "docs" / "results" / name).stat().st_size > 1000


def test_the_settings_of_the_report_are_larger_than_quicks():
    assert Settings().n > QUICK.n and Settings().base_fit.steps > QUICK.base_fit.steps
