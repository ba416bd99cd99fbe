"""gan_pseudo.py and ar_pseudo.py, as they are run: the same loop, files and records as the other scripts have."""

import json
from pathlib import Path

import pytest
import torch
from helpers import fork, lora, run_here
from helpers import losses as train_losses

from generators.stylegan2 import load_gan
from generators.transformer import load_autoregressive
from utils.errors import InputError
from utils.inference.job import describe
from utils.lora import load_attn_procs, read_lora

SHORT = ["--report_to", "none", "--rank", 2, "--train_batch_size", 2]


def words(*more: object) -> list[str]:
    return [str(word) for word in more]


@pytest.fixture
def gan_flags(gan_folder, teacher_folder):
    def build(output: Path, *more: object, task: str = "normal") -> list[str]:
        flags = ["--task", task, "--pretrained_model_name_or_path", gan_folder, "--teacher", teacher_folder]
        flags += ["--output_dir", output, "--num_train_imgs", 6, "--num_val_imgs", 2]
        return words(*flags, *SHORT, *more)

    return build


@pytest.fixture
def ar_flags(diode):
    def build(base: Path, output: Path, *more: object) -> list[str]:
        flags = ["--task", "normal", "--pretrained_model_name_or_path", base, "--output_dir", output]
        flags += ["--train_data_dir", diode / "normals", "--pseudo_root", diode / "pseudo" / "normal"]
        return words(*flags, "--resolution", 32, "--validation_steps", 0, *SHORT, *more)

    return build


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["normal", "depth", "albedo", "shading"])
def test_a_gan_learns_labels_of_its_own_pictures(task, gan_flags, tmp_path):
    run_here("gan_pseudo.py", gan_flags(tmp_path, "--max_train_steps", 25, "--learning_rate", 1e-2, task=task))
    losses = [line["train_loss"] for line in metrics(tmp_path) if "train_loss" in line]
    assert sum(losses[-6:]) < sum(losses[:6])
    scores = [line for line in metrics(tmp_path) if any("unseen/label_" in name for name in line)]
    assert [line["step"] for line in scores] == [0, 25]
    header = read_lora(tmp_path).metadata
    assert header["method"] == "gan" and header["task"] == task and header["lora_targets"] == "affine"
    assert not (tmp_path / "pytorch_lora_weights.bin").exists()
    assert (tmp_path / "validation" / "000025_unseen.png").is_file()


def test_a_gans_run_goes_on_to_the_same_bits(gan_flags, tmp_path):
    run_here("gan_pseudo.py", gan_flags(tmp_path / "whole", "--max_train_steps", 4))
    run_here("gan_pseudo.py", gan_flags(tmp_path / "cut", "--max_train_steps", 2))
    more = ("--max_train_steps", 4, "--resume_from_checkpoint", "latest")
    run_here("gan_pseudo.py", gan_flags(tmp_path / "cut", *more))
    whole, cut = lora(tmp_path / "whole"), lora(tmp_path / "cut")
    assert whole and all(torch.equal(whole[key], cut[key]) for key in whole)


def test_other_labels_are_another_experiment(gan_flags, tmp_path):
    run_here("gan_pseudo.py", gan_flags(tmp_path, "--max_train_steps", 1))
    more = ("--max_train_steps", 2, "--resume_from_checkpoint", "latest", "--num_train_imgs", 5)
    with pytest.raises(InputError, match="training data was '6 generated images"):
        run_here("gan_pseudo.py", gan_flags(tmp_path, *more))


def test_only_the_lora_of_a_gan_changes_its_pictures(gan_flags, gan_folder, tmp_path):
    run_here("gan_pseudo.py", gan_flags(tmp_path, "--max_train_steps", 2, "--learning_rate", 1e-2))
    network = load_gan(str(gan_folder)).network
    w = network.mapping(torch.randn(2, network.style_dim))
    plain = network(w)
    load_attn_procs(network, tmp_path)
    assert not torch.allclose(network(w), plain)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--compile"], "means nothing for a GAN"),
        (["--num_val_imgs", 0], "--num_val_imgs=0: must be more than 0"),
        (["--pretrained_model_name_or_path", "no/such"], "no such folder or .pt file of a StyleGAN2"),
        (["--teacher", "nobody"], "--teacher nobody"),
    ],
)
def test_a_gans_flags_that_cannot_work_are_refused(more, says, gan_flags, tmp_path):
    with pytest.raises(InputError, match=says):
        run_here("gan_pseudo.py", gan_flags(tmp_path / "run", *more))


@pytest.mark.parametrize("decoding", ["one_by_one", "at_once"])
@pytest.mark.parametrize("family", ["ar_folder", "janus_folder"])
def test_a_transformer_learns_the_labels_tokens(family, decoding, request, ar_flags, tmp_path):
    base = request.getfixturevalue(family)
    more = ("--max_train_steps", 30, "--learning_rate", 2e-2, "--train_batch_size", 4, "--validation_steps", 30)
    more += ("--decoding", decoding)
    run_here("ar_pseudo.py", ar_flags(base, tmp_path, *more, "--max_train_samples", 4))
    losses = [line["train_loss"] for line in metrics(tmp_path) if "train_loss" in line]
    assert sum(losses[-5:]) < sum(losses[:5])
    header = read_lora(tmp_path).metadata
    assert header["method"] == "autoregressive" and header["lora_targets"] == "self_attention"
    assert any("val/indoors/mean" in line for line in metrics(tmp_path))
    generator = load_autoregressive(str(base))
    rgb = torch.rand(1, 3, 32, 32) * 2 - 1
    picture = generator.tokens.encode(rgb)
    assert picture.shape == (1, 64) and generator.tokens.decode(picture).shape == rgb.shape
    plain = generator.network(picture, picture)
    load_attn_procs(generator.network, tmp_path)
    assert not torch.allclose(generator.network(picture, picture), plain)


def test_a_transformers_run_goes_on_to_the_same_bits(ar_folder, ar_flags, tmp_path):
    run_here("ar_pseudo.py", ar_flags(ar_folder, tmp_path / "whole", "--max_train_steps", 4))
    run_here("ar_pseudo.py", ar_flags(ar_folder, tmp_path / "cut", "--max_train_steps", 2))
    more = ("--max_train_steps", 4, "--resume_from_checkpoint", "latest")
    run_here("ar_pseudo.py", ar_flags(ar_folder, tmp_path / "cut", *more))
    whole, cut = lora(tmp_path / "whole"), lora(tmp_path / "cut")
    assert whole and all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("decoding", ["one_by_one", "at_once"])
def test_two_processes_train_a_transformer_as_one_does(decoding, ar_folder, ar_flags, tmp_path):
    more = ("--max_train_steps", 2, "--decoding", decoding)
    run_here("ar_pseudo.py", ar_flags(ar_folder, tmp_path / "one", *more))
    fork("ar_pseudo.py", *ar_flags(ar_folder, tmp_path / "two", *more, "--train_batch_size", 1), processes=2)
    assert train_losses(tmp_path / "two") == pytest.approx(train_losses(tmp_path / "one"), rel=1e-4)


def test_two_processes_train_a_gan_as_one_does(gan_flags, tmp_path):
    run_here("gan_pseudo.py", gan_flags(tmp_path / "one", "--max_train_steps", 2))
    words = gan_flags(tmp_path / "two", "--max_train_steps", 2, "--train_batch_size", 1)
    fork("gan_pseudo.py", *words, processes=2)
    assert train_losses(tmp_path / "two") == pytest.approx(train_losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize(("more", "says"), [
    (("--label_positions", "on"), "positions was 'again', now 'on'"),
    (("--decoding", "at_once"), "decoding was 'one_by_one', now 'at_once'"),
])  # fmt: skip
def test_other_positions_or_decoding_are_another_experiment(more, says, ar_folder, ar_flags, tmp_path):
    run_here("ar_pseudo.py", ar_flags(ar_folder, tmp_path, "--max_train_steps", 1))
    more = ("--max_train_steps", 2, "--resume_from_checkpoint", "latest", *more)
    with pytest.raises(InputError, match=says):
        run_here("ar_pseudo.py", ar_flags(ar_folder, tmp_path, *more))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--temperature", -1, "--validation_steps", 1], "must not be negative"),
        (["--masked_loss"], "a token is a patch"),
        (["--timestep", 5], "no noise levels"),
        (["--lora_targets", "all"], "the LoRA sits on the transformer's attention"),
        (["--resolution", 64], "generates 32 px"),
    ],
)
def test_a_transformers_flags_that_cannot_work_are_refused(more, says, ar_folder, ar_flags, tmp_path):
    with pytest.raises(InputError, match=says):
        run_here("ar_pseudo.py", ar_flags(ar_folder, tmp_path / "run", *more))


def test_a_gan_is_no_autoregressive_generator(gan_folder, ar_flags, tmp_path):
    with pytest.raises(InputError, match="not a model of transformers; an autoregressive generator is"):
        run_here("ar_pseudo.py", ar_flags(gan_folder, tmp_path / "run"))


def test_a_stable_diffusion_is_no_autoregressive_generator(bases, ar_flags, tmp_path):
    with pytest.raises(InputError, match="a StableDiffusionPipeline; an autoregressive generator is"):
        run_here("ar_pseudo.py", ar_flags(bases["sd15"], tmp_path / "run"))


def test_a_run_says_what_predicts_with_it_and_other_inference_that_it_cannot(gan_flags, tmp_path, capsys):
    run_here("gan_pseudo.py", gan_flags(tmp_path / "run", "--max_train_steps", 1))
    next_line = f"next: python inference_gan.py --lora {tmp_path / 'run'} --output_dir output"
    assert next_line in capsys.readouterr().out
    with pytest.raises(InputError, match=r"made for gan: run inference_gan\.py"):
        describe(str(tmp_path / "run"), "single-step")


def test_nvidias_pickle_is_refused_before_anything_is_loaded(gan_flags, tmp_path):
    with pytest.raises(InputError, match="convert_weight"):
        run_here("gan_pseudo.py", gan_flags(tmp_path, "--pretrained_model_name_or_path", tmp_path / "ffhq.pkl"))
