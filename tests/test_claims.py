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
from tinyldm.claims import (
    arms,
    e02_sudden,
    e03_ablation,
    e09_overhead,
    e18_compositional,
    report,
    result,
    shape_of_rise,
    store,
)
from tinyldm.claims import lab as lab_module
from tinyldm.claims import verdict as verdict_module
from tinyldm.claims.__main__ import ClaimsSettings, chosen, main, timed
from tinyldm.claims.all import CLAIMS, IMPORTANCE
from tinyldm.claims.arms import ConcatUNet, ScaledUNet, gaussian, just_hint, lite, random_copy
from tinyldm.claims.cascade import gradient_groups
from tinyldm.claims.claim import Finding
from tinyldm.claims.e07_composition import half, iou
from tinyldm.claims.e08_transfer import shuffled_channels
from tinyldm.claims.e12_strength import between
from tinyldm.claims.e22_conditions import score
from tinyldm.claims.hints import HINTS, STYLES, broken, hand_drawn, shifted, silhouette, thickened
from tinyldm.claims.lab import Lab, distance
from tinyldm.claims.result import Cost, Result
from tinyldm.claims.settings import TINY, BaseArm, ControlArm, Settings
from tinyldm.claims.store import Store
from tinyldm.claims.sweep import Sweep, fd_ratio
from tinyldm.claims.verdict import (
    FAIL,
    INCONCLUSIVE,
    NOT_TESTED,
    PASS,
    REPORTED,
    Criterion,
    Measured,
    Noise,
    Precondition,
    measure,
    power,
    pseudo_values,
    students_t,
    together,
    unmet,
)
from tinyldm.claims.watch import at_moment, progress_of, watched
from tinyldm.data import load
from tinyldm.data.conditions import canny
from tinyldm.data.dataset import to_float
from tinyldm.diffusion import Schedule
from tinyldm.evaluate.judge import load_judge
from tinyldm.evaluate.metrics import Estimate, estimate, frechet_distance
from tinyldm.evaluate.panel import Panel
from tinyldm.evaluate.tables import table
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.training.machine import Machine
from tinyldm.training.networks import save_base

load_once = functools.cache(load)
ROOT = Path(__file__).parents[1]


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


def lab_in(folder: Path, settings: Settings = TINY, ground: Path | None = None) -> Lab:
    return Lab(Store(folder), settings, Machine(), [0], ground)


def when_trained(folder: Path) -> dict[Path, int]:
    """Each stored network, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}


# ---------------------------------------------------------------- verdicts

CRITERIA = [(claim, criterion) for claim in CLAIMS for criterion in claim.criteria]


def test_the_claims_are_e1_to_e22_each_with_what_decides_it():
    assert [claim.id for claim in CLAIMS] == [f"E{i}" for i in range(1, 23)]
    assert sorted(IMPORTANCE, key=lambda name: int(name[1:])) == [claim.id for claim in CLAIMS]
    for claim in CLAIMS:
        assert claim.sentence and claim.source.startswith("[") and claim.setting
        assert claim.preconditions
        assert claim.criteria and claim.seeds >= 3
        assert claim.before or int(claim.id[1:]) in (19, 20, 21, 22)  # the first edition's
    names = [each.name for claim in CLAIMS for each in claim.criteria]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("claim", "criterion"), CRITERIA, ids=lambda x: getattr(x, "id", ""))
def test_a_world_where_a_claim_holds_passes_and_one_where_it_fails_fails(claim, criterion):
    """With the noise that was expected; with the noise that was found, where a verdict was given on it."""
    right, left = power(criterion, criterion.noise)
    assert right >= 0.8 and left >= 0.8
    found = result.read(ROOT / "docs" / "results", claim)
    if found and (said := result.decided(criterion, found)) in (PASS, FAIL):
        right, left = power(criterion, found.noise(criterion.name))
        assert (right if said == FAIL else left) >= 0.8


def test_bounds_decide_by_the_whole_interval():
    at_least, between_both = Criterion("x", low=0.03, same=0.01), Criterion("x", low=-1, high=1)
    assert at_least.decide(Estimate(0.1, 0.03, 0.2)) == PASS
    assert at_least.decide(Estimate(0.1, 0.02, 0.2)) == INCONCLUSIVE
    assert at_least.decide(Estimate(0.0, -0.1, 0.02)) == FAIL
    assert between_both.decide(Estimate(0.0, -1.0, 1.0)) == PASS
    assert between_both.decide(Estimate(2.0, 0.9, 3.0)) == INCONCLUSIVE
    assert between_both.decide(Estimate(2.0, 1.1, 3.0)) == FAIL
    assert between_both.decide(Estimate(-2.0, -3.0, -1.1)) == FAIL
    nothing = float("nan")
    assert at_least.decide(Estimate(nothing, nothing, nothing)) == INCONCLUSIVE
    assert at_least.equal(Estimate(0, -0.01, 0.01)) and not at_least.equal(Estimate(0, -0.02, 0))
    assert not between_both.equal(Estimate(0, 0, 0))  # no margin, no equivalence


def test_all_criteria_must_hold():
    assert together([PASS, PASS]) == PASS
    assert together([PASS, INCONCLUSIVE]) == INCONCLUSIVE
    assert together([INCONCLUSIVE, FAIL, PASS]) == FAIL


def test_preconditions_are_numbers_within_bounds():
    room = Precondition("room", low=0.2)
    assert room.met(0.2) and not room.met(0.19) and not room.met(float("nan"))
    assert unmet([room, Precondition("copy", high=0.3)], {"room": 0.1, "copy": 0.3}) == [
        "room: 0.1, not at least 0.2"
    ]


def result_with(seeds=3, room=1.0, found=(0.1, 0.05, 0.2)) -> Result:
    noise = Noise(0.1, 0.01, 113, seeds)
    measured = result.flat({"gain": Measured(Estimate(*found), noise)})
    cost = Cost(["abc"], ["Xeon"], [1], 2, 60.0, 30.0, [0.5, 1.0])
    row = {"arm": "zero", "EF0": 0.5, "EF0_interval": [0.4, 0.6]}
    made_of = ([*range(seeds)], {"room": room}, measured, "0.1", [row], ["A note"], "", [])
    return Result("E2", *made_of, cost)


CLAIM = replace(
    CLAIMS[1],
    criteria=[Criterion("gain", low=0.03, holds=0.2, fails=-0.1)],
    preconditions=[Precondition("room", low=0.2)],
)


def test_noise_in_which_a_criterion_could_not_fail_passes_nothing():
    loud = Noise(0.1, 1.0, 113, 3)
    found = replace(
        result_with(), measured=result.flat({"gain": Measured(Estimate(0.1, 0.05, 0.2), loud)})
    )
    assert CLAIM.criteria[0].decide(found.found("gain")) == PASS
    assert result.verdict(CLAIM, found) == INCONCLUSIVE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, PASS),
        ({"found": (0.0, -0.1, 0.02)}, FAIL),
        ({"found": (0.1, 0.0, 0.2)}, INCONCLUSIVE),
        ({"seeds": 2}, NOT_TESTED),
        ({"room": 0.1}, NOT_TESTED),
        ({"room": float("nan")}, NOT_TESTED),
    ],
)
def test_a_verdict_needs_its_preconditions(changes, expected):
    assert result.verdict(CLAIM, result_with(**changes)) == expected
    assert result.verdict(replace(CLAIM, criteria=()), result_with(**changes)) == REPORTED
    assert result.verdict(replace(CLAIM, seeds=5), result_with(**changes)) == NOT_TESTED


# ---------------------------------------------------------------- intervals


def test_an_interval_holds_both_the_spread_of_images_and_that_of_trainings():
    draw = torch.Generator().manual_seed(0)
    images, trainings = (torch.randn(shape, generator=draw) for shape in ((1, 400), (3, 1)))
    of_images, noise = measure(images.expand(3, -1))
    assert noise.images == pytest.approx(1, rel=0.1) and noise.seeds == pytest.approx(0, abs=1e-9)
    assert (noise.n, noise.trainings) == (400, 3)
    assert of_images.high - of_images.low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    plain = estimate(images[0])
    assert of_images.mean == pytest.approx(plain.mean) and of_images.low == pytest.approx(
        plain.low, abs=0.01
    )
    of_both, noise = measure(images + trainings)
    assert of_both.high - of_both.low > 2 * (of_images.high - of_images.low)
    assert noise.seeds == pytest.approx(trainings.std().item())
    many, _ = measure(images, family=10)
    assert many.low < of_images.low and many.high > of_images.high


@pytest.mark.parametrize(("trainings", "family"), [(3, 1), (5, 1), (3, 5)])
@pytest.mark.parametrize("share", [0.0, 1.0, 10.0])
def test_intervals_hold_the_truth_as_often_as_they_say(trainings, family, share):
    """A spread of trainings of `share` times what the images leave."""
    held, draws = 0, 150
    for seed in range(draws):
        draw = torch.Generator().manual_seed(seed)
        images, rest = (
            torch.randn(1, 60, generator=draw),
            torch.randn(trainings, 60, generator=draw),
        )
        offsets = share * 0.1 * torch.randn(trainings, 1, generator=draw)
        found = measure(images + 0.5 * rest + offsets, family=family, seed=seed + 10**6).estimate
        held += found.low <= 0 <= found.high
    level = 1 - 0.05 / family
    assert held / draws >= level - 3 * (level * (1 - level) / draws) ** 0.5


def test_students_t():
    draws = students_t(2, 4000, torch.Generator().manual_seed(0))
    quantiles = draws.quantile(torch.tensor([0.5, 0.9, 0.975]).double()).tolist()
    assert quantiles == pytest.approx([0, 1.886, 4.303], rel=0.15, abs=0.1)  # of the tables
    assert not students_t(0, 10, torch.Generator()).any()


def test_images_of_one_drawing_are_drawn_together():
    drawings = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    origins = torch.arange(50).repeat(8)
    alone, together_ = (
        measure(drawings.repeat(1, 8)),
        measure(drawings.repeat(1, 8), origins=origins),
    )
    assert together_.noise.n == 50
    width = [each.estimate.high - each.estimate.low for each in (alone, together_)]
    assert width[1] == pytest.approx(width[0] * 8**0.5, rel=0.15)


def test_pseudo_values_of_a_mean_are_as_its_columns():
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    values = pseudo_values(lambda i: x[i].mean().item(), torch.arange(400))
    assert len(values) == 20 and values.mean().item() == pytest.approx(x.mean().item())
    found, wanted = measure(values[None]).estimate, measure(x[None]).estimate
    assert found.high - found.low == pytest.approx(wanted.high - wanted.low, rel=0.35)
    origins, kept = torch.arange(37).repeat(10), list[tuple[int, int]]()
    pseudo_values(lambda i: float(kept.append((len(i), len(origins[i].unique()))) or 0), origins)
    assert kept[0] == (370, 37) and len(kept) == 21
    assert set(kept[1:]) == {(350, 35), (360, 36)}  # a block has whole drawings


class Features:
    """Samples of which only features and the reference matter."""

    def __init__(self, features: torch.Tensor, reference: torch.Tensor):
        self.features = features
        self.panel = type("P", (), {"reference": reference, "origins": torch.arange(len(features))})


def test_fd_tells_worse_samples_from_as_good_ones():
    draw = torch.Generator().manual_seed(0)
    reference = torch.randn(3000, 8, generator=draw)
    base = torch.randn(3, 1000, 8, generator=draw) + 0.5

    def swept(x: torch.Tensor) -> Sweep:
        sweep = Sweep.__new__(Sweep)
        sweep.samples = [Features(each, reference) for each in x]
        sweep.panel = sweep.samples[0].panel
        return sweep

    own = pseudo_values(lambda i: frechet_distance(base[0][i], base[0]), torch.arange(1000) % 50)
    assert own.mean().item() == pytest.approx(
        0, abs=1e-6
    )  # a reference of the same drawings is no bias
    criterion = Criterion("FD over the base's", high=1.1)
    same = fd_ratio(swept(base + 0.01 * torch.randn(base.shape, generator=draw)), swept(base))
    worse = fd_ratio(swept(base + 0.2), swept(base))
    assert criterion.decide(same.estimate) == PASS and criterion.decide(worse.estimate) == FAIL
    assert same.estimate.mean == pytest.approx(1, abs=0.02)


# ---------------------------------------------------------------- E2: jumps and ramps

LOOKS = torch.cat([torch.arange(0, 1080, 8), torch.arange(1080, 2001, 80)])


@pytest.mark.parametrize("noise", [0.01, 0.03])
@pytest.mark.parametrize("t50", [100, 190, 333, 430, 800])
def test_a_jump_is_seen_as_one_and_what_is_smooth_is_not(noise, t50):
    def seen(kind: str) -> float:
        y = shape_of_rise.simulated(kind, LOOKS, noise, 32, seed=1, t50=t50)
        return shape_of_rise.prefers_jump(LOOKS, y).double().mean().item()

    assert all(seen(kind) > 0.8 for kind in e02_sudden.SUDDEN)
    assert all(seen(kind) < 0.2 for kind in e02_sudden.GRADUAL)


def test_a_jump_may_be_followed_by_a_drift_and_held_out_looks_decide():
    draw = torch.Generator().manual_seed(0)
    drift = 0.1 * (LOOKS - 160).clamp(min=0) / (LOOKS[-1] - 160)
    y = (0.2 * (LOOKS >= 160) + drift)[:, None] + 0.01 * torch.randn(len(LOOKS), 32, generator=draw)
    assert shape_of_rise.prefers_jump(LOOKS, y).double().mean() > 0.9
    hill = 0.3 * LOOKS**3 / (LOOKS**3 + 160.0**3)
    mixed = torch.where(LOOKS >= 160, 0.3, 0.0)  # looks that are fitted
    mixed[1::2] = hill[1::2]
    assert not shape_of_rise.prefers_jump(LOOKS, mixed[:, None]).any()


def test_how_much_of_a_rise_is_sudden():
    def share(kind: str) -> float:
        return shape_of_rise.within(LOOKS, shape_of_rise.simulated(kind, LOOKS, 0.02, 32, seed=1))

    assert share("jump") > 0.9 and share("jump, then a drift") > 0.75
    assert all(share(kind) < 0.45 for kind in e02_sudden.GRADUAL)


WORLDS = [(kind, PASS) for kind in e02_sudden.SUDDEN] + [
    (kind, FAIL) for kind in e02_sudden.GRADUAL
]


@pytest.mark.parametrize(("kind", "expected"), WORLDS)
def test_e2_decides_simulated_trainings(kind, expected):
    y = [shape_of_rise.simulated(kind, LOOKS, 0.03, 64, seed)[..., None] for seed in range(3)]
    measured = e02_sudden.judged([(LOOKS, each.expand(-1, -1, 4)) for each in y])
    verdicts = [c.decide(measured[c.name].estimate) for c in e02_sudden.CLAIM.criteria]
    assert together(verdicts) == expected


def test_a_share_of_the_rise_is_timed_between_looks():
    ramp = shape_of_rise.simulated("ramp", LOOKS, 0.0, 64, seed=0, t50=501)
    assert shape_of_rise.time_of(LOOKS, ramp, 0.5) == pytest.approx(501, rel=0.06)
    sparse = LOOKS[::10]
    thin = shape_of_rise.simulated("ramp", sparse, 0.0, 64, seed=0, t50=501)
    assert shape_of_rise.time_of(sparse, thin, 0.5) == pytest.approx(501, rel=0.06)


def test_images_that_do_not_rise_do_not_count():
    jump = shape_of_rise.simulated("jump", LOOKS, 0.02, 8, 0)
    flat = 0.2 + 0.02 * torch.randn(len(LOOKS), 8, generator=torch.Generator().manual_seed(0))
    curve = (LOOKS, torch.cat([jump, flat], dim=1)[..., None])
    assert e02_sudden.judged([curve])[e02_sudden.PREFER].estimate.mean == pytest.approx(1)
    made = shape_of_rise.time_of(LOOKS, jump, 0.5)
    assert made == pytest.approx(2000 / 6, rel=0.1)


# ---------------------------------------------------------------- hints and arms


def test_hints_are_worn_as_they_say():
    edges = canny(load_once("shapes", "test", limit=4).images)
    moved = shifted(edges, 2)
    assert torch.equal(moved[..., 2:, 2:], edges[..., :-2, :-2]) and not moved[..., :2].any()
    assert (thickened(edges, 3) | edges == thickened(edges, 3)).all()
    assert thickened(edges, 3).sum() > 1.5 * edges.sum()
    assert torch.equal(broken(edges, 0.0), edges) and not broken(edges, 1.0).any()
    half_gone = broken(edges, 0.5)
    assert (half_gone <= edges).all() and 0.2 < half_gone.sum() / edges.sum() < 0.8
    assert torch.equal(hand_drawn(edges, 0.0), edges)
    unsteady = hand_drawn(edges, 2.0)
    assert not torch.equal(unsteady, edges) and 0.5 < unsteady.sum() / edges.sum() < 2
    assert torch.equal(unsteady, hand_drawn(edges, 2.0))


def test_conditions_and_styles():
    images = load_once("shapes", "test", limit=8).images
    edges = canny(images)
    assert {HINTS[name](images).shape for name in HINTS} == {edges.shape}
    sparse, blurred = HINTS["sparse"](images), HINTS["blurred"](images)
    assert (sparse <= edges).all() and 0.03 < sparse.sum() / edges.sum() < 0.2
    assert blurred.max() <= 1 and blurred.mean().item() == pytest.approx(
        edges.double().mean().item(), rel=0.3
    )
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    white[..., 2:6, 2:6] = 0
    assert silhouette(white).sum() == 16 and not silhouette(white)[..., 0, 0].any()
    rolled = STYLES["rolled"](images)
    assert torch.equal(rolled[:, 1], images[:, 0]) and torch.equal(rolled[:, 0], images[:, 2])
    for name in ("silhouette", "sparse", "blurred"):
        own, other = (score(name, to_float(images), of) for of in (images, images.flip(0)))
        assert torch.allclose(own.float(), torch.ones(8)) and other.mean() < 0.9, name


def test_iou():
    all_of_it = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    left = torch.tensor([True, False]) & all_of_it
    assert iou(left, all_of_it).item() == 0.5
    assert iou(left, left).item() == 1 and iou(left, ~left).item() == 0


def test_a_control_on_one_half_and_one_whose_channels_are_mixed():
    def net(*inputs):
        return [torch.arange(24.0).reshape(1, 6, 2, 2)]

    (left,), (right,) = half("left")(net)(), half("right")(net)()
    assert (
        torch.equal(left + right, net()[0]) and not left[..., 1].any() and not right[..., 0].any()
    )
    (mixed,) = shuffled_channels(net)()
    assert not torch.equal(mixed, net()[0])
    assert torch.equal(mixed.sort(dim=1).values, net()[0])


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


def test_the_fine_tuned_arm_starts_as_the_base_and_sees_its_hint():
    base = small_unet()
    unet = ConcatUNet(base, f=4)
    z_t, t, context, hint = small_inputs()
    hint = hint.float()
    out = unet(z_t, t, context, just_hint(z_t, t, context, hint))
    assert torch.equal(out, base(z_t, t, context)) and out.abs().max() > 0
    torch.nn.init.normal_(unet.stem.weight)
    out = unet(z_t, t, context, just_hint(z_t, t, context, hint))
    other = unet(z_t, t, context, just_hint(z_t, t, context, 1 - hint))
    assert not torch.allclose(out, other)


def test_a_scaled_input_has_unit_variance():
    base, schedule = small_unet(), Schedule()
    z_t, t, context, _ = small_inputs()
    plain = ScaledUNet(base, schedule, std=1.0)(z_t, t, context)
    torch.testing.assert_close(plain, base(z_t, t, context))
    std = 3.0
    scaled, seen = ScaledUNet(base, schedule, std), list[torch.Tensor]()
    scaled.stem.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    scaled(z_t, t, context)
    signal = schedule.alphas_cumprod[t].float()[:, None, None, None]
    torch.testing.assert_close(seen[0], z_t / (signal * std**2 + 1 - signal).sqrt())


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
    fit = replace(TINY.control_fit, steps=2)
    others = [replace(arm, edit="lite"), replace(arm, fit=fit), replace(arm, caption_drop=0.0)]
    others += [replace(arm, base=BaseArm(caption_drop=0.5)), replace(arm, edit="noted")]
    models = [first, lab.control(arm, 1), *(lab.control(other, 0) for other in others)]
    assert len({model.key[-1] for model in models}) == 7
    assert len(edits) == 1


def test_what_only_changes_a_measurement_retrains_nothing(tmp_path):
    model = lab_in(tmp_path).control(ControlArm(), 0)
    weights = when_trained(tmp_path)
    lab = lab_in(tmp_path, replace(TINY, n=13, guidance=3.0, steps=1, most_steps=2))
    assert lab.control(ControlArm(), 0).key == model.key
    assert when_trained(tmp_path) == weights
    assert len(lab.sweep([model]).x) == 13
    other = lab_in(tmp_path, replace(TINY, base_fit=replace(TINY.base_fit, lr=1e-3)))
    assert other.control(ControlArm(), 0).key[-1] != model.key[-1]  # what changes the base does


def test_the_ceiling_may_be_asked_first(tmp_path):
    with torch.no_grad():  # as measurements are made
        lab = lab_in(tmp_path)
        ceiling = lab.ceiling(lab.panel)
    assert ceiling.shape == (TINY.n,)
    lab = lab_in(tmp_path)
    assert torch.equal(lab.ceiling(lab.panel), ceiling)


def test_arms_are_trained_on_what_they_say(tmp_path):
    lab = lab_in(tmp_path)
    data = lab.data["train"]
    first, second = list(data.labels.values())[:2]
    everything = lab.chosen(ControlArm())
    assert everything.sort().values.tolist() == list(range(len(data)))
    assert torch.equal(lab.chosen(ControlArm(images=7)), everything[:7])
    odd, even = (lab.chosen(ControlArm(half=h)) for h in (1, 2))
    assert (first[odd] % 2 == 1).all() and (first[even] % 2 == 0).all()
    assert len(odd) + len(even) == len(data)
    pair = (int(first[0]), int(second[0]))
    without = lab.chosen(BaseArm(left_out=(pair,)))
    assert 0 < len(without) < len(data)
    assert not ((first[without] == pair[0]) & (second[without] == pair[1])).any()


def test_a_base_may_be_the_ground_of_every_seed(tmp_path):
    base = lab_in(tmp_path / "a").base(BaseArm(), 0).ldm
    save_base(tmp_path / "base", base)
    lab = lab_in(tmp_path / "b", ground=tmp_path / "base")
    models = [lab.base(BaseArm(), seed) for seed in (0, 1)]
    for model in models:
        assert distance(model.ldm, base) == 0
    assert models[0].key == models[1].key and not when_trained(tmp_path / "b")
    a, b = (lab.control(ControlArm(), seed) for seed in (0, 1))
    assert a.key[0] == b.key[0] and a.key[-1] != b.key[-1]
    tuned = lab.base(BaseArm(start=BaseArm(), style="rolled"), 0)
    assert 0 < distance(base.unet, tuned.ldm.unet) < 1
    assert distance(lab.base(BaseArm(), 0).ldm, base) == 0  # which stays as it is


def test_movement_and_convergence_are_measured(tmp_path, monkeypatch):
    lab, arm = lab_in(tmp_path), ControlArm()
    assert 0 < lab.moved(arm, 0) < 0.3
    losses = lab.losses(arm, 0)
    assert [step for step, _ in losses] == [0, 1, 2, 3, 4]
    assert all(loss > 0 for _, loss in losses)
    untrained = lab.untrained(arm, 0)
    assert all(not net.zero_convs[0].weight.any() for net in untrained.nets)
    monkeypatch.setattr(lab, "losses", lambda arm, seed: [(0, 1.0), (2, 0.6), (3, 0.4), (4, 0.3)])
    assert lab.last_quarter(arm, 0) == pytest.approx(0.1 / 0.7)


def test_a_watched_training_is_seen_from_before_its_first_step(tmp_path):
    lab = lab_in(tmp_path)
    arm = watched(lab)
    fit = lab.fit_of(arm)
    assert (fit.lr_scheduler, fit.ema, fit.warmup, arm.density) == ("constant", 0, 1, "uniform")
    with pytest.raises(ValueError, match="watch"):
        lab.control(arm, 0)  # nobody would look
    lines = progress_of(lab, 0, arm)
    assert [line["step"] for line in lines] == [0, *range(1, fit.steps + 1)]
    assert lines[0]["ef0"].shape == (TINY.panel, TINY.noises)
    last, done = at_moment(lab, 0, arm, fit.steps), lab.control(arm, 0)
    assert distance(last.nets[0], done.nets[0]) == 0
    assert distance(at_moment(lab, 0, arm, 0).nets[0].stem, done.nets[0].stem) > 0
    before = lab.sample(lab.base(BaseArm(), 0), ["a red circle"] * 2)
    assert torch.equal(lab.sample(at_moment(lab, 0, arm, 0), ["a red circle"] * 2), before)


def test_a_panel_of_more_images_than_there_are_has_each_again():
    test = load_once("shapes", "test", limit=10)
    panel = Panel(test, load_judge("shapes"), canny, 25, repeated=True)
    assert len(panel) == 25 and len(panel.origins.unique()) == 10
    assert torch.equal(panel.hints[:10], panel.hints[10:20])
    assert (panel.origins[panel.strangers] != panel.origins).all()


def test_a_claim_that_needs_more_seeds_has_them(tmp_path, monkeypatch):
    seen = []
    run = lambda lab: seen.append(list(lab.seeds)) or Finding({}, {}, "a number", [{"a": 1}])  # noqa: E731
    claims = [replace(CLAIMS[8], run=run, criteria=(), preconditions=(), seeds=n) for n in (3, 5)]
    monkeypatch.setattr("tinyldm.claims.__main__.chosen", lambda only: claims)
    monkeypatch.setattr("tinyldm.claims.__main__.check_base", lambda *_: None)
    monkeypatch.setattr(report, "CLAIMS", claims[:1])
    monkeypatch.setattr("tinyldm.claims.__main__.Lab", lambda *args: lab_in(tmp_path))
    main(ClaimsSettings(folder=tmp_path, out=tmp_path / "RESULTS.md", device="cpu"))
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4]]


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
    assert first.trainings == 2 and not again.trainings  # the autoencoder and the base
    assert first.training > 0 and again.training == 0
    assert first.measuring < first.training + 60
    _, later = timed(lab_in(tmp_path), use)
    assert later.training == first.training and later.measuring >= first.measuring


def test_tables():
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


def test_every_claim_runs_alone_in_any_order_and_is_reported(tmp_path, monkeypatch):
    """Last claim first; each finding is a file, and the report is written from all of them."""
    monkeypatch.setattr(verdict_module, "BLOCKS", 3)
    monkeypatch.setattr(e03_ablation, "RATES", e03_ablation.RATES[:1])
    for module in (result, report):  # it has its own tests
        monkeypatch.setattr(module, "power", lambda criterion, noise: (0.5, 0.5))
    out = tmp_path / "out" / "RESULTS.md"
    for claim in reversed(CLAIMS):
        folder = tmp_path / "arms"
        main(ClaimsSettings(claim.id, quick=True, folder=folder, out=out, device="cpu"))
        text = out.read_text()
        assert f"## {claim.id}. {claim.title}: " in text and "--quick" in text
        path = out.parent / "results" / f"e{int(claim.id[1:]):02d}.json"
        entry = json.loads(path.read_text(), parse_constant=no_constant)
        assert entry["id"] == claim.id and entry["rows"] and entry["cost"]["commits"]
        for name in entry["figures"]:
            assert (out.parent / "results" / f"{claim.id.lower()}{name}.png").stat().st_size > 1000
    text = out.read_text()
    assert f"{len(CLAIMS)} NOT TESTED." in text
    assert all(f"## {claim.id}. " in text for claim in CLAIMS) and "not run yet" not in text
    assert "wakes up" in text and "1 trainings, not 3" in text
    out.unlink()
    main(ClaimsSettings(report=True, quick=True, out=out))
    assert out.read_text() == text


def written(folder: Path, found: Result) -> Path:
    """The file of a result of E2, as its claim asks for it."""
    e2 = CLAIMS[1]
    noise = Noise(0.1, 0.01, 64, 3)
    measured = result.flat({c.name: Measured(Estimate(0.9, 0.8, 1.0), noise) for c in e2.criteria})
    checks = {each.name: each.low if each.low > 0 else each.high for each in e2.preconditions}
    result.write(folder, e2, replace(found, measured=measured, checks=checks))
    return result.path_of(folder, e2)


def test_the_report_is_written_from_files(tmp_path):
    path = written(tmp_path / "results", result_with())
    out = tmp_path / "RESULTS.md"
    main(ClaimsSettings(report=True, out=out))
    text = out.read_text()
    assert all(f"| {claim.before} |" in text for claim in CLAIMS if claim.before)
    assert "## E2. Sudden convergence: PASS" in text and "21 not run yet, 1 PASS" in text
    assert "Xeon" in text and "commit abc" in text and "A note." in text and "[0.8, 1]" in text
    content = json.loads(path.read_text())
    name = e02_sudden.PLATEAU
    content["checks"][name] = 0.5
    path.write_text(json.dumps(content))
    main(ClaimsSettings(report=True, out=out))
    text = out.read_text()
    assert (
        "## E2. Sudden convergence: NOT TESTED" in text and f"{name}: 0.5, not at most 0.1" in text
    )
    assert "simulated: fail" in text and "what it was" not in text
    del content["checks"][name]
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"e02\.json.*not a result.*lacks.*delete it, and run this claim again"
    ):
        main(ClaimsSettings(report=True, out=out))


def test_a_budget_ends_the_run_before_another_claim(tmp_path, monkeypatch, capsys):
    begun = []

    def run(lab: Lab) -> Finding:
        begun.append(lab)
        return Finding({}, {}, "a number", [{"a": 1}])

    fast = [replace(claim, run=run, criteria=(), preconditions=()) for claim in CLAIMS[:2]]
    monkeypatch.setattr(report, "CLAIMS", fast)
    monkeypatch.setattr("tinyldm.claims.__main__.chosen", lambda only: fast)
    where = {"quick": True, "folder": tmp_path, "device": "cpu"}
    main(ClaimsSettings(budget=1e-9, **where))
    assert not begun
    main(ClaimsSettings(budget=1.0, **where))
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ClaimsSettings(seeds=0), "--seeds 0: must be at least 1"),
        (ClaimsSettings(budget=-1), "--budget -1: must be at least 0"),
        (ClaimsSettings(budget=float("nan")), "--budget nan"),
        (ClaimsSettings(base=Path("nowhere")), "--base nowhere.*make emoji"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        main(replace(settings, folder=tmp_path, out=tmp_path / "RESULTS.md"))


def test_nothing_asks_git_while_modules_load(monkeypatch):
    def asked(*args, **settings):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", asked)
    loaded = runpy.run_path(store.__file__)
    with pytest.raises(AssertionError, match="started"):
        loaded["Store"](Path())  # whereas a store knows its commit


def test_the_settings_of_the_report_are_larger_than_quicks():
    assert Settings().n > TINY.n and Settings().base_fit.steps > TINY.base_fit.steps


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


def test_pairs_left_out_are_compared_with_the_same_pairs_of_bases_that_saw_them(
    tmp_path, monkeypatch
):
    """Pair i is right in i % 3 + 2 of ten where it was seen, in half of these where it was not."""

    def drawn(lab: Lab, arm: BaseArm, seed: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        i = torch.arange(25)
        assert arm.left_out == tuple(every[j] for j in i[i % 5 == seed].tolist())
        right = (i % 3 + 2).double() / 10
        return torch.where(i % 5 == seed, right / 2, right), 0 * right

    lab = lab_in(tmp_path)
    every = e18_compositional.pairs(lab)
    monkeypatch.setattr(e18_compositional, "drawn", drawn)
    monkeypatch.setattr(e18_compositional, "base_ratio", lambda *_: 1.0)
    monkeypatch.setattr(lab, "base", lambda arm, seed: None)
    finding = e18_compositional.run(lab)
    estimate = finding.measured[e18_compositional.COMPOSES].estimate
    assert estimate == pytest.approx((0.5, 0.5, 0.5))
    seen = torch.tensor([row["seen"] for row in finding.rows])
    torch.testing.assert_close(seen, (torch.arange(25) % 3 + 2) / 10)
    assert finding.checks[e18_compositional.SEES] == pytest.approx(seen.mean().item(), abs=0.02)
