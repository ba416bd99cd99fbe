"""HEIC and AVIF, as phones and browsers save photographs: turned once, in sRGB, named where a package is missing."""

import builtins

import numpy as np
import pytest
from PIL import Image

from app.upload import read_upload
from dataloaders.listing import folder_samples
from dataloaders.to_label import find_pictures
from utils.errors import InputError
from utils.image_io import opening
from utils.image_io.images import read_rgb, size_of, upright_rgb
from utils.inference.inputs import find_inputs

pillow_heif = pytest.importorskip("pillow_heif")
COLOURS = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]], np.uint8)
PIXELS = COLOURS.repeat(20, 0).repeat(32, 1)  # (40, 64, 3): red, green; blue, white
UPRIGHT = {1: PIXELS, 2: PIXELS[:, ::-1], 3: np.rot90(PIXELS, 2), 5: PIXELS.swapaxes(0, 1), 6: np.rot90(PIXELS, -1),
           8: np.rot90(PIXELS)}  # fmt: skip


@pytest.fixture(autouse=True)
def every_note_is_new():
    opening._told.clear()


def save(path, orientation=1, pixels=PIXELS, **options):
    """A file by libheif or libavif, whose box irot and EXIF both state the orientation, as in those of phones."""
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif.tobytes(), quality=95, **options)
    return path


def assert_shows(image, expected):
    assert image.mode == "RGB" and image.size == expected.shape[1::-1] and image.info == {}
    assert np.abs(np.asarray(image).astype(int) - expected).mean() < 4


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", ["heic", "HEIF", "avif"])
def test_the_orientation_is_applied_once(tmp_path, ending, orientation):
    path = save(tmp_path / f"a.{ending}", orientation)
    for read in (read_rgb, read_upload, lambda path: upright_rgb(Image.open(path))):
        assert_shows(read(path), UPRIGHT[orientation])
    assert size_of(path) == UPRIGHT[orientation].shape[1::-1]


def test_the_orientation_in_exif_alone_does_not_turn_a_heic(tmp_path):
    """ISO/IEC 23008-12: irot and imir count, EXIF's orientation is a remark."""
    path = save(tmp_path / "a.heic", 6)
    data = path.read_bytes()
    assert data.count(b"irot\x03") == 1 and b"Exif" in data
    path.write_bytes(data.replace(b"irot\x03", b"irot\x00"))
    assert_shows(read_rgb(path), PIXELS)


def test_ten_bits_become_eight(tmp_path):
    deep = pillow_heif.from_bytes("RGB;16", (64, 40), (PIXELS.astype(np.uint16) * 257).tobytes())
    deep.save(tmp_path / "a.hif", quality=95)
    assert pillow_heif.open_heif(tmp_path / "a.hif").info["bit_depth"] == 10
    assert_shows(read_rgb(tmp_path / "a.hif"), PIXELS)


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_transparent_areas_are_white(tmp_path, ending, capsys):
    alpha = np.full(PIXELS.shape[:2], 255, np.uint8)
    alpha[:20, :32] = 0
    expected = np.where(alpha[..., None] == 0, 255, PIXELS)
    assert_shows(read_rgb(save(tmp_path / f"a.{ending}", pixels=np.dstack([PIXELS, alpha]))), expected)
    assert f"a.{ending}: transparent areas are shown on white" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_hdr_is_converted_to_srgb(tmp_path, ending, capsys):
    """PQ's signal of the reference white, 203 cd/m2, is 58 %: read as sRGB it would be grey."""
    path = save(tmp_path / f"a.{ending}", pixels=np.full((40, 64, 3), 148, np.uint8))
    data = path.read_bytes()
    stated = b"colrnclx\x00\x01\x00\x0d"
    assert data.count(stated) == 1
    path.write_bytes(data.replace(stated, b"colrnclx\x00\x09\x00\x10"))
    for image in (read_rgb(path), upright_rgb(Image.open(path)), upright_rgb(Image.open(path.open("rb")))):
        assert np.abs(np.asarray(image).astype(int) - 255).max() <= 2
    assert f"a.{ending}: converted to sRGB from nclx 9, PQ" in capsys.readouterr().out
    path.write_bytes(data.replace(stated, b"colrnclx\x00\x0a\x00\x10"))
    with pytest.raises(InputError, match=rf"a\.{ending}: colours by nclx 10, 16, which is not read; save it as sRGB"):
        read_rgb(path)


def test_of_several_images_the_primary_is_read_with_a_note(tmp_path, capsys):
    files = pillow_heif.from_pillow(Image.new("RGB", (64, 40)))
    files.add_from_pillow(Image.fromarray(PIXELS))
    files.save(tmp_path / "burst.heic", primary_index=1, quality=95)
    assert_shows(read_rgb(tmp_path / "burst.heic"), PIXELS)
    assert "burst.heic: of its 2 images the primary alone is read, 64x40" in capsys.readouterr().out


@pytest.fixture
def without_the_package(monkeypatch):
    """The package is not installed, and no earlier test has had Pillow open its files."""
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setattr(builtins, "__import__", missing("pillow_heif", builtins.__import__))


def missing(package, original):
    def find(name, *words, **more):
        if name == package:
            raise ImportError(name)
        return original(name, *words, **more)

    return find


@pytest.mark.parametrize("read", [read_rgb, size_of, read_upload])
@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.jpg"])
def test_without_the_package_one_line_names_it(tmp_path, without_the_package, read, name):
    save(tmp_path / "a.heic").rename(tmp_path / name)
    del Image.OPEN["HEIF"]  # which `save` has put there
    Image.ID.remove("HEIF")
    with pytest.raises(InputError, match=rf"{name}: is a HEIC image; pip install pillow-heif, or save it as JPEG$"):
        read(tmp_path / name)


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_every_door_finds_them_in_a_folder(tmp_path, ending):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    path = save(tmp_path / "images" / f"a.{ending.upper()}")
    save(tmp_path / "labels" / "a.png")
    assert list(find_inputs(path.parent, tmp_path / "out").pictures) == [path]
    assert [sample.rgb for sample in folder_samples(tmp_path)] == [str(path)]
    assert list(find_pictures(path.parent, tmp_path / "out", [], []).values()) == [path]


def test_a_broken_heic_is_unreadable(tmp_path):
    path = save(tmp_path / "a.heic")
    path.write_bytes(path.read_bytes()[:300])
    for read in (read_rgb, read_upload):
        with pytest.raises(InputError, match=r"a\.heic: not a readable image"):
            read(path)
