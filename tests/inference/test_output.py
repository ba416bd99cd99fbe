"""--formats, --frame, --invert_depth and the numbers of a mesh: the files' content, read by other readers."""

import importlib.util
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

import inference_sd_single
import predict
from utils.errors import InputError
from utils.image_io.colour_space import to_linear
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.write import write
from utils.intrinsics import ALBEDO, DEPTH, INTRINSICS, NORMAL
from utils.kinds.axes import to_frame
from utils.kinds.frames import AXES

OpenEXR = pytest.importorskip("OpenEXR")
trimesh = pytest.importorskip("trimesh")

SHIPPED = ROOT / "miniworld" / "mini-loras"


def prediction(intrinsic, facts=None) -> Prediction:
    """A random map (3,20,30), not clamped."""
    values = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0))
    return Prediction(intrinsic, values, facts=facts or {"lora_sha256": "0" * 64})


def decoded(path) -> np.ndarray:
    """A 16-bit PNG, read by the letter of its specification: filter 2 alone."""
    content, place, packed = path.read_bytes(), 8, b""
    while place < len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        data = content[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + data) == struct.unpack(">I", content[place + 8 + length :][:4])[0]
        if kind == b"IHDR":
            width, height, bits, colour = struct.unpack(">IIBB", data[:10])
        packed += data if kind == b"IDAT" else b""
        place += 12 + length
    assert bits == 16
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 2).all()
    rows = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint64).astype(np.uint8)
    pixels = np.ascontiguousarray(rows).view(">u2").reshape(height, width, -1)
    return pixels if colour == 2 else pixels[..., 0]


@pytest.mark.parametrize("task", INTRINSICS)
def test_sixteen_bits_contain_the_values_and_their_meaning(task, tmp_path):
    one, path = prediction(INTRINSICS[task]), tmp_path / f"a_{task}.png"
    write(one, path, Output(("png", "png16")))
    deep = tmp_path / f"a_{task}_16bit.png"
    with Image.open(deep) as picture:
        picture.load()  # Pillow checks the stream; of colours it keeps 8 bits
        text = picture.text
    low, high = float(text["value_at_0"]), float(text["value_at_65535"])
    restored = low + decoded(deep) / 65535.0 * (high - low)
    expected = np.clip(one.values, low, high)
    assert np.abs(restored - expected).max() <= 0.51 * (high - low) / 65535
    key, meaning = INTRINSICS[task].convention
    assert (text["task"], text[key], text["lora_sha256"]) == (task, meaning, "0" * 64)
    with Image.open(path) as picture:
        assert picture.text["task"] == task and np.array_equal(np.asarray(picture), one.image)


def test_pillow_reads_sixteen_grey_bits_and_the_evaluation_scores_them(tmp_path):
    write(prediction(DEPTH), tmp_path / "a_depth.png", Output(("png16",)))
    assert not (tmp_path / "a_depth.png").exists()
    found, values = DEPTH.map_kind.read_prediction(tmp_path / "a_depth_16bit.png").values, prediction(DEPTH).values
    assert found.min() == values.min() and found.max() == pytest.approx(values.max(), rel=1e-12)
    shares = (found - found.min()) / (found.max() - found.min())
    np.testing.assert_allclose(65535 * shares, decoded(tmp_path / "a_depth_16bit.png"), atol=1e-9)


@pytest.mark.parametrize(("intrinsic", "channels"), [(NORMAL, "XYZ"), (DEPTH, "ZY"), (ALBEDO, "RGB")])
def test_exr_holds_float32_under_the_names_that_programs_read(intrinsic, channels, tmp_path):
    one = prediction(intrinsic, {"base": "b", "lora_sha256": "0" * 64})
    write(one, tmp_path / "a.png", Output(("exr",)))
    with OpenEXR.File(str(tmp_path / "a.exr"), separate_channels=True) as file:
        header = dict(file.header())
        found = {name: channel.pixels for name, channel in file.channels().items()}
    assert sorted(found) == sorted(channels) and all(plane.dtype == np.float32 for plane in found.values())
    values = to_linear(one.values) if intrinsic is ALBEDO else one.values
    for i, name in enumerate(channels):
        np.testing.assert_array_equal(found[name], (values if intrinsic is DEPTH else values[..., i]).astype("f4"))
    assert (header["task"], header["base"], header["lora_sha256"]) == (intrinsic.name, "b", "0" * 64)
    key = intrinsic.convention[0]
    assert header[key] == ("linear light, sRGB's primaries, up to one scale" if intrinsic is ALBEDO else
                           intrinsic.convention[1])  # fmt: skip


@pytest.mark.parametrize("frame", AXES)
def test_the_frame_is_that_of_every_file(frame, tmp_path):
    one = prediction(NORMAL)
    write(one, tmp_path / "a.png", Output(("png", "npy", "exr"), frame=frame))
    values = np.load(tmp_path / "a.npy")
    np.testing.assert_allclose(values, to_frame(one.values, frame), atol=1e-6)
    with OpenEXR.File(str(tmp_path / "a.exr"), separate_channels=True) as file:
        np.testing.assert_array_equal(file.channels()["Y"].pixels, values[..., 1])
        assert file.header()["frame"] == f"{frame} ({AXES[frame]})"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text["frame"].startswith(frame)
        shown = np.asarray(picture) / 127.5 - 1
    clipped = to_frame(one.map.clamp(-1, 1).permute(1, 2, 0).numpy(), frame)
    assert np.abs(shown - clipped).max() < 0.01


def test_inverted_depth_is_large_and_white_where_far(tmp_path):
    one = prediction(DEPTH)
    for name, output in (("near", Output(("png", "npy"))), ("far", Output(("png", "npy"), invert_depth=True))):
        write(one, tmp_path / f"{name}.png", output)
    np.testing.assert_array_equal(np.load(tmp_path / "far.npy"), -np.load(tmp_path / "near.npy"))
    near, far = (Image.open(tmp_path / f"{name}.png") for name in ("near", "far"))
    assert np.abs(255 - np.asarray(near).astype(int) - np.asarray(far)).max() <= 1
    assert "near = white" in near.text["polarity"] and "near = black" in far.text["polarity"]


@pytest.mark.parametrize(("words", "expected"), [
    (["--formats", "tiff"], "--formats=tiff: must be of png, png16"),
    (["--formats", "glb"], "pass --near and --far"),
    (["--formats", "ply", "--near", "1"], "pass --near and --far"),
    (["--formats", "ply", "--near", "3", "--far", "2"], "0 < near < far"),
    (["--formats", "ply", "--near", "1", "--far", "nan"], "0 < near < far"),
    (["--formats", "ply", "--near", "1", "--far", "2", "--fov", "180"], "--fov=180"),
    (["--near", "1"], "--near: of --formats glb and ply only"),
    (["--frame", "opneg"], "invalid choice"),
])  # fmt: skip
def test_flags_that_cannot_work_are_refused_before_anything_is_loaded(words, expected):
    for parse in (lambda words: predict.parse(["a.png", *words]), inference_sd_single.parse):
        with pytest.raises(InputError, match=expected):
            parse(words)


def test_a_missing_package_is_named_with_the_fix(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("utils.inference.output.find_spec", lambda name: None if name == "OpenEXR" else found(name))
    with pytest.raises(InputError, match=r"--formats=exr: the package OpenEXR is not installed: pip install OpenEXR"):
        Output(("png", "exr"))


def test_npy_is_short_for_png_and_npy():
    assert inference_sd_single.parse([]).output == Output()
    assert inference_sd_single.parse(["--npy"]).output.formats == ("png", "npy")
    assert inference_sd_single.parse(["--formats", "exr, ply", "--near=1", "--far=2"]).output.formats == ("exr", "ply")


@pytest.mark.parametrize("crop", [[], ["--center_crop"], ["--output_size", "network"]])
def test_one_run_writes_every_format_of_the_size_of_the_map(crop, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((120, 90), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg")
    words = [tmp_path / "a.jpg", "--lora", SHIPPED / "normal", SHIPPED / "depth", "--output_dir", tmp_path / "out"]
    words += ["--formats", "png,png16,npy,exr,glb,ply", "--near", "1.5", "--far", "4", "--frame", "directx", *crop]
    assert predict.main([*map(str, words), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.count("normal: frame directx (x right, y down, z toward the viewer)") == 1
    assert said.count("a field of view of 60 degrees is assumed; pass --fov") == 1
    depth = tmp_path / "out" / "depth" / "predicted"
    names = ["a_depth.exr", "a_depth.glb", "a_depth.npy", "a_depth.ply", "a_depth.png", "a_depth_16bit.png"]
    assert sorted(path.name for path in depth.iterdir()) == names
    assert len(list((tmp_path / "out" / "normal" / "predicted").iterdir())) == 4  # no surface of normals
    values, cloud = np.load(depth / "a_depth.npy"), trimesh.load(depth / "a_depth.ply")
    z = -np.asarray(cloud.vertices)[:, 2].reshape(values.shape)
    assert z.min() == pytest.approx(1.5) and z.max() == pytest.approx(4)
    assert np.corrcoef(z.ravel(), values.ravel())[0, 1] == pytest.approx(-1)  # large values are near
    mesh = next(iter(trimesh.load(depth / "a_depth.glb").geometry.values()))
    assert mesh.visual.material.baseColorTexture.size == values.shape[::-1]
    assert "the files hold directx (x right, y down, z toward the viewer)" in (tmp_path / "out/index.html").read_text()


def test_a_mesh_of_normals_is_refused(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    words = ["--lora", SHIPPED / "normal", "--input_dir", tmp_path / "a.png", "--output_dir", tmp_path / "out"]
    words += ["--formats", "ply", "--near", 1, "--far", 2, "--device", "cpu"]
    with pytest.raises(InputError, match="made of depth, and these LoRAs predict normal"):
        inference_sd_single.main([str(word) for word in words])


def test_metadata_of_other_alphabets_survives(tmp_path):
    write(prediction(DEPTH, {"base": "дом/模型"}), tmp_path / "a.png", Output(("png", "png16", "exr")))
    for name in ("a.png", "a_16bit.png"):
        with Image.open(io.BytesIO((tmp_path / name).read_bytes())) as picture:
            assert picture.text["base"] in ("дом/模型", "дом/模型".encode("latin-1", "backslashreplace").decode())
