"""The machinery of the claims: arms, measures, what is stored, that every claim runs. Never a verdict."""

import functools
import json
import runpy
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_controlnet, small_inputs, small_unet

from tinyldm.benchmark.steps import Sizes, our_step
from tinyldm.claims import arms, e09_overhead, store
from tinyldm.claims import lab as lab_module
from tinyldm.claims.__main__ import ClaimsSettings, chosen, main, timed
from tinyldm.claims.all import CLAIMS
from tinyldm.claims.arms import ConcatUNet, gaussian, just_hint, lite, random_copy
from tinyldm.claims.cascade import gradient_groups
from tinyldm.claims.claim import Finding, verdict
from tinyldm.claims.e02_sudden import sharpness, slope
from tinyldm.claims.e07_composition import iou
from tinyldm.claims.e12_strength import between
from tinyldm.claims.lab import Lab
from tinyldm.claims.settings import QUICK, BaseArm, ControlArm, Settings
from tinyldm.claims.store import Store
from tinyldm.claims.sweep import difference
from tinyldm.data import load
from tinyldm.evaluate.metrics import Estimate
from tinyldm.evaluate.tables import table
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.training.machine import Machine

load_once = functools.cache(load)


class Here:
    """Stands where a benchmark's Candidate would, in this process."""

    def __init__(self, sizes: Sizes, part: str, name: str):
        self.step = our_step(sizes, part)

    def __call__(self) -> None:
        self.step()

    def memory(self) -> float:
        return 1.0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Load each dataset once, and time steps here: processes of their own are the benchmark's, tested there."""
    monkeypatch.setattr(lab_module, "load", load_once)
    monkeypatch.setattr(e09_overhead, "Candidate", Here)


def lab_in(folder: Path, settings: Settings = QUICK) -> Lab:
    return Lab(Store(folder), settings, Machine(), [0])


def when_trained(folder: Path) -> dict[Path, int]:
    """Each stored network, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}


def test_the_claims_are_e1_to_e18_each_with_its_criterion():
    assert [claim.id for claim in CLAIMS] == [f"E{i}" for i in range(1, 19)]
    for claim in CLAIMS:
        assert claim.sentence and claim.source.startswith("[") and claim.criterion and claim.setting


@pytest.mark.parametrize(
    ("passed", "seeds", "expected"),
    [
        (True, 3, "PASS"),
        (False, 3, "FAIL"),
        (True, 2, "UNDECIDED"),
        (False, 1, "UNDECIDED"),
        (None, 1, "REPORTED"),
    ],
)
def test_verdicts_need_three_seeds(passed, seeds, expected):
    assert verdict(Finding(passed, "", [], ""), range(seeds)) == expected


def test_sharpness_of_a_ramp_a_jump_and_of_nothing():
    steps = torch.arange(1, 101)
    ramp, jump = torch.linspace(0.3, 0.6, 100), torch.where(steps < 40, 0.3, 0.6)
    values = sharpness(steps, torch.stack([ramp, jump, torch.full((100,), 0.3)], dim=1))
    assert len(values) == 2  # what does not rise is left out
    assert values[0].item() == pytest.approx(1.6, abs=0.05)
    assert values[1].item() == pytest.approx(0, abs=0.05)


def test_paired_differences_and_iou():
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.5, 2.5])
    assert difference([a, a + 2], [b, b]) == Estimate(1.5, 1.5, 1.5)
    all_of_it = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    left = torch.tensor([True, False]) & all_of_it
    assert iou(left, all_of_it).item() == 0.5
    assert iou(left, left).item() == 1 and iou(left, ~left).item() == 0


@pytest.mark.parametrize("edit", [lite, random_copy])
def test_arms_with_zero_convs_start_as_the_base(edit):
    unet, controlnet = small_unet(), small_controlnet(small_unet())
    before = [p.detach().clone() for p in controlnet.encoder.parameters()]
    edit(controlnet)
    after = list(controlnet.encoder.parameters())
    pairs = zip(after, before, strict=False)
    assert len(after) != len(before) or any(not torch.equal(a, b) for a, b in pairs)
    z_t, t, context, hint = small_inputs()
    residuals = controlnet(z_t, t, context, hint.float())
    assert torch.equal(unet(z_t, t, context, residuals), unet(z_t, t, context))


def test_the_gaussian_arm_changes_the_output_at_once():
    unet, controlnet = small_unet(), small_controlnet(small_unet())
    gaussian(controlnet)
    z_t, t, context, hint = small_inputs()
    controlled = unet(z_t, t, context, controlnet(z_t, t, context, hint.float()))
    assert not torch.allclose(controlled, unet(z_t, t, context))
    conv = controlnet.zero_convs[-1]
    assert conv.weight.std().item() == pytest.approx(conv.in_channels**-0.5, rel=0.1)


def test_the_concat_arm_sees_its_hint():
    unet = ConcatUNet(small_unet().config, f=4)
    torch.nn.init.normal_(unet.head[-1].weight)
    z_t, t, context, hint = small_inputs()
    hint = hint.float()
    out = unet(z_t, t, context, just_hint(z_t, t, context, hint))
    assert out.shape == z_t.shape
    other = unet(z_t, t, context, just_hint(z_t, t, context, 1 - hint))
    assert not torch.allclose(out, other)


def test_control_between_two_moments():
    gated = between(1.0, 0.5, 1000, lambda z_t, t, context, hint: [torch.ones(1)])
    found = [gated(None, torch.tensor([t]), None, None)[0].item() for t in (1000, 501, 500, 1)]
    assert found == [1, 1, 0, 0]


def test_the_parts_of_a_controlnet_share_out_its_parameters():
    controlnet = small_controlnet(small_unet())
    parts = [p for part in gradient_groups(controlnet).values() for p in part]
    assert len(parts) == len(set(parts)) and set(parts) == set(controlnet.parameters())


def test_an_arm_is_trained_once_and_its_key_tells_everything(tmp_path, monkeypatch):
    lab, edits, arm = lab_in(tmp_path), [], ControlArm()
    first = lab.control(arm, 0)
    weights = when_trained(tmp_path)
    again = lab_in(tmp_path).control(arm, 0)
    assert when_trained(tmp_path) == weights and again.key == first.key
    pairs = zip(first.nets[0].parameters(), again.nets[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    monkeypatch.setitem(arms.EDITS, "noted", edits.append)
    fit = replace(QUICK.control_fit, steps=2)
    others = [replace(arm, edit="lite"), replace(arm, fit=fit), replace(arm, caption_drop=0.0)]
    others += [replace(arm, base=BaseArm(caption_drop=0.5)), replace(arm, edit="noted")]
    models = [first, lab.control(arm, 1), *(lab.control(other, 0) for other in others)]
    assert len({model.key[-1] for model in models}) == 7
    assert len(edits) == 1


def test_what_only_changes_a_measurement_retrains_nothing(tmp_path):
    model = lab_in(tmp_path).control(ControlArm(), 0)
    weights = when_trained(tmp_path)
    lab = lab_in(tmp_path, replace(QUICK, n=13, guidance=3.0, steps=1, most_steps=2))
    assert lab.control(ControlArm(), 0).key == model.key
    assert when_trained(tmp_path) == weights
    assert len(lab.sweep([model]).x) == 13
    other = lab_in(tmp_path, replace(QUICK, base_fit=replace(QUICK.base_fit, lr=1e-3)))
    assert other.control(ControlArm(), 0).key[-1] != model.key[-1]  # what changes the base does


def test_the_ceiling_may_be_asked_first(tmp_path):
    with torch.no_grad():  # as measurements are made
        ceiling = lab_in(tmp_path).ceiling()
    assert ceiling.shape == (QUICK.n,)
    assert torch.equal(lab_in(tmp_path).ceiling(), ceiling)


def test_samples_are_kept_under_what_made_them(tmp_path):
    lab = lab_in(tmp_path)
    base, prompts = lab.base(BaseArm(), 0), lab.panel.captions

    def kept() -> int:
        return len(list(tmp_path.glob("samples-*")))

    x = lab.sample(base, prompts)
    assert torch.equal(lab.sample(base, prompts), x) and kept() == 1
    others = [lab.sample(base, prompts, seed=1), lab.sample(base, prompts[::-1])]
    others.append(lab.sample(base, prompts, guidance=5.0))
    assert kept() == 4
    assert not any(torch.equal(x, other) for other in others)
    model = lab.control(ControlArm(), 0)
    lab.sample(model, prompts)
    lab.sample(model, prompts, weight=0.5)
    lab.sample(model, prompts, [~lab.panel.hints])
    lab.sample(model.steered("as it is", lambda net: net), prompts)
    assert kept() == 8
    lab.sample(model._replace(key=()), prompts)  # in training
    assert kept() == 8


def test_another_process_is_waited_for_while_it_trains(tmp_path):
    order, training = [], threading.Event()

    def train(folder: Path) -> dict[str, torch.Tensor]:
        training.set()
        thread.join(0.2)
        order.append("trained")
        return {"x": torch.ones(1)}

    def second() -> None:
        training.wait()
        Store(tmp_path).get({"kind": "arm"}, train)
        order.append("loaded")

    thread = threading.Thread(target=second)
    thread.start()
    Store(tmp_path).get({"kind": "arm"}, train)
    thread.join()
    assert order == ["trained", "loaded"]


def test_a_claim_pays_only_for_arms_that_none_before_it_used(tmp_path):
    lab = lab_in(tmp_path)
    use = replace(CLAIMS[0], run=lambda lab: lab.base(BaseArm(), 0))
    (_, first), (_, again) = timed(lab, use), timed(lab, replace(use, id="again"))
    assert len(first.arms) == 2 and not again.arms  # the autoencoder and the base
    assert first.training > 0 and again.training == 0
    assert first.measuring < first.training + 60
    _, later = timed(lab_in(tmp_path), use)
    assert later.arms == first.arms and later.measuring >= first.measuring


def test_the_convergence_exponent_and_tables():
    rates = (3e-4, 1e-3, 3e-3)
    assert slope(rates, [rate**-0.5 for rate in rates]) == pytest.approx(0.5)
    assert table([{"a": 1, "b": 0.12345}, {"a": 2, "b": None}, {"c": "x"}]) == (
        "| a | b |\n| --- | --- |\n| 1 | 0.123 |\n| 2 | - |\n\n| c |\n| --- |\n| x |"
    )


def test_a_report_that_cannot_be_written_is_known_before_hours_are_spent(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "RESULTS.md"
    with pytest.raises(UserError, match="--out"):
        main(ClaimsSettings(quick=True, folder=tmp_path, out=out))
    assert not list(tmp_path.glob("base-*"))


def test_an_unknown_claim_is_a_clear_error():
    assert [claim.id for claim in chosen("e3, E2")] == ["E3", "E2"]
    with pytest.raises(UserError, match="--only E99"):
        chosen("E99")


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_every_claim_runs_alone_in_any_order_and_is_reported(tmp_path):
    """From an empty folder, last claim first; the reports of all are then complete."""
    for claim in reversed(CLAIMS):
        out = tmp_path / claim.id / "RESULTS.md"
        folder = tmp_path / "arms"
        main(ClaimsSettings(claim.id, quick=True, folder=folder, out=out, device="cpu"))
        text = out.read_text()
        assert f"## {claim.id}. {claim.title}: " in text and claim.criterion in text
        assert "--quick" in text and ": PASS" not in text and ": FAIL" not in text
        results = (out.parent / "results" / "results.json").read_text()
        (entry,) = json.loads(results, parse_constant=no_constant)["claims"]
        assert entry["id"] == claim.id and entry["rows"]
    for name in ("E2/results/e2.png", "E3/results/e3-samples.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert "wakes up" in (tmp_path / "E2" / "RESULTS.md").read_text()


def test_claims_are_reported_together(tmp_path):
    main(ClaimsSettings("E17,E15", quick=True, folder=tmp_path, device="cpu"))
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.index("## E17. ") < text.index("## E15. ") and "What we learned" in text
    numbers = json.loads((tmp_path / "results" / "results.json").read_text())["claims"]
    assert [entry["id"] for entry in numbers] == ["E17", "E15"]


def test_nothing_asks_git_while_modules_load(monkeypatch):
    def asked(*args, **settings):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", asked)
    loaded = runpy.run_path(store.__file__)
    with pytest.raises(AssertionError, match="started"):
        loaded["Store"](Path())  # whereas a store knows its commit


def test_the_settings_of_the_report_are_larger_than_quicks():
    assert Settings().n > QUICK.n and Settings().base_fit.steps > QUICK.base_fit.steps


def test_what_was_trained_is_kept_with_its_checksum(tmp_path):
    store, trainings = Store(tmp_path), []

    def train(folder):
        trainings.append(folder)
        return {"w": torch.arange(3.0)}

    for _ in range(2):
        assert torch.equal(store.get({"kind": "arm"}, train)["w"], torch.arange(3.0))
    assert len(trainings) == 1
    files.write_tensors(trainings[0] / "weights.safetensors", {"w": torch.zeros(3)})
    with pytest.raises(UserError, match=rf"weights.*checksum differs; delete {trainings[0]}"):
        store.get({"kind": "arm"}, train)
