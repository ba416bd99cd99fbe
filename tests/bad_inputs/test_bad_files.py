"""Files at the other doors: maps for the evaluation, uploads, EXR, films, checkpoints, the ComfyUI pack."""

import importlib.util
import re
import struct

import numpy as np
import pytest
import torch
from bad_files import arrays, encoded, malicious_npy, malicious_pickle, malicious_zip, pictures
from comfyui_pack import pack
from helpers import ROOT
from refusals import refused
from safetensors.torch import save

from app.upload import read_upload
from utils.base_model.names import check_base
from utils.base_model.single_file import read_checkpoint
from utils.errors import InputError
from utils.image_io.files import read_mask_named, read_raw, write_exr
from utils.inference.video_files import frames
from utils.lora.files import read_lora

pytestmark = pytest.mark.bad_input
GOOD = {"float.tif", "negative.tif"}  # Pillow opens them; what they mean is the label's affair
UPLOADS = [name for name in pictures() if name not in GOOD]


def one_line(call, name: str, *expected: str) -> None:
    """`call` raises a ValueError of one line with every regular expression in it; an InputError names the file."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text.strip() and len(text) < 1500, text
    assert name in text or type(caught.value) is not InputError, text
    for pattern in expected:
        assert re.search(pattern, text), text


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_that_is_not_an_image(name, tmp_path):
    path = tmp_path / f"upload{name[name.rfind('.') :]}"
    path.write_bytes(pictures()[name])
    one_line(lambda: read_upload(path), path.name)


@pytest.mark.parametrize("name", [name for name in pictures() if name not in ("bomb-text.png",)])
def test_a_predicted_map_that_is_not_an_image(name, tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(pictures()[name])
    one_line(lambda: read_raw(path), path.name)


@pytest.mark.parametrize("name", arrays())
@pytest.mark.parametrize("read", [read_raw, read_mask_named])
def test_a_predicted_map_that_is_no_array(read, name, tmp_path):
    path = tmp_path / "map.npy"
    path.write_bytes(arrays()[name])
    one_line(lambda: read(path), path.name)


def exr(folder, planes: int = 3, names: str = "RGB", **header) -> bytes:
    write_exr(folder / "good.exr", np.ones((4, 6, planes), np.float32), list(names), header)
    return (folder / "good.exr").read_bytes()


def resized(content: bytes, box: bytes) -> bytes:
    """With another data window: four int32."""
    at = content.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    return content[:at] + box + content[at + 16 :]


EXRS = {
    **{f"cut at {size}": lambda folder, size=size: exr(folder)[:size] for size in (0, 3, 4, 8, 50, 200, 330)},
    "text": lambda folder: b"text" * 99,
    "a png": lambda folder: encoded("PNG"),
    "a pickle": lambda folder: malicious_pickle(),
    "zeros": lambda folder: bytes(999),
    "magic number alone": lambda folder: b"\x76\x2f\x31\x01" + bytes(99),
    "version 255": lambda folder: exr(folder)[:4] + b"\xff\xff\xff\xff" + exr(folder)[8:],
    "two channels": lambda folder: exr(folder, 2, "UV"),
    "five channels": lambda folder: exr(folder, 5, "ABCDE"),
    "a petabyte": lambda folder: resized(exr(folder), struct.pack("<4i", 0, 0, 2**24, 2**24)),
    "no pixels": lambda folder: resized(exr(folder), struct.pack("<4i", 5, 5, 0, 0)),
    "beyond 32 bits": lambda folder: resized(
        exr(folder), struct.pack("<4i", -(2**31), -(2**31), 2**31 - 1, 2**31 - 1)
    ),
    "garbage for pixels": lambda folder: exr(folder)[:-40] + np.random.default_rng(0).bytes(40),
}


@pytest.mark.skipif(importlib.util.find_spec("OpenEXR") is None, reason="OpenEXR is not installed")
@pytest.mark.parametrize("name", EXRS)
def test_an_exr_that_is_none(name, tmp_path):
    path = tmp_path / "map.exr"
    path.write_bytes(EXRS[name](tmp_path))
    one_line(lambda: read_raw(path), path.name)


FILM = (ROOT / "examples" / "clip.mp4").read_bytes()
FILMS = {
    **{f"cut at {size}": FILM[:size] for size in (0, 4, 30, 100, 1000, len(FILM) // 2)},
    "text": b"text" * 99, "zeros": bytes(9999), "a pickle": malicious_pickle(),
    "a page": b"<!doctype html><title>404</title>",
    "a list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a list of a real film": b"ffconcat version 1.0\nfile real.mp4\n",
    "a playlist": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
    "a playlist on the network": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
    "a script": b"#!/bin/sh\nexit 0\n", "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
}  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")
@pytest.mark.parametrize("name", FILMS)
def test_a_film_that_is_none(name, tmp_path):
    path = tmp_path / "film.mp4"
    (tmp_path / "real.mp4").write_bytes(FILM)
    path.write_bytes(FILMS[name])
    refused(lambda: list(frames(path)), "film.mp4")


def framed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


CHECKPOINTS = {
    **{f"cut at {size}": save({"a": torch.zeros(9)})[:size] for size in (0, 4, 8, 20, 60)},
    "text": b"text" * 99, "a png": encoded("PNG"), "zeros": bytes(999), "a pickle": malicious_pickle(),
    "a pickle in a zip": malicious_zip(), "objects": malicious_npy(), "a page": b"<!doctype html><title>404</title>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "a header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}", "a header of numbers": framed(b"[1, 2]"),
    "a deep header": framed(b"[" * 9999), "an empty header": framed(b"{}"), "no unicode": framed(b'{"\xff": 1}'),
    "offsets outside": framed(b'{"model.diffusion_model.input_blocks.0.0.weight":'
                              b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_in_one_file_that_is_none(name, ending, tmp_path):
    path = tmp_path / f"model{ending}"
    path.write_bytes(CHECKPOINTS[name])
    refused(lambda: read_checkpoint(path), f"model{ending}")


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name not in ("an empty header", "offsets outside")])
def test_a_lora_that_the_comfyui_pack_cannot_read(name, tmp_path, monkeypatch):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(CHECKPOINTS[name])
    one_line(lambda: pack(monkeypatch, tmp_path).lora.facts(path), "lora.safetensors", "lora.safetensors")


HUB_NAMES = ["owner/", "/name", "a//b", "owner/name/extra/more", "../../etc/passwd", "owner\\name", "http://host/a",
             "https://huggingface.co/owner/name", "owner/na me", "owner/name\n", "owner/..", "./owner", "owner/name?x",
             "owner/-name", "owner/" + "x" * 200, "datasets/a/b", "owner/name@main", "~", "", " ", "$HOME/model",
             "a/b\0", "file:///etc/passwd", "owner/name.git"]  # fmt: skip


@pytest.mark.parametrize("name", HUB_NAMES)
@pytest.mark.parametrize("read", [check_base, read_lora])
def test_a_hub_name_that_is_none(read, name):
    refused(lambda: read(name))
