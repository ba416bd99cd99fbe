"""LoRA files that are truncated, contain something else, or fit another model: refused before a layer is changed."""

import copy
import io
import os
import re

import pytest
import torch
from bad_files import encoded, malicious_npy, malicious_pickle, malicious_zip
from helpers import random_lora
from refusals import put, refused
from safetensors.torch import load_file, save, save_file

from miniworld.pretraining.random_sd import build_unet
from utils.lora import SAFETENSORS, load_attn_procs

pytestmark = pytest.mark.bad_input


def lora_files(state: dict) -> dict[str, tuple[str, bytes, str]]:
    """name -> (file name, content, what must be said)."""

    def as_bin(content) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def changed(act) -> dict:
        other = {key: value.clone() for key, value in state.items()}
        act(other)
        return other

    def header(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text

    keys, good = list(state), save(state)
    first, tensors, unreadable = keys[0], list(state.values()), "not a readable LoRA file"
    files = {
        f"cut at {size}": ("x.safetensors", good[:size], unreadable) for size in (0, 4, 8, 100, 5000, len(good) - 1)
    }
    files |= {f".bin cut at {size}": ("x.bin", as_bin(state)[:size], unreadable) for size in (0, 4, 100, 5000)}
    raw = {
        "text": b"this is a text\n" * 20,
        "an image": encoded("PNG"),
        "zeros": bytes(1000),
        "page": b"<!doctype html><title>404</title>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "pickle": malicious_pickle(),
        "pickle in a zip": malicious_zip(),
        "array of objects": malicious_npy(),
    }
    files |= {f"{name} named .safetensors": ("x.safetensors", content, unreadable) for name, content in raw.items()}
    files |= {f"{name} named .bin": ("x.bin", content, unreadable) for name, content in raw.items()}
    headers = {
        "header of 2^60 bytes": (2**60).to_bytes(8, "little") + b"{}",
        "header is not json": header(b"{not json"),
        "header is a list": header(b"[]"),
        "offsets outside": header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "offsets that overlap": header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'
        )
        + bytes(6),
        "shape and size differ": header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}') + bytes(4),
        "shape overflows": header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,9],"data_offsets":[0,4]}}')
        + bytes(4),
        "unknown dtype": header(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
    }
    files |= {name: ("x.safetensors", content, unreadable) for name, content in headers.items()}
    unfit = {
        "nothing in it": ({}, "not a LoRA"),
        "one key missing": (changed(lambda s: s.pop(first)), "not both down and up"),
        "one layer missing": (
            changed(lambda s: [s.pop(key) for key in keys[:2]]),
            "1 of the UNet's attention layers are not in it",
        ),
        "half of it": (dict(list(state.items())[: len(state) // 2]), "of the UNet's attention layers are not in it"),
        "a key of a checkpoint": (
            changed(lambda s: s.update({"conv_in.weight": tensors[0]})),
            "is of no LoRA layer",
        ),
        "a whole model": ({"unet.conv_in.weight": tensors[0]}, "is of no LoRA layer"),
        "a text encoder's": ({f"text_encoder.{key}": value for key, value in state.items()}, "not in this UNet"),
        "other blocks": (
            {key.replace("down_blocks.0", "down_blocks.7"): v for key, v in state.items()},
            "not in this UNet",
        ),
        "wider": (
            {key: torch.cat([v, v], 1) if ".down." in key else v for key, v in state.items()},
            "another base model",
        ),
        "higher": (
            {key: torch.cat([v, v], 0) if ".up." in key else v for key, v in state.items()},
            "another base model",
        ),
        "rank 0": ({key: v[:0] if ".down." in key else v[:, :0] for key, v in state.items()}, "rank 0"),
        "ranks that do not multiply": (changed(lambda s: s.update({first: s[first][:2]})), "do not multiply"),
        "one axis": ({key: v.flatten() for key, v in state.items()}, "do not multiply"),
        "four axes": ({key: v[:, :, None, None] for key, v in state.items()}, "maps"),
        "no axes": ({key: torch.tensor(1.0) for key in state}, "do not multiply"),
        "NaN": (changed(lambda s: s[first].fill_(float("nan"))), "NaN or infinity"),
        "infinity": (changed(lambda s: s[first].fill_(float("inf"))), "NaN or infinity"),
        "whole numbers": ({key: v.long() for key, v in state.items()}, "int64"),
        "truth values": ({key: v.bool() for key, v in state.items()}, "bool"),
    }
    for name, (content, message) in unfit.items():
        files[name] = ("x.safetensors", save({key: value.contiguous() for key, value in content.items()}), message)
        files[f"{name}, .bin"] = ("x.bin", as_bin(content), message)
    others = {
        "a list": tensors,
        "a tensor": tensors[0],
        "a number": 3,
        "nothing": None,
        "lists": {key: [1.0] for key in keys},
    }
    others |= {"numbers for keys": dict(enumerate(tensors)), "numbers for tensors": dict.fromkeys(keys, 1.0)}
    files |= {
        f"{name}, .bin": ("x.bin", as_bin(content), "not a LoRA|is of no LoRA layer")
        for name, content in others.items()
    }
    return files


FILES = lora_files(random_lora(build_unet(channels=(32, 64, 64))))


@pytest.fixture
def untouched(unet):
    """A UNet that must be as it was when the test is over."""
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    yield unet
    after = unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize("name", FILES)
def test_a_lora_file_that_does_not_fit(name, untouched, tmp_path):
    file, content, message = FILES[name]
    (tmp_path / file).write_bytes(content)
    refused(lambda: load_attn_procs(untouched, tmp_path / file), re.escape(file), message)


@pytest.mark.parametrize(("name", "make"), [
    ("none.bin", lambda path: None), ("folder", lambda path: path.mkdir()), ("pipe.bin", os.mkfifo),
    ("loop.bin", lambda path: path.symlink_to(path.name)),
])  # fmt: skip
def test_something_that_is_no_file(name, make, untouched, tmp_path):
    make(tmp_path / name)
    refused(lambda: load_attn_procs(untouched, tmp_path / name), name, "no such|holds neither")


def test_a_lora_of_another_rank_is_refused(unet, tmp_path):
    ranked = copy.deepcopy(unet)
    load_attn_procs(ranked, random_lora(unet, rank=2))
    save_file(random_lora(unet, rank=4), tmp_path / "other.safetensors")
    refused(lambda: load_attn_procs(ranked, tmp_path / "other.safetensors"), "rank 4.*rank 2")


WEIGHT, BIAS = torch.zeros(32, 8, 3, 3), torch.zeros(32)
CONV_IN = {
    "empty": b"",
    "text": b"text" * 9,
    "pickle": malicious_pickle(),
    "no bias": save({"weight": WEIGHT}),
    "no weight": save({"bias": BIAS}),
    "another width": save({"weight": WEIGHT[:16].clone(), "bias": BIAS[:16].clone()}),
    "another kernel": save({"weight": torch.zeros(32, 8, 1, 1), "bias": BIAS}),
    "one axis": save({"weight": BIAS, "bias": BIAS.clone()}),
}


@pytest.mark.parametrize("name", CONV_IN)
def test_a_conv_in_that_does_not_fit(name, untouched, weights, tmp_path):
    save_file(load_file(weights / SAFETENSORS), tmp_path / SAFETENSORS, {"method": "augunet"})
    put(tmp_path / "conv_in.safetensors", CONV_IN[name])
    refused(lambda: load_attn_procs(untouched, tmp_path), "conv_in.safetensors", "not fit")
