"""Atomic writes: what is flushed to the disk, and what is only renamed."""

import numpy as np
import pytest

from utils.errors import InputError
from utils.image_io.files import save_png
from utils.system import atomic


@pytest.fixture
def flushed(monkeypatch) -> list:
    """The files and folders that were flushed."""
    paths: list = []
    monkeypatch.setattr(atomic, "sync", paths.append)
    return paths


@pytest.mark.parametrize("write", [
    lambda path: save_png(path, np.zeros((2, 3), np.uint8)),
    lambda path: atomic.save_npy(path, np.zeros(3)),
    lambda path: atomic.save_bytes(path, b"content"),
], ids=["png", "npy", "bytes"])  # fmt: skip
def test_files_that_can_be_predicted_again_are_renamed_without_a_flush(write, flushed, tmp_path):
    write(tmp_path / "map")
    assert flushed == [] and [path.name for path in tmp_path.iterdir()] == ["map"]
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "nowhere" / "map")


def test_other_files_are_flushed_before_the_rename_and_their_folder_after_it(flushed, tmp_path):
    atomic.write_json(tmp_path / "best.json", {})
    assert flushed == [tmp_path / ".best.json.part", tmp_path]


def test_a_write_that_fails_leaves_the_former_file(tmp_path):
    def fail(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "map").write_text("whole")
    with pytest.raises(InputError, match="No space left"):
        atomic.save(tmp_path / "map", fail)
    assert (tmp_path / "map").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
