"""Metrics against cases worked out by hand, and FD against the closed form for Gaussians."""

import numpy as np
import pytest
import torch

from tinyldm.data import load
from tinyldm.data.dataset import to_float
from tinyldm.evaluate.judge import FOLDER, load_judge
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
    spread,
)
from tinyldm.evaluate.panel import prompt_settings


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
