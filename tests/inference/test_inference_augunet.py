"""Multi-step inference: the sampler's own drawings, the same whatever the batch, the process or the neighbours."""

import shutil

import numpy as np
import pytest
import torch
from helpers import fork, random_lora
from PIL import Image
from safetensors.torch import load_file, save_file

import inference_augunet
import inference_sd_single
from utils.base_model.stable_diffusion import load_base, load_donor, widen_conv_in
from utils.errors import InputError
from utils.image_io.images import Crop, read_rgb
from utils.inference import Predictor
from utils.intrinsics import INTRINSICS
from utils.lora import load_attn_procs, save_lora
from utils.lora.__main__ import convert
from utils.lora.inspection import describe
from utils.noise import noise_of
from utils.objectives import AugUNet, zero_snr_scheduler

SCRIPT = "inference_augunet.py"
STEPS = ("--steps", 3)


def widened(bases):
    base = load_base(str(bases["sd21"]))
    widen_conv_in(base.unet, load_donor(str(bases["ip2p"])))
    return base


@pytest.fixture(scope="module")
def weights(bases, tmp_path_factory):
    """A random LoRA as a training script leaves it, and the same as a bare .bin."""
    folder, base = tmp_path_factory.mktemp("lora"), widened(bases)
    state = random_lora(base.unet)
    torch.save(state, folder / "bare.bin")
    load_attn_procs(base.unet, state)
    metadata = {"task": "normal", "prompt": "surface normal", "method": "augunet", "resolution": 32}
    save_lora(base.unet, folder / "ours", {**metadata, "base_model": base.name})
    return folder


@pytest.fixture(scope="module")
def pictures(diode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, path in enumerate(sorted((diode / "depths" / "val").rglob("*.png"))[:4]):
        shutil.copy(path, folder / f"p{i}.png")
    return folder


def draw(weights, pictures, out, *more) -> None:
    words = [
        "--lora",
        weights / "ours",
        "--input_dir",
        pictures,
        "--output_dir",
        out,
        *STEPS,
        "--npy",
        "--center_crop",
        *more,
    ]
    assert inference_augunet.main([*map(str, words), "--center_crop", "--device", "cpu"]) == 0


def read(out, i, task="normal", kind="predicted"):
    return np.load(out / task / kind / f"p{i}_{task}.npy")


@torch.no_grad()
def members(bases, weights, pictures, i, count=1, **options) -> torch.Tensor:
    """Image i's drawings (N,3,32,32) by the objective itself."""
    base = widened(bases)
    load_attn_procs(base.unet, weights / "ours")
    scheduler = zero_snr_scheduler(base.scheduler)
    prompts = base.encode_prompt("surface normal"), base.encode_prompt("")
    method = AugUNet(base.vae, *prompts, scheduler, **{"steps": 3, **options})
    rgb = read_rgb(pictures / f"p{i}.png")
    rgb = Crop.of(*rgb.size, 32).picture(rgb)[None]
    return torch.cat([method.predict(base.unet, rgb, [noise_of(1234, f"p{i}.png", n)]) for n in range(count)])


def test_drawings_are_the_samplers(bases, weights, pictures, tmp_path):
    draw(weights, pictures, tmp_path / "plain", "--batch_size", 3)
    draw(weights, pictures, tmp_path / "free", "--guidance_scale", 1, "--steps", 2)
    for i in (0, 3):
        for folder, options in (("plain", {}), ("free", {"guidance_scale": 1.0, "steps": 2})):
            mine = torch.nn.functional.normalize(members(bases, weights, pictures, i, **options)[0], dim=0)
            np.testing.assert_allclose(read(tmp_path / folder, i), mine.permute(1, 2, 0), atol=1e-3)
    assert np.abs(read(tmp_path / "plain", 0) - read(tmp_path / "free", 0)).mean() > 0.01
    assert not (tmp_path / "plain" / "normal" / "uncertainty").exists()


def test_only_the_seed_matters_not_batch_neighbours_or_processes(weights, pictures, tmp_path):
    env = {"OMP_NUM_THREADS": "1"}
    words = ["--lora", weights / "ours", "--input_dir", pictures, "--npy", *STEPS, "--center_crop", "--device", "cpu"]
    fork(SCRIPT, *words, "--output_dir", tmp_path / "two", processes=2, env=env)
    draw(weights, pictures, tmp_path / "one")
    draw(weights, pictures, tmp_path / "batch", "--batch_size", 4)
    draw(weights, pictures, tmp_path / "seed", "--seed", 5)
    (tmp_path / "alone").mkdir()
    shutil.copy(pictures / "p2.png", tmp_path / "alone")
    draw(weights, tmp_path / "alone", tmp_path / "single")
    for i in range(4):
        one = read(tmp_path / "one", i)
        assert np.array_equal(one, read(tmp_path / "two", i))
        np.testing.assert_allclose(one, read(tmp_path / "batch", i), atol=1e-3)
        assert np.abs(one - read(tmp_path / "seed", i)).mean() > 0.05
    assert np.array_equal(read(tmp_path / "one", 2), read(tmp_path / "single", 2))


def test_noise_depends_on_the_subfolder_but_not_on_the_place_of_the_folder(weights, pictures, tmp_path):
    """Two images of one name in different subfolders get noise of their own; --input_dir's own name plays no part."""
    for folder in ("a", "b", "b/sub"):
        (tmp_path / folder).mkdir()
        shutil.copy(pictures / "p2.png", tmp_path / folder)
    for folder in ("a", "b", "b/sub"):
        draw(weights, tmp_path / folder, tmp_path / "out" / folder)
    out, name = tmp_path / "out", "normal/predicted/p2_normal.npy"
    flat, tree = np.load(out / "a" / name), np.load(out / "b/normal/predicted/sub/p2_normal.npy")
    assert np.array_equal(flat, np.load(out / "b" / name)) and np.array_equal(flat, np.load(out / "b/sub" / name))
    assert np.abs(flat - tree).mean() > 0.05


def test_noise_differs_by_seed_image_and_member():
    first = [torch.randn(4, generator=noise_of(*key)) for key in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1))]
    assert all((first[0] - other).abs().min() > 1e-3 for other in first[1:])
    assert torch.equal(first[0], torch.randn(4, generator=noise_of(1, "a", 0)))


def test_an_ensemble_is_the_merge_of_its_members(bases, weights, pictures, tmp_path):
    draw(weights, pictures, tmp_path, "--ensemble_size", 3, "--batch_size", 2)
    draw(weights, pictures, tmp_path, "--ensemble_size", 3, "--task", "depth", "--prompt", "surface normal")
    for i in (0, 1):
        for task in ("normal", "depth"):
            merged, doubt = INTRINSICS[task].map_kind.merge(members(bases, weights, pictures, i, count=3))
            merged = merged.permute(1, 2, 0) if task == "normal" else merged[0]
            np.testing.assert_allclose(read(tmp_path, i, task), merged, atol=2e-3)
            np.testing.assert_allclose(read(tmp_path, i, task, "uncertainty"), doubt, atol=0.1)
            assert doubt.mean() > 0.01
            picture = Image.open(tmp_path / task / "uncertainty" / f"p{i}_{task}.png")
            assert picture.mode == "L" and picture.size == (32, 32)


def test_a_bare_lora_gets_its_conv_in_from_instruct_pix2pix(bases, weights, pictures, tmp_path):
    words = ["--lora", weights / "bare.bin", "--input_dir", pictures, "--output_dir", tmp_path / "bare", *STEPS]
    words += ["--task", "normal", "--resolution", 32, "--npy", "--center_crop", "--device", "cpu"]
    words += ["--pretrained_model_name_or_path", bases["sd21"], "--augment_from", bases["ip2p"]]
    assert inference_augunet.main([*map(str, words)]) == 0
    draw(weights, pictures, tmp_path / "ours")
    assert np.array_equal(read(tmp_path / "bare", 1), read(tmp_path / "ours", 1))


@pytest.mark.parametrize(("words", "message"), [
    (["--augment_from", "x"], r"has its own conv_in\.safetensors"),
    (["--steps", 0], "--steps=0: must be at least 1"),
    (["--ensemble_size", 0], "--ensemble_size=0"),
    (["--guidance_scale", -1], "must not be negative"),
])  # fmt: skip
def test_a_flag_that_cannot_be(words, message, weights, pictures, tmp_path):
    with pytest.raises(InputError, match=message):
        draw(weights, pictures, tmp_path / "out", *words)


def test_a_lora_of_the_other_method_names_its_script(bases, weights, pictures, tmp_path):
    base = load_base(str(bases["sd15"]))
    load_attn_procs(base.unet, random_lora(base.unet))
    save_lora(base.unet, tmp_path / "single", {"method": "single-step", "task": "depth"})
    with pytest.raises(InputError, match=r"made for single-step: run inference_sd_single\.py"):
        draw(weights, pictures, tmp_path / "out", "--lora", tmp_path / "single")
    with pytest.raises(InputError, match=r"made for augunet: run inference_augunet\.py"):
        inference_sd_single.main(["--lora", str(weights / "ours"), "--input_dir", str(pictures)])


def test_a_conv_in_of_another_lora_is_neither_loaded_nor_copied(bases, weights, tmp_path, capsys):
    """A single-step LoRA in the folder of an AugUNet's."""
    base = load_base(str(bases["sd21"]))
    load_attn_procs(base.unet, random_lora(base.unet))
    save_lora(base.unet, tmp_path, {"method": "single-step", "base_model": base.name, "task": "normal"})
    shutil.copy(weights / "ours" / "conv_in.safetensors", tmp_path)
    fresh = load_base(str(bases["sd21"]))
    load_attn_procs(fresh.unet, tmp_path)
    assert fresh.unet.config.in_channels == fresh.unet.conv_in.in_channels == 4
    convert(tmp_path, tmp_path / "out" / "x.safetensors", "peft")
    assert not (tmp_path / "out" / "conv_in.safetensors").exists()
    assert not describe(tmp_path)["conv_in"] and describe(weights / "ours")["conv_in"]
    with pytest.raises(InputError, match="this one's is widened; load the base again"):
        load_attn_procs(widened(bases).unet, tmp_path)


def test_a_conv_in_that_is_not_the_bases_is_a_warning_and_nan_is_refused(bases, weights, tmp_path, capsys):
    shutil.copytree(weights / "ours", tmp_path / "own")
    state = load_file(tmp_path / "own" / "conv_in.safetensors")
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "own" / "conv_in.safetensors")
    load_attn_procs(load_base(str(bases["sd21"])).unet, tmp_path / "own")
    assert "warning" not in "".join(capsys.readouterr())
    save_file({key: torch.randn_like(value) for key, value in state.items()}, tmp_path / "own" / "conv_in.safetensors")
    load_attn_procs(load_base(str(bases["sd21"])).unet, tmp_path / "own")
    assert "its first 4 channels are not those of this base model's conv_in" in "".join(capsys.readouterr())
    save_file({key: value * float("nan") for key, value in state.items()}, tmp_path / "own" / "conv_in.safetensors")
    with pytest.raises(InputError, match=r"conv_in.safetensors: holds NaN or infinity"):
        load_attn_procs(load_base(str(bases["sd21"])).unet, tmp_path / "own")


def test_without_its_conv_in_the_donor_in_the_header_makes_it_again(bases, weights, tmp_path, capsys):
    folder, base = tmp_path / "lora", widened(bases)
    load_attn_procs(base.unet, torch.load(weights / "bare.bin"))
    metadata = {"task": "normal", "method": "augunet", "resolution": 32, "augment_from": bases["ip2p"]}
    save_lora(base.unet, folder, metadata | {"base_model": base.name})
    (folder / "conv_in.safetensors").unlink()
    assert torch.equal(Predictor(folder).base.unet.conv_in.weight, base.unet.conv_in.weight)
    shutil.copytree(bases["ip2p"], tmp_path / "donor")
    Predictor(folder, augment_from=str(tmp_path / "donor"))
    assert f"was trained with the conv_in of {bases['ip2p']}, predicting with that of" in capsys.readouterr().out
