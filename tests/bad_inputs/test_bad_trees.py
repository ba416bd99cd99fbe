"""Data sets that lack files, list missing ones, or are in another place than the flags name."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from bad_files import encoded
from helpers import fork
from PIL import Image
from refusals import SCRIPT, depths, main_refused, normals, outcome, put, refused, run_here

from dataloaders.diode import Diode
from dataloaders.listing import complete, manifest_samples
from utils.base_model.stable_diffusion import load_base
from utils.image_io.images import read_label, read_rgb
from utils.intrinsics import DEPTH, NORMAL
from utils.lora import SAFETENSORS
from utils.lora.__main__ import main as lora_main
from utils.training import checkpoint

pytestmark = pytest.mark.bad_input
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


@pytest.mark.parametrize("name", METAS)
def test_a_list_of_names_that_is_none(name, tree):
    root, _ = tree
    put(root / "diode_meta.json", METAS[name])
    refused(lambda: normals(root), re.escape(str(root / "diode_meta.json")), "not DIODE's list of names")


def test_no_list_of_names(tree):
    root, _ = tree
    path = root / "diode_meta.json"
    path.unlink()
    refused(lambda: normals(root), "no such file", "--list_from disk")
    path.mkdir()
    refused(lambda: normals(root), re.escape(str(path)), "not DIODE's list of names")


NOWHERE = [
    "absent",
    "../../../../../../etc/passwd",
    "x" * 400,
    "a\nb",
    "\u03a9 \u6cd5\u7dda",
    "",
    ".",
    "..",
    "a\0b",
    "a/b/c",
]
NO_TEXT = [7, None, ["a"], {"b": 1}, True]


@pytest.mark.parametrize("name", [*NOWHERE, *NO_TEXT], ids=lambda name: ascii(name)[:20])
def test_a_listed_name_without_files(name, tree):
    """Outside the tree, too long, of strange characters, of no text at all."""
    root, stem = tree
    scene, scan = stem.split("/")[2:4]
    meta = {"train": {"indoors": {scene: {scan: [name]}}}}
    (root / "diode_meta.json").write_text(json.dumps(meta))
    text = (r"no .*\.(png|npy)|not a|unreadable", "is --") if isinstance(name, str) else ("diode_meta.json|no .*png",)
    refused(lambda: normals(root)[0], *text)


MANIFESTS = {
    "empty": b"",
    "blank lines": b"\n \n\n",
    "no json": b"image: a.png",
    "a list": b'["a.png", "a.png"]',
    "a number": b"7",
    "deep": b"[" * 100_000,
    "no unicode": b'{"image": "\xff\xfe", "label": "a"}',
    "utf-16": '{"image": "a.png", "label": "a.png"}'.encode("utf-16"),
    "an image": encoded("PNG"),
    "a pickle": b"\x80\x04N.",
    "no label": b'{"image": "a.png"}',
    "an unknown key": b'{"image": "a.png", "label": "a.png", "Split": "val"}',
    "an unknown split": b'{"image": "a.png", "label": "a.png", "split": "test"}',
    "a null label": b'{"image": "a.png", "label": null}',
    "a number for a label": b'{"image": "a.png", "label": 3}',
    "the same twice": b'{"image": "a.png", "label": "a.png"}\n' * 2,
    "a split for one of two": b'{"image": "a.png", "label": "a.png", "split": "val"}\n{"image": "b", "label": "b"}',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_none(name, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(MANIFESTS[name])
    refused(lambda: manifest_samples(path), "data.jsonl")


@pytest.mark.parametrize("name", ["none.jsonl", ""])
def test_a_manifest_that_is_not_there(name, tmp_path):
    refused(lambda: manifest_samples(tmp_path / name), "cannot be")


@pytest.mark.parametrize("name", ["absent.png", "../../etc/passwd", "a\0b", "", "x" * 400, "a\nb.png"],
                         ids=lambda name: ascii(name)[:20])  # fmt: skip
def test_a_manifest_that_lists_what_is_not_there(name, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"image": name, "label": name}))
    refused(lambda: complete(manifest_samples(path), False, []), "lack a file|data.jsonl")


WRONG_FOLDERS = {  # name -> intrinsic, --train_data_dir, --pseudo_root (both in the tree), what must be said
    "no tree": (NORMAL, "/nowhere", "pseudo/normal", "--train_data_dir"),
    "a file for a tree": (NORMAL, __file__, "pseudo/normal", "--train_data_dir"),
    "no labels' tree": (NORMAL, "normals", "/nowhere", "--pseudo_root"),
    "a file for labels": (NORMAL, "normals", __file__, "--pseudo_root"),
    "labels one up": (NORMAL, "normals", "pseudo", "--pseudo_root"),
    "labels one down": (NORMAL, "normals", "pseudo/normal/train", "--pseudo_root"),
    "root one up": (NORMAL, ".", "pseudo/normal", "DIODE's root; pass"),
    "root one down": (NORMAL, "normals/train", "pseudo/normal", "normals/ folder"),
    "depths for normals": (NORMAL, "depths", "pseudo/normal", "normals/ folder"),
    "normals for depths": (DEPTH, "normals", "pseudo/depth", "depths/ folder"),
}


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_wrong_data_folder_is_named(name, tree):
    root, _ = tree
    intrinsic, data, labels, message = WRONG_FOLDERS[name]
    refused(lambda: Diode(intrinsic, root / data, root / labels, "train"), message)


@pytest.mark.parametrize("types", [["indoor"], ["outdoors"], [], [""]], ids=str)
def test_scene_types_that_are_none(types, tree):
    refused(lambda: normals(tree[0], scene_types=types), "--scene_types")


@pytest.mark.parametrize(("folder", "suffix"), [
    ("depths", ".png"), ("pseudo/normal", ".png"), ("normals", "_normal.npy"), ("depths", "_depth_mask.npy"),
])  # fmt: skip
def test_a_file_that_is_missing(folder, suffix, tree):
    root, stem = tree
    (root / folder / f"{stem}{suffix}").unlink()
    make = depths if suffix == "_depth_mask.npy" else normals
    refused(lambda: make(root), re.escape(suffix), "e.g. train/indoors")


def test_depths_in_capitals(tree):
    root, _ = tree
    (root / "depths").rename(root / "Depths")
    refused(lambda: normals(root), "depths: no such folder")


@pytest.fixture
def words(tree, flags, tmp_path):
    """Arguments of a run of one step on the tree of one sample."""
    root, _ = tree
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1)
    for flag, value in (("--train_data_dir", root / "normals"), ("--pseudo_root", root / "pseudo/normal")):
        words[words.index(flag) + 1] = str(value)
    return words


EMPTY = {
    "an empty list": {"train": {}},
    "no list": {},
    "no train": {"val": {"indoors": {}}},
    "no scan": {"train": {"indoors": {"scene_00000": {}}}},
    "no stem": {"train": {"indoors": {"scene_00000": {"scan_00000": []}}}},
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_split_through_a_script(name, words, tree):
    (tree[0] / "diode_meta.json").write_text(json.dumps(EMPTY[name]))
    main_refused(SCRIPT, words, "no training images under .*normals")


def test_a_scene_type_without_images(words):
    main_refused(SCRIPT, [*words, "--scene_types", "outdoor"], "no training images")


def test_a_split_of_which_everything_is_skipped(words, tree):
    root, stem = tree
    (root / f"normals/{stem}_normal.npy").unlink()
    main_refused(SCRIPT, [*words, "--skip_missing"], "no training images.*left out 1 of 1")


def test_an_empty_label_leaves_nothing_half_done(words, tree, tmp_path):
    root, stem = tree
    put(root / f"pseudo/normal/{stem}.png", b"")
    main_refused(SCRIPT, words, re.escape(f"{stem}.png"), "replace or remove")
    assert not (tmp_path / "run" / SAFETENSORS).exists() and not checkpoint.find(tmp_path / "run")


def test_a_batch_larger_than_the_data_works(words, tree, tmp_path):
    root, stem = tree
    put(root / f"pseudo/normal/{stem}.png", encoded("PNG", Image.new("RGB", (96, 72))))
    assert outcome(lambda: run_here(SCRIPT, [*words, "--train_batch_size", "3"]))[0] == 0
    assert (tmp_path / "run" / SAFETENSORS).is_file()


UNREADABLE = {  # name -> the path in `home` that may not be read, and who reads it
    "image": ("x.png", lambda home: read_rgb(home / "x.png")),
    "label": ("label.png", lambda home: read_label(home / "label.png")),
    "LoRA file": ("x.bin", lambda home: lora_main(["inspect", str(home / "x.bin")])),
    "config": ("model/unet/config.json", lambda home: load_base(str(home / "model"))),
    "VAE's folder": ("model/vae", lambda home: load_base(str(home / "model"))),
    "text encoder": ("model/text_encoder/model.safetensors", lambda home: load_base(str(home / "model"))),
    "list of names": ("DIODE/diode_meta.json", lambda home: normals(home / "DIODE")),
    "data set": ("DIODE/normals", lambda home: normals(home / "DIODE")),
    "labels": ("DIODE/pseudo/normal", lambda home: normals(home / "DIODE")),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights and takes them back")
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_may_not_be_read(name, tree, bases, tmp_path):
    """As another user, who may read everything but this."""
    root, stem = tree
    shutil.copytree(bases["sd15"], tmp_path / "model")
    shutil.copy(root / f"pseudo/normal/{stem}.png", tmp_path / "label.png")
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    (tmp_path / "x.bin").write_bytes(b"x")
    for path in [tmp_path, *tmp_path.rglob("*"), *tmp_path.parents]:
        if path != Path("/"):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    inner, call = UNREADABLE[name]
    path = tmp_path / inner
    path.chmod(0)
    os.seteuid(65534)
    try:
        refused(lambda: call(tmp_path), re.escape(path.name))
    finally:
        os.seteuid(0)
        path.chmod(0o755)


def test_a_worker_that_is_killed_ends_in_one_line(flags, tmp_path):
    program = (
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
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 2)
    words += ["--dataloader_num_workers", 2, "--no_cache_latents"]  # threads read for the cache
    done = fork("-c", program, *words, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: DataLoader worker") and "--dataloader_num_workers" in last
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / SAFETENSORS).exists()
