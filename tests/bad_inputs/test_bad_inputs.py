"""Bad input in bulk: each case ends, soon, in one line that names the file or flag, and leaves nothing half done.

A case is a call of what the scripts call (their own `main` for pictures and flags) under `utils.errors.run`, with a
time limit. What it must say is given with it. The last test counts the cases; docs/reliability.md states the count.
"""

import contextlib
import copy
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from shlex import quote

import numpy as np
import pytest
import torch
from bad_files import arrays, encoded, malicious_npy, malicious_pickle, malicious_zip, pictures
from helpers import ROOT, SCRIPTS, python, random_lora
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file

import inference_sd_single
from dataloaders.diode import Diode
from dataloaders.listing import complete, manifest_samples
from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError, run
from utils.intrinsics import DEPTH, NORMAL
from utils.lora import BIN, SAFETENSORS, load_attn_procs, save_lora
from utils.lora.__main__ import main as lora_main
from utils.maps.files import read_npy
from utils.maps.images import read_label, read_rgb
from utils.models import load_base, load_donor, widen_conv_in
from utils.system import atomic
from utils.training import checkpoint

SECONDS = 60  # for one case, on a busy machine
MARK = "code-was-run"
tried: dict[str, set[str]] = {}


class Hang(BaseException):
    """Not an Exception: nothing on the way may catch it."""


@contextlib.contextmanager
def time_limit():
    def stop(*_):
        raise Hang(f"still busy after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(call) -> tuple[int, str]:
    """Exit status and stderr of a call under `run`; anything but an error meant for the user comes through."""
    told, status = io.StringIO(), 0
    with time_limit(), contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            run(call)
        except SystemExit as end:
            status = end.code
    return status, told.getvalue()


def refused(kind: str, name: str, call, *expected: str) -> str:
    """Try one case: status 2, one error line, the last, in which every regular expression of `expected` is found."""
    tried.setdefault(kind, set()).add(name)
    status, told = outcome(call)
    lines = [line for line in told.splitlines() if re.match(r"(.*: )?error: ", line)]
    assert status == 2 and len(lines) == 1, f"{kind}, {name}: status {status}, {told[-500:]}"
    last = told.rstrip("\n").split("\n")[-1]
    assert last == lines[0] and "Traceback" not in told and len(last) < 1500
    for pattern in expected:
        assert re.search(pattern, last), f"{kind}, {name}: {pattern!r} is not in {last!r}"
    return last


@pytest.fixture
def tree(diode, tmp_path):
    """A DIODE of one training picture, 96x72, and the stem of it."""
    root = tmp_path / "DIODE"
    meta = json.loads((diode / "diode_meta.json").read_text())
    scene, scans = next(iter(meta["train"]["indoors"].items()))
    scan, stems = next(iter(scans.items()))
    stem = f"train/indoors/{scene}/{scan}/{stems[0]}"
    for folder, suffix in (
        ("depths", ".png"), ("depths", "_depth.npy"), ("depths", "_depth_mask.npy"), ("normals", "_normal.npy"),
        ("pseudo/normal", ".png"), ("pseudo/depth", ".png"),
    ):  # fmt: skip
        (root / folder / stem).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(diode / folder / f"{stem}{suffix}", root / folder / f"{stem}{suffix}")
    meta = {"train": {"indoors": {scene: {scan: stems[:1]}}}}
    (root / "diode_meta.json").write_text(json.dumps(meta))
    return root, stem


def normals(root: Path, **options) -> Diode:
    return Diode(NORMAL, root / "normals", root / "pseudo/normal", "train", resolution=32, **options)


def depths(root: Path, **options) -> Diode:
    return Diode(DEPTH, root / "depths", root / "pseudo/depth", "train", resolution=32, **options)


def put(path: Path, content: bytes | None) -> None:
    """Replace a file; None: by nothing."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def unet():
    return build_unet(channels=(32, 64, 64))


@pytest.fixture(scope="module")
def weights(unet, bases, tmp_path_factory):
    """The output folder of a LoRA for the small random base."""
    folder, trained = tmp_path_factory.mktemp("lora"), copy.deepcopy(unet)
    load_attn_procs(trained, random_lora(unet))
    metadata = {"task": "normal", "prompt": "surface normal", "method": "single-step", "resolution": 32}
    save_lora(trained, folder, {**metadata, "base_model": bases["sd15"]}, with_bin=True)
    return folder


# pictures


def test_pictures(weights, tmp_path):
    """Bad pictures among good ones, through the inference script: the good are drawn, each bad one is told of."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    good = {"fine.png": encoded("PNG"), "schön 法線.png": encoded("PNG"), "good\nline.png": encoded("PNG")}
    bad = pictures(tmp_path / MARK)
    for name, content in {**bad, **good}.items():
        (folder / name).write_bytes(content)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("/nowhere/at/all.png")
    names = [*bad, "loop.png", "nowhere.png"]
    words = ["--lora", weights, "--input_dir", folder, "--output_dir", out, "--device", "cpu"]
    status, told = outcome(lambda: inference_sd_single.main([str(word) for word in words]))
    assert status == 1 and f"{len(names)} images could not be read" in told and "Traceback" not in told, told
    listed = told.split("could not be read:\n")[1].splitlines()
    for name in names:
        shown = InputError(str(folder / name)).args[0]
        assert sum(line.strip().startswith(f"{shown}: ") for line in listed) == 1, name
        tried.setdefault("image", set()).add(name)
    assert len(listed) == len(names)
    assert all("replace or remove it" in line or "save the picture with" in line for line in listed)
    written = {path.name for path in (out / "normal/predicted").iterdir()}
    assert written == {f"{Path(name).stem}_normal.png" for name in good}
    assert not (tmp_path / MARK).exists()


def test_pictures_that_cannot_be_written(weights, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ("x" * 250 + ".png")).write_bytes(encoded("PNG"))
    words = ["--lora", weights, "--input_dir", tmp_path / "in", "--device", "cpu", "--output_dir"]
    call = lambda out: lambda: inference_sd_single.main([str(word) for word in (*words, out)])  # noqa: E731
    refused(
        "image", "a name too long to write", call(tmp_path / "out"), "xxx_normal.png: cannot be written", "too long"
    )
    (tmp_path / "file").touch()
    refused("image", "an output folder that is a file", call(tmp_path / "file"), "file", "cannot be written")
    assert not list(tmp_path.rglob("*.part"))


# labels, pictures and ground truth of the data set


def in_tree(tree, kind: str, folder: str, suffix: str, make=normals) -> None:
    """Every broken picture or array in one place of a sample."""
    root, stem = tree
    path = root / folder / f"{stem}{suffix}"
    if suffix.endswith(".npy"):
        contents, cure = arrays(root / MARK), "replace it or leave the sample out"
    else:  # a name's ending matters not to Pillow, so contents of other formats are tried as .png
        kept = {name: content for name, content in pictures(root / MARK).items() if content and content != b"x"}
        sixteen = ("float.tif", "negative.tif")
        contents, cure = {name: content for name, content in kept.items() if name not in sixteen}, "replace or remove"
    for name, content in contents.items():
        put(path, content)
        refused(kind, f"{folder}: {name}", lambda: make(root)[0], re.escape(str(path)), cure)
    for name, place in {"a folder": Path.mkdir, "a pipe": os.mkfifo, "a loop": lambda p: p.symlink_to(p.name)}.items():
        put(path, None)
        place(path)
        refused(kind, f"{folder}: {name}", lambda: make(root)[0], re.escape(str(path)), "not a file")
        path.rmdir() if path.is_dir() else path.unlink()
    assert not (root / MARK).exists()


def test_labels(tree):
    in_tree(tree, "label", "pseudo/normal", ".png")


def test_training_pictures(tree):
    in_tree(tree, "image", "depths", ".png")


@pytest.mark.parametrize(("make", "folder", "suffix"), [
    (normals, "normals", "_normal.npy"), (depths, "depths", "_depth.npy"), (depths, "depths", "_depth_mask.npy"),
])  # fmt: skip
def test_ground_truth(make, folder, suffix, tree):
    in_tree(tree, "ground truth", folder, suffix, make)


WRONG_ARRAYS = {
    "no axes": np.float32(3),
    "one axis": np.ones(5, np.float32),
    "four axes": np.ones((1, 72, 96, 3), np.float32),
    "two channels": np.ones((72, 96, 2), np.float32),
    "no pixels": np.ones((0, 0, 3), np.float32),
    "transposed": np.ones((96, 72, 3), np.float32),
    "channels first": np.ones((3, 72, 96), np.float32),
    "half the size": np.ones((36, 48, 3), np.float32),
    "whole numbers": np.ones((72, 96, 3), np.int64),
    "complex numbers": np.ones((72, 96, 3), np.complex64),
    "text": np.full((72, 96, 3), "x"),
    "dates": np.zeros((72, 96, 3), "M8[s]"),
    "records": np.zeros((72, 96), [("x", "f4"), ("y", "f4"), ("z", "f4")]),
}


@pytest.mark.parametrize("kind", ["normals", "depth"])
def test_arrays_of_the_wrong_kind(kind, tree):
    root, stem = tree
    path = root / (f"normals/{stem}_normal.npy" if kind == "normals" else f"depths/{stem}_depth.npy")
    for name, array in WRONG_ARRAYS.items():
        np.save(path, array)
        make = normals if kind == "normals" else depths
        refused(
            "ground truth", f"{kind}: {name}", lambda make=make: make(root)[0], re.escape(str(root)), "expected|beside"
        )


def test_arrays_without_a_number_are_invalid_everywhere(tree):
    """NaN and infinity are no mistake of the user: DIODE has them. They are masked, and never reach a metric."""
    root, stem = tree
    for value in (np.nan, np.inf, -np.inf):
        np.save(root / f"normals/{stem}_normal.npy", np.full((72, 96, 3), value, np.float32))
        np.save(root / f"depths/{stem}_depth.npy", np.full((72, 96, 1), value, np.float32))
        for item in (normals(root)[0], depths(root)[0]):
            assert not item["valid"].any()


def test_labels_of_the_wrong_kind(tree):
    root, stem = tree
    path = root / f"pseudo/normal/{stem}.png"
    grey = np.zeros((72, 96), np.uint16)
    cases = {
        "16 bits": (grey + 40_000, "16-bit label.*8 bits"),
        "32-bit integers": (grey.astype(np.int32), "16-bit label.*8 bits"),
        "another aspect": (np.zeros((40, 96, 3), np.uint8), "does not cover"),
        "upright": (np.zeros((96, 72, 3), np.uint8), "does not cover"),
        "one pixel high": (np.zeros((1, 96, 3), np.uint8), "does not cover"),
    }
    for name, (pixels, message) in cases.items():
        image = Image.fromarray(pixels)
        image.save(path, "TIFF" if image.mode == "I" else "PNG")
        refused("label", name, lambda: normals(root)[0], re.escape(str(path)), message)
    Image.fromarray(np.zeros((72, 72, 3), np.uint8)).save(path)
    refused("label", "a square with random crops", lambda: normals(root, center_crop=False)[0], "--center_crop")


# the tree and its list of names


METAS = {
    "empty": b"",
    "no json": b"train: {}",
    "cut": b'{"train": {"indoors": {"scene_0',
    "a number": b"3",
    "null": b"null",
    "a list": b"[1, 2]",
    "splits in a list": b'{"train": [1]}',
    "scenes in a list": b'{"train": {"indoors": [1]}}',
    "scans in a list": b'{"train": {"indoors": {"s": [1]}}}',
    "stems are a number": b'{"train": {"indoors": {"s": {"t": 3}}}}',
    "stems are null": b'{"train": {"indoors": {"s": {"t": null}}}}',
    "utf-16": '{"train": {}}'.encode("utf-16"),
    "no unicode": b'{"train": "\xff\xfe"}',
    "deep": b"[" * 100_000,
    "a pickle": b"\x80\x04N.",
}


def test_lists_of_names(tree):
    root, _ = tree
    path = root / "diode_meta.json"
    for name, content in METAS.items():
        put(path, content)
        refused("data set", f"meta: {name}", lambda: normals(root), re.escape(str(path)), "not DIODE's list of names")
    put(path, None)
    refused("data set", "meta: none", lambda: normals(root), "no such file", "--list_from disk")
    path.mkdir()
    refused("data set", "meta: a folder", lambda: normals(root), re.escape(str(path)), "not DIODE's list of names")


def test_names_that_lead_nowhere(tree):
    """Listed stems without files: outside the tree, too long, of strange characters, of no text at all."""
    root, stem = tree
    scene, scan = stem.split("/")[2:4]
    for name in (
        "absent",
        "../../../../../../etc/passwd",
        "x" * 400,
        "a\nb",
        "Ω 法線",
        "",
        ".",
        "..",
        "a\0b",
        "a/b/c",
    ):
        meta = {"train": {"indoors": {scene: {scan: [name]}}}}
        (root / "diode_meta.json").write_text(json.dumps(meta))
        refused(
            "data set", f"stem {name[:20]!r}", lambda: normals(root)[0], r"no .*\.(png|npy)|not a|unreadable", "is --"
        )
    for name in (7, None, ["a"], {"b": 1}, True):
        meta = {"train": {"indoors": {scene: {scan: [name]}}}}
        (root / "diode_meta.json").write_text(json.dumps(meta))
        refused("data set", f"stem {name!r}", lambda: normals(root)[0], "diode_meta.json|no .*png")


MANIFESTS = {
    "empty": b"",
    "blank lines": b"\n \n\n",
    "no json": b"image: a.png",
    "a list": b'["a.png", "a.png"]',
    "a number": b"7",
    "deep": b"[" * 100_000,
    "no unicode": b'{"image": "\xff\xfe", "label": "a"}',
    "utf-16": '{"image": "a.png", "label": "a.png"}'.encode("utf-16"),
    "a picture": encoded("PNG"),
    "a pickle": b"\x80\x04N.",
    "no label": b'{"image": "a.png"}',
    "an unknown key": b'{"image": "a.png", "label": "a.png", "Split": "val"}',
    "an unknown split": b'{"image": "a.png", "label": "a.png", "split": "test"}',
    "a null label": b'{"image": "a.png", "label": null}',
    "a number for a label": b'{"image": "a.png", "label": 3}',
    "the same twice": b'{"image": "a.png", "label": "a.png"}\n' * 2,
    "a split for one of two": b'{"image": "a.png", "label": "a.png", "split": "val"}\n{"image": "b", "label": "b"}',
}


def test_manifests(tmp_path):
    path = tmp_path / "data.jsonl"
    for name, content in MANIFESTS.items():
        path.write_bytes(content)
        refused("data set", f"manifest: {name}", lambda: manifest_samples(path), "data.jsonl")
    for name in ("none.jsonl", ""):
        refused(
            "data set", f"manifest named {name!r}", lambda name=name: manifest_samples(tmp_path / name), "cannot be"
        )
    for name in ("absent.png", "../../etc/passwd", "a\0b", "", "x" * 400, "a\nb.png"):
        path.write_text(json.dumps({"image": name, "label": name}))
        call = lambda: complete(manifest_samples(path), False, [])  # noqa: E731
        refused("data set", f"manifest lists {name[:20]!r}", call, "lack a file|data.jsonl")


def test_trees(tree, tmp_path):
    root, stem = tree
    args = {"resolution": 32}
    cases = {
        "no tree": (lambda: Diode(NORMAL, "/nowhere", root / "pseudo/normal", "train"), "--train_data_dir"),
        "a file for a tree": (lambda: Diode(NORMAL, __file__, root / "pseudo/normal", "train"), "--train_data_dir"),
        "no labels' tree": (lambda: Diode(NORMAL, root / "normals", "/nowhere", "train"), "--pseudo_root"),
        "a file for labels": (lambda: Diode(NORMAL, root / "normals", __file__, "train"), "--pseudo_root"),
        "labels one up": (lambda: Diode(NORMAL, root / "normals", root / "pseudo", "train"), "--pseudo_root"),
        "labels one down": (
            lambda: Diode(NORMAL, root / "normals", root / "pseudo/normal/train", "train"),
            "--pseudo_root",
        ),
        "root one up": (lambda: Diode(NORMAL, root, root / "pseudo/normal", "train"), "DIODE's root; pass"),
        "root one down": (
            lambda: Diode(NORMAL, root / "normals/train", root / "pseudo/normal", "train"),
            "normals/ folder",
        ),
        "depths for normals": (
            lambda: Diode(NORMAL, root / "depths", root / "pseudo/normal", "train"),
            "normals/ folder",
        ),
        "normals for depths": (
            lambda: Diode(DEPTH, root / "normals", root / "pseudo/depth", "train"),
            "depths/ folder",
        ),
        "a scene type in the singular": (lambda: normals(root, scene_types=["indoor"]), "--scene_types"),
        "a scene type in the plural": (lambda: normals(root, scene_types=["outdoors"]), "--scene_types"),
        "no scene type": (lambda: normals(root, scene_types=[]), "--scene_types"),
        "an empty scene type": (lambda: normals(root, scene_types=[""]), "--scene_types"),
    }
    for name, (call, message) in cases.items():
        refused("data set", name, call, message)
    for folder, suffix in (("depths", ".png"), ("pseudo/normal", ".png"), ("normals", "_normal.npy")):
        os.rename(root / folder / f"{stem}{suffix}", tmp_path / "away")
        refused("data set", f"no {folder} {suffix}", lambda: normals(root), re.escape(suffix), "e.g. train/indoors")
        os.rename(tmp_path / "away", root / folder / f"{stem}{suffix}")
    os.rename(root / f"depths/{stem}_depth_mask.npy", tmp_path / "away")
    refused("data set", "no mask", lambda: depths(root), "_depth_mask.npy")
    os.rename(root / "depths", root / "Depths")
    refused("data set", "depths/ in capitals", lambda: normals(root), "depths: no such folder")
    assert args


def test_trees_through_a_script(tree, flags, tmp_path):
    """The same, and empty and tiny splits, through a script's main."""
    root, stem = tree
    script = "sd_single_diode_pseudo_normal.py"

    def call(*more, task="normal"):
        words = flags(script, tmp_path / "run", "--max_train_steps", 1, *more)
        for flag, value in (("--train_data_dir", root / "normals"), ("--pseudo_root", root / f"pseudo/{task}")):
            words[words.index(flag) + 1] = str(value)
        return lambda: run_main(script, words)

    for name, meta in {
        "an empty list": {"train": {}},
        "no list": {},
        "no train": {"val": {"indoors": {}}},
        "no scan": {"train": {"indoors": {"scene_00000": {}}}},
        "no stem": {"train": {"indoors": {"scene_00000": {"scan_00000": []}}}},
    }.items():
        kept = (root / "diode_meta.json").read_bytes()
        (root / "diode_meta.json").write_text(json.dumps(meta))
        refused("data set", f"split: {name}", call(), "no training images under .*normals")
        put(root / "diode_meta.json", kept)
    refused("data set", "split: only indoors", call("--scene_types", "outdoor"), "no training images")
    os.rename(root / f"normals/{stem}_normal.npy", tmp_path / "away")
    refused("data set", "split: all skipped", call("--skip_missing"), "no training images.*left out 1 of 1")
    os.rename(tmp_path / "away", root / f"normals/{stem}_normal.npy")
    put(root / f"pseudo/normal/{stem}.png", b"")
    refused("label", "an empty one, through the script", call(), re.escape(f"{stem}.png"), "replace or remove")
    assert not (tmp_path / "run" / SAFETENSORS).exists() and not checkpoint.find(tmp_path / "run")
    put(root / f"pseudo/normal/{stem}.png", encoded("PNG", Image.new("RGB", (96, 72))))
    assert outcome(call("--train_batch_size", "3"))[0] == 0  # one picture, a batch larger than the data: it works
    assert (tmp_path / "run" / SAFETENSORS).is_file()


def run_main(script: str, words: list[str]) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    importlib.import_module(script.removesuffix(".py")).main([str(word) for word in words])


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights and takes them back")
def test_unreadable_files(diode, bases, tmp_path_factory, monkeypatch):
    """As another user: every kind of file and folder without the right to read or write it."""
    home = Path(tmp_path_factory.mktemp("home"))
    for parent in [home, *home.parents]:
        if parent.stat().st_mode & 0o055 != 0o055 and parent != Path("/"):
            parent.chmod(0o755)
    root = shutil.copytree(diode, home / "DIODE")
    root.chmod(0o755)
    model = shutil.copytree(bases["sd15"], home / "model")
    for path in model.rglob("*.safetensors"):
        path.chmod(0o644)
    (home / "x.png").write_bytes(encoded("PNG"))
    (home / "x.bin").write_bytes(b"x")
    label = next((root / "pseudo/normal/train").rglob("*.png"))
    cases = {
        "image": [(home / "x.png", lambda: read_rgb(home / "x.png"))],
        "label": [(label, lambda: read_label(label))],
        "LoRA file": [(home / "x.bin", lambda: lora_main(["inspect", str(home / "x.bin")]))],
        "model folder": [
            (model / "unet/config.json", lambda: load_base(str(model))),
            (model / "vae", lambda: load_base(str(model))),
            (model / "text_encoder/model.safetensors", lambda: load_base(str(model))),
        ],
        "data set": [
            (root / "diode_meta.json", lambda: normals(root)),
            (root / "normals", lambda: normals(root)),
            (label.parent, lambda: normals(root)),
        ],
    }
    for kind, each in cases.items():
        for path, call in each:
            mode = path.stat().st_mode
            path.chmod(0)
            os.seteuid(65534)
            try:
                refused(kind, f"no right to read {path.name}", call, re.escape(path.name))
            finally:
                os.seteuid(0)
                path.chmod(mode)


# LoRA files


def lora_files(state: dict, mark: Path) -> dict[str, tuple[str, bytes, str]]:
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
        "picture": encoded("PNG"),
        "zeros": bytes(1000),
        "page": b"<!doctype html><title>404</title>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "pickle": malicious_pickle(mark),
        "pickle in a zip": malicious_zip(mark),
        "array of objects": malicious_npy(mark),
    }
    files |= {f"{name} named .safetensors": ("x.safetensors", content, unreadable) for name, content in raw.items()}
    files |= {f"{name} named .bin": ("x.bin", content, unreadable) for name, content in raw.items()}
    headers = {
        "header of 2^60 bytes": (2**60).to_bytes(8, "little") + b"{}",
        "header is no json": header(b"{not json"),
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
        "mixed ranks": (
            changed(lambda s: s.update({keys[0]: s[keys[0]][:2], keys[1]: s[keys[1]][:, :2]})),
            "several ranks",
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


def test_lora_files(unet, tmp_path):
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    for name, (file, content, message) in lora_files(random_lora(unet), tmp_path / MARK).items():
        (tmp_path / file).write_bytes(content)
        refused("LoRA file", name, lambda file=file: load_attn_procs(unet, tmp_path / file), re.escape(file), message)
        assert unet.state_dict().keys() == before.keys(), f"{name}: something was loaded"
    assert not (tmp_path / MARK).exists()
    for name, path in {
        "none": "none.bin",
        "an empty folder": "folder",
        "a pipe": "pipe.bin",
        "a loop": "loop.bin",
    }.items():
        if name == "an empty folder":
            (tmp_path / path).mkdir()
        if name == "a pipe":
            os.mkfifo(tmp_path / path)
        if name == "a loop":
            (tmp_path / path).symlink_to(path)
        refused(
            "LoRA file", name, lambda path=path: load_attn_procs(unet, tmp_path / path), path, "no such|holds neither"
        )
    ranked = copy.deepcopy(unet)
    load_attn_procs(ranked, random_lora(unet, rank=2))
    save_file(random_lora(unet, rank=4), tmp_path / "other.safetensors")
    refused(
        "LoRA file", "another rank", lambda: load_attn_procs(ranked, tmp_path / "other.safetensors"), "rank 4.*rank 2"
    )
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_conv_in_files(unet, weights, tmp_path):
    shutil.copy(weights / SAFETENSORS, tmp_path)
    path = tmp_path / "conv_in.safetensors"
    weight, bias = torch.zeros(32, 8, 3, 3), torch.zeros(32)
    cases = {
        "empty": b"",
        "text": b"text" * 9,
        "pickle": malicious_pickle(tmp_path / MARK),
        "no bias": save({"weight": weight}),
        "no weight": save({"bias": bias}),
        "another width": save({"weight": weight[:16].clone(), "bias": bias[:16].clone()}),
        "another kernel": save({"weight": torch.zeros(32, 8, 1, 1), "bias": bias}),
        "one axis": save({"weight": bias, "bias": bias.clone()}),
    }
    for name, content in cases.items():
        path.write_bytes(content)
        refused(
            "LoRA file", f"conv_in: {name}", lambda: load_attn_procs(unet, tmp_path), "conv_in.safetensors", "not fit"
        )
        assert unet.conv_in.in_channels == 4
    assert not (tmp_path / MARK).exists()


# model folders


def model_files(mark: Path) -> dict[str, dict[str, bytes | None]]:
    """name -> file in a model folder -> its new content, None: none."""
    cases = {}
    for part, weights in {
        "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
    }.items():  # fmt: skip
        config, file = f"{part}/config.json", f"{part}/{weights}.safetensors"
        pickled = f"{part}/{'pytorch_model' if part == 'text_encoder' else weights}.bin"
        cases |= {f"{part}: {name}": {config: content} for name, content in {
            "no config": None, "empty config": b"", "cut config": b'{"_class_name": "U', "config is a list": b"[]",
            "config is no text": b"\xff\xfe\x00", "config is a pickle": malicious_pickle(mark),
        }.items()}  # fmt: skip
        cases |= {f"{part}: {name}": {file: content} for name, content in {
            "no weights": None, "empty weights": b"", "text for weights": b"text" * 99, "pickle for weights":
            malicious_pickle(mark), "weights of something else": save({"a": torch.zeros(2)}), "zeros": bytes(999),
        }.items()}  # fmt: skip
        cases[f"{part}: a malicious .bin"] = {file: None, pickled: malicious_zip(mark)}
        cases[f"{part}: an old malicious .bin"] = {file: None, pickled: malicious_pickle(mark)}
    cases |= {f"tokenizer: {name}": {f"tokenizer/{file}": content for file in ("vocab.json", "tokenizer.json")}
              for name, content in {"none": None, "empty": b"", "text": b"text", "a list": b"[]"}.items()}  # fmt: skip
    cases |= {f"scheduler: {name}": {"scheduler/scheduler_config.json": content} for name, content in {
        "none": None, "empty": b"", "cut": b'{"beta', "a list": b"[]",
        "no numbers": b'{"_class_name": "DDIMScheduler", "num_train_timesteps": "many"}',
        "unknown schedule": b'{"_class_name": "DDIMScheduler", "beta_schedule": "wavy"}',
    }.items()}  # fmt: skip
    return cases


def test_model_folders(bases, tmp_path):
    for number, (name, changes) in enumerate(model_files(tmp_path / MARK).items()):
        folder = shutil.copytree(bases["sd15"], tmp_path / str(number), copy_function=os.link)
        for file, content in changes.items():
            put(folder / file, content)
        part = name.split(":")[0]
        refused("model folder", name, lambda folder=folder: load_base(str(folder)), re.escape(f"{folder / part}"))
        assert not (tmp_path / MARK).exists(), name
        shutil.rmtree(folder)


def test_model_names(bases, tmp_path, unet):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    single = tmp_path / "single.safetensors"
    save_file({"a": torch.zeros(1)}, single)
    for name in (tmp_path / "file", tmp_path / "none", "./none", "~/none", "none", "a/b/c", single, "C:\\model", ""):
        refused(
            "model folder",
            f"named {Path(name).name!r}",
            lambda name=name: load_base(str(name)),
            "no such model folder",
        )
    for name in (tmp_path / "empty", bases["sd15"] / "unet", "."):
        refused(
            "model folder",
            f"folder {Path(name).name!r}",
            lambda name=name: load_base(str(name)),
            "is .* a diffusers folder",
        )
    for name in ("owner/model", "owner/Ω"):
        refused("model folder", f"hub {name}", lambda name=name: load_base(name), name, "pass a local folder")
    refused("model folder", "one for editing", lambda: load_base(str(bases["ip2p"])), "8 channels.*reads 4")
    donor = load_donor(str(bases["sd15"]))
    refused(
        "model folder", "a donor with 4 channels", lambda: widen_conv_in(copy.deepcopy(unet), donor), "--augment_from"
    )
    narrow = build_unet(8, channels=(64, 64, 64)).conv_in
    refused(
        "model folder",
        "a donor of another width",
        lambda: widen_conv_in(copy.deepcopy(unet), narrow),
        "--augment_from",
    )


# checkpoints


def test_checkpoints_that_were_tampered_with(unet, tmp_path):
    """With manifests that fit, as only somebody who means harm would make them."""
    trained = copy.deepcopy(unet)
    load_attn_procs(trained, random_lora(unet))
    state = {"optimizer": torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad])}
    good = checkpoint.save(tmp_path, 1, 2, trained, state, {"rank": 4}, {})
    buffer = io.BytesIO()
    torch.save({"step": 1}, buffer)
    contents = {
        "pickle": malicious_pickle(tmp_path / MARK),
        "pickle in a zip": malicious_zip(tmp_path / MARK),
        "text": b"text",
        "empty": b"",
        "a part of it": buffer.getvalue(),
        "picture": encoded("PNG"),
        "cut": (good / "training_state.pt").read_bytes()[:900],
    }
    for number, (name, content) in enumerate(contents.items()):
        folder = shutil.copytree(good, tmp_path / f"checkpoint-{number + 2}")
        put(folder / "training_state.pt", content)
        put(folder / atomic.MANIFEST, None)
        atomic.seal(folder)
        assert atomic.damage(folder) is None
        call = lambda folder=folder: checkpoint.load(folder, trained, state, {"rank": 4})  # noqa: E731
        refused("checkpoint", name, call, "training_state.pt", "cannot be read")
    assert not (tmp_path / MARK).exists()
    for name, wanted in {
        "none": "checkpoint-99",
        "a name": "newest",
        "empty": "",
        "a file": __file__,
        "root": "/",
    }.items():
        refused(
            "checkpoint",
            f"named {name}",
            lambda wanted=wanted: checkpoint.choose(tmp_path, wanted),
            "--resume_from_checkpoint",
        )


# flags


NEEDED = ["--pretrained_model_name_or_path", "x", "--train_data_dir", "y", "--pseudo_root", "z", "--output_dir"]
NUMBERS = {  # flag -> values that it must not take
    "rank": "0 -1 1.5 x nan 100000",
    "resolution": "0 -8 100 x 12.5",
    "train_batch_size": "0 -1 x 1.5",
    "gradient_accumulation_steps": "0 -1 x",
    "max_train_steps": "0 -5 x 1e3",
    "num_train_epochs": "0 -1 x",
    "num_train_imgs": "0 -1 x",
    "max_train_samples": "0 -1 x",
    "learning_rate": "0 -1e-4 nan inf x",
    "lr_warmup_steps": "-1 x",
    "adam_beta1": "-0.1 1 2 nan x",
    "adam_beta2": "-0.1 1 nan",
    "adam_weight_decay": "-1 nan inf",
    "adam_epsilon": "-1e-8 nan",
    "max_grad_norm": "-1 nan inf x",
    "noise_offset": "nan inf x",
    "seed": "-1 4294967296 x 1.5",
    "dataloader_num_workers": "-1 100000 x",
    "checkpointing_steps": "0 -1 x",
    "checkpoints_total_limit": "0 -1 x",
    "validation_steps": "0 -1 x",
    "max_hours": "0 -1 nan x",
    "max_nonfinite": "0 -1 x",
}
WORDS = {  # words -> what must be said
    "--lr_scheduler wavy": "lr_scheduler",
    "--mixed_precision fp8": "mixed_precision",
    "--list_from web": "list_from",
    "--report_to comet_ml": "comet_ml",
    "--report_to wandb,none": "none",
    "--dataset_name a/b": "--dataset",
    "--snr_gamma 5": "SNR",
    "--enable_xformers_memory_efficient_attention": "built in",
    "--empty_prompt --unified_prompt a": "exclude each other",
    "--no-such-flag": "no-such-flag",
    "--learning-rate 1": "learning-rate",
    "--ran 4": "--ran",
    "stray": "stray",
    "--seed": "seed",
    "--logging_dir /tmp/logs": "inside --output_dir",
    "--logging_dir ../logs": "inside --output_dir",
    "--resume_from_checkpoint checkpoint-7": "checkpoint-7",
    "--prediction_type epsilon": "prediction_type",
}


def test_training_flags(tmp_path):
    scripts = list(SCRIPTS)
    cases = [([f"--{flag}={value}"], flag) for flag, values in NUMBERS.items() for value in values.split()]
    cases += [(words.split(), expected) for words, expected in WORDS.items()]
    for number, (words, expected) in enumerate(cases):
        script = scripts[number % len(scripts)]
        argv = [*NEEDED, str(tmp_path / "run"), *words]
        refused("flag", " ".join(words), lambda script=script, argv=argv: run_main(script, argv), expected)
    refused("flag", "an empty --output_dir", lambda: run_main(scripts[0], [*NEEDED, ""]), "--output_dir")
    refused(
        "flag",
        "an --output_dir below a file",
        lambda: run_main(scripts[0], [*NEEDED, f"{__file__}/x"]),
        "--output_dir",
    )
    refused(
        "flag", "an --output_dir that is a file", lambda: run_main(scripts[0], [*NEEDED, __file__]), "--output_dir"
    )
    for missing in (0, 2, 4):
        argv = [*NEEDED[:missing], *NEEDED[missing + 2 :], str(tmp_path / "run")]
        refused("flag", f"no {NEEDED[missing]}", lambda argv=argv: run_main(scripts[0], argv), NEEDED[missing])
    assert not (tmp_path / "run").exists(), "a folder was made before the flags were checked"


def test_inference_and_evaluation_flags(weights, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encoded("PNG"))
    base = ["--lora", str(weights), "--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    cases = {
        "--resolution 0": "multiple of 8", "--resolution 63": "multiple of 8", "--resolution -8": "multiple of 8",
        "--batch_size 0": "--batch_size", "--task colour": "task", "--dtype fp8": "dtype", "--device gpu": "--device",
        "--device cuda:99": "--device", "--input_dir /nowhere": "/nowhere: no such folder",
        f"--input_dir {quote(__file__)}": "not a picture we read", f"--input_dir {weights}": "no pictures",
        "--lora /nowhere": "/nowhere: no such LoRA file", "--pretrained_model_name_or_path /nowhere": "no such model",
    }  # fmt: skip
    for words, expected in cases.items():
        refused(
            "flag",
            f"inference {words}"[:60],
            lambda words=words: inference_sd_single.main([*base, *shlex.split(words)]),
            expected,
        )
    assert not (tmp_path / "out").exists()
    import evaluate

    base = ["--task", "normal", "--pred_dir", str(tmp_path / "in"), "--gt_dir", str(tmp_path / "in")]
    for words, expected in {
        "--task colour": "task", "--protocol diode": "no protocol diode", "--align depth": "means nothing",
        "--pred_frame up": "pred_frame", "--erode -1": "--erode", "--bootstrap -1": "--bootstrap",
        "--workers 0": "--workers", "--whdr x": "means nothing", "--gt_depth_scale 5": "means nothing",
        "--pred_space srgb": "means nothing", "--no": "--no", "--seed x": "seed",
    }.items():  # fmt: skip
        refused("flag", f"evaluate {words}", lambda words=words: evaluate.main([*base, *words.split()]), expected)
    cases = {
        "inspect": "source",
        "convert a b --format x": "format",
        "": "command",
        "inspect /nowhere": "no such LoRA file",
        f"convert {weights} {tmp_path}/out.txt --format peft": "ends in .safetensors or .bin",
        f"convert {weights} {weights}/{SAFETENSORS} --format peft": "is the file to convert",
        f"convert {weights} {quote(__file__)}/x.bin --format peft": "cannot write",
    }
    for words, expected in cases.items():
        refused("flag", f"lora {words}"[:60], lambda words=words: lora_main(shlex.split(words)), expected)


# any bytes at all


MUTATIONS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8)
FUZZ = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def mutated(content: bytes, changes: list[tuple[int, int]], cut: int | None) -> bytes:
    data = bytearray(content)
    for place, value in changes:
        data[place % len(data)] = value
    return bytes(data[: len(data) if cut is None else cut % len(data)])


def either(kind: str, path: Path, content: bytes, read) -> None:
    """`read` returns something, or says in one line that it cannot, naming the file."""
    path.write_bytes(content)
    tried.setdefault(f"{kind} (random bytes)", set()).add(hex(hash(content)))
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
def test_any_picture(tmp_path_factory, kind, changes, cut):
    path = tmp_path_factory.getbasetemp() / "fuzz.png"
    either("image", path, mutated(encoded(kind), changes, cut), read_rgb)
    either("label", path, mutated(encoded(kind), changes, cut), read_label)


@FUZZ
@given(changes=MUTATIONS, cut=st.none() | st.integers(0, 9999), header_only=st.booleans())
def test_any_array(tmp_path_factory, changes, cut, header_only):
    buffer = io.BytesIO()
    np.save(buffer, np.ones((8, 8, 3), np.float32))
    changes = [(place % 128 if header_only else place, value) for place, value in changes]
    either(
        "ground truth", tmp_path_factory.getbasetemp() / "fuzz.npy", mutated(buffer.getvalue(), changes, cut), read_npy
    )


@FUZZ
@given(changes=MUTATIONS, cut=st.none() | st.integers(0, 99_999), suffix=st.sampled_from(["safetensors", "bin"]))
def test_any_lora(tmp_path_factory, weights, unet, changes, cut, suffix):
    """What loads has the right layers; its numbers may have changed (a LoRA has no checksum)."""
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    content = (weights / (SAFETENSORS if suffix == "safetensors" else BIN)).read_bytes()
    changes = [(place % 3000, value) for place, value in changes]  # the header, mostly
    either(
        "LoRA file", path, mutated(content, changes, cut), lambda path: (load_attn_procs(copy.deepcopy(unet), path), 1)
    )


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

    either("data set", root / "diode_meta.json", content, read)


# in processes of their own


@pytest.mark.parametrize(("script", "words", "expected"), [
    ("sd_single_diode_pseudo_depth.py", ["--learning_rate", "nan"], "--learning_rate=nan: must be a finite number"),
    ("inference_sd_single.py", ["--lora", "/nowhere.bin"], "/nowhere.bin: no such LoRA file"),
])  # fmt: skip
def test_as_users_run_them(script, words, expected, tmp_path):
    needed = [*NEEDED, tmp_path / "run"] if script.startswith("sd") else []
    done = python(script, *needed, *words, check=False)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1] == f"error: {expected}"


def test_a_worker_that_is_killed_ends_in_one_line(flags, tmp_path):
    program = tmp_path / "worker.py"
    program.write_text(
        "import os, signal, sys\n"
        "import sd_single_diode_pseudo_normal as script\n"
        "from dataloaders.diode import Diode\n"
        "from torch.utils.data import get_worker_info\n"
        "from utils.errors import run\n"
        "read = Diode.__getitem__\n"
        "def dying(self, key):\n"
        "    if get_worker_info() is not None: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return read(self, key)\n"
        "Diode.__getitem__ = dying\n"
        "run(lambda: script.main(sys.argv[1:]))\n"
    )
    words = flags("sd_single_diode_pseudo_normal.py", tmp_path / "run", "--max_train_steps", 2)
    done = python(program, *words, "--dataloader_num_workers", 2, env={"PYTHONPATH": str(ROOT)}, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: DataLoader worker") and "--dataloader_num_workers" in last
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / SAFETENSORS).exists()
    tried.setdefault("data set", set()).add("a worker that is killed")


def test_enough_cases_and_the_docs_say_how_many():
    """Runs last in this file: it counts what the others tried."""
    table = {kind: len(names) for kind, names in sorted(tried.items()) if "(" not in kind}
    fuzzed = sum(len(names) for kind, names in tried.items() if "(" in kind)
    total = sum(table.values())
    print(f"\n{total} cases: " + ", ".join(f"{count} {kind}" for kind, count in table.items()) + f"; {fuzzed} random")
    if len(table) == 8:  # the whole file was run, and not a part of it
        assert total >= 300
        stated = re.search(r"(\d+) kinds of bad input", (ROOT / "docs" / "reliability.md").read_text())
        assert stated and int(stated[1]) <= total < int(stated[1]) + 25
