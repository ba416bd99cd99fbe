"""Uploads to the app: images are accepted unchanged, and files that only look like images are refused."""

import os

import numpy as np
import pytest
from PIL import Image

from app.upload import MAX_BYTES, read_upload, safe_stem
from utils.errors import InputError

ENDINGS = ("png", "jpg", "webp", "bmp", "tif")


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_of_pictures_is_read(tmp_path, ending):
    Image.new("RGB", (20, 10), (250, 0, 0)).save(tmp_path / f"a.{ending}")
    found = read_upload(tmp_path / f"a.{ending}")
    assert found.size == (20, 10) and found.mode == "RGB"
    assert np.abs(np.asarray(found).reshape(-1, 3).mean(0) - [250, 0, 0]).max() < 6


def test_a_photograph_is_turned_upright(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_upload(tmp_path / "a.jpg").size == (10, 20)


def large(path):
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


def program(path):
    """PostScript: Pillow would start Ghostscript on it."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


REFUSED = {
    "text": ("a.png", lambda path: path.write_text("hello"), "a.png: not a readable image"),
    "nothing": ("a.png", lambda path: path.touch(), "a.png: "),
    "another ending": ("a.svg", lambda path: path.write_text("<svg/>"), r"a.svg: not an image format we read \(\.png"),
    "a program": ("a.png", program, r"a.png: not a readable image \(cannot identify"),
    "bytes": ("a.png", large, "a.png: more than 32 MB; save it smaller"),
    "pixels": (
        "a.png",
        lambda path: Image.new("1", (4001, 4000)).save(path),
        "4001x4000 pixels, more than 16,000,000",
    ),
    "a strip": ("a.png", lambda path: Image.new("1", (900, 100)).save(path), "900x100 pixels, longer than 8:1; crop"),
    "a folder": ("a.png", lambda path: path.mkdir(), "a.png: "),
    "a file that is gone": ("a.png", lambda path: None, r"a.png: cannot be read \(No such file"),
}


@pytest.mark.parametrize(("name", "make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_picture_for_us_is_refused_without_naming_its_folder(tmp_path, name, make, reason):
    make(tmp_path / name)
    with pytest.raises(InputError, match=reason) as error:
        read_upload(tmp_path / name)
    assert str(tmp_path) not in str(error.value)


def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (5000, 5000)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match="5000x5000 pixels"):
        read_upload(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "stem"),
    [("photo.jpg", "photo"), ("../../x y.png", "x_y"), ("-.png", "-"), ("é.png", "é"), ("<b>&.png", "b"),
     (".png", "png"), ("?.png", "image"), ("a" * 99 + ".png", "a" * 60)],
)  # fmt: skip
def test_files_made_of_an_upload_have_harmless_names(name, stem):
    assert safe_stem(name) == stem
    assert os.sep not in safe_stem(name)
