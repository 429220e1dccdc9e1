"""A user's own folder: metadata, pictures of every kind, splits that never move."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_commands import COMMANDS, error_of
from test_pictures import png_header

from tinyldm.data import folder as folder_file
from tinyldm.data.conditions import Condition
from tinyldm.data.folder import (
    HINT,
    channels_of,
    folder_checksum,
    folder_dataset,
    items_of,
    number_of,
    read_split,
    split_of,
)
from tinyldm.data.hints import read_hint
from tinyldm.support.errors import UserError
from tinyldm.training.previews import save_examples
from tinyldm.training.run_folder import load_data
from tinyldm.training.settings import DataSettings


@pytest.fixture(autouse=True)
def fresh():
    read_split.cache_clear()


def picture(path: Path, colour=(200, 30, 40), size=(40, 30), mode="RGB", **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **how)
    return path


def described(folder: Path, rows: list, name="metadata.jsonl", before="", between="\n") -> Path:
    folder.mkdir(exist_ok=True)
    text = before + between.join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_bytes(text.encode())
    return folder


def pictures(folder: Path, n: int = 40) -> list[str]:
    return [picture(folder / f"{i}.png", (i, 2 * i, 3 * i)).name for i in range(n)]


# ---------------------------------------------------------------- metadata


def test_metadata_gives_captions_whatever_the_order_of_its_lines(tmp_path):
    names = pictures(tmp_path, 3)
    described(tmp_path, [{"file_name": n, "text": f" picture {n} "} for n in reversed(names)])
    found = [(i.name, i.caption) for i in items_of(tmp_path)]
    assert found == [(n, f"picture {n}") for n in sorted(names, key=number_of)]


@pytest.mark.parametrize("between", ["\n", "\r\n"])
@pytest.mark.parametrize("before", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_line_ends_byte_order_marks_spaces_and_umlauts_are_read(tmp_path, name, before, between):
    file = picture(tmp_path / "süß und groß.png").name
    rows = [{"file_name": file, "text": "ein Äpfelchen, rot"}]
    if name.endswith("csv"):
        rows = ["file_name,text", f'{file},"ein Äpfelchen, rot"', ""]
    described(tmp_path, rows, name, before, between)
    assert items_of(tmp_path) == [(file, "ein Äpfelchen, rot", "", "")]


def test_a_caption_may_be_missing(tmp_path, capsys):
    names = pictures(tmp_path, 4)
    rows = [{"file_name": n} | ({"text": t} if t != "-" else {})
            for n, t in zip(names, ("-", None, " ", "a dog"), strict=True)]  # fmt: skip
    described(tmp_path, rows)
    assert sorted(item.caption for item in items_of(tmp_path)) == ["", "", "", "a dog"]


WRONG = {
    '{"file_name": "0.png"': r"metadata\.jsonl, line 2: not a line of JSON",
    "[1]": r"line 2: not a JSON object",
    '{"text": "x"}': r"line 2: no file_name",
    '{"file_name": 3}': r"line 2: no file_name",
    '{"file_name": "9.png"}': r"line 2: there is no picture .*9\.png",
    '{"file_name": "0.png"}': r"line 2: 0\.png is listed twice",
    '{"file_name": "1.png", "text": 3}': r"line 2: text is 3, no text",
    '{"file_name": "../out.png"}': r"line 2: file_name '\.\./out\.png' lies outside",
    '{"file_name": "/etc/passwd"}': r"line 2: file_name '/etc/passwd' lies outside",
    '{"file_name": "link.png"}': r"line 2: file_name 'link\.png' lies outside",
    json.dumps({"file_name": "x" * 300}): r"line 2: cannot be read \(File name too long\); mend",
    '{"file_name": "0\\u0000.png"}': r"line 2: not a file_name .*null byte.*; mend the name",
    '{"file_name": "\\ud800.png"}': r"line 2: (not a file_name|there is no picture)",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_named_with_its_file(tmp_path, line):
    folder = tmp_path / "folder"
    pictures(folder, 2)
    picture(tmp_path / "out.png")
    os.symlink(tmp_path / "out.png", folder / "link.png")
    described(folder, [{"file_name": "0.png", "text": "a"}, line])
    with pytest.raises(UserError, match=WRONG[line]) as error:
        items_of(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


TABLES = {
    "file_name;text\n0.png;a dog\n": r"has no column file_name \(but file_name;text\).* by commas$",
    'file_name,text\n0.png,"a dog\n1.png,a cat\n': r"not a table .*; mend its quotes$",
    "": r"has no column file_name",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_wrong_table_is_named_with_what_to_do(tmp_path, table):
    pictures(tmp_path, 2)
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(UserError, match=TABLES[table]) as error:
        items_of(tmp_path)
    assert "metadata.csv" in str(error.value)


def test_a_caption_may_have_breaks_that_are_no_end_of_a_line(tmp_path):
    pictures(tmp_path, 1)
    text = "a\u2028dog\u0085here"
    (tmp_path / "metadata.jsonl").write_text(
        f'{{"file_name": "0.png", "text": "{text}"}}\n', "utf-8"
    )
    assert [item.caption for item in items_of(tmp_path)] == [text]


def test_folders_of_splits_and_metadata_further_down_are_told_with_what_to_do(tmp_path):
    for split in ("train", "test"):
        pictures(tmp_path / split / "dog", 2)
    with pytest.raises(UserError, match=r"its folders are splits; give --dataset \S+/train$"):
        items_of(tmp_path)
    assert {item.kind for item in items_of(tmp_path / "train")} == {"dog"}
    pictures(tmp_path / "car", 1)  # so "train" may be one
    assert {item.kind for item in items_of(tmp_path)} == {"train", "test", "car"}
    described(tmp_path / "train", [])
    with pytest.raises(UserError, match=r"train/metadata\.jsonl: .*; give --dataset \S+/train$"):
        items_of(tmp_path)


def test_pictures_of_a_class_may_be_links(tmp_path):
    picture(tmp_path / "elsewhere.png")
    (tmp_path / "data" / "dog").mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere.png", tmp_path / "data" / "dog" / "0.png")
    assert [item.name for item in items_of(tmp_path / "data")] == ["dog/0.png"]


def test_two_metadata_files_and_text_that_is_no_utf8_are_errors(tmp_path):
    pictures(tmp_path, 1)
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\n0.png,\xff\xfe\n")
    with pytest.raises(UserError, match=r"metadata\.csv: not UTF-8 text.*save it as UTF-8"):
        items_of(tmp_path)
    described(tmp_path, [])
    with pytest.raises(UserError, match=r"has metadata\.jsonl and metadata\.csv; remove one"):
        items_of(tmp_path)


def test_class_folders_are_captions_and_labels(tmp_path):
    for kind in ("dog", "ice_cream"):
        for i in range(30):
            picture(tmp_path / kind / f"{i}.png", (i, 0, 0))
    picture(tmp_path / ".cache" / "x.png")
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    assert {i.caption for i in items_of(tmp_path)} == {
        "a photo of a dog",
        "a photo of an ice cream",
    }
    data = folder_dataset(tmp_path, "train", 8)
    assert data.names == {"class": ("dog", "ice_cream")}
    assert [data.names["class"][i] for i in data.labels["class"]] == [
        c.split(maxsplit=4)[4].replace(" ", "_") for c in data.captions.full()
    ]


def test_a_folder_without_pictures_or_that_is_none_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has no pictures; give one with pictures"):
        items_of(tmp_path)
    with pytest.raises(UserError, match="no folder; give one"):
        items_of(tmp_path / "none")
    with pytest.raises(
        ValueError, match="dataset nothing: neither a folder nor one of fashion-mnist"
    ):
        DataSettings("nothing")


# ---------------------------------------------------------------- splits


def test_splits_are_by_name_alone_and_never_move(tmp_path):
    names = pictures(tmp_path, 60)
    before = {name: split_of(name) for name in names}
    found = {s: [i.name for i in read(tmp_path, s)] for s in ("train", "validation", "test")}
    assert {n: s for s, every in found.items() for n in every} == before
    (tmp_path / names[0]).unlink()
    picture(tmp_path / "new.png")
    read_split.cache_clear()
    for split, every in found.items():
        assert {i.name for i in read(tmp_path, split)} - {"new.png"} == set(every) - {names[0]}
    shares = [split_of(f"{i}.jpg") for i in range(10_000)]
    assert shares.count("train") == pytest.approx(8000, abs=150)
    assert shares.count("test") == pytest.approx(1000, abs=120)
    assert [split_of(f"{i}.png") for i in range(4)] == ["train", "train", "train", "train"]


def test_the_first_pictures_of_a_split_are_of_all_classes(tmp_path):
    """Previews, the watched validation images and --limit take the first."""
    for kind in "abcd":
        pictures(tmp_path / kind, 40)
    assert {item.kind for item in read(tmp_path, "train", limit=20)} == set("abcd")
    assert len({item.kind for item in read(tmp_path, "validation")[:4]}) > 1


def read(folder: Path, split: str, limit: int = 0):
    return read_split(folder, split, 8, limit, "white", folder_file.HINT, False)[2]


def test_a_split_without_pictures_is_an_error(tmp_path):
    picture(tmp_path / "0.png")
    with pytest.raises(UserError, match="no picture in its test split; add pictures"):
        folder_dataset(tmp_path, "test", 8)


# ---------------------------------------------------------------- pictures

KINDS = {
    "RGBA": ("png", (200, 30, 40)),
    "P": ("png", (200, 30, 40)),
    "CMYK": ("jpg", (200, 30, 40)),
    "LA": ("png", None),
    "L": ("png", None),
    "1": ("png", (255, 255, 255)),
}


@pytest.mark.parametrize("mode", KINDS)
def test_pictures_of_every_mode_come_in_their_colours(tmp_path, mode):
    ending, colour = KINDS[mode]
    picture(tmp_path / f"0.{ending}", mode=mode)
    image = folder_dataset(tmp_path, split_of(f"0.{ending}"), 8).images[0].float()
    grey = torch.tensor([0.299, 0.587, 0.114]) @ torch.tensor([200.0, 30, 40])
    expected = torch.tensor(colour or [grey] * 3).float()
    if mode == "1":
        assert set(image.unique().tolist()) <= set(range(256))
    else:
        assert (image - expected[:, None, None]).abs().max() <= 8  # a palette is dithered


def test_sixteen_bits_are_scaled_and_turned_pictures_turned(tmp_path):
    Image.fromarray(np.full((9, 9), 30000, np.uint16)).save(tmp_path / "0.png")
    exif = Image.Exif()
    exif[274] = 6  # turned right
    half = Image.new("L", (8, 8), 0)
    half.paste(255, (0, 0, 8, 4))  # bright above
    half.save(tmp_path / "1.png", exif=exif)
    images = folder_dataset(tmp_path, "train", 8).images
    assert (images[0] == 30000 // 257).all()
    assert (
        images[1, :, :, 4:].min() == 255 and images[1, :, :, :4].max() == 0
    )  # bright at the right


def test_transparent_pictures_are_put_on_a_ground(tmp_path):
    Image.fromarray(np.zeros((8, 8, 4), np.uint8) + np.array([9, 9, 9, 0], np.uint8)).save(
        tmp_path / "0.png"
    )
    for ground, value in (("white", 255), ("black", 0), ("#808080", 128)):
        assert (folder_dataset(tmp_path, "train", 8, ground=ground).images == value).all()
    with pytest.raises(ValueError, match="background beige-ish: no colour; try white"):
        DataSettings(background="beige-ish")


def test_the_middle_square_is_scaled(tmp_path):
    image = np.zeros((16, 32), np.uint8)
    image[:, 8:24], image[:, :8] = 200, 100
    Image.fromarray(image).save(tmp_path / "0.png")
    assert (folder_dataset(tmp_path, "train", 8).images == 200).all()


def test_channels_are_those_of_the_training_pictures(tmp_path):
    for i in range(40):
        picture(tmp_path / f"{i}.png", (i, i, i))
    settings = DataSettings(str(tmp_path), resolution=32)
    assert [d.images.shape[1] for d in load_data(settings, "train", "validation")] == [1, 1]
    assert load_data(settings, "test", channels=3)[0].images.shape[1] == 3
    picture(tmp_path / "0.png", (255, 0, 0))
    read_split.cache_clear()
    assert channels_of(tmp_path, 8, 0, "white", folder_file.HINT, False) == 3
    assert load_data(settings, "validation")[0].images.shape[1] == 3


BAD = {"zero": b"", "html": b"<html><body>not found</body></html>", "cut": None}


@pytest.mark.parametrize("kind", BAD)
def test_a_broken_picture_is_named_or_skipped_and_counted(tmp_path, capsys, kind):
    names = pictures(tmp_path, 12)
    whole = (tmp_path / "3.png").read_bytes()
    for name in names[3:10]:
        (tmp_path / name).write_bytes(whole[: len(whole) // 2] if BAD[kind] is None else BAD[kind])
    count = sum(split_of(name) == "train" for name in names)
    broken = sum(split_of(name) == "train" for name in names[3:10])
    with pytest.raises(UserError, match=r"[3-9]\.png: .*picture.*; or give --skip-bad-images"):
        folder_dataset(tmp_path, "train", 8)
    capsys.readouterr()
    data = folder_dataset(tmp_path, "train", 8, skip=True)
    assert len(data) == count - broken
    told = capsys.readouterr().err
    assert told.count("it is skipped") == min(5, broken)
    assert (f"{broken} pictures are skipped in all" in told) == (broken > 5)
    kept = [n for n in names if split_of(n) == "train" and n not in names[3:10]]
    assert [int(x) for x in data.images[:, 0, 0, 0]] == [
        int(Path(n).stem) for n in sorted(kept, key=number_of)
    ]


# ---------------------------------------------------------------- hints


def test_hints_may_come_with_the_pictures(tmp_path):
    names, rows = pictures(tmp_path, 20), []
    for i, name in enumerate(names):
        edges = Image.new("L", (30, 30), 0)
        edges.paste(255, (i % 7, 0, i % 7 + 5, 30))
        (tmp_path / "hints").mkdir(exist_ok=True)
        edges.save(tmp_path / "hints" / name)
        rows.append({"file_name": name, "text": "x", "drawing": f"hints/{name}"})
    described(tmp_path, rows)
    data = folder_dataset(tmp_path, "train", 30, column="drawing")
    assert data.hints.dtype == torch.bool and data.hints.shape == (len(data), 1, 30, 30)
    train = sorted((n for n in names if split_of(n) == "train"), key=number_of)
    for hint, name in zip(data.hints, train, strict=True):
        start = int(Path(name).stem) % 7
        assert hint[0, :, start : start + 5].all() and hint.sum() == 150
    assert torch.equal(data.subset(torch.tensor([2])).hints, data.hints[[2]])
    assert folder_dataset(tmp_path, "train", 30).hints is None
    del rows[0]["drawing"]
    described(tmp_path, rows)
    read_split.cache_clear()
    with pytest.raises(UserError, match="some pictures have a drawing and some have not"):
        folder_dataset(tmp_path, "test", 30, column="drawing")
    with pytest.raises(UserError, match=r"^--conditioning-image-column sketch: .* no such column"):
        folder_dataset(tmp_path, "train", 30, column="sketch")


MAPS = {  # of 512 pixels, and what of 64 x 64 they turn on
    "lines of a pixel": (lambda: drawn_map(1), (0.02, 0.1)),
    "lines of three": (lambda: drawn_map(3), (0.02, 0.1)),
    "a mask over most of it": (lambda: Image.new("L", (512, 512), 255), (1, 1)),
    "lines on a transparent layer": (lambda: clear(drawn_map(3)), (0.02, 0.1)),
}


def drawn_map(width: int) -> Image.Image:
    """White lines on black."""
    image = Image.new("L", (512, 512))
    for x in (100, 301):
        image.paste(255, (x, 0, x + width, 512))
    return image


def clear(drawn: Image.Image) -> Image.Image:
    """White where it was white, else transparent."""
    return Image.merge("LA", [Image.new("L", drawn.size, 255), drawn])


@pytest.mark.parametrize("kind", MAPS)
def test_hints_are_read_alike_in_training_and_for_samples(tmp_path, kind, capsys):
    """White on black, whatever of it is more: nothing is lost by scaling, and nothing inverted."""
    make, (low, high) = MAPS[kind]
    for i in range(3):
        picture(tmp_path / f"{i}.png", size=(512, 512))
        make().save(tmp_path / f"{i}-hint.png")
    rows = [{"file_name": f"{i}.png", "text": "x", HINT: f"{i}-hint.png"} for i in range(3)]
    data = folder_dataset(described(tmp_path, rows), "train", 64)
    assert low <= data.hints.float().mean() <= high and "hint" not in capsys.readouterr().err
    hint = read_hint(tmp_path / "0-hint.png", 3, 64, Condition("given"))
    assert torch.equal(hint.edges, data.hints[:1]) and not hint.notes


def test_examples_of_hints_that_came_with_the_pictures_are_these(tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.png")
        drawn_map(9).rotate(90 * i).save(tmp_path / f"{i}-hint.png")
    rows = [{"file_name": f"{i}.png", "text": "x", HINT: f"{i}-hint.png"} for i in range(4)]
    data = folder_dataset(described(tmp_path, rows), "train", 64)
    for i, path in enumerate(save_examples(tmp_path / "hints", data)):
        hint = read_hint(path, 3, 64, Condition("given"))
        assert torch.equal(hint.edges, data.hints[i : i + 1])


def test_empty_hints_are_told(tmp_path, capsys):
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    picture(tmp_path / "hint.png", 0, mode="L")
    rows = [{"file_name": f"{i}.png", "text": "x", HINT: "hint.png"} for i in range(3)]
    folder_dataset(described(tmp_path, rows), "train", 64)
    assert "note: 3 of 3 pictures of" in (told := capsys.readouterr().err)
    assert "have a hint without anything white" in told
    assert read_hint(tmp_path / "hint.png", 3, 64, Condition("given")).notes


def test_a_full_disk_is_told_before_pictures_are_decoded(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    pictures(tmp_path, 3)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"^\$TMPDIR, \S+: no room for \d+ MB; name another"):
        folder_dataset(tmp_path, "train", 64)


def test_what_identifies_a_folder(tmp_path):
    names = pictures(tmp_path, 3)
    before = folder_checksum(tmp_path)
    assert folder_checksum(tmp_path) == before
    os.utime(tmp_path / names[0], (1, 1))
    assert folder_checksum(tmp_path) == before
    described(tmp_path, [{"file_name": n, "text": "a dog"} for n in names])
    captioned = folder_checksum(tmp_path)
    (tmp_path / names[0]).write_bytes((tmp_path / names[0]).read_bytes() + b"0")
    assert len({before, captioned, folder_checksum(tmp_path)}) == 3
    described(tmp_path, [{"file_name": n, "text": "a dog", HINT: names[0]} for n in names])
    hinted = folder_checksum(tmp_path)
    picture(tmp_path / "hint.png", size=(99, 99))
    (tmp_path / "hint.png").replace(tmp_path / names[0])
    assert folder_checksum(tmp_path) != hinted


def test_many_pictures_are_decoded_by_processes(tmp_path, monkeypatch):
    pictures(tmp_path, 30)
    alone = folder_dataset(tmp_path, "train", 8)
    monkeypatch.setattr(folder_file, "processes", lambda n: 2)
    read_split.cache_clear()
    assert torch.equal(folder_dataset(tmp_path, "train", 8).images, alone.images)


# ---------------------------------------------------------------- from a folder to a picture


def odd_folder(folder: Path) -> Path:
    """A hundred pictures as people have them: umlauts, CMYK, 16 bits, a broken file, missing captions."""
    folder.mkdir()
    lines = []
    for i in range(100):
        name = f"Größe {i}.{'jpg' if i % 5 == 0 else 'png'}"
        image = Image.new("RGB", (50, 40), "white")
        image.paste((i, 200 - i, 90), (8 + i % 9, 8, 30, 30))
        image = image.convert("CMYK" if i % 5 == 0 else ("RGBA", "P", "LA")[i % 3])
        if i % 10 == 1:
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        image.save(folder / name)
        lines.append({"file_name": name, "text": "a box" if i % 4 else None})
    whole = (folder / "Größe 5.jpg").read_bytes()
    (folder / "Größe 5.jpg").write_bytes(whole[: len(whole) // 2])
    return described(folder, lines, before="\ufeff", between="\r\n")


def test_a_hundred_odd_pictures_train_are_evaluated_and_drawn(tmp_path, capfd, monkeypatch):
    folder = odd_folder(tmp_path / "meine Bilder")
    base, control, out = (tmp_path / name for name in ("base", "control", "s.png"))
    tiny = ["--preset", "tiny", "--dataset", folder, "--limit", 0]
    assert "5.jpg" in error_of(capfd, "train_base", *tiny, "--out", base)
    assert not base.exists()
    few = ["--steps", 2, "--preview-every", 2]

    def run(command: str, *flags: object) -> str:
        COMMANDS[command]([*map(str, flags)])
        read_split.cache_clear()
        printed = capfd.readouterr()
        return printed.out + printed.err

    # a batch of more images than there are
    vae = ["--vae-fit.steps", 2, "--vae-fit.batch-size", 100]
    printed = run("train_base", *tiny, *few, *vae, "--skip-bad-images", "--out", base)
    assert "5.jpg" in printed and "it is skipped" in printed and "have no caption" in printed
    monkeypatch.chdir(tmp_path)  # the folder is found from anywhere
    run("train_control", "--preset", "tiny", *few, "--base", base, "--out", control)
    ours = "--base", base, "--control", control
    printed = run("evaluate", *ours, "--steps", 1)
    assert "left out: FD and accuracies, which need a judge" in printed
    hint = sorted((control / "hints").iterdir())[0]
    printed = run(
        "sample", *ours, "--hint", hint, "--prompt", "a zebra box", "--steps", 1, "--out", out
    )
    assert "never trained with the word 'zebra'" in printed and "'box'" not in printed
    assert np.asarray(Image.open(out)).std() > 5 and out.with_name("s-hint-1.png").exists()


@pytest.mark.parametrize(
    "content", [b"", b"<html>", png_header(12_000, 12_000)], ids=["empty", "html", "144 megapixels"]
)
def test_a_picture_that_is_none_is_refused_by_its_header(tmp_path, content):
    pictures(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=r"1\.png: .*; or give --skip-bad-images"):
        folder_dataset(tmp_path, "train", 32)


def test_a_picture_of_one_pixel_is_enlarged(tmp_path):
    picture(tmp_path / "0.png", size=(1, 1))
    colour = torch.tensor([200, 30, 40], dtype=torch.uint8)
    assert (folder_dataset(tmp_path, "train", 32).images == colour[:, None, None]).all()
