"""The ComfyUI pack's files hold the values and the records of `utils.inference`'s, for all maps and formats."""

import struct
import zlib

import numpy as np
import OpenEXR
import pytest
import torch
from comfyui_pack import Decoder, pack

from utils import __version__
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.write import write
from utils.intrinsics import DEPTH_CODINGS, INTRINSICS
from utils.kinds.alignment import encode_far, linear_map

FACTS = {"lora": "runs/a.safetensors", "lora_sha256": "0" * 64, "prompt": "a prompt, Umlaut ä, of \N{SNOWMAN}"}
FRAMES = {
    "opencv": "opencv (x right, y down, z forward)",
    "opengl": "opengl (x right, y up, z back)",
    "directx": "directx (x right, y down, z back)",
}


@pytest.fixture
def comfyui(monkeypatch, tmp_path):
    return pack(monkeypatch, tmp_path)


def raw(count: int = 1, size: tuple[int, int] = (9, 13), seed: int = 0) -> torch.Tensor:
    """Random output of a VAE, (B,H,W,3): about [-1,1], some of it outside."""
    return 1.3 * torch.randn(count, *size, 3, generator=torch.Generator().manual_seed(seed)).tanh()


def predicted(comfyui, task: str, maps: torch.Tensor, coding: str = "linear", size: tuple[int, int] | None = None):
    """Predict intrinsic's (image, map)."""
    facts = comfyui.lora.Facts(task, "prompt", None, 64, coding, FACTS)
    parts = {"model": None, "conditioning": None, "sigmas": None, "facts": facts}
    image = torch.zeros(len(maps), *(size or maps.shape[1:3]), 3)
    return comfyui.nodes.PredictIntrinsic().predict(parts, Decoder(maps), image, min(maps.shape[1:3]))[:2]


def png(path) -> tuple[np.ndarray, dict[str, str]]:
    """(uint16 (H,W,C), text) of a 16-bit PNG whose rows all have filter 2, read by the letter of the specification."""
    content, text, packed, at = path.read_bytes(), {}, b"", 8
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        data = content[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, bits = struct.unpack(">IIB", data[:9])
        if kind == b"tEXt":
            key, _, value = data.partition(b"\0")
            text[key.decode("latin-1")] = value.decode("latin-1")
        if kind == b"iTXt":
            key, _, value = data.partition(bytes(5))
            text[key.decode("latin-1")] = value.decode()
        packed += data if kind == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)
    assert bits == 16 and (rows[:, 0] == 2).all()
    rows = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint64).astype(np.uint8)
    return np.ascontiguousarray(rows).view(">u2").reshape(height, width, -1), text


def exr(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(channels, the header's text) of an EXR."""
    with OpenEXR.File(str(path), separate_channels=True) as file:
        pixels = {name: channel.pixels for name, channel in file.channels().items()}
        return pixels, {key: value for key, value in file.header().items() if isinstance(value, str)}


@pytest.mark.parametrize("task", INTRINSICS)
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("invert", [False, True])
def test_the_files_are_those_of_inference(task, frame, invert, comfyui, tmp_path):
    maps = raw()
    _, values = predicted(comfyui, task, maps)
    output = Output(formats=("png16", "exr"), frame=frame, invert_depth=invert)
    write(
        Prediction(INTRINSICS[task], maps[0].permute(2, 0, 1).contiguous(), facts=FACTS), tmp_path / "ours.png", output
    )
    for kind in ("png16", "exr"):
        comfyui.nodes.SaveMap().save(values, "node", kind, FRAMES[frame], invert)
    assert (tmp_path / "node_00001_.png").read_bytes() == (tmp_path / "ours_16bit.png").read_bytes()
    pixels, text = png(tmp_path / "node_00001_.png")
    assert np.ptp(pixels) > 60000 and {"task", "software", "value_at_65535", *FACTS} <= text.keys()
    channels, attributes = exr(tmp_path / "node_00001_.exr")
    wanted_channels, wanted_attributes = exr(tmp_path / "ours.exr")
    assert channels.keys() == wanted_channels.keys() and attributes == wanted_attributes
    for name, plane in wanted_channels.items():
        assert (channels[name] == plane).all()


@pytest.mark.parametrize("invert", [False, True])
def test_a_batch_of_depths_is_scaled_once_as_a_film_is(invert, comfyui, tmp_path):
    maps = raw(3)
    maps[1] *= 2  # something near the camera in one frame
    image, values = predicted(comfyui, "depth", maps)
    comfyui.nodes.SaveMap().save(values, "d", "png16", FRAMES["opencv"], invert)
    found, texts = zip(*(png(tmp_path / f"d_{i + 1:05}_.png") for i in range(3)))
    from utils.inference.video import _scale  # what inference does with the frames of a film

    depths = [one.mean(-1).numpy() * (-1 if invert else 1) for one in maps]
    paths = [tmp_path / f"{i:06}_depth.png" for i in range(3)]
    for path, depth in zip(paths, depths):
        np.save(path.with_suffix(".npy"), depth)
    _scale(paths, INTRINSICS["depth"], Output(formats=("png16",), invert_depth=invert), FACTS)
    for path, pixels, text in zip(paths, found, texts):
        wanted, wanted_text = png(path.with_name(f"{path.stem}_16bit.png"))
        assert (pixels[..., 0] == np.squeeze(wanted)).all()
        assert {key: value for key, value in text.items() if key != "software"} == wanted_text
    low, high = float(texts[0]["value_at_0"]), float(texts[0]["value_at_65535"])
    assert np.abs(found[2][..., 0] / 65535 * (high - low) + low - depths[2]).max() < 1e-4 * (high - low)
    assert image[1].max() == 1 and image[0].max() < 1  # what is shown does not flicker either


@pytest.mark.parametrize("task", INTRINSICS)
def test_the_image_shown_is_the_8_bit_file_of_inference(task, comfyui):
    maps = raw()
    image, _ = predicted(comfyui, task, maps)
    wanted = INTRINSICS[task].map_kind.image8(maps[0].permute(2, 0, 1))
    wanted = np.stack([wanted] * 3, -1) if wanted.ndim == 2 else wanted
    assert np.abs((255 * image[0].numpy()).astype(np.uint8).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("coding", DEPTH_CODINGS)
@pytest.mark.parametrize("size", [None, (20, 28)])
def test_codings_of_depth_are_undone(coding, size, comfyui):
    far = torch.linspace(0, 1, 9 * 13).reshape(9, 13).double().numpy()
    label = torch.from_numpy(1 - 2 * encode_far(far, coding)).float()[None, ..., None].expand(1, 9, 13, 3)
    _, values = predicted(comfyui, "depth", label, coding)
    assert np.allclose(values["values"][0, ..., 0], 1 - 2 * far, atol=1e-5)
    maps = raw()  # also outside of [-1,1]
    _, values = predicted(comfyui, "depth", maps, coding)
    wanted = linear_map(maps[0].permute(2, 0, 1), coding).mean(0).numpy()
    assert (values["values"][0, ..., 0] == wanted).all()
    assert set(comfyui.maps.CODINGS) == set(DEPTH_CODINGS)


def test_a_map_with_nan_is_refused_and_not_written(comfyui):
    maps = raw()
    maps[0, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity.*--fp32-vae"):
        predicted(comfyui, "depth", maps)


def test_the_packs_version_is_the_projects(comfyui):
    assert f"intrinsic-lora {__version__}" == comfyui.maps.PROGRAM
