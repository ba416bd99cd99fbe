"""One image gives the same maps by every input; and images larger than the memory, in the script."""

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

import inference_sd_single
from utils.errors import InputError
from utils.image_io import opening
from utils.inference import Predictor
from utils.inference import predictor as predictors

LORA = ROOT / "miniworld" / "mini-loras" / "normal"
RGB = np.asarray(Image.open(ROOT / "examples" / "coffee.jpg").convert("RGB").resize((96, 72)))
GREY = RGB[..., 0]
TURN = 0x0112


@pytest.fixture(scope="module")
def predictor():
    return Predictor(LORA, device="cpu")


@pytest.fixture(autouse=True)
def every_note_is_new():
    opening._told.clear()


def saved(folder, name: str) -> object:
    """One of the images as a file."""
    path, exif = folder / name, Image.Exif()
    exif[TURN] = 6
    if name == "grey16.png":
        Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    elif name == "turned.jpg":
        Image.fromarray(RGB).save(path, exif=exif, quality=95)
    elif name == "alpha.png":
        Image.fromarray(np.dstack([RGB, np.where(GREY > 99, 255, 0).astype(np.uint8)])).save(path)
    elif name == "integers.tif":
        Image.fromarray(GREY.astype(np.int32) * 257).save(path)
    elif name == "palette.png":
        Image.fromarray(RGB).quantize(64).save(path)
    elif name == "inks.tif":
        Image.fromarray(RGB).convert("CMYK").save(path)
    return path


@pytest.mark.parametrize("name", ["grey16.png", "turned.jpg", "alpha.png", "integers.tif", "palette.png", "inks.tif"])
def test_a_path_and_an_opened_image_give_the_same_maps(name, predictor, tmp_path):
    path = saved(tmp_path, name)
    expected = predictor(path)["normal"].values
    assert expected.shape == ((96, 72, 3) if name == "turned.jpg" else (72, 96, 3))
    np.testing.assert_array_equal(predictor(Image.open(path))["normal"].values, expected)
    if name in ("grey16.png", "alpha.png", "integers.tif"):
        array = np.asarray(Image.open(path))
        np.testing.assert_array_equal(predictor(array)["normal"].values, expected)
        np.testing.assert_array_equal(predictor(torch.from_numpy(array.copy()))["normal"].values, expected)


def test_tensors_of_both_orders_and_floats_give_the_same_maps(predictor, tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    last = torch.from_numpy(RGB.copy())
    first = last.permute(2, 0, 1)
    ways = [tmp_path / "a.png", RGB, last, first, first.float() / 255, (RGB / 255).astype(np.float32)]
    maps = [one["normal"].values for one in predictor(ways, ["a.png"] * len(ways))]
    for found in maps[1:]:
        np.testing.assert_array_equal(found, maps[0])
    with pytest.raises(InputError, match=r"floats from -.* to .*pass x / 2 \+ 0\.5"):
        predictor(first.float() / 127.5 - 1)


def test_maps_that_do_not_fit_into_memory_name_the_file_and_the_fix(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predictors, "LARGE", 20_000)  # pixels: less than the image's, more than the network's
    monkeypatch.setattr(predictors, "MAP_BYTES", 10**12)
    Image.fromarray(RGB).resize((192, 144)).save(tmp_path / "a.png")
    words = ["--lora", str(LORA), "--input_dir", str(tmp_path / "a.png"), "--device", "cpu", "--output_dir"]
    assert inference_sd_single.main([*words, str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'a.png'}: maps of 192x144 pixels need" in said
    assert "scale it down, or pass --output_size network" in said
    assert inference_sd_single.main([*words, str(tmp_path / "small"), "--output_size", "network"]) == 0
