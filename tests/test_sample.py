"""`sample` and `evaluate` as their user sees them: every flag reaches the pixels and the numbers, exactly."""

import json
import operator
import re
import shutil
from dataclasses import FrozenInstanceError, asdict, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, randomise
from PIL import Image

from tinyldm import sample
from tinyldm.controlnet import ControlNet, ControlNetConfig
from tinyldm.data import load
from tinyldm.data.conditions import Condition, canny
from tinyldm.data.dataset import to_float, to_uint8
from tinyldm.data.pictures import hint_image, save_grid, save_image
from tinyldm.diffusion import Schedule, seeded
from tinyldm.evaluate import __main__ as evaluate_file
from tinyldm.evaluate import drawings
from tinyldm.evaluate.__main__ import EvaluateSettings
from tinyldm.evaluate.__main__ import main as evaluate
from tinyldm.evaluate.gallery import GallerySettings, first_of_each, in_every_colour, predicted
from tinyldm.evaluate.gallery import main as gallery
from tinyldm.evaluate.judge import load_judge
from tinyldm.evaluate.metrics import (
    Estimate,
    edge_f1,
    estimate,
    frechet_distance,
    gain,
    kernel_distance,
    precision_recall,
    psnr,
    share,
)
from tinyldm.evaluate.panel import Panel, prompt_settings, reconstruct, sample_images
from tinyldm.evaluate.tables import cell
from tinyldm.ldm import Control, LatentDiffusion, generate, last
from tinyldm.support import files
from tinyldm.support.command_line import parse
from tinyldm.support.errors import UserError
from tinyldm.text import TextConfig, Tokenizer
from tinyldm.training.machine import Machine
from tinyldm.training.networks import (
    base_checksum,
    load_base,
    load_control,
    save_base,
    save_control,
)
from tinyldm.training.presets import BASE_PRESETS
from tinyldm.vae import VAE, VAEConfig

LINE, SIZE, GAP = 22, 96, 4  # pixels: of a label, of a picture, between pictures
RED, BLUE = "a red circle", "a blue ring"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folders of a base of coloured pictures and of its control, of random weights, and two hints."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_captions([RED, BLUE], 5)
    text, unet = TextConfig(width=16, layers=1, heads=2), replace(SMALL, widths=(16, 32))
    vae = VAE(VAEConfig(3, widths=(8, 8, 16)))
    ldm = randomise(LatentDiffusion.build(vae, tokenizer, text, unet, 32), std=0.1)
    controlnet = randomise(ControlNet(ldm.unet, ControlNetConfig(1, (4, 4, 8))), 1, std=0.1)
    tiny = json.loads(json.dumps(asdict(BASE_PRESETS["tiny"]), default=str))
    for name, seconds in (("base", {"vae": 6, "base": 7}), ("control", {"control": 8})):
        files.write_json(folder / name / "settings.json", tiny)
        lines = [json.dumps({"stage": stage, "seconds": s}) for stage, s in seconds.items()]
        (folder / name / "metrics.jsonl").write_text("\n".join(lines))
    save_base(folder / "base", ldm)
    save_control(folder / "control", controlnet, Condition(), base_checksum(folder / "base"))
    for i, picture in enumerate(load("shapes", "test", limit=2).images):
        save_image(folder / f"{i}.png", to_float(picture))
    return folder


def drawn(folder: Path, *flags: object) -> np.ndarray:
    """The pixels (H, W, 3), red first, of what `sample` writes with these flags."""
    args = ["--base", folder / "base", "--out", folder / "s.png", "--device", "cpu", *flags]
    sample.main(parse(sample.SampleSettings, args=[str(arg) for arg in args]))
    with Image.open(folder / "s.png") as picture:
        assert picture.mode == "RGB" and picture.format == "PNG"
        return np.asarray(picture)


def steered(folder: Path, *flags: object) -> np.ndarray:
    """The same for the control; the flags name the hints."""
    return drawn(folder, "--control", folder / "control", *flags)


def tiles(pixels: np.ndarray, row: int = 0) -> list[np.ndarray]:
    """The pictures (96, 96, 3) of a row of the grid."""
    top = row * (LINE + SIZE + GAP) + LINE
    return [pixels[top : top + SIZE, x : x + SIZE] for x in range(0, pixels.shape[1], SIZE + GAP)]


def enlarged(x: torch.Tensor) -> np.ndarray:
    """An image (k, 32, 32) in [-1, 1] as its tile: each of its pixels is three by three."""
    values = ((x.clamp(-1, 1) + 1) * 127.5).round().expand(3, -1, -1).permute(1, 2, 0)
    return values.numpy().astype(np.uint8).repeat(3, 0).repeat(3, 1)


def placed(*networks) -> None:
    """Lay the weights out as the commands do: in another layout sums are rounded otherwise."""
    Machine().place(*networks)


@cache
def base_of(folder: Path) -> LatentDiffusion:
    ldm = load_base(folder / "base")
    placed(ldm)
    return ldm


@cache
def controlnet_of(folder: Path) -> ControlNet:
    controlnet, _ = load_control(folder / "control", folder / "base", base_of(folder))
    placed(controlnet)
    return controlnet


def control_of(folder: Path, hint: int, weight: float = 1.0) -> Control:
    """The control with the edges of a hint's picture, which are found as in the training."""
    return Control(
        controlnet_of(folder), canny(load("shapes", "test", limit=2).images[[hint]]), weight
    )


@cache
def expected(
    folder: Path, prompt: str = "", n: int = 2, hint: int | None = None, weight=1.0, **settings
) -> list[np.ndarray]:
    """The tiles of a row, by `generate` and `decode` with these arguments, the rest as the command has it."""
    settings = {"control_passes": "prompted", **settings}
    ldm = base_of(folder)
    controls = [] if hint is None else [control_of(folder, hint, weight)]
    z = last(generate(ldm, [prompt] * n, controls=controls, **settings))
    return [enlarged(x) for x in (*(hint_image(c.hint[0]) for c in controls), *ldm.vae.decode(z))]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


# ---------------------------------------------------------------- flags of sample

QUICK = ("--prompt", RED, "--num-images", 2, "--steps", 3)
FLAGS = {
    "steps": (("--steps", 5), {"steps": 5}),
    "guidance": (("--guidance", 6), {"guidance": 6.0}),
    "no guidance": (("--guidance", 1), {"guidance": 1.0}),
    "seed": (("--seed", 7), {"seed": 7}),
    "one image": (("--num-images", 1), {"n": 1}),
    "prompt": (("--prompt", BLUE), {"prompt": BLUE}),
    "ddim": (("--sampler", "ddim"), {"sampler": "ddim"}),
    "eta": (("--sampler", "ddim", "--eta", 0.7), {"sampler": "ddim", "eta": 0.7}),
    "ddpm": (("--sampler", "ddpm"), {"sampler": "ddpm"}),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_of_sample_reaches_the_pixels(runs, name):
    flags, changed = FLAGS[name]
    plain = {"prompt": RED, "steps": 3}
    pixels = tiles(drawn(runs, *QUICK, *flags))
    assert same(pixels, expected(runs, **{**plain, **changed}))
    assert not same(pixels, expected(runs, **plain))
    assert pixels[0].std((0, 1)).min() > 1  # every colour varies


def test_without_flags_a_row_is_four_images_of_no_prompt_by_20_steps_of_guidance_2(runs):
    assert same(tiles(drawn(runs, "--steps", 3)), expected(runs, n=4, steps=3))
    plain = {"guidance": 2.0, "sampler": "dpm++", "steps": 20, "seed": 0, "prompt": RED}
    assert same(tiles(drawn(runs, "--prompt", RED)), expected(runs, n=4, **plain))


def test_the_strength_of_the_control_reaches_the_pixels(runs):
    hint, found = ("--hint", runs / "0.png"), {}
    for flags, weight in (((), 1.0), (("--control-scale", 0.5), 0.5), (("--control-scale", 0), 0)):
        found[weight] = tiles(steered(runs, *QUICK, *hint, *flags))
        assert same(found[weight], expected(runs, RED, steps=3, hint=0, weight=weight))
    assert same(found[0][1:], expected(runs, RED, steps=3))  # the base's
    assert not same(found[1.0], found[0.5]) and not same(found[0.5], found[0])
    assert not same(found[1.0], found[0])


def test_the_passes_of_the_control_reach_the_pixels(runs):
    hint, found = ("--hint", runs / "0.png", "--guidance", 4), {}
    for passes in ("both", "prompted"):
        found[passes] = tiles(steered(runs, *QUICK, *hint, "--control-passes", passes))
        how = {"steps": 3, "guidance": 4.0, "control_passes": passes}
        assert same(found[passes], expected(runs, RED, hint=0, **how))
    assert not same(*found.values())
    assert same(found["prompted"], tiles(steered(runs, *QUICK, *hint)))  # by default


# ---------------------------------------------------------------- rows

ROWS = {
    "a hint for all prompts": ((0,), (RED, BLUE), [(0, RED), (0, BLUE)]),
    "a prompt for all hints": ((0, 1), (RED,), [(0, RED), (1, RED)]),
    "a hint for each prompt": ((1, 0), (RED, BLUE), [(1, RED), (0, BLUE)]),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_has_its_hint_its_images_and_its_caption(runs, name):
    hints, prompts, rows = ROWS[name]
    paths = [runs / f"{hint}.png" for hint in hints]
    pixels = steered(runs, *QUICK, "--hint", *paths, "--prompt", *prompts)
    assert pixels.shape == (2 * (LINE + SIZE + GAP), 3 * (SIZE + GAP), 3)
    for i, (hint, prompt) in enumerate(rows):
        assert same(tiles(pixels, i), expected(runs, prompt, steps=3, hint=hint))
        save_grid(runs / "label.png", [(prompt, [torch.ones(1, 32, 32)] * 3)])
        label = np.asarray(Image.open(runs / "label.png"))[:LINE]
        top = i * (LINE + SIZE + GAP)
        assert label.min() < 100 and np.array_equal(pixels[top : top + LINE], label)


def test_prompts_alone_have_a_row_each(runs):
    pixels = drawn(runs, *QUICK, "--prompt", RED, BLUE, RED)
    assert pixels.shape[0] == 3 * (LINE + SIZE + GAP)
    for i, prompt in enumerate((RED, BLUE, RED)):
        assert same(tiles(pixels, i), expected(runs, prompt, steps=3))


def test_a_hint_that_is_edges_is_taken_as_it_is_and_shown_beside_the_result(runs, tmp_path):
    ldm, outline = base_of(runs), torch.zeros(1, 32, 32)
    outline[:, 8:24, 8], outline[:, 8, 8:24] = 1, 1
    for name, x in (("white", outline), ("black", 1 - outline)):
        save_image(tmp_path / f"{name}.png", hint_image(x))
        pixels = steered(runs, *QUICK, "--hint", tmp_path / f"{name}.png")
        control = control_of(runs, 0)._replace(hint=outline[None] > 0)
        z = last(generate(ldm, [RED] * 2, steps=3, controls=[control], control_passes="prompted"))
        shown = [enlarged(x) for x in (hint_image(outline), *ldm.vae.decode(z))]
        assert same(tiles(pixels), shown)
        seen = np.asarray(Image.open(runs / "s-hint-1.png").convert("L"))
        assert np.array_equal(seen, 255 * outline[0].numpy().astype(np.uint8))
    photo = steered(runs, *QUICK, "--hint", tmp_path / "white.png", "--hint-kind", "photo")
    assert not same(tiles(pixels), tiles(photo))


def test_a_control_of_another_condition_takes_that_of_the_hint(runs, tmp_path):
    save_control(
        tmp_path / "control",
        controlnet_of(runs),
        Condition("silhouette"),
        base_checksum(runs / "base"),
    )
    flags = ("--control", tmp_path / "control", "--hint", runs / "0.png")
    shown = tiles(drawn(runs, *QUICK, *flags))[0]
    picture = load("shapes", "test", limit=1).images[0].float()
    assert np.array_equal(shown, enlarged((picture.mean(0) > 25.5).float()[None] * 2 - 1))


# ---------------------------------------------------------------- colours


def test_a_reddish_image_is_reddish_in_the_file(runs, tmp_path):
    """The autoencoder is made to decode anything to (250, 100, 20)."""
    colour = torch.tensor([250, 100, 20])
    ldm = load_base(runs / "base")
    last_layer = [m for m in ldm.vae.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    last_layer.weight.zero_()
    last_layer.bias.copy_(colour / 127.5 - 1)
    shutil.copytree(runs / "base", tmp_path / "base")
    save_base(tmp_path / "base", ldm)
    first, second = tiles(drawn(tmp_path, *QUICK))
    assert (first == colour.numpy()).all() and (second == colour.numpy()).all()


def test_a_hint_and_a_grid_and_an_image_keep_their_colours(tmp_path):
    colours = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    a, b = to_float(colours)
    save_grid(tmp_path / "grid.png", [("", [a, b])])
    save_image(tmp_path / "image.png", a)
    grid, image = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("grid", "image"))
    for tile, picture in zip(tiles(grid), colours, strict=True):
        assert np.array_equal(tile[1::3, 1::3], picture.permute(1, 2, 0))
    assert np.array_equal(image, colours[0].permute(1, 2, 0))


# ---------------------------------------------------------------- what sample says


def test_sample_names_its_file_and_the_words_that_were_never_trained(runs, capfd):
    prompts = ("a Teal circle, teal ring", "a mauve ring")
    drawn(runs, "--prompt", *prompts, "--num-images", 1, "--steps", 1)
    out, err = capfd.readouterr()
    note = "note: the base was never trained with the word {!r}"
    assert out == f"{runs / 's.png'}\n"
    assert err.splitlines() == [note.format(word) for word in ("teal", "mauve")]


def test_a_prompt_that_is_longer_than_the_captions_is_cut_and_that_is_said(runs, capfd):
    length = base_of(runs).tokenizer.length
    prompts = [" ".join(["a"] * n) for n in (length, length + 1)]
    drawn(runs, "--prompt", *prompts, "--num-images", 1, "--steps", 1)
    assert capfd.readouterr().err == f"note: {prompts[1]!r} is cut after {length} words\n"


def test_each_row_has_a_bar_of_as_many_steps(runs, monkeypatch):
    bars = []
    monkeypatch.setattr(sample, "progress", lambda z, total, **_: bars.append(total) or z)
    drawn(runs, *QUICK, "--prompt", RED, BLUE)
    assert bars == [3, 3]


WRONG = {
    "a hint without a control": (("--hint", "x.png"), "--control and --hint go together"),
    "a control without a hint": (("--control", "x"), "--control and --hint go together"),
    "no prompt": (("--prompt",), "--prompt: give at least one"),
    "two hints, three prompts": (
        ("--control", "x", "--hint", "a", "b", "--prompt", "a", "b", "c"),
        "2 --hint and 3 --prompt: give one of either, or as many",
    ),
    "eta": (("--eta", 0.5), "--eta 0.5: only the sampler ddim has it"),
    "no PNG": (("--out", "x.jpg"), "--out x.jpg: name a file that ends in .png"),
    "a folder": (("--out", "README.md/x.png"), "--out README.md/x.png"),
    "steps": (("--steps", 1001), "--steps 1001: the base has only 1000 timesteps"),
}


@pytest.mark.parametrize("name", WRONG)
def test_flags_that_do_not_fit_are_one_line(runs, name):
    flags, words = WRONG[name]
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        drawn(runs, *flags)


def test_a_base_takes_as_many_steps_as_it_has_timesteps(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "base")
    ldm = load_base(runs / "base")
    ldm.schedule = Schedule(3)
    save_base(tmp_path / "base", ldm)
    assert len(tiles(drawn(tmp_path, *QUICK, "--steps", 3))) == 2
    with pytest.raises(UserError, match="--steps 4: the base has only 3 timesteps"):
        drawn(tmp_path, *QUICK, "--steps", 4)


def test_flags_that_fit_are_accepted_before_any_work(tmp_path):
    a, b, c = map(Path, "abc")
    for settings in (
        {"control": c, "hint": (a, b), "prompt": ("", "")},
        {"control": c, "hint": (a,), "prompt": ("", "")},
        {"control": c, "hint": (a, b)},
        {"sampler": "ddim", "eta": 1.0},
        {"out": tmp_path / "X.PNG"},
    ):
        sample.check(sample.SampleSettings(**settings))


BOUNDS = {
    "seed": (0, 2**63 - 1),
    "num_images": (1, 10_000),
    "steps": (1, 10_000),
    "eta": (0, 1),
    "guidance": (-1000, 1000),
    "control_scale": (-1000, 1000),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_numbers_have_bounds(name):
    low, high = BOUNDS[name]
    for value in (low, high):
        sample.SampleSettings(**{name: value})
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"^{name} {value}: must be between {low} and {high}"):
            sample.SampleSettings(**{name: value})


def test_a_control_of_another_base_is_used_only_if_told(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "base")
    save_base(tmp_path / "base", randomise(load_base(runs / "base")))
    flags = ("--control", runs / "control", "--hint", runs / "0.png", *QUICK)
    with pytest.raises(UserError, match="--transfer"):
        drawn(tmp_path, *flags)
    ldm = base_of(tmp_path)
    controlnet, _ = load_control(runs / "control", tmp_path / "base", ldm, True)
    placed(controlnet)
    control = control_of(runs, 0)._replace(controlnet=controlnet)
    z = last(generate(ldm, [RED] * 2, steps=3, controls=[control], control_passes="prompted"))
    images = [enlarged(x) for x in ldm.vae.decode(z)]
    assert same(tiles(drawn(tmp_path, *flags, "--transfer"))[1:], images)


# ---------------------------------------------------------------- evaluate

HOW = {"guidance": 4.0, "steps": 2, "control_passes": "prompted"}
ASKED = ("--n", 12, "--seed", 5, "--guidance", 4, "--steps", 2, "--control-passes", "prompted")


@pytest.fixture(scope="module")
def measured(runs) -> dict:
    """What evaluate writes as JSON with flags that are none of the defaults, and what it prints."""
    args = ["--base", runs / "base", "--control", runs / "control", "--json", runs / "e.json"]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text: printed.append(text))
        patch.setattr(evaluate_file, "ROOM", 0.0)  # these runs follow nothing
        settings = [str(arg) for arg in (*args, *ASKED, "--precision", "fp32", "--device", "cpu")]
        evaluate(parse(EvaluateSettings, args=settings))
    return json.loads((runs / "e.json").read_text()) | {"printed": "\n".join(printed)}


@pytest.fixture(scope="module")
def panel() -> Panel:
    return Panel(load("shapes", "test", limit=64), load_judge("shapes"), canny, 12, 5)


@pytest.fixture(scope="module")
def sampled(runs):
    """`sample_images` with the settings that evaluate was asked for."""
    return partial(sample_images, base_of(runs), machine=Machine(), seed=5, **HOW)


def test_evaluate_writes_what_it_was_asked_for(measured):
    asked = {"n": 12, "seed": 5, "dataset": "shapes", **HOW, "precision": "float32"}
    assert {key: measured[key] for key in asked} == asked
    seconds = measured["seconds"]
    assert {**seconds, "evaluate": 0} == {"vae": 6, "base": 7, "control": 8, "evaluate": 0}
    assert 0.1 < seconds["evaluate"] < 200 and round(seconds["evaluate"], 2) == seconds["evaluate"]


def within(row: dict, key: str, found) -> bool:
    """Are an estimate and its interval those of the row?"""
    return (row[key], *row[f"{key}_interval"]) == tuple(found)


def test_the_autoencoder_is_measured_by_its_round_trip_of_the_panel(runs, measured, panel):
    x_hat = reconstruct(base_of(runs).vae, panel.data.images)
    row = measured["vae"]
    assert row["psnr"] == psnr(x_hat, to_float(panel.data.images)).mean().item()
    assert within(row, "ce", estimate(edge_f1(canny(to_uint8(x_hat)), panel.hints)))
    shares = {f"acc_{name}": score for name, score in panel.accuracy.items()}
    assert measured["classifier"] == shares and len(shares) == 3


def test_the_base_is_measured_by_the_images_of_these_settings(runs, measured, panel, sampled):
    features, seen = panel.judge(sampled(panel.captions))
    train = load("shapes", "train", limit=64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(5))[:12]
    real, _ = panel.judge(to_float(train.images[order]))
    row = measured["base"]
    for found, end in ((features, ""), (real, "_floor")):
        both = (found, panel.reference)
        assert row[f"fd{end}"] == frechet_distance(*both)
        assert row[f"kd{end}"] == kernel_distance(*both)
        precision, recall = precision_recall(*both)
        assert (row[f"precision{end}"], row[f"recall{end}"]) == (precision, recall)
    for name in ("class", "colour", "background"):
        assert within(row, f"acc_{name}", share(seen[name], panel.labels[name]))
    for name, controls in (("loss", []), ("loss with control", [controlnet_of(runs)])):
        torch.manual_seed(0)
        z_0 = base_of(runs).vae.encode(to_float(panel.data.images))
        given = [Control(controlnet, panel.hints) for controlnet in controls]
        assert row[name] == base_of(runs).loss(z_0, panel.captions, given).item()
    assert len(row) == 8 + 2 * 3 + 2


def test_the_control_is_measured_under_each_prompt_setting(runs, measured, panel, sampled):
    ldm = base_of(runs)
    control = Control(controlnet_of(runs), panel.hints)
    ceiling, _ = panel.edge_scores(reconstruct(ldm.vae, panel.data.images))
    settings, without = prompt_settings(panel.data, 5), {}
    runs = {name: (*setting, "prompted") for name, setting in settings.items()}
    runs["perfect, both"] = (*settings["perfect"], "both")
    assert list(measured["control"]) == list(runs)
    for name, (prompts, asked, passes) in runs.items():
        x = sampled(prompts, controls=[control], control_passes=passes)
        row, found = measured["control"][name], panel.measured(x)
        assert row["passes"] == passes
        without = without or found.seen
        assert row["ef0"] == found.ef0.mean().item() and row["ch"] == found.ch.mean().item()
        assert row["ce"] == ceiling.mean().item()
        assert within(row, "gain", estimate(found.ef0, found.ch, ceiling, statistic=gain))
        assert row["fd"] == frechet_distance(found.features, panel.reference)
        kinds, shown = found.seen["class"], panel.labels
        assert row["acc_e"] == share(kinds, shown["class"]).mean
        assert row["acc_t"] == (share(kinds, asked["class"]).mean if asked else None)
        for label in ("colour", "background"):
            wanted = asked.get(label, shown[label])
            assert within(row, f"acc_{label}", share(found.seen[label], wanted))
            chance = share(without[label], asked[label]).mean if name == "changed" else None
            assert row.get(f"chance_{label}") == chance
    assert "chance_class" not in measured["control"]["changed"]


def cells_of(row: dict) -> dict[str, str]:
    """What the table's row should say, from the numbers in JSON."""
    found = {}
    for key, value in row.items():
        ends = row.get(f"{key}_interval")
        if not key.endswith("_interval") and not key.startswith("chance_"):
            shown = "{:.3g} [{:.3g}, {:.3g}]".format(value, *ends) if ends else cell(value)
            found[key] = shown
    return found


def test_the_tables_print_the_numbers_of_the_json(measured):
    parts = [{"part": name, **measured[name]} for name in ("classifier", "vae", "base")]
    rows = [{"prompts": name, **row} for name, row in measured["control"].items()]
    told, header = [], []
    for line in measured["printed"].splitlines():
        words = [word.strip() for word in line.strip("|").split("|")] if line[:1] == "|" else []
        if words and words[0] in ("part", "prompts"):
            header = words
        elif words and words[0] != "---":
            told.append(dict(zip(header, words, strict=True)))
    assert told == [cells_of(row) for row in (*parts, *rows)]
    for label in ("colour", "background"):
        chance = measured["control"]["changed"][f"chance_{label}"]
        line = f"chance_{label}, changed: {chance:.3f}, what the same hints score without a prompt"
        assert line in measured["printed"].splitlines()
    ends = "n = 12 of the test split without the held-out pairs, seed 5"
    assert measured["printed"].splitlines()[-1] == ends


# ---------------------------------------------------------------- drawings


def test_drawings_are_measured_against_the_hints_that_they_show(
    runs, monkeypatch, tmp_path, capsys
):
    ways = "the edge map, enlarged", "a pen of 8", "a pen of 50"
    monkeypatch.setattr(drawings, "WAYS", {name: drawings.WAYS[name] for name in ways})
    flags = ["--base", runs / "base", "--control", runs / "control", "--n", 10, "--device", "cpu"]
    flags += ["--json", tmp_path / "d.json"]
    drawings.main(parse(drawings.DrawingsSettings, args=[*map(str, flags)]))
    rows = json.loads((tmp_path / "d.json").read_text())
    assert [row["drawn as"] for row in rows] == [*ways, drawings.JPEG]
    assert all(
        row[f"read as {kind}"] == 10 for row, kind in zip(rows[:2], ("edges", "lines"), strict=True)
    )
    assert rows[0]["less than clean"] == 0 and rows[0]["EF0 to the true edges"] > 0
    assert all(sum(row[f"read as {k}"] for k in ("edges", "lines", "photo")) == 10 for row in rows)
    assert rows[2]["with advice"] == rows[2]["read as photo"] == 10 and not rows[1]["with advice"]
    assert f"| {drawings.JPEG} |" in capsys.readouterr().out


def results_with(gain: Estimate | None, **others) -> dict:
    row = {"gain": gain, "ce": 0.8, "ch": 0.78 if gain is None else 0.2}
    full = {"classifier": {"acc_class": 0.9}, "base": {"loss with control": 1.0}, "dataset": "d"}
    return full | {"control": {"perfect": row}} | others


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (results_with(Estimate(0.6, 0.5, 0.7)), ["control works: GAIN 0.60"]),
        (results_with(Estimate(0.02, 0.01, 0.04)), ["control does not work yet: GAIN 0.02"]),
        (results_with(Estimate(0.5, -12, 11)), ["control does not work yet: GAIN 0.50"]),
        (results_with(None), ["an image after the autoencoder follows edges by only 0.02 more"]),
        (
            results_with(Estimate(0.6, 0.5, 0.7), classifier={}),
            ["FD and accuracies, which need a judge", "control works"],
        ),
        (results_with(None, control={}), ["they came with the pictures"]),
        (results_with(None, control={}, base={}), []),
    ],
)
def test_what_the_numbers_come_to_is_said_in_words(results, said):
    lines = evaluate_file.plain_words(results)
    assert len(lines) == len(said) and all(map(operator.contains, lines, said))


def test_a_base_alone_is_measured_in_bf16_if_asked_and_writes_no_file(runs, monkeypatch, capfd):
    kept = []
    tables = evaluate_file.print_tables
    monkeypatch.setattr(evaluate_file, "print_tables", lambda r: (kept.append(r), tables(r)))
    monkeypatch.setattr(files, "write_json", lambda *_: pytest.fail("written"))
    args = ["--base", runs / "base", "--n", 1000, "--steps", 1, "--precision", "bf16"]
    evaluate(parse(EvaluateSettings, args=[str(arg) for arg in args]))
    (results,) = kept
    assert (results["n"], results["seed"], results["precision"]) == (64, 0, "bfloat16")
    assert results["control"] == {} and set(results["seconds"]) == {"vae", "base", "evaluate"}
    assert "prompts" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", [sample.SampleSettings, EvaluateSettings])
def test_settings_stay_as_they_were_checked(kind):
    with pytest.raises(FrozenInstanceError):
        kind().steps = -1


def test_what_evaluate_takes_by_default():
    s = EvaluateSettings()
    assert (s.n, s.guidance, s.steps, s.control_passes, s.seed) == (500, 2.0, 10, "prompted", 0)
    assert (s.control, s.transfer, s.json, s.compare, s.precision) == (
        None,
        False,
        None,
        (),
        "auto",
    )


def test_evaluate_refuses_before_it_samples(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_file, "sample_images", lambda *_, **__: pytest.fail("sampled"))
    for settings, words in (
        ({"steps": 1001}, "--steps 1001: must be between 1 and 1000"),
        ({"json": tmp_path}, f"--json {tmp_path}: cannot be written"),
        ({"base": tmp_path}, str(tmp_path)),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(words)}"):
            evaluate(EvaluateSettings(**{"base": runs / "base", **settings}))
    for field, least, most in (("n", 10, 10**9), ("seed", 0, 2**62), ("steps", 1, 1000)):
        for value in (least, most):
            EvaluateSettings(**{field: value})
        with pytest.raises(ValueError, match=f"^{field} "):
            EvaluateSettings(**{field: least - 1})
    for field, value in (("seed", 2**62 + 1), ("guidance", 1001), ("guidance", -1001)):
        with pytest.raises(ValueError, match=f"^{field} "):
            EvaluateSettings(**{field: value})
    EvaluateSettings(guidance=-1000), EvaluateSettings(guidance=1000)


def test_ten_test_images_are_enough_and_nine_are_not(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_file, "measure_base", lambda *_: {})
    for limit in (10, 9):
        shutil.copytree(runs / "base", tmp_path / str(limit))
        chosen = json.loads((runs / "base" / "settings.json").read_text())
        chosen["data"]["limit"] = limit
        files.write_json(tmp_path / str(limit) / "settings.json", chosen)
        save_base(tmp_path / str(limit), base_of(runs))
    evaluate(EvaluateSettings(tmp_path / "10", steps=1000))  # as many as there are
    with pytest.raises(UserError, match=r"--limit leave 9 test images; 10 are needed"):
        evaluate(EvaluateSettings(tmp_path / "9"))


def test_a_control_of_another_base_is_measured_only_if_told(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "base", tmp_path / "base")
    save_base(tmp_path / "base", randomise(load_base(runs / "base")))
    for part in ("measure_base", "measure_control"):
        monkeypatch.setattr(evaluate_file, part, lambda *_: {})
    settings = EvaluateSettings(tmp_path / "base", runs / "control")
    with pytest.raises(UserError, match="--transfer"):
        evaluate(settings)
    evaluate(replace(settings, transfer=True))


def test_to_compare_is_to_measure_nothing(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(evaluate_file, "compare", lambda *args: called.append(args))
    monkeypatch.setattr(evaluate_file, "evaluate", lambda *_: pytest.fail("measured"))
    args = ["--compare", "a.json", "b.json", "--plot", "c.png", "--base", str(tmp_path)]
    evaluate(parse(EvaluateSettings, args=args))
    assert called == [((Path("a.json"), Path("b.json")), Path("c.png"))]


# ---------------------------------------------------------------- gallery


def test_the_predicted_z_0_of_a_step_is_that_of_the_eps_which_the_model_predicts(runs):
    """z_0 = (z_t - sigma_t eps) / alpha_t [DDIM, eq. 12], at each of the timesteps, and last the sample."""
    ldm, how = base_of(runs), {"seed": 3, "steps": 4}
    found = list(predicted(ldm, [RED, BLUE], guidance=1.0, **how))
    z_T = seeded(3, 2)(torch.Size([2, *ldm.latent_shape]))
    states = [z_T, *generate(ldm, [RED, BLUE], guidance=1.0, sampler="ddim", **how)]
    for t, z_t, z_0 in zip(ldm.schedule.timesteps(4), states, found, strict=False):
        with torch.no_grad():
            eps = ldm.eps_fn([RED, BLUE])(z_t, torch.tensor([t, t]))
        alpha, sigma = ldm.schedule.alpha_sigma(t)
        torch.testing.assert_close(z_0, (z_t - sigma * eps) / alpha, rtol=1e-4, atol=1e-3)
    assert torch.equal(found[-1], states[-1])


def test_a_gallery_shows_the_first_image_of_each_drawing():
    assert first_of_each(torch.tensor([7, 7, 5, 7, 9, 5]), 2) == [0, 2]
    assert first_of_each(torch.tensor([7, 7, 5, 7, 9, 5]), 9) == [0, 2, 4]


def test_a_gallery_asks_for_every_colour_of_the_same_class():
    data = load("shapes", "test", limit=400)
    prompts = in_every_colour(data, 0)
    shape, colours = data.names["class"][data.labels["class"][0]], data.names["colour"]
    assert [f"{colour} {shape}" in prompt for colour, prompt in zip(colours, prompts, strict=True)]
    asked = data.labels["colour"][[data.captions.full().index(p) for p in prompts]].tolist()
    there = {*data.labels["colour"][data.labels["class"] == data.labels["class"][0]].tolist()}
    assert [v if v in there else asked[v] for v in range(6)] == asked


def test_a_gallery_has_hint_colours_with_control_and_the_same_without(runs):
    flags = [*("--rows", 2, "--animation-rows", 1, "--steps", 3, "--seed", 4, "--device", "cpu")]
    places = ["--base", runs / "base", "--control", runs / "control", "--out", runs / "g.png"]
    args = [str(arg) for arg in (*places, "--animation", runs / "g.gif", *flags)]
    gallery(parse(GallerySettings, args=args))
    size = (64 + LINE + GAP) * 2, 14 * (64 + GAP), 3  # hint, 6 colours, a gap, 6 colours
    with Image.open(runs / "g.png") as picture:
        pixels = np.asarray(picture)
    with Image.open(runs / "g.gif") as animation:
        assert animation.n_frames == 3 and animation.size == (size[1], size[0] // 2)
        assert animation.info["loop"] == 0
    assert pixels.shape == size
    row = [pixels[LINE : LINE + 64, x : x + 64] for x in range(0, size[1], 64 + GAP)]
    ldm, test = base_of(runs), load("shapes", "test", limit=64, held_out=True)
    controlnet, _ = load_control(runs / "control", runs / "base", ldm)
    placed(controlnet)
    hints, prompts = canny(test.images[:2]), [in_every_colour(test, i) for i in (0, 1)]
    column = [of[2] for of in prompts]
    how = {"sampler": "ddim", "steps": 3, "seed": 4, "control_passes": "prompted"}
    for controls, place in (([Control(controlnet, hints)], 3), ([], 10)):
        x = ldm.vae.decode(last(generate(ldm, column, controls=controls, **how)))[0]
        wanted = to_uint8(x.detach()).permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
        assert np.abs(row[place].astype(int) - wanted).max() <= 1
    assert row[7].min() == 255


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "g.jpg"], r"--out g\.jpg: name a file that ends in \.png"),
        (["--animation", "g.png"], r"--animation g\.png: .* \.gif"),
        (["--rows", "0"], "--rows 0: must be between 1 and 100"),
    ],
)
def test_a_gallery_refuses_what_it_cannot_write(flags, words):
    with pytest.raises(UserError, match=words):
        parse(GallerySettings, args=flags)
