"""Images, labels and ground truth of a data set whose content does not match their names."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from bad_files import arrays, pictures
from PIL import Image
from refusals import depths, normals, put, refused

pytestmark = pytest.mark.bad_input
# a name's ending matters not to Pillow, so contents of other formats are tried as .png
KEPT = [name for name, content in pictures().items() if content not in (b"", b"x")]
LABELS = [name for name in KEPT if name not in ("float.tif", "negative.tif")]
PLACES = {"a folder": Path.mkdir, "a pipe": os.mkfifo, "a loop": lambda path: path.symlink_to(path.name)}
IMAGES = [("depths", ".png"), ("pseudo/normal", ".png")]
TRUTH = [("normals", "_normal.npy"), ("depths", "_depth.npy"), ("depths", "_depth_mask.npy")]


def reader(folder: str, suffix: str):
    return depths if folder == "depths" and suffix != ".png" else normals


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize(("folder", "suffix"), IMAGES)
def test_a_file_that_is_not_an_image(folder, suffix, name, tree):
    root, stem = tree
    path = root / folder / f"{stem}{suffix}"
    put(path, pictures()[name])
    refused(lambda: normals(root)[0], re.escape(str(path)), "replace or remove|scale it down")


@pytest.mark.parametrize("name", arrays())
@pytest.mark.parametrize(("folder", "suffix"), TRUTH)
def test_a_file_that_is_no_array(folder, suffix, name, tree):
    root, stem = tree
    path = root / folder / f"{stem}{suffix}"
    put(path, arrays()[name])
    refused(lambda: reader(folder, suffix)(root)[0], re.escape(str(path)), "replace it or leave the sample out")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("folder", "suffix"), IMAGES + TRUTH)
def test_something_that_is_no_file(folder, suffix, place, tree):
    root, stem = tree
    path = root / folder / f"{stem}{suffix}"
    put(path, None)
    PLACES[place](path)
    refused(lambda: reader(folder, suffix)(root)[0], re.escape(str(path)), "not a file")


WRONG_ARRAYS = {
    "no axes": np.float32(3),
    "one axis": np.ones(5, np.float32),
    "four axes": np.ones((1, 72, 96, 3), np.float32),
    "two channels": np.ones((72, 96, 2), np.float32),
    "no pixels": np.ones((0, 0, 3), np.float32),
    "transposed": np.ones((96, 72, 3), np.float32),
    "channels first": np.ones((3, 72, 96), np.float32),
    "half the size": np.ones((36, 48, 3), np.float32),
    "integers": np.ones((72, 96, 3), np.int64),
    "complex numbers": np.ones((72, 96, 3), np.complex64),
    "text": np.full((72, 96, 3), "x"),
    "dates": np.zeros((72, 96, 3), "M8[s]"),
    "records": np.zeros((72, 96), [("x", "f4"), ("y", "f4"), ("z", "f4")]),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
@pytest.mark.parametrize(("folder", "suffix"), TRUTH[:2])
def test_an_array_of_another_kind(folder, suffix, name, tree):
    root, stem = tree
    np.save(root / folder / f"{stem}{suffix}", WRONG_ARRAYS[name])
    refused(lambda: reader(folder, suffix)(root)[0], re.escape(str(root)), "expected|next to|for a")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_array_without_a_number_is_invalid_everywhere(value, tree):
    """No mistake of the user: DIODE has them. They are masked, and never reach a metric."""
    root, stem = tree
    np.save(root / f"normals/{stem}_normal.npy", np.full((72, 96, 3), value, np.float32))
    np.save(root / f"depths/{stem}_depth.npy", np.full((72, 96, 1), value, np.float32))
    for item in (normals(root)[0], depths(root)[0]):
        assert not item["valid"].any()


WRONG_LABELS = {
    "16 bits": (np.full((72, 96), 40_000, np.uint16), "16-bit label.*8 bits"),
    "32-bit integers": (np.zeros((72, 96), np.int32), "16-bit label.*8 bits"),
    "another aspect": (np.zeros((40, 96, 3), np.uint8), "does not cover"),
    "upright": (np.zeros((96, 72, 3), np.uint8), "does not cover"),
    "one pixel high": (np.zeros((1, 96, 3), np.uint8), "does not cover"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_a_label_of_another_kind(name, tree):
    root, stem = tree
    pixels, message = WRONG_LABELS[name]
    path, image = root / f"pseudo/normal/{stem}.png", Image.fromarray(pixels)
    image.save(path, "TIFF" if image.mode == "I" else "PNG")
    refused(lambda: normals(root)[0], re.escape(str(path)), message)


def test_a_square_label_with_random_crops(tree):
    root, stem = tree
    Image.fromarray(np.zeros((72, 72, 3), np.uint8)).save(root / f"pseudo/normal/{stem}.png")
    refused(lambda: normals(root, center_crop=False)[0], "--center_crop")
