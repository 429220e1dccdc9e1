"""Files: whole or not at all, and any bytes are either read or one clear error."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyldm.data.fashion_mnist import read_idx
from tinyldm.data.pictures import read_image
from tinyldm.support import files
from tinyldm.support.errors import UserError
from tinyldm.training.networks import load_base, load_tokenizer


def test_tensors_round_trip_and_obey_the_umask(tmp_path):
    tensors = {
        "a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "b": torch.arange(3),
    }
    files.write_tensors(tmp_path / "x", tensors)
    loaded = files.read_tensors(tmp_path / "x", "")
    assert loaded.keys() == tensors.keys() and all(
        torch.equal(loaded[k], tensors[k]) for k in tensors
    )
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    files.write(tmp_path / "x", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        files.write(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


READERS = {
    "tensors": lambda path: files.read_tensors(path, "remedy"),
    "json": lambda path: files.read_json(path, "remedy"),
    "idx": lambda path: read_idx(path, "0" * 64),
    "picture": lambda path: read_image(path, 1, 32),
    "vocabulary": load_tokenizer,
    "config": lambda path: load_base(path.parent),
}


@pytest.mark.parametrize("name", READERS)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.sampled_from([b"[]", b"{}", b'{"vae": 3}', b"\0" * 8, b"null", b"1"]),
    )
)
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_read_or_are_one_clear_error(tmp_path_factory, name, content):
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(content)
    try:
        READERS[name](path)
    except UserError as error:
        assert "config.json" in str(error) or "vocabulary.json" in str(error)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    """A pickle that would make a file when loaded, under the name of weights."""
    target = tmp_path / "executed"
    content = b"cos\nsystem\n(S'touch " + str(target).encode() + b"'\ntR."
    (tmp_path / "unet.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="safetensors"):
        files.read_tensors(tmp_path / "unet.safetensors", "remedy")
    assert not target.exists()
