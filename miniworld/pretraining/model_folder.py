"""Writing the trained models as folders that diffusers can read without this project, and reading them.

A base's folder also contains the recommended settings for training a LoRA on it, which the training scripts read.
"""

import json
import os
from copy import deepcopy
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from miniworld.pretraining.generator import Parts, predicts_velocity, quick
from miniworld.pretraining.random_sd import save_pipeline, save_text_encoder
from utils.lora import CONV_IN
from utils.training.args import RECOMMENDED

LEARNING_RATE, TIMESTEP = 4e-3, 400  # recommended for LoRAs: see docs/paper_questions.md, question 5
EDITOR = "mini-ip2p"  # next to the generator it started from
SHARED = ("scheduler", "text_encoder", "tokenizer", "vae")
SHARED_BY_VELOCITY = ("tokenizer", "vae")


def save_generator(folder: Path, parts: Parts, vae: AutoencoderKL) -> None:
    """Write VAE and UNet in float16. The text encoder stays in float32 (half a megabyte), because recent transformers
    load a model in its file's precision, and the other parts are loaded in float32.
    """
    unet, vae = (deepcopy(part).half().requires_grad_(True) for part in (parts.unet, vae))
    save_pipeline(folder, parts.tokenizer, parts.text_encoder, vae, unet, parts.scheduler)
    recommend(folder, folder.parent, parts, vae)


def save_velocity(folder: Path, generator: Path, parts: Parts, vae: AutoencoderKL) -> None:
    """Write a base that predicts velocity: its own UNet in float16, text encoder in float32 and schedule, and relative
    links to the generator's VAE and tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deepcopy(parts.unet).half().save_pretrained(folder / "unet")
    save_text_encoder(parts.text_encoder, folder / "text_encoder")
    parts.scheduler.save_pretrained(folder / "scheduler")
    link(folder, generator, SHARED_BY_VELOCITY)
    (folder / "model_index.json").write_text((generator / "model_index.json").read_text())
    recommend(folder, generator.parent, parts, vae)


def recommend(folder: Path, around: Path, parts: Parts, vae: AutoencoderKL) -> None:
    """Write RECOMMENDED. At the last timestep a base that predicts noise returns nearly its input: not recommended.

    around: the folder of EDITOR, whose conv_in AugUNet takes.
    """
    settings: dict[str, float | str] = {"learning_rate": LEARNING_RATE}
    if not predicts_velocity(parts.scheduler):
        settings["timestep"] = TIMESTEP
    settings["augment_from"] = os.path.relpath((around / EDITOR).resolve(), folder.resolve())
    settings["resolution"] = parts.unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    (folder / RECOMMENDED).write_text(json.dumps(settings, indent=2) + "\n")


def save_editor(folder: Path, generator: Path, editor: UNet2DConditionModel) -> None:
    """Write the 8-channel UNet in float16, and relative links to the generator's other parts.

    Its conv_in is also written alone, with the UNet's config: all that `--augment_from` reads and that is shipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = deepcopy(editor).half()
    half.save_pretrained(folder / "unet")
    half.save_config(folder)
    save_file({key: value.contiguous() for key, value in half.conv_in.state_dict().items()}, folder / CONV_IN)
    link(folder, generator, SHARED)
    index = json.loads((generator / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionInstructPix2PixPipeline"
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def link(folder: Path, generator: Path, parts: tuple[str, ...]) -> None:
    """Make relative links in `folder` to these parts of `generator`, replacing older links."""
    for part in parts:
        path = folder / part
        if path.is_symlink():
            path.unlink()
        path.symlink_to(Path(os.path.relpath(generator.resolve() / part, folder.resolve())), target_is_directory=True)


def load_generator(folder: Path) -> tuple[Parts, AutoencoderKL]:
    """Read a folder of `save_generator` or `save_velocity`, in float32, frozen."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    parts = Parts(pipeline.tokenizer, pipeline.text_encoder, quick(pipeline.unet), pipeline.scheduler)
    return parts, pipeline.vae
