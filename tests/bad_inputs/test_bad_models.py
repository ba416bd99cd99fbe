"""Model folders and checkpoints with a file that is missing, cut, or something else."""

import copy
import io
import os
import re
import shutil

import pytest
import torch
from bad_files import encoded, malicious_pickle, malicious_zip
from fake_hub import serve
from helpers import fork, random_lora
from refusals import put, refused
from safetensors.torch import save, save_file

from miniworld.pretraining.random_sd import build_unet
from utils.base_model.stable_diffusion import load_base, load_donor, widen_conv_in
from utils.lora import CONV_IN, load_attn_procs
from utils.system import atomic
from utils.training import checkpoint

pytestmark = pytest.mark.bad_input


def model_files() -> dict[str, dict[str, bytes | None]]:
    """name -> file in a model folder -> its new content, None: none."""
    cases = {}
    for part, weights in {
        "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
    }.items():  # fmt: skip
        config, file = f"{part}/config.json", f"{part}/{weights}.safetensors"
        pickled = f"{part}/{'pytorch_model' if part == 'text_encoder' else weights}.bin"
        cases |= {f"{part}: {name}": {config: content} for name, content in {
            "no config": None, "empty config": b"", "cut config": b'{"_class_name": "U', "config is a list": b"[]",
            "config is not text": b"\xff\xfe\x00", "config is a pickle": malicious_pickle(),
        }.items()}  # fmt: skip
        cases |= {f"{part}: {name}": {file: content} for name, content in {
            "no weights": None, "empty weights": b"", "text for weights": b"text" * 99, "pickle for weights":
            malicious_pickle(), "weights of something else": save({"a": torch.zeros(2)}), "zeros": bytes(999),
        }.items()}  # fmt: skip
        cases[f"{part}: a malicious .bin"] = {file: None, pickled: malicious_zip()}
        cases[f"{part}: an old malicious .bin"] = {file: None, pickled: malicious_pickle()}
    cases |= {f"tokenizer: {name}": {f"tokenizer/{file}": content for file in ("vocab.json", "tokenizer.json")}
              for name, content in {"none": None, "empty": b"", "text": b"text", "a list": b"[]"}.items()}  # fmt: skip
    cases |= {f"scheduler: {name}": {"scheduler/scheduler_config.json": content} for name, content in {
        "none": None, "empty": b"", "cut": b'{"beta', "a list": b"[]",
        "no numbers": b'{"_class_name": "DDIMScheduler", "num_train_timesteps": "many"}',
        "unknown schedule": b'{"_class_name": "DDIMScheduler", "beta_schedule": "wavy"}',
    }.items()}  # fmt: skip
    return cases


FOLDERS = model_files()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_folder_that_is_broken(name, bases, tmp_path):
    folder = shutil.copytree(bases["sd15"], tmp_path / "model", copy_function=os.link)
    for file, content in FOLDERS[name].items():
        put(folder / file, content)
    refused(lambda: load_base(str(folder)), re.escape(f"{folder / name.split(':')[0]}"))


NO_MODELS = {
    "none": "no such model folder",
    "./none": "no such model folder",
    "~/none": "no such model folder",
    "a/b/c": "no such model folder",
    "C:\\model": "no such model folder",
    "": "no such model folder",
    "file": "not a checkpoint: a base model is a .safetensors or .ckpt file",
    "single.safetensors": "not a Stable Diffusion checkpoint: none of its 1 keys is known",
    "empty": "a folder, but not a model in diffusers' format; pass one that holds unet/",
    "part": "a folder, but not a model in diffusers' format; pass the checkpoint itself",
    ".": "a folder, but not a model in diffusers' format",
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_name_that_is_no_model(name, bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "part").symlink_to(bases["sd15"] / "unet")
    save_file({"a": torch.zeros(1)}, tmp_path / "single.safetensors")
    refused(lambda: load_base(name), NO_MODELS[name])


@pytest.mark.parametrize("name", ["owner/model", "owner/Ω"])
def test_a_hub_name_without_a_hub(name):
    refused(lambda: load_base(name), name, "pass a local folder")


def test_a_base_for_editing(bases):
    refused(lambda: load_base(str(bases["ip2p"])), "8 channels.*reads 4")


def test_a_donor_with_four_channels(bases, unet):
    donor = load_donor(str(bases["sd15"]))
    refused(lambda: widen_conv_in(copy.deepcopy(unet), donor), "--augment_from")


def test_a_donor_of_another_width(unet):
    narrow = build_unet(8, channels=(64, 64, 64)).conv_in
    refused(lambda: widen_conv_in(copy.deepcopy(unet), narrow), "--augment_from", "miniworld/mini-ip2p")


def test_a_donor_that_is_a_conv_in_alone(unet, tmp_path):
    """Its config comes with it, and they fit each other."""
    other = build_unet(8, channels=(64, 64, 64))
    save_file(dict(other.conv_in.state_dict()), tmp_path / CONV_IN)
    refused(lambda: load_donor(str(tmp_path)), f"{CONV_IN} and config.json next to it do not fit")
    build_unet(8, channels=(32, 64, 64)).save_config(tmp_path)
    refused(lambda: load_donor(str(tmp_path)), "do not fit", "size mismatch")
    other.save_config(tmp_path)
    assert torch.equal(load_donor(str(tmp_path)).weight, other.conv_in.weight)
    with serve({"someone/donor": tmp_path}) as hub:  # and from the hub, without asking for a UNet
        program = "from utils.base_model.stable_diffusion import load_donor\nprint(load_donor('someone/donor'))"
        assert "Conv2d(8, 64" in fork("-c", program, env=hub.env | {"HF_HUB_CACHE": str(tmp_path / "cache")}).stdout
        assert sorted(hub.sent) == ["someone/donor/config.json", f"someone/donor/{CONV_IN}"]


@pytest.fixture
def saved(unet, tmp_path):
    """A UNet with a LoRA, its optimiser, and their good checkpoint."""
    trained = copy.deepcopy(unet)
    load_attn_procs(trained, random_lora(unet))
    state = {"optimizer": torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad])}
    return trained, state, checkpoint.save(tmp_path, 1, 2, trained, state, {"rank": 4}, {})


def part_of_it() -> bytes:
    buffer = io.BytesIO()
    torch.save({"step": 1}, buffer)
    return buffer.getvalue()


STATES = {
    "pickle": malicious_pickle(),
    "pickle in a zip": malicious_zip(),
    "text": b"text",
    "empty": b"",
    "a part of it": part_of_it(),
    "an image": encoded("PNG"),
    "cut": None,
}


@pytest.mark.parametrize("name", STATES)
def test_a_checkpoint_that_was_tampered_with(name, saved):
    """With a manifest that fits, as only somebody who means harm would make it."""
    trained, state, folder = saved
    path = folder / checkpoint.STATE
    put(path, path.read_bytes()[:900] if STATES[name] is None else STATES[name])
    put(folder / atomic.MANIFEST, None)
    atomic.seal(folder)
    assert atomic.damage(folder) is None
    refused(lambda: checkpoint.load(folder, trained, state, {"rank": 4}), checkpoint.STATE, "cannot be read")


@pytest.mark.parametrize("wanted", ["checkpoint-99", "newest", "", __file__, "/"], ids=lambda name: name[-20:])
def test_a_checkpoint_that_is_none(wanted, saved, tmp_path):
    refused(lambda: checkpoint.choose(tmp_path, wanted), "--resume_from_checkpoint")
