"""Base models in one file: every part equal to the folder's, and each wrong file with its own sentence."""

import json
import pickle
import shutil
import sys
import threading
import types
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, distance, fork, python, run_here
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from interop.ldm import to_ldm
from miniworld.pretraining.random_sd import build_scheduler, build_unet, build_vae, save_pipeline
from utils.base_model import single_file_parts as parts
from utils.base_model.names import check_base
from utils.base_model.single_file_parts import clip_tokenizer
from utils.base_model.stable_diffusion import load_base, load_donor
from utils.errors import InputError


def small_base(folder: Path, kind: str, in_channels: int = 4, seed: int = 0) -> Path:
    """A small Stable Diffusion of the kind, with CLIP's own tokenizer, random weights, as a folder."""
    settings = json.loads((parts.CONFIGS[kind] / "text_encoder" / "config.json").read_text())
    small = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    text_encoder = CLIPTextModel(CLIPTextConfig(**(settings | small)))
    tokenizer = clip_tokenizer(parts.CONFIGS[kind] / "tokenizer")
    unet = build_unet(in_channels, (32, 64, 64))
    save_pipeline(folder, tokenizer, text_encoder, build_vae(), unet, build_scheduler())
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Kind -> (folder, the same weights in one .safetensors file)."""
    found = {}
    for kind in ("sd1", "sd2"):
        folder = small_base(tmp_path_factory.mktemp("small") / kind, kind)
        file = folder.with_suffix(".safetensors")
        base = load_base(str(folder))
        save_file(to_ldm(base.unet, base.vae, base.text_encoder, open_clip=kind == "sd2"), file)
        found[kind] = (folder, file)
    return found


@pytest.fixture
def sizes(small, monkeypatch) -> None:
    """The small models' sizes in place of Stable Diffusion's."""
    configs = {kind: small[kind][0] for kind in small}
    monkeypatch.setattr(parts, "CONFIGS", configs)


def assert_equal(one, other) -> None:
    for part in ("unet", "vae", "text_encoder"):
        a, b = (getattr(base, part).state_dict() for base in (one, other))
        assert a.keys() == b.keys()
        assert max((a[key] - b[key]).abs().max().item() for key in a) == 0, part


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_file_is_its_folder(small, sizes, tmp_path, kind, suffix):
    folder, file = small[kind]
    if suffix == ".ckpt":
        file = tmp_path / "model.ckpt"
        torch.save({"state_dict": load_file(small[kind][1]), "global_step": 7}, file)
    ours, theirs = load_base(str(file)), load_base(str(folder))
    assert_equal(ours, theirs)
    assert ours.name == str(file) and ours.scheduler.config.beta_end == 0.012
    for prompt in ("surface normal", "Straßencafé, 12 o'clock"):
        assert torch.equal(ours.encode_prompt(prompt), theirs.encode_prompt(prompt))
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in ours.unet.parameters())


def test_a_half_precision_file_and_old_text_keys(small, sizes, tmp_path):
    state = {key: value.half() for key, value in load_file(small["sd1"][1]).items()}
    old = {key.replace("transformer.text_model.", "transformer."): value for key, value in state.items()}
    old["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    old["model_ema.decay"] = torch.tensor(0.9)
    save_file(old, tmp_path / "half.safetensors")
    base = load_base(str(tmp_path / "half.safetensors"))
    assert {p.dtype for part in (base.unet, base.vae, base.text_encoder) for p in part.parameters()} == {torch.float32}
    weight = load_base(str(small["sd1"][0])).text_encoder.state_dict()
    assert all(torch.equal(value, weight[key].half().float()) for key, value in base.text_encoder.state_dict().items())
    read_in_bf16 = load_base(str(tmp_path / "half.safetensors"), dtype=torch.bfloat16).unet.state_dict()
    cast = base.unet.bfloat16().state_dict()
    assert all(torch.equal(value, cast[key]) for key, value in read_in_bf16.items())


def test_the_real_sizes_are_stable_diffusions():
    from diffusers import AutoencoderKL, UNet2DConditionModel

    count = {}
    with torch.device("meta"):
        for kind, folder in parts.CONFIGS.items():
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
            count[kind] = [sum(p.numel() for p in part.parameters()) for part in (unet, vae, text)]
    assert count["sd1"] == [859_520_964, 83_653_863, 123_060_480]  # as the papers' model cards have them
    assert count["sd2"] == [865_910_724, 83_653_863, 340_387_840]


def test_the_tokenizer_is_clips():
    for kind, pad in (("sd1", 49407), ("sd2", 0)):
        tokenizer = clip_tokenizer(parts.CONFIGS[kind] / "tokenizer")
        assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.model_max_length) == (49408, pad, 77)


def test_what_a_trainer_left_in_a_ckpt_does_not_stop_it(small, sizes, tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for path in (name, name.rpartition(".")[0], name.partition(".")[0]):
        monkeypatch.setitem(sys.modules, path, module)
    content = {"state_dict": load_file(small["sd1"][1]), "callbacks": {module.ModelCheckpoint: {"best": 1}}}
    torch.save(content, tmp_path / "model.ckpt")
    for path in (name, name.rpartition(".")[0], name.partition(".")[0]):
        monkeypatch.delitem(sys.modules, path)
    assert_equal(load_base(str(tmp_path / "model.ckpt")), load_base(str(small["sd1"][0])))


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_pickle_runs_no_code(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "code-ran")}))
    torch.save({"state_dict": Evil(tmp_path / "code-ran")}, tmp_path / "zip.ckpt")
    for name in ("model.ckpt", "zip.ckpt"):
        with pytest.raises(InputError, match="not a readable checkpoint"):
            load_base(str(tmp_path / name))
    assert not (tmp_path / "code-ran").exists()


KEYS = {
    "Stable Diffusion XL": "conditioner.embedders.1.model.ln_final.bias",
    "Stable Diffusion XL's refiner": "conditioner.embedders.0.model.ln_final.bias",
    "Stable Diffusion 3": "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
    "Flux": "double_blocks.0.img_attn.norm.key_norm.scale",
    "a LoRA": "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    "a ControlNet": "control_model.time_embed.0.weight",
    "one part of a model": "down_blocks.0.resnets.0.conv1.weight",
    "holds no UNet and no text encoder": "first_stage_model.decoder.conv_in.weight",
    "holds no VAE and no text encoder": "model.diffusion_model.input_blocks.0.0.weight",
    "none of its 1 keys is known, e.g. backbone.weight": "backbone.weight",
}


@pytest.mark.parametrize("named", KEYS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_another_architecture_is_named(tmp_path, named, suffix):
    file = tmp_path / f"model{suffix}"
    state = {KEYS[named]: torch.zeros(1)}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    with pytest.raises(InputError, match=named):
        load_base(str(file))
    if suffix == ".safetensors":  # by its header, before anything heavy is imported
        with pytest.raises(InputError, match=named):
            check_base(str(file))


def broken(change: Callable[[dict], None]) -> Callable[[dict[str, tuple[Path, Path]], Path], Path]:
    def build(small, folder):
        state = load_file(small["sd1"][1])
        change(state)
        save_file(state, folder / "broken.safetensors")
        return folder / "broken.safetensors"

    return build


@pytest.mark.parametrize(("part", "key"), [
    ("UNet", "model.diffusion_model.middle_block.1.proj_in.weight"),
    ("VAE", "first_stage_model.decoder.conv_out.weight"),
    ("text encoder", "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
])  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "of another size"])
def test_a_part_that_does_not_fit_is_named(small, sizes, tmp_path, part, key, how):
    def change(state):
        value = state.pop(key)
        if how != "missing":
            state[key] = torch.zeros(*(size + 1 for size in value.shape))

    file = broken(change)(small, tmp_path)
    with pytest.raises(InputError, match=rf"its {part} is not that of Stable Diffusion 1\.x"):
        load_base(str(file))


def test_full_size_configurations_refuse_a_small_model(small):
    with pytest.raises(InputError, match=r"its UNet is not that of Stable Diffusion 1\.x"):
        load_base(str(small["sd1"][1]))


def test_an_editor_gives_its_first_layer_and_is_no_base(small, sizes, tmp_path):
    base = load_base(str(small["sd1"][0]))
    folder = small_base(tmp_path / "editor", "sd1", in_channels=8, seed=3)
    donor = load_donor(str(folder))
    state = to_ldm(base.unet, base.vae, base.text_encoder)
    state["model.diffusion_model.input_blocks.0.0.weight"] = donor.weight
    state["model.diffusion_model.input_blocks.0.0.bias"] = donor.bias
    save_file(state, tmp_path / "editor.safetensors")
    found = load_donor(str(tmp_path / "editor.safetensors"))
    assert torch.equal(found.weight, donor.weight) and torch.equal(found.bias, donor.bias)
    with pytest.raises(InputError, match="reads 8 channels"):
        load_base(str(tmp_path / "editor.safetensors"))


def test_missing_file_wrong_folder_and_wrong_file_have_sentences_of_their_own(small, tmp_path):
    file = Path(shutil.copy(small["sd1"][1], tmp_path / "sd15.safetensors"))
    cases = {
        tmp_path / "sd1.safetensors": r"no such checkpoint file, did you mean .*sd15\.safetensors\?",
        tmp_path: rf"a folder, but not a model in diffusers' format; pass the checkpoint itself, {file}",
        tmp_path / "notes.safetensors": "not a readable checkpoint .*; download or copy it again",
        tmp_path / "notes.txt": r"not a checkpoint: a base model is a \.safetensors or \.ckpt file, or a folder",
        tmp_path / "empty": "a folder, but not a model in diffusers' format; pass one that holds unet/",
    }
    (tmp_path / "empty").mkdir()
    for name in ("notes.safetensors", "notes.txt"):
        (tmp_path / name).write_text("buy milk, and then write a checkpoint")
    for path, sentence in cases.items():
        with pytest.raises(InputError, match=sentence):
            load_base(str(path))


def test_training_and_inference_take_a_file(small, sizes, flags, diode, tmp_path):
    """The same LoRA, to the bit, as from the folder; its metadata names the file, and inference finds it.

    Maps differ in the last bits: the alignment of weights in a mapped file changes the order of sums.
    """
    script, (folder, file) = "sd_single_diode_pseudo_normal.py", small["sd1"]
    for name, base in (("folder", folder), ("file", file)):
        more = ["--max_train_steps", 2, "--learning_rate", 1e-2, "--pretrained_model_name_or_path", base]
        run_here(script, flags(script, tmp_path / name, *more))
    assert distance(tmp_path / "folder", tmp_path / "file") == 0
    picture = next((diode / "depths" / "val").rglob("*.png"))
    for name in ("folder", "file"):
        words = ["--lora", tmp_path / name, "--input_dir", picture, "--output_dir", tmp_path / f"maps-{name}"]
        run_here("inference_sd_single.py", [*map(str, words), "--npy", "--device", "cpu"])
    one, other = (np.load(next((tmp_path / f"maps-{name}").rglob("*.npy"))) for name in ("folder", "file"))
    assert np.abs(one - other).max() < 1e-4


def halve(folder: Path) -> None:
    """Leave only *.fp16.safetensors in a model folder."""
    for part in ("unet", "vae", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            save_file({key: value.half() for key, value in load_file(file).items()}, file, {"format": "pt"})
            file.rename(file.with_suffix(".fp16.safetensors"))


def test_a_folder_of_half_precision_files_alone_is_read_with_a_note(bases, tmp_path, capsys):
    folder = shutil.copytree(bases["sd15"], tmp_path / "sd")
    halve(folder)
    base, full = load_base(str(folder)), load_base(str(bases["sd15"]))
    assert capsys.readouterr().out.count("holds only fp16 weights") == 3
    for part in ("unet", "vae", "text_encoder"):
        found, wanted = (getattr(one, part).state_dict() for one in (base, full))
        assert all(torch.equal(found[key], wanted[key].half().float()) for key in found)
    damaged = folder / "vae" / "diffusion_pytorch_model.safetensors"
    damaged.write_bytes(b"cut off")  # full precision goes first, and is never replaced in silence
    with pytest.raises(InputError, match="vae: cannot be loaded"):
        load_base(str(folder))


class Files(BaseHTTPRequestHandler):
    """Serves `server.folder` as the hub repository someone/sd."""

    def do_GET(self):
        path = self.server.folder / self.path.partition("/resolve/")[2].partition("/")[2]  # behind the revision
        found = "/resolve/" in self.path and path.is_file()
        data = path.read_bytes() if found else b"{}"
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", f'"{zlib.crc32(data)}"')
            self.send_header("X-Repo-Commit", "1" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


def test_a_hub_repository_of_half_precision_files_alone_is_read_with_a_note(bases, tmp_path):
    folder = shutil.copytree(bases["sd15"], tmp_path / "sd")
    halve(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.folder = folder
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        env = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": None,
            "PYTHONPATH": str(ROOT),
        }
        env |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        program = "from utils.base_model.stable_diffusion import load_base; print(load_base('someone/sd').unet.dtype)"
        done = fork("-c", program, env=env)
    finally:
        server.shutdown()
    assert done.stdout.count("only fp16 weights are there") == 3 and "torch.float32" in done.stdout


def test_a_wrong_file_is_refused_before_torch_is_imported(tmp_path):
    save_file({KEYS["Flux"]: torch.zeros(1)}, tmp_path / "flux.safetensors")
    program = "import sys\nfrom utils.base_model.names import check_base\ntry:\n check_base(sys.argv[1])\n"
    program += "except ValueError as error:\n print(error, 'torch' in sys.modules)"
    done = python("-c", program, tmp_path / "flux.safetensors", env={"PYTHONPATH": str(ROOT)})
    assert "is Flux" in done.stdout and done.stdout.strip().endswith("False")
