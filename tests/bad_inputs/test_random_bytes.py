"""Random bytes: a reader returns something, or raises a one-line error that names the file."""

import copy
import io
import json
from pathlib import Path

import numpy as np
from bad_files import encoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import normals, time_limit

from utils.errors import InputError
from utils.image_io.files import read_npy
from utils.image_io.images import read_label, read_rgb
from utils.lora import BIN, SAFETENSORS, load_attn_procs

MUTATIONS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8)
FUZZ = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def mutated(content: bytes, changes: list[tuple[int, int]], cut: int | None) -> bytes:
    data = bytearray(content)
    for place, value in changes:
        data[place % len(data)] = value
    return bytes(data[: len(data) if cut is None else cut % len(data)])


def either(path: Path, content: bytes, read) -> None:
    """`read` returns something, or raises a one-line error that names the file."""
    path.write_bytes(content)
    with time_limit():
        try:
            assert read(path) is not None
        except InputError as error:
            assert path.name in str(error) and "\n" not in str(error)


@FUZZ
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]),
    changes=MUTATIONS,
    cut=st.none() | st.integers(0, 9999),
)
def test_random_bytes_as_an_image_are_refused_or_read(tmp_path_factory, kind, changes, cut):
    path = tmp_path_factory.getbasetemp() / "fuzz.png"
    either(path, mutated(encoded(kind), changes, cut), read_rgb)
    either(path, mutated(encoded(kind), changes, cut), read_label)


@FUZZ
@given(changes=MUTATIONS, cut=st.none() | st.integers(0, 9999), header_only=st.booleans())
def test_random_bytes_as_an_array_are_refused_or_read(tmp_path_factory, changes, cut, header_only):
    buffer = io.BytesIO()
    np.save(buffer, np.ones((8, 8, 3), np.float32))
    changes = [(place % 128 if header_only else place, value) for place, value in changes]
    either(tmp_path_factory.getbasetemp() / "fuzz.npy", mutated(buffer.getvalue(), changes, cut), read_npy)


@FUZZ
@given(changes=MUTATIONS, cut=st.none() | st.integers(0, 99_999), suffix=st.sampled_from(["safetensors", "bin"]))
def test_random_bytes_as_a_lora_are_refused_or_read(tmp_path_factory, weights, unet, changes, cut, suffix):
    """A LoRA that loads has the right layers; its numbers may have changed (a LoRA has no checksum)."""
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    content = (weights / (SAFETENSORS if suffix == "safetensors" else BIN)).read_bytes()
    changes = [(place % 3000, value) for place, value in changes]  # the header, mostly
    either(path, mutated(content, changes, cut), lambda path: (load_attn_procs(copy.deepcopy(unet), path), 1))


@FUZZ
@given(meta=st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["train", "indoors", "scene_0", "scan_0", "a"]), inner, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_any_list_of_names(tmp_path_factory, meta):
    root = tmp_path_factory.getbasetemp() / "fuzz-tree"
    for folder in ("depths", "normals", "pseudo/normal"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    content = json.dumps(meta).encode()

    def read(path):
        try:
            return normals(root)
        except InputError as error:  # names that are listed and not there are told with the folder
            raise InputError(f"{path.name}: {error}") from None

    either(root / "diode_meta.json", content, read)
