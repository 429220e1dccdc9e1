"""Metrics against cases worked out by hand, and FD against the closed form for Gaussians."""

import json
from contextlib import nullcontext
from dataclasses import FrozenInstanceError, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_ldm

from tinyldm.claims.result import finite
from tinyldm.data import load
from tinyldm.data.conditions import canny, silhouette
from tinyldm.data.dataset import to_float, to_uint8
from tinyldm.evaluate import __main__ as evaluate_file
from tinyldm.evaluate import judge as judge_file
from tinyldm.evaluate import panel as panel_file
from tinyldm.evaluate.__main__ import judge_of
from tinyldm.evaluate.compare import CURVES, compare, point
from tinyldm.evaluate.judge import (
    BLIND,
    FOLDER,
    WIDTHS,
    Classifier,
    Judge,
    JudgeSettings,
    accuracy,
    classification_loss,
    load_judge,
)
from tinyldm.evaluate.metrics import (
    Estimate,
    different,
    edge_f1,
    estimate,
    frechet_distance,
    gain,
    kernel_distance,
    partners,
    precision_recall,
    psnr,
    share,
    spread,
)
from tinyldm.evaluate.panel import Panel, prompt_settings, reconstruct, sample_images
from tinyldm.evaluate.tables import cell, estimates, plain, table
from tinyldm.ldm import Control, generate, last
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.training.settings import DataSettings, MachineSettings


def edges(*points: tuple[int, int]) -> torch.Tensor:
    picture = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    for y, x in points:
        picture[0, 0, y, x] = True
    return picture


def test_edge_f1_by_hand():
    hint = edges((0, 0), (1, 1), (2, 2))
    assert edge_f1(hint, hint).item() == 1
    assert edge_f1(edges((0, 0), (3, 3)), hint).item() == pytest.approx(2 * 1 / (2 + 3))
    assert (
        edge_f1(edges((0, 1), (1, 2), (2, 3)), hint).item() == 0
    )  # one pixel off is off: tolerance 0
    assert edge_f1(edges(), hint).item() == 0
    assert edge_f1(edges(), edges()).item() == 1


def test_gain_is_0_at_chance_and_1_at_the_ceiling():
    assert gain(0.3, 0.3, 0.86) == 0
    assert gain(0.86, 0.3, 0.86) == 1
    assert gain(0.58, 0.3, 0.86) == pytest.approx(0.5)


def test_psnr_by_hand():
    x = torch.zeros(2, 1, 4, 4)
    assert psnr(x, torch.stack([x[0] + 0.2, x[1] + 0.02])).tolist() == pytest.approx([20, 40])


def test_frechet_distance_of_gaussians_with_diagonal_covariance():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(50_000, 3, generator=g), torch.randn(50_000, 3, generator=g)
    a, b = (
        (a - a.mean(0)) / a.std(0),
        (b - b.mean(0)) / b.std(0) * torch.tensor([1.0, 2.0, 3.0]) + 1,
    )
    expected = (
        3 * 1 + (2 - 1) ** 2 + (3 - 1) ** 2
    )  # |mean difference|^2 + sum of (std difference)^2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_unbiased_cubic_mmd():
    g = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(200, 4, generator=g).double(),
        torch.randn(200, 4, generator=g).double() + 0.5,
    )

    def kernel(x, y):
        return (x @ y.T / 4 + 1) ** 3

    off = ~torch.eye(200, dtype=torch.bool)
    expected = kernel(a, a)[off].mean() + kernel(b, b)[off].mean() - 2 * kernel(a, b).mean()
    assert kernel_distance(a, b, subset=200) == pytest.approx(expected.item(), rel=1e-6)


def test_precision_and_recall_by_hand():
    line = torch.arange(100.0)[:, None].repeat(
        1, 2
    )  # the reference fills a line, the images its first tenth
    precision, recall = precision_recall(line[:10] + 0.01, line)
    assert precision == 1 and recall < 0.2
    precision, recall = precision_recall(
        torch.cat([line, line + torch.tensor([500.0, -500.0])]), line
    )
    assert precision == 0.5 and recall == 1


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 5
    mean, low, high = estimate(values)
    assert low < mean < high and mean == pytest.approx(values.mean().item())
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.15)
    assert estimate(values) == estimate(values) != estimate(values, seed=1)


def test_bootstrap_interval_of_gain_resamples_images_together():
    ef0 = torch.rand(200, generator=torch.Generator().manual_seed(0))
    mean, low, high = estimate(ef0, ef0 / 2, 1.5 * ef0, statistic=gain)
    assert mean == pytest.approx(0.5)
    assert low == pytest.approx(0.5) and high == pytest.approx(
        0.5
    )  # the ratio is the same in every resample


def test_partners_are_other_images_of_the_allowed_kind():
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    same = partners(~different(labels), seed=0)
    assert all(i != j for i, j in enumerate(same.tolist()))
    assert torch.equal(labels[same[:5]], labels[:5])  # the last has no other of its class
    assert (labels[partners(different(labels), 0)] != labels).all()


def test_prompt_settings_ask_for_what_their_names_say():
    data = load("shapes", "test", limit=300)
    settings = prompt_settings(data, seed=0)
    first, second = data.labels["class"], data.labels["colour"]
    assert list(settings) == ["none", "insufficient", "perfect", "conflicting", "changed"]
    assert settings["none"][0] == [""] * 300
    assert settings["perfect"][0] == data.captions.full()
    conflict, changed = settings["conflicting"][1], settings["changed"][1]
    assert (conflict["class"] != first).all() and (conflict["colour"] != second).all()
    assert torch.equal(changed["class"], first) and (changed["colour"] != second).all()
    for prompt, shape in zip(settings["conflicting"][0], conflict["class"].tolist(), strict=True):
        assert data.names["class"][shape] in prompt


@pytest.mark.parametrize("dataset", ["fashion-mnist", "shapes"])
def test_the_committed_classifier_loads_with_its_checksum_and_is_small(dataset):
    assert (FOLDER / f"{dataset}.safetensors").stat().st_size < 1_000_000
    assert load_judge(dataset).labels[0] == "class"


def test_the_shapes_classifier_sees_class_and_colour():
    data = load("shapes", "test", limit=200)
    features, predictions = load_judge("shapes")(to_float(data.images))
    assert features.shape == (200, 128)
    for name in ("class", "colour", "background"):
        assert (predictions[name] == data.labels[name]).float().mean() > 0.9


def test_an_estimate_prints_its_interval_and_a_spread_its_ends():
    assert str(Estimate(0.64812, 0.6339, 0.662)) == "0.648 [0.634, 0.662]"
    assert spread([1.0, 2.0, 6.0]) == (3.0, 1.0, 6.0)


def test_edge_f1_is_image_by_image():
    edges_of_two = torch.cat([edges((0, 0)), edges((0, 0), (1, 1), (2, 2))])
    hints = torch.cat([edges((0, 0), (1, 1)), edges((3, 3))])
    assert edge_f1(edges_of_two, hints).tolist() == pytest.approx([2 / 3, 0])


def test_psnr_of_a_difference_of_the_whole_range_is_0_db_for_each_image():
    x = torch.ones(2, 3, 4, 4)
    assert psnr(x, torch.stack([-x[0], 0 * x[0]])).tolist() == pytest.approx([0, 6.0206], abs=1e-4)


def test_a_share_is_that_of_equal_entries():
    mean, low, high = share(torch.tensor([1, 2, 3, 4] * 50), torch.tensor([1, 2, 3, 0] * 50))
    assert (
        mean == 0.75
        and low == pytest.approx(0.69, abs=0.02)
        and high == pytest.approx(0.81, abs=0.02)
    )


def test_an_estimate_resamples_a_thousand_times_from_the_same_images_and_cuts_2_5_percent():
    values = torch.randn(60, generator=torch.Generator().manual_seed(1)).exp()
    picks = torch.randint(60, (1000, 60), generator=torch.Generator().manual_seed(0))
    means = values.double()[picks].mean(1).sort().values
    mean, low, high = estimate(values)
    assert mean == pytest.approx(values.mean().item())
    assert low == pytest.approx(np.quantile(means, 0.025)) != pytest.approx(means.min().item())
    assert high == pytest.approx(np.quantile(means, 0.975))
    assert estimate(values, seed=0) == estimate(values) == estimate(values, resamples=1000)
    scaled = estimate(values, statistic=lambda m: 2 * m)
    assert scaled == pytest.approx((2 * mean, 2 * low, 2 * high))


def test_kernel_distance_takes_no_more_images_than_there_are_and_250_at_most():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 4, generator=g), torch.randn(300, 4, generator=g) + 0.5
    assert kernel_distance(a, b) == kernel_distance(a, b, subset=250) != kernel_distance(a, b, 249)
    assert kernel_distance(a[:40], b) == kernel_distance(a[:40], b, subset=40)
    assert kernel_distance(a, b[:40]) == kernel_distance(a, b[:40], subset=40)


def test_precision_and_recall_look_at_three_neighbours():
    """On a line of integers the third neighbour of an inner point is 2 away."""
    line = torch.arange(50.0)[:, None].repeat(1, 2) / 2**0.5
    between = torch.tensor([[20.0, 20.0], [20.0, 20.0]]) / 2**0.5 + torch.tensor(
        [[1.4, -1.4], [1.6, -1.6]]
    )
    far = torch.full((3, 2), 1e4)
    inside, _ = precision_recall(torch.cat([between[:1], far]), line)
    outside, _ = precision_recall(torch.cat([between[1:], far]), line)
    assert (inside, outside) == (0.25, 0)
    assert precision_recall(torch.cat([between[:1], far]), line, neighbours=2)[0] == 0


def test_different_is_symmetric_and_partners_depend_on_the_seed():
    labels = torch.tensor([3, 3, 5])
    no, yes = False, True
    assert different(labels).tolist() == [[no, no, yes], [no, no, yes], [yes, yes, no]]
    everyone = torch.ones(50, 50, dtype=torch.bool)
    assert torch.equal(partners(everyone, 1), partners(everyone, 1))
    assert not torch.equal(partners(everyone, 1), partners(everyone, 2))
    assert len(partners(everyone, 1).unique()) > 20  # anyone may be drawn


# ---------------------------------------------------------------- the judge


def test_the_classifier_halves_the_picture_three_times_and_averages_128_features():
    torch.manual_seed(0)
    classifier, x = Classifier(3, (4, 6)), torch.randn(2, 3, 32, 32)
    y, parameters = x, list(classifier.body.parameters())
    for i in range(len(WIDTHS)):
        weight, bias, gain_of_it, shift = parameters[4 * i : 4 * i + 4]
        y = F.conv2d(y, weight, bias, stride=2 if i else 1, padding=1)
        y = F.silu(F.group_norm(y, 8, gain_of_it, shift))
    assert y.shape == (2, 128, 4, 4)
    features = F.silu(F.conv2d(y, *parameters[16:])).mean((2, 3))
    torch.testing.assert_close(classifier.body(x), features)
    logits = [F.linear(features, head.weight, head.bias) for head in classifier.heads]
    torch.testing.assert_close(classifier(x), tuple(logits))
    assert [y.shape for y in logits] == [(2, 4), (2, 6)]


def test_the_judge_takes_images_of_any_size_and_clamps_them():
    torch.manual_seed(0)
    judge = Judge(Classifier(1, (3, 5)), ("class", "tone"))
    x = 3 * torch.randn(5, 1, 64, 64)
    features, seen = judge(x)
    torch.testing.assert_close(features, judge.classifier.body(F.avg_pool2d(x.clamp(-1, 1), 2)))
    assert not features.requires_grad and list(seen) == ["class", "tone"]
    for found, head in zip(seen.values(), judge.classifier.heads, strict=True):
        assert torch.equal(found, head(features).argmax(1))


def test_the_judge_takes_many_images_in_parts_of_500():
    parts = []

    def body(x):
        parts.append(len(x))
        return x.flatten(1)

    x = torch.rand(1001, 1, 32, 32)
    judge = Judge(SimpleNamespace(channels=1, body=body, heads=[lambda f: f[:, :2]]), ("class",))
    features, seen = judge(x)
    assert parts == [500, 500, 1] and torch.equal(features, x.flatten(1))
    assert torch.equal(seen["class"], features[:, :2].argmax(1))


def test_the_loss_of_the_judge_adds_that_of_every_label_on_pictures_in_one():
    torch.manual_seed(0)
    classifier, labels = Classifier(1, (3, 2)), torch.tensor([[0, 1], [2, 0], [1, 1]])
    images = torch.tensor([0, 100, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 32, 32)
    a, b = classifier(to_float(images))  # a shift changes no plain picture
    expected = F.cross_entropy(a, labels[:, 0]) + F.cross_entropy(b, labels[:, 1])
    torch.testing.assert_close(classification_loss(classifier, images, labels), expected)


def test_the_judge_sees_pictures_shifted_by_up_to_two_pixels_each_way():
    torch.manual_seed(0)
    images, seen = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8), []

    def classifier(x):
        seen.append(to_uint8(x))
        return (torch.zeros(1, 2),)

    for _ in range(300):
        classification_loss(classifier, images, torch.zeros(1, 1, dtype=torch.long))
    wide = F.pad(images.float(), [2] * 4, mode="replicate").to(torch.uint8)
    shifts = [wide[..., y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    counts = [sum(torch.equal(x, shift) for x in seen) for shift in shifts]
    assert sum(counts) == 300 and min(counts) > 1


def test_accuracy_is_the_share_of_right_predictions_of_each_label():
    seen = {"class": torch.tensor([1, 2, 3, 4]), "tone": torch.tensor([0, 0, 1, 1])}
    labels = {"tone": torch.tensor([1, 1, 0, 1]), "class": torch.tensor([1, 2, 3, 0])}
    assert accuracy(seen, labels) == {"class": 0.75, "tone": 0.25}


def test_a_trained_judge_is_saved_with_its_card_and_loads_as_it_was(tmp_path, monkeypatch, capsys):
    """Few pictures and three steps; held-out ones are among them."""
    asked, fits, fit = [], [], judge_file.fit

    def few(data, *splits, held_out):
        asked.append((data, splits, held_out))
        return [load(data.dataset, split, limit=40, held_out=held_out) for split in splits]

    def watched(loss, networks, columns, settings, **how):
        fits.append((columns, settings, how["name"], how["seed"], how["machine"]))
        return fit(loss, networks, columns, settings, **how)

    monkeypatch.setattr(judge_file, "load_data", few)
    monkeypatch.setattr(judge_file, "fit", watched)
    monkeypatch.setattr(judge_file, "FOLDER", tmp_path / "new")
    short = replace(JudgeSettings().fit, steps=3, batch_size=8, preview_every=9)
    run = MachineSettings(precision="bf16", seed=3)
    shapes = DataSettings("shapes")
    settings = JudgeSettings(shapes, out=tmp_path / "new", run=run, fit=short)
    judge_file.main(settings)
    assert asked == [(shapes, ("train", "test"), True)]
    data, test = (load("shapes", split, limit=40, held_out=True) for split in ("train", "test"))
    ((columns, given, name, seed, machine),) = fits
    assert torch.equal(columns.columns[0], data.images)
    assert torch.equal(columns.columns[1], torch.stack([*data.labels.values()], 1))
    assert (given, name, seed, machine.dtype) == (short, "judge shapes", 3, torch.bfloat16)
    judge, card = load_judge("shapes"), json.loads((tmp_path / "new" / "shapes.json").read_text())
    _, seen = judge(to_float(test.images))
    sizes = {"channels": 3, "values": [4, 6, 3], "labels": ["class", "colour", "background"]}
    facts = {"accuracy": accuracy(seen, test.labels), "test_images": 40, "seed": 3, "steps": 3}
    checksum = files.sha256(tmp_path / "new" / "shapes.safetensors")
    assert card == {**sizes, "sha256": checksum, **facts}
    path = tmp_path / "new" / "shapes.safetensors"
    assert capsys.readouterr().out.endswith(f"{path}: test accuracy {facts['accuracy']}\n")
    again = judge_file.train(settings, data)
    states = [j.classifier.state_dict() for j in (judge, again)]
    assert all(torch.equal(a, states[1][name]) for name, a in states[0].items())
    assert not any(p.requires_grad for p in again.classifier.parameters())
    assert again.labels == judge.labels


def test_a_judge_of_grey_pictures_sees_coloured_ones_in_grey_and_the_other_way():
    torch.manual_seed(0)
    x = torch.rand(5, 1, 32, 32) * 2 - 1
    for channels in (1, 3):
        judge = Judge(Classifier(channels, (3,)), ("class",))
        features, seen = judge(x)
        again, seen_again = judge(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(features, again)
        assert torch.equal(seen["class"], seen_again["class"])


def test_too_few_pictures_of_a_folder_are_measured_without_its_judge(monkeypatch, tmp_path, capsys):
    judge = Judge(Classifier(1, (3,)), ("class",))
    monkeypatch.setattr(evaluate_file, "find_judge", lambda dataset: judge)
    assert judge_of(tmp_path, str(tmp_path), 10) is judge and not capsys.readouterr().err
    assert judge_of(tmp_path, str(tmp_path), 9) is BLIND
    assert "9 test images, too few for FD and accuracies" in capsys.readouterr().err
    for dataset, images, needed in ((str(tmp_path), 1, 2), ("shapes", 9, 10)):
        with pytest.raises(UserError, match=f"leave {images} test images; {needed} are needed"):
            judge_of(tmp_path, dataset, images)


def test_settings_of_the_judge_stay_as_they_were_checked():
    with pytest.raises(FrozenInstanceError):
        JudgeSettings().data = DataSettings("shapes")


def test_the_judge_is_not_trained_where_it_cannot_be_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_file, "load_data", partial(pytest.fail, "loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        judge_file.main(JudgeSettings(out=tmp_path / "file" / "x"))


# ---------------------------------------------------------------- the panel


def fake_judge(x: torch.Tensor):
    """Features: the mean of each channel; everything is seen as class 1 and colour 2."""
    n = len(x)
    return x.mean((2, 3)), {"class": torch.full((n,), 1), "colour": torch.full((n,), 2)}


def test_a_panel_is_a_few_test_images_by_seed_with_hints_strangers_and_a_reference():
    test = load("shapes", "test", limit=60)
    one, same, other = (Panel(test, fake_judge, canny, 20, seed) for seed in (0, 0, 1))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:20]
    assert torch.equal(other.data.images, test.images[order]) and len(other) == 20
    assert other.captions == [test.captions.full()[i] for i in order]
    assert torch.equal(one.data.images, same.data.images) and torch.equal(
        one.strangers, same.strangers
    )
    assert torch.equal(one.data.images, Panel(test, fake_judge, canny, 20).data.images)
    assert not torch.equal(one.data.images, other.data.images)
    assert torch.equal(one.hints, canny(one.data.images))
    classes = one.labels["class"]
    assert torch.equal(classes[one.strangers], classes)
    assert (one.strangers != torch.arange(20)).all()
    assert torch.equal(one.reference, to_float(test.images).mean((2, 3)))
    shares = {
        k: (test.labels[k] == v).float().mean().item() for k, v in (("class", 1), ("colour", 2))
    }
    assert one.accuracy == pytest.approx(shares) and one.accuracy["class"] != one.accuracy["colour"]


def test_samples_are_measured_against_their_own_hints_and_those_of_strangers():
    panel = Panel(load("shapes", "test", limit=60), fake_judge, silhouette, 20)
    x = to_float(panel.data.images[:12])
    sampled = panel.measured(x)
    assert torch.equal(sampled.x, x) and torch.equal(sampled.features, x.mean((2, 3)))
    assert sampled.seen["colour"].tolist() == [2] * 12
    assert torch.equal(sampled.ef0, torch.ones(12))
    strangers = panel.hints[panel.strangers[:12]]
    assert torch.equal(sampled.ch, edge_f1(silhouette(to_uint8(x)), strangers))
    assert sampled.ch.min() < 1


def test_a_round_trip_is_the_same_in_any_batches(monkeypatch, ldm):
    ldm.vae.scale.fill_(3.0)
    images = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
    expected = ldm.vae.decode(ldm.vae.encode(to_float(images)))
    monkeypatch.setattr(panel_file, "BATCH", 2)
    x = reconstruct(ldm.vae.requires_grad_(True), images)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    assert not x.requires_grad


def test_image_i_of_many_batches_has_its_own_seed_prompt_and_hint(monkeypatch):
    ldm = small_ldm()
    ldm.vae.scale.fill_(0.05)  # so that some pixels overshoot
    hints = torch.rand(5, 1, 32, 32) < torch.linspace(0.1, 0.9, 5).reshape(5, 1, 1, 1)

    def controlnet(z_t, t, context, hint):
        features = ldm.unet.encoder(ldm.unet.stem(z_t), ldm.unet.time_embed(t), context)
        return [f * hint.mean((1, 2, 3), keepdim=True) for f in features]

    control = Control(controlnet, hints, weight=2.0)
    prompts = ["a red circle", "a ring", "a blue ring", "", "a circle"]
    how = {"steps": 2, "guidance": 3.0}
    monkeypatch.setattr(panel_file, "BATCH", 2)
    entered = []
    machine = SimpleNamespace(autocast=lambda: nullcontext(entered.append(1)))
    x = sample_images(ldm.requires_grad_(True), prompts, machine, [control], seed=10, **how)
    assert x.shape == (5, 1, 32, 32) and len(entered) == 3 and not x.requires_grad
    for i, prompt in enumerate(prompts):
        bound = [control._replace(hint=hints[i : i + 1])]
        z = last(generate(ldm, [prompt], controls=bound, seed=10 + i, **how))
        expected = ldm.vae.decode(z).clamp(-1, 1).detach()
        torch.testing.assert_close(x[i : i + 1], expected, rtol=1e-3, atol=1e-3)
    assert x.abs().max() == 1 and x.std() > 0.01
    assert torch.equal(
        sample_images(ldm, prompts[:2], machine, **how),
        sample_images(ldm, prompts[:2], machine, seed=0, **how),
    )


def test_prompts_that_say_little_and_prompts_that_conflict():
    data = load("shapes", "test", limit=50)
    settings = prompt_settings(data, seed=3)
    assert settings["none"][1] == settings["insufficient"][1] == {}
    assert settings["insufficient"][0] == ["a photo"] * 50
    assert all(torch.equal(settings["perfect"][1][name], data.labels[name]) for name in data.labels)
    first, second = different(data.labels["class"]), different(data.labels["colour"])
    for name, allowed in (("conflicting", first & second), ("changed", ~first & second)):
        chosen = data.subset(partners(allowed, 3))
        assert settings[name][0] == chosen.captions.full()
        assert all(torch.equal(settings[name][1][k], chosen.labels[k]) for k in data.labels)


# ---------------------------------------------------------------- tables


def test_cells_have_three_digits():
    values = (None, 0.123456, 1234.5, 12, "x", Estimate(0.5, 0.25, 0.75))
    assert [*map(cell, values)] == ["-", "0.123", "1.23e+03", "12", "x", "0.5 [0.25, 0.75]"]


def test_rows_that_begin_alike_are_one_table():
    rows = [{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}, {"a": 5, "c": 6}]
    one, other = table(rows).split("\n\n")
    assert one.splitlines() == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| 1 | 2 | - |",
        "| 1 | 3 | 4 |",
    ]
    assert other.splitlines() == ["| a | c |", "| --- | --- |", "| 5 | 6 |"]


def test_estimates_come_back_from_json_in_their_order():
    row = {"a": "x", "b": Estimate(0.5, 0.25, 0.75), "c": 2, "d": Estimate(1.0, float("nan"), 3.0)}
    stored = finite(plain(row))
    assert stored["d_interval"] == [None, 3.0]
    assert table([estimates(stored)]) == table([row])


def test_rows_of_other_columns_start_another_table():
    rows = [{"a": 1, "b": 0.5}, {"a": 2, "b": None}, {"c": "x"}]
    lines = [
        "| a | b |",
        "| --- | --- |",
        "| 1 | 0.5 |",
        "| 2 | - |",
        "",
        "| c |",
        "| --- |",
        "| x |",
    ]
    assert table(rows).splitlines() == lines


def test_an_estimate_is_plain_in_json():
    row = {"fd": Estimate(2.0, 1.5, 2.5), "n": 3, "base": {"acc": Estimate(0.5, 0.4, 0.6)}}
    base = {"acc": 0.5, "acc_interval": [0.4, 0.6]}
    assert plain(row) == {"fd": 2.0, "fd_interval": [1.5, 2.5], "n": 3, "base": base}


def evaluation() -> dict:
    seconds = {"vae": 60.0, "base": 90.0, "control": 30.0, "evaluate": 1000.0}
    row = {"gain": 0.7, "gain_interval": [0.6, 0.8], "fd": 2.0}
    base = {"fd": 3.0, "acc_class": 0.9}
    return {"vae": {"ce": 0.87}, "base": base, "control": {"perfect": row}, "seconds": seconds}


def test_a_point_of_the_curve_counts_the_minutes_of_the_three_trainings(tmp_path):
    files.write_json(tmp_path / "a.json", evaluation())
    expected = {"minutes": 3.0, "gain": Estimate(0.7, 0.6, 0.8), "fd": 2.0, "base_fd": 3.0}
    assert point(tmp_path / "a.json") == {**expected, "acc": 0.9, "ce": 0.87}


def test_a_comparison_prints_its_points_by_minutes_then_their_spread(tmp_path, monkeypatch, capfd):
    for name, minutes, gain_of_it in (("b", 9.0, 0.8), ("a", 3.0, 0.6)):
        content = evaluation()
        content["seconds"]["base"] += 60 * (minutes - 3)
        content["control"]["perfect"] |= {"gain": gain_of_it, "gain_interval": [0.5, 0.9]}
        files.write_json(tmp_path / f"{name}.json", content)
    monkeypatch.setattr("tinyldm.evaluate.compare.draw", lambda points, out: None)
    paths = [tmp_path / "b.json", tmp_path / "a.json"]
    compare(paths, tmp_path / "curve.png")
    points = [point(path) for path in reversed(paths)]
    both = {"minutes": Estimate(6.0, 3.0, 9.0), "gain": Estimate(0.7, 0.6, 0.8)}
    same = {k: Estimate(*[points[0][k]] * 3) for k in ("fd", "base_fd", "acc", "ce")}
    over = "Over these runs, mean [smallest, largest]:"
    printed = [table(points), over, table([both | same])]
    assert capfd.readouterr().out.strip().split("\n\n") == printed
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--plot"):
        compare(paths, tmp_path / "file" / "curve.png")
    assert capfd.readouterr().out == ""


def test_curves_are_drawn_over_minutes_with_the_ends_of_their_intervals(tmp_path, monkeypatch):
    files.write_json(tmp_path / "a.json", evaluation())
    drawn, pyplot = [], pytest.importorskip("matplotlib.pyplot")
    axes = pytest.importorskip("matplotlib.axes").Axes
    closed: list = []
    monkeypatch.setattr(pyplot, "close", closed.append)
    errorbar = axes.errorbar

    def watch(self, x, y, errors, fmt, capsize, label):
        drawn.append((self, x, y, errors, fmt, label))
        return errorbar(self, x, y, errors, fmt=fmt, capsize=capsize, label=label)

    monkeypatch.setattr(axes, "errorbar", watch)
    compare([tmp_path / "a.json"] * 2, tmp_path / "deep" / "down" / "curve.png")
    assert (tmp_path / "deep" / "down" / "curve.png").exists()
    assert closed == [drawn[0][0].figure]  # many curves would fill the memory
    assert [(fmt, name) for *_, fmt, name in drawn] == [c[1:] for cs in CURVES.values() for c in cs]
    values = {"gain": 0.7, "base_fd": 3.0, "fd": 2.0, "acc": 0.9, "ce": 0.87}
    keys = [key for curves in CURVES.values() for key, *_ in curves]
    for key, (ax, x, y, errors, *_) in zip(keys, drawn, strict=True):
        assert x == [3.0, 3.0] and y == [values[key]] * 2 and ax.get_xscale() == "log"
        ends = [[0.1] * 2] * 2 if key == "gain" else [[0.0] * 2] * 2
        torch.testing.assert_close(torch.tensor(errors), torch.tensor(ends))
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["3", "3"]
    assert [ax.get_ylabel() for ax in drawn[0][0].figure.axes] == list(CURVES)
    for ax, curves in zip(drawn[0][0].figure.axes, CURVES.values(), strict=True):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [c[2] for c in curves]
        assert not ax.xaxis.get_minorticklocs().size  # they would stand between the runs


def test_one_run_alone_is_drawn_into_a_folder_that_is_there(tmp_path):
    pytest.importorskip("matplotlib.pyplot")
    files.write_json(tmp_path / "a.json", evaluation())
    for _ in range(2):
        compare([tmp_path / "a.json"], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()


@pytest.mark.parametrize(
    "card", [{}, [], {"channels": "x", "values": [2], "sha256": "", "labels": []}]
)
def test_a_card_of_the_judge_that_is_none_is_one_clear_error(tmp_path, monkeypatch, card):
    monkeypatch.setattr(judge_file, "FOLDER", tmp_path)
    files.write_json(tmp_path / "shapes.json", card)
    with pytest.raises(UserError, match=r"shapes\.json: not a judge's card .* train it with"):
        load_judge("shapes")
