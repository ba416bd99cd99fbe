"""Single-step inference: the released script's pixels, every kind of image, bad files, several processes."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from helpers import ROOT, fork, python, random_lora
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

import evaluate
import inference_sd_single
from utils.errors import InputError
from utils.lora import SAFETENSORS, load_attn_procs, read_lora, save_lora

SCRIPT = "inference_sd_single.py"
SHIPPED = ROOT / "miniworld" / "mini-loras" / "depth"


def predict(*words: object) -> int:
    """The script's main in this process."""
    return inference_sd_single.main([*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def weights(bases, tmp_path_factory):
    """A random LoRA in the released files' format, and the same one as this project writes it."""
    folder = tmp_path_factory.mktemp("lora")
    unet = UNet2DConditionModel.from_pretrained(bases["sd15"], subfolder="unet")
    state = random_lora(unet)
    torch.save(state, folder / "released.bin")
    load_attn_procs(unet, state)
    metadata = {"task": "normal", "prompt": "surface normal", "method": "single-step", "resolution": 64}
    save_lora(unet, folder / "ours", {**metadata, "base_model": str(bases["sd15"])})
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate([(96, 72), (72, 96), (64, 64), (130, 100), (96, 72)]):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"p{i}.png")
    return folder


def released(base, state: dict, picture: Image.Image, task: str, prompt: str) -> np.ndarray:
    """The released inference, from its description: the LoRA separate from the weights, an image at a time."""
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
    for name in [key for key in state if ".down." in key]:
        layer, target = name.removesuffix("_lora.down.weight").split(".processor.")
        linear = unet.get_submodule(f"{layer}.{target}" + (".0" if target == "to_out" else ""))
        down, up = state[name], state[name.replace(".down.", ".up.")]
        linear.register_forward_hook(lambda _, x, y, down=down, up=up: y + x[0] @ down.T @ up.T)
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((int(64 * width / short), int(64 * height / short)), Image.Resampling.BILINEAR)
    left, top = round((picture.width - 64) / 2), round((picture.height - 64) / 2)
    pixels = np.asarray(picture.crop((left, top, left + 64, top + 64)), np.float32) / 255
    rgb = torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]
    ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    scale = vae.config.scaling_factor
    with torch.no_grad():
        z = vae.encode(rgb).latent_dist.mode() * scale
        drawn = vae.decode(unet(z, torch.tensor([999]), text_encoder(ids)[0]).sample / scale).sample[0]
    if task == "depth":
        stretched = (drawn - drawn.min()) / (drawn.max() - drawn.min())
        return (stretched.mean(0).numpy() * 255).astype(np.uint8)
    return (255 * (drawn.clamp(-1, 1).permute(1, 2, 0).numpy() / 2 + 0.5)).astype(np.uint8)


@pytest.mark.parametrize(("task", "prompt"), [("normal", "surface normal"), ("depth", "depth map")])
def test_pixels_equal_the_released_scripts(task, prompt, weights, pictures, bases, tmp_path):
    predict(
        "--task", task, "--lora", weights / "released.bin", "--input_dir", pictures, "--output_dir", tmp_path,
        "--pretrained_model_name_or_path", bases["sd15"], "--resolution", 64, "--center_crop",
    )  # fmt: skip
    state = torch.load(weights / "released.bin", weights_only=True)
    folder = tmp_path / task / "predicted"
    assert sorted(path.name for path in folder.iterdir()) == [f"p{i}_{task}.png" for i in range(5)]
    different = 0
    for i in (0, 1, 3):
        ours = np.asarray(Image.open(folder / f"p{i}_{task}.png"))
        theirs = released(bases["sd15"], state, Image.open(pictures / f"p{i}.png"), task, prompt)
        assert ours.shape == theirs.shape and theirs.std() > 5
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        different += np.count_nonzero(ours != theirs)
    # the script fuses W + up down, the reference adds up(down(x)): rounding may move a value across a truncation
    assert different <= 0.002 * 3 * theirs.size


def test_the_timestep_is_the_trainings(weights, pictures, tmp_path):
    """A LoRA trained at another timestep is drawn at it; --timestep goes first; one that is not there is refused."""
    state, (_, metadata, _) = load_file(weights / "ours" / SAFETENSORS), read_lora(weights / "ours")

    def drawn(name: str, trained_at: int, *more: str) -> np.ndarray:
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / SAFETENSORS, {**metadata, "timestep": str(trained_at)})
        words = ["--lora", tmp_path / name, "--input_dir", pictures, "--output_dir", tmp_path / f"{name}-out", "--npy"]
        inference_sd_single.main([str(word) for word in (*words, *more)])
        return np.load(tmp_path / f"{name}-out" / "normal" / "predicted" / "p0_normal.npy")

    last, early = drawn("last", 999), drawn("early", 3)
    assert np.abs(last - early).max() > 1e-3
    assert np.array_equal(drawn("told", 999, "--timestep", "3"), early)
    with pytest.raises(InputError, match="--timestep=1000"):
        drawn("beyond", 999, "--timestep", "1000")


def test_metadata_fills_in_what_is_left_out(weights, pictures, tmp_path):
    words = ["--lora", weights / "ours", "--input_dir", pictures, "--output_dir", tmp_path, "--npy"]
    done = fork(SCRIPT, *words, "--center_crop")
    folder = tmp_path / "normal" / "predicted"
    normals = np.load(folder / "p1_normal.npy")
    assert normals.shape == (64, 64, 3) and normals.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(normals, axis=2), 1, atol=1e-5)
    assert "5 of 5 images predicted" in done.stdout and "predicting normal" in done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"next: open {folder}"


def test_depth_npy_is_not_clamped_and_batches_agree(weights, pictures, tmp_path, capsys):
    words = ["--lora", weights / "ours", "--task", "depth", "--input_dir", pictures, "--npy", "--center_crop"]
    assert predict(*words, "--output_dir", tmp_path / "one") == 0
    assert "trained for normal, predicting depth" in capsys.readouterr().out.splitlines()[-1]
    predict(*words, "--output_dir", tmp_path / "four", "--batch_size", 4)
    for i in range(5):
        one, four = (np.load(tmp_path / n / "depth" / "predicted" / f"p{i}_depth.npy") for n in ("one", "four"))
        assert one.shape == (64, 64) and np.abs(one - four).max() < 1e-4
        shown = np.asarray(Image.open(tmp_path / "one" / "depth" / "predicted" / f"p{i}_depth.png"))
        assert shown.shape == (64, 64) and np.corrcoef(shown.ravel(), one.ravel())[0, 1] > 0.99


def test_every_kind_of_image_and_one_bad_file(weights, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    rgb = np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(folder / "a.JPG")
    Image.fromarray(rgb).save(folder / "b.webp")
    Image.fromarray(rgb[..., 0]).save(folder / "c.bmp")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(folder / "d.tif")
    Image.fromarray(np.dstack([rgb, rgb[..., 0]])).save(folder / "e.PNG")
    Image.fromarray(rgb).quantize(16).save(folder / "f.png")
    (folder / "bad.jpeg").write_bytes(b"\xff\xd8 this is not an image")
    (folder / "notes.txt").write_text("left alone")
    assert predict("--lora", weights / "ours", "--input_dir", folder, "--output_dir", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "1 images could not be read" in said.err and "bad.jpeg" in said.err and "skipped: 1 .txt" in said.out
    written = sorted(path.name for path in (tmp_path / "out/normal/predicted").iterdir())
    assert written == [f"{letter}_normal.png" for letter in "abcdef"]
    words = ["--input_dir", folder / "bad.jpeg", "--output_dir", tmp_path / "none"]
    assert predict("--lora", weights / "ours", *words) == 1
    assert "next:" in said.out and "next:" not in capsys.readouterr().out  # there is nothing to open


def test_two_processes_share_the_images(weights, pictures, tmp_path):
    words = ["--lora", weights / "ours", "--input_dir", pictures, "--device", "cpu"]
    one_thread = {"OMP_NUM_THREADS": "1"}  # what torchrun gives each process; the order of sums depends on it
    fork(SCRIPT, *words, "--output_dir", tmp_path / "two", processes=2, env=one_thread)
    fork(SCRIPT, *words, "--output_dir", tmp_path / "one", env=one_thread)
    for i in range(5):
        one, two = ((tmp_path / n / "normal/predicted" / f"p{i}_normal.png").read_bytes() for n in ("one", "two"))
        assert one == two


@pytest.mark.parametrize(("words", "message"), [
    (["--input_dir", "empty"], "no images"),
    (["--input_dir", "triplets"], "would both be written as a.jpg_<task>.png"),
    (["--input_dir", "good", "--resolution", "63"], "multiple of 8"),
    (["--input_dir", "good", "--pretrained_model_name_or_path", "./x"], "./x: no such model folder"),
])  # fmt: skip
def test_a_mistake_is_named(words, message, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty/none.txt", "triplets/a.png", "triplets/a.jpg", "triplets/a.jpg.png", "good/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(name) if "none" not in name else Path(name).touch()
    with pytest.raises(InputError, match=message):
        inference_sd_single.main(["--lora", str(weights / "ours"), *words])


def test_the_default_lora_is_the_released_one_and_its_absence_lists_the_others():
    done = python(SCRIPT, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "error: pretrained_weights/sd_single_depth_pytorch_model.bin: no such LoRA file" in done.stderr
    assert "miniworld/mini-loras/{albedo,depth,normal,shading}" in done.stderr and "github.com" in done.stderr
    args = inference_sd_single.parse([])
    assert (args.input_dir, args.output_dir, args.task) == ("./my_dataset", "./output", None)


@pytest.mark.parametrize("script", ["inference_sd_single", "inference_augunet"])
@pytest.mark.parametrize(
    "words", [["--help"], ["--resolution", "63"], ["--lora", "nowhere.bin"], ["--input_dri", "x"]]
)
def test_flags_are_checked_before_torch_is_imported(script, words):
    """The help, a refused flag and a file that is not there take no seconds."""
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['{script}.py', *{words!r}]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == (0 if '--help' in sys.argv else 2), end.code\n"
        "assert not {'torch', 'diffusers', 'accelerate'} & set(sys.modules)\n"
    )
    python("-c", program)


def test_a_tree_is_mirrored_and_pairs_with_its_truth(diode, tmp_path, capsys):
    """DIODE's own tree in, maps in the same tree out, and evaluate.py finds the pairs by their relative names."""
    predict("--lora", SHIPPED, "--input_dir", diode / "depths" / "val", "--output_dir", tmp_path)
    said = capsys.readouterr().out
    images = sorted((diode / "depths" / "val").rglob("*.png"))
    expected = {path.relative_to(diode / "depths" / "val").with_name(f"{path.stem}_depth.png") for path in images}
    predicted = tmp_path / "depth" / "predicted"
    assert len(expected) == 10 and {path.relative_to(predicted) for path in predicted.rglob("*.*")} == expected
    assert "skipped: 20 .npy" in said
    command = said.strip().splitlines()[-1].removeprefix("next: python ")
    evaluate.main([*shlex.split(command)[1:], "--output", str(tmp_path / "metrics.json")])
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 10


def test_a_shipped_lora_works_from_any_folder_and_on_one_file(pictures, tmp_path, monkeypatch, capsys):
    """Its base is named by its place in the repository, and found from the LoRA's own place."""
    monkeypatch.chdir(tmp_path)
    predict("--lora", SHIPPED, "--input_dir", pictures / "p1.png")
    assert [path.name for path in Path("output/depth/predicted").iterdir()] == ["p1_depth.png"]
    assert "was trained on" not in capsys.readouterr().out
