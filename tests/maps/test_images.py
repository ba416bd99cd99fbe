"""Reading images and cropping them."""

import numpy as np
import pytest
import torch
from PIL import Image

from utils.errors import InputError
from utils.image_io.files import read_npy
from utils.image_io.images import Crop, read_label, read_rgb
from utils.image_io.panels import CAPTION_HEIGHT, sheet, strip


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height", "expected"), [
    (1024, 768, Crop(512, 682, 0, 85, 512)),  # DIODE: long side int(682.67), offset round(85.0)
    (768, 1024, Crop(682, 512, 85, 0, 512)),
    (512, 512, Crop(512, 512, 0, 0, 512)),
    (515, 512, Crop(512, 515, 0, 2, 512)),  # offset round(1.5): Python rounds half to even
    (100, 50, Crop(512, 1024, 0, 256, 512)),  # small images grow
])  # fmt: skip
def test_centre_crop_geometry(width, height, expected):
    assert Crop.of(width, height, 512) == expected


def test_pixels_become_values_from_minus_one_to_one():
    pixels = noise(64, 64)
    tensor = Crop.of(64, 64, 64).picture(Image.fromarray(pixels))
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 64, 64)
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), pixels / 127.5 - 1, atol=1e-6)


def test_arrays_follow_the_image():
    """An image and an array that hold the same coordinates stay together through resize and crop."""
    rows, columns = np.mgrid[0:80, 0:120]
    picture = Image.fromarray(np.stack([rows, columns, rows], axis=2).astype(np.uint8))
    crop = Crop.of(120, 80, 40, np.random.default_rng(3))
    shown = (crop.picture(picture) + 1) * 127.5
    values = crop.array(np.stack([rows, columns], axis=2).astype(float))
    assert values.shape == (40, 40, 2)
    assert np.abs(shown[0].numpy() - values[..., 0]).max() <= 2.01  # within one pixel of the 2x reduction
    assert np.abs(shown[1].numpy() - values[..., 1]).max() <= 2.01


def test_random_crops_stay_inside_and_differ():
    rng = np.random.default_rng(0)
    crops = [Crop.of(120, 80, 40, rng) for _ in range(200)]
    lefts = {crop.left for crop in crops}
    assert min(lefts) == 0 and max(lefts) == 20 and all(crop.top == 0 for crop in crops)


def test_every_mode_becomes_rgb(tmp_path):
    grey = noise(9, 7)[..., 0]
    rgb = np.repeat(grey[..., None], 3, axis=2)
    files = {
        "grey.png": Image.fromarray(grey),
        "alpha.png": Image.fromarray(np.dstack([rgb, np.full_like(grey, 255)])),
        "palette.png": Image.fromarray(rgb).quantize(256),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "upper.BMP": Image.fromarray(rgb),
        "plain.tif": Image.fromarray(rgb),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / name)), rgb, err_msg=name)


def test_exif_orientation_is_applied(tmp_path):
    pixels = noise(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "turned.png")), np.rot90(pixels, -1))


def test_sixteen_bit_labels_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "label.png")
    with pytest.raises(InputError, match=r"label\.png.*16-bit"):
        read_label(tmp_path / "label.png")


@pytest.mark.parametrize("name", ["empty.png", "text.png", "cut.png", "absent.png"])
def test_a_bad_image_is_named(name, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(noise(50, 50)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(InputError, match=name):
        read_rgb(tmp_path / name)


@pytest.mark.parametrize("name", ["objects.npy", "cut.npy", "absent.npy"])
def test_npy_objects_are_never_unpickled(name, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=name):
        read_npy(tmp_path / name)


def test_strips_of_a_sheet_have_the_width_of_the_first_and_the_names_above():
    first = strip([torch.full((3, 4, 6), -1.0), torch.full((3, 4, 6), 1.0)])
    wider = strip([torch.full((3, 8, 12), 1.0), torch.full((3, 8, 12), -1.0)])
    flipped = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for rows, below in (([first, wider], [first, flipped]), ([first], [first])):
        page = sheet(rows, ["a", "b"])
        assert page.size == (12, CAPTION_HEIGHT + 4 * len(rows))
        columns = [0, 1, 2, 9, 10, 11]  # but for those where scaling mixes the two
        shown, expected = np.asarray(page)[CAPTION_HEIGHT:], np.concatenate([np.asarray(one) for one in below])
        np.testing.assert_array_equal(shown[:, columns], expected[:, columns])
