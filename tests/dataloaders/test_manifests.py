"""Manifests and folders from other systems: read if they are unambiguous, otherwise refused with the line."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataloaders import listing
from dataloaders.check import main as check
from dataloaders.listing import folder_samples, manifest_samples
from utils.errors import InputError

NAMES = ("a", "b", "café", "deep/e")
NFD = unicodedata.normalize("NFD", "café")


@pytest.fixture
def data(tmp_path) -> Path:
    """images/ and labels/ with four names."""
    for folder in ("images", "labels"):
        for name in NAMES:
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
    return tmp_path


def written(data: Path, content: bytes) -> Path:
    (data / "list.jsonl").write_bytes(content)
    return data / "list.jsonl"


def line(name: str = "a", **changes: str) -> str:
    return json.dumps({"image": f"images/{name}.png", "label": f"labels/{name}.png"} | changes, ensure_ascii=False)


PLAIN = "\n".join(map(line, NAMES))


@pytest.mark.parametrize("content", [
    PLAIN.encode("utf-8-sig"),
    PLAIN.replace("\n", "\r\n").encode(),
    PLAIN.replace("\n", "\r").encode(),
    PLAIN.replace("/", "\\\\").encode("utf-8-sig"),
    unicodedata.normalize("NFD", PLAIN).encode(),
], ids=["BOM", "CRLF", "CR", "backslashes", "decomposed"])  # fmt: skip
def test_files_of_other_systems_list_the_same_samples(data, content):
    plain = manifest_samples(written(data, PLAIN.encode()))
    assert [sample.stem for sample in plain] == [f"images/{name}" for name in NAMES]
    assert manifest_samples(written(data, content)) == plain
    assert check(["--dataset", "manifest", "--manifest", str(data / "list.jsonl")]) == 0


def test_names_on_disk_may_be_decomposed(data):
    (data / "images" / "café.png").rename(data / "images" / f"{NFD}.png")
    (sample,) = manifest_samples(written(data, line("café").encode()))
    assert sample.rgb == str(data / "images" / f"{NFD}.png") and sample.label == str(data / "labels/café.png")
    paired = {sample.stem: sample for sample in folder_samples(data)}
    assert paired[NFD].label == str(data / "labels" / "café.png") and len(paired) == 4


def test_a_separator_inside_a_name_does_not_end_a_line(data):
    (data / "images" / "a\u2028b.png").symlink_to(data / "images" / "a.png")
    samples = manifest_samples(written(data, line("a", image="images/a\u2028b.png").encode()))
    assert Path(samples[0].rgb).is_file()


@given(st.text("./ab\0", min_size=1), st.sampled_from([".", "/", "..", "a", "/a/b"]))
def test_a_path_is_joined_and_its_ending_removed_as_pathlib_does(text, folder):
    find = listing._Finder(Path(folder))
    assert find.written(text) == str(Path(folder) / text)
    if Path(text).name:
        expected = Path(text).with_suffix("").as_posix()
        assert listing._without_ending(find, text, find.written(text), "") == expected


@pytest.mark.parametrize(("changes", "message"), [
    ({"image": "C:\\data\\a.png"}, r"list.jsonl:2: C:\\\\?data\\\\?a.png is a path of another computer"),
    ({"image": "\\\\server\\data\\a.png"}, "list.jsonl:2: .* is a path of another computer"),
    ({"image": "images/A.PNG"}, r"list.jsonl:2: images/A.PNG is not there, but images/a.png is: capitals count"),
    ({"label": "Labels/a.png"}, r"list.jsonl:2: Labels/a.png is not there, but labels/a.png is"),
    ({"image": "images/a.png "}, r"list.jsonl:2: 'images/a.png ' begins or ends with spaces"),
    ({"image": " images\\a.png"}, "list.jsonl:2: .* begins or ends with spaces"),
    ({"image": "./"}, "list.jsonl:2: image './' is a folder; name a file"),
])  # fmt: skip
def test_paths_in_doubt_are_named_with_their_line(data, changes, message):
    path = written(data, f"{line('b')}\n{line('a', **changes)}".encode())
    with pytest.raises(InputError, match=message):
        manifest_samples(path)


@pytest.mark.parametrize(("content", "message"), [
    (f"{line('a')}\n{line('café')}".encode("latin-1"), "list.jsonl:2: not UTF-8 text .*save it as UTF-8"),
    (line("a").encode("utf-16"), "list.jsonl:1: UTF-16 text.*save it as UTF-8"),
])  # fmt: skip
def test_other_encodings_are_named_with_their_line(data, content, message):
    with pytest.raises(InputError, match=message):
        manifest_samples(written(data, content))


@pytest.mark.parametrize("folder", ["labels", "gt", "masks"])
def test_names_in_other_capitals_are_not_ignored(data, folder):
    (data / folder).mkdir(exist_ok=True)
    (data / "labels" / "a.png").rename(data / folder / "A.png")
    with pytest.raises(InputError, match=r"A.png and .*images/a.png differ in capitals"):
        folder_samples(data)


def test_two_files_that_differ_in_capitals_are_two_samples(data):
    for folder in ("images", "labels"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(data / folder / "A.png")
    assert {"a", "A"} < {sample.stem for sample in folder_samples(data)}
    assert len(manifest_samples(written(data, f"{line('a')}\n{line('A')}".encode()))) == 2


def test_an_image_as_its_own_label_is_refused(data):
    listed = written(data, "\n".join([*map(line, NAMES[1:]), line(label="images/a.png")]).encode())
    with pytest.raises(InputError, match=r"images/a\.png: is both image and label \(1 of 4 samples"):
        check(["--dataset", "manifest", "--manifest", str(listed)])
    words = ["--dataset", "folder", "--train_data_dir", str(data), "--pseudo_root", str(data / "images")]
    with pytest.raises(InputError, match=r"is both image and label \(4 of 4 samples"):
        check(words)
