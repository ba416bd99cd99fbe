"""Writing the trained models as folders that diffusers can read without this project, and reading them.

A base's folder also contains the recommended settings for training a LoRA on it, which the training scripts read.
"""

import json
import os
from copy import deepcopy
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from miniworld.pretraining.generator import Parts, predicts_velocity, quick
from miniworld.pretraining.random_sd import save_pipeline, save_text_encoder
from utils.latents import reduction
from utils.lora import CONV_IN
from utils.training.args import RECOMMENDED

LEARNING_RATE, TIMESTEP = 4e-3, 400  # recommended for LoRAs: see docs/paper_questions.md, question 5
EDITOR = "mini-ip2p"  # next to the generator it started from
FLOW_TIME = 0.4  # the same for a flow transformer, in 0..1: see mini-flow's card
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
    settings["resolution"] = parts.unet.config.sample_size * reduction(vae)
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


def save_flow(
    folder: Path,
    generator: Path,
    transformer: SD3Transformer2DModel,
    encoder: CLIPTextModelWithProjection,
    parts: Parts,
    vae: AutoencoderKL,
) -> None:
    """Write a StableDiffusion3Pipeline: its own transformer in float16 and text encoder in float32, with relative
    links from the second text encoder to the first, and to the generator's tokenizer and its VAE's weights.

    The pipeline opens only with a third text encoder, and adds the VAE's shift. So there is a T5 without layers, whose
    states are the zeros that the pipeline itself takes when T5 is left out, and a VAE's configuration with shift 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deepcopy(transformer).half().save_pretrained(folder / "transformer")
    encoder.save_pretrained(folder / "text_encoder")
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.save_pretrained(folder / "scheduler")
    config = {key: value for key, value in vae.config.items() if key != "_name_or_path"}
    vae = AutoencoderKL.from_config(config | {"shift_factor": 0.0})
    vae.save_config(folder / "vae")
    link(folder / "vae", generator / "vae", ("diffusion_pytorch_model.safetensors",))
    nothing = build_empty_t5(len(parts.tokenizer), transformer.config.joint_attention_dim)
    nothing.save_pretrained(folder / "text_encoder_3")
    link_to(folder / "text_encoder_2", folder / "text_encoder")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        link_to(folder / name, generator / "tokenizer")
    pipeline = StableDiffusion3Pipeline(transformer, scheduler, vae, encoder, parts.tokenizer, encoder,
        parts.tokenizer, nothing, parts.tokenizer)  # fmt: skip
    pipeline.save_config(folder)
    resolution = transformer.config.sample_size * pipeline.vae_scale_factor
    settings = {"learning_rate": LEARNING_RATE, "timestep": FLOW_TIME, "resolution": resolution}
    (folder / RECOMMENDED).write_text(json.dumps(settings, indent=2) + "\n")


def build_empty_t5(words: int, width: int) -> T5EncoderModel:
    """Token ids (B,L) below `words` -> zeros (B,L,width)."""
    config = T5Config(vocab_size=words, d_model=width, num_layers=0, d_kv=1, num_heads=1, d_ff=1)
    encoder = T5EncoderModel(config)
    for weight in encoder.parameters():
        nn.init.zeros_(weight)
    return encoder


def link(folder: Path, generator: Path, parts: tuple[str, ...]) -> None:
    """Make relative links in `folder` to these parts of `generator`, replacing older links."""
    for part in parts:
        link_to(folder / part, generator / part)


def link_to(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, replacing an older link."""
    if path.is_symlink():
        path.unlink()
    path.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()), target_is_directory=target.is_dir())


def load_generator(folder: Path) -> tuple[Parts, AutoencoderKL]:
    """Read a folder of `save_generator` or `save_velocity`, in float32, frozen."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    parts = Parts(pipeline.tokenizer, pipeline.text_encoder, quick(pipeline.unet), pipeline.scheduler)
    return parts, pipeline.vae
