"""inference_gan.py and inference_ar.py, as they are run, on LoRAs that the training scripts have just made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_here
from PIL import Image

import inference_ar
import inference_gan
from generators.stylegan2 import load_gan
from generators.token_prediction import TokenPrediction
from generators.transformer import load_autoregressive
from utils.errors import InputError
from utils.image_io.images import Crop, read_rgb
from utils.inference.prediction import Prediction
from utils.intrinsics import DEPTH, NORMAL
from utils.lora import load_attn_procs

STEPS = ["--max_train_steps", 2, "--learning_rate", 1e-1, "--rank", 2, "--train_batch_size", 2, "--report_to", "none"]


def run(script, *words: object):
    return script.main([str(word) for word in (*words, "--device", "cpu")])


@pytest.fixture(scope="module")
def gan_loras(gan_folder, teacher_folder, tmp_path_factory) -> list[Path]:
    folders = [tmp_path_factory.mktemp(task) for task in ("normal", "depth")]
    for task, folder in zip(("normal", "depth"), folders, strict=True):
        words = ["--task", task, "--pretrained_model_name_or_path", gan_folder, "--teacher", teacher_folder]
        words += ["--output_dir", folder, "--num_train_imgs", 4, "--validation_steps", 0, *STEPS]
        run_here("gan_pseudo.py", [str(word) for word in words])
    return folders


@pytest.fixture(scope="module", params=["one_by_one", "at_once"])
def ar_lora(request, ar_folder, diode, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("ar")
    words = ["--task", "normal", "--pretrained_model_name_or_path", ar_folder, "--output_dir", folder, *STEPS]
    words += ["--train_data_dir", diode / "normals", "--pseudo_root", diode / "pseudo" / "normal"]
    words += ["--resolution", 32, "--validation_steps", 0, "--decoding", request.param]
    run_here("ar_pseudo.py", [str(word) for word in words])
    return folder, request.param


def test_a_gan_draws_pictures_and_their_maps(gan_loras, tmp_path, capsys):
    run(inference_gan, "--lora", *gan_loras, "--num_imgs", 3, "--output_dir", tmp_path, "--npy")
    names = [f"seed1000-{number:06d}" for number in range(3)]
    assert sorted(path.stem for path in (tmp_path / "rgb").iterdir()) == names
    normals = [np.load(tmp_path / "normal/predicted" / f"{name}_normal.npy", allow_pickle=False) for name in names]
    assert normals[0].shape == (16, 16, 3) and not np.allclose(normals[0], normals[1])
    np.testing.assert_allclose(np.linalg.norm(normals[0], axis=2), 1, atol=1e-5)
    assert len(list((tmp_path / "depth/predicted").glob("*_depth.png"))) == 3
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width >= 3 * 16 and "next: open" in capsys.readouterr().out
    run(inference_gan, "--lora", gan_loras[0], "--num_imgs", 1, "--output_dir", tmp_path / "again", "--npy")
    again = np.load(tmp_path / "again/normal/predicted" / f"{names[0]}_normal.npy", allow_pickle=False)
    assert np.array_equal(again, normals[0])


def test_the_maps_are_of_the_pictures_that_are_drawn(gan_loras, gan_folder, tmp_path):
    """Without its LoRA the network draws the image of the same w, with it the map in the file."""
    from generators.pixel_prediction import generate

    run(inference_gan, "--lora", gan_loras[1], "--num_imgs", 1, "--output_dir", tmp_path, "--seed", 7, "--npy")
    network = load_gan(str(gan_folder)).network
    w, pixels = generate(network, 7, 0, network)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "rgb/seed7-000000.png")), pixels)
    load_attn_procs(network, gan_loras[1])
    with torch.inference_mode():
        expected = Prediction(DEPTH, network(w[None])[0]).values
    found = np.load(tmp_path / "depth/predicted/seed7-000000_depth.npy", allow_pickle=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("change", "says"), [
    (lambda loras: [loras[0], loras[0]], "two of them predict the same map"),
    (lambda loras: [loras[0] / "nothing"], "no such LoRA"),
])  # fmt: skip
def test_loras_that_do_not_go_together_are_refused(change, says, gan_loras, tmp_path):
    with pytest.raises(InputError, match=says):
        run(inference_gan, "--lora", *change(gan_loras), "--output_dir", tmp_path)


def test_a_transformer_predicts_what_its_objective_does(ar_lora, ar_folder, tmp_path, capsys):
    lora, decoding = ar_lora
    source = tmp_path / "in" / "room"
    source.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a", (48, 40)), ("b", (33, 64))):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{name}.png")
    (tmp_path / "in" / "no.png").write_bytes(b"not an image")
    assert run(inference_ar, "--lora", lora, "--input_dir", tmp_path / "in", "--output_dir", tmp_path, "--npy") == 1
    assert "no.png" in capsys.readouterr().err
    base = load_autoregressive(str(ar_folder))
    load_attn_procs(base.network, lora)
    image = read_rgb(source / "b.png")
    rgb = Crop.of(*image.size, 32).picture(image)[None]
    with torch.inference_mode():
        expected = TokenPrediction(base.tokens, "again", decoding).predict(base.network, rgb, [])[0]
    found = np.load(tmp_path / "normal/predicted/room/b_normal.npy", allow_pickle=False)
    np.testing.assert_allclose(found, Prediction(NORMAL, expected).values, atol=1e-4)


def test_a_way_of_later_versions_is_refused(ar_folder):
    with pytest.raises(InputError, match="decoding 'backwards': unknown to this version"):
        TokenPrediction.of(load_autoregressive(str(ar_folder)).tokens, {"decoding": "backwards"})


def test_sampled_tokens_depend_on_seed_and_name_alone(ar_lora, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in "ab":
        Image.new("RGB", (40, 40), (200, 90, 30)).save(source / f"{name}.png")

    def maps(out: str, *more: object) -> np.ndarray:
        run(inference_ar, "--lora", ar_lora[0], "--input_dir", source, "--output_dir", tmp_path / out, *more)
        files = sorted((tmp_path / out / "normal/predicted").iterdir())
        return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)

    first = maps("one", "--temperature", 1)
    alone = maps("two", "--temperature", 1, "--batch_size", 1)
    np.testing.assert_allclose(alone, first, atol=1)  # a CPU may round differently when decoding two together
    other = maps("three", "--temperature", 1, "--seed", 5)
    assert np.abs(first[0] - first[1]).max() > 10 and np.abs(first - other).max() > 10
    likeliest = maps("four")
    np.testing.assert_allclose(likeliest[0], likeliest[1], atol=1)


def test_bfloat16_that_a_cpu_emulates_is_said(ar_lora, tmp_path, capsys, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    words = ["--lora", ar_lora[0], "--input_dir", tmp_path / "a.png", "--output_dir", tmp_path, "--dtype", "bf16"]
    for units, said in (("AVX2", True), ("AVX512", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda units=units: units)
        assert run(inference_ar, *words) == 0
        assert ("this CPU emulates bfloat16" in "".join(capsys.readouterr())) == said


def test_sampled_maps_are_merged_and_their_disagreement_is_written(ar_lora, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(source / "a.png")

    def result(out: str, *more: object) -> Path:
        words = ["--lora", ar_lora[0], "--input_dir", source, "--output_dir", tmp_path / out, "--npy"]
        assert run(inference_ar, *words, "--temperature", 1, *more) == 0
        return tmp_path / out / "normal"

    three, one = result("three", "--ensemble_size", 3), result("one")
    uncertainty = np.load(three / "uncertainty" / "a_normal.npy", allow_pickle=False)
    assert uncertainty.shape == (32, 32) and 1 < uncertainty.mean() < 90
    assert not (one / "uncertainty").exists()
    both = [np.load(folder / "predicted" / "a_normal.npy", allow_pickle=False) for folder in (three, one)]
    assert np.abs(both[0] - both[1]).max() > 0.01
    with pytest.raises(InputError, match="all would be the same at --temperature 0"):
        run(inference_ar, "--lora", ar_lora[0], "--input_dir", source, "--ensemble_size", 3)


def test_each_script_names_the_one_that_predicts(gan_loras, tmp_path):
    with pytest.raises(InputError, match=r"made for gan: run inference_gan\.py"):
        run(inference_ar, "--lora", gan_loras[0], "--input_dir", tmp_path)
    with pytest.raises(InputError, match="must not be negative"):
        run(inference_ar, "--lora", gan_loras[0], "--temperature", -1)
    with pytest.raises(InputError, match="--num_imgs=0"):
        run(inference_gan, "--lora", gan_loras[0], "--num_imgs", 0)
