"""The trained models as folders that diffusers reads with no code of this project."""

import json
import os
from copy import deepcopy
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from miniworld.pretraining.generator import Parts, quick
from miniworld.pretraining.random_sd import save_pipeline

SHARED = ("scheduler", "text_encoder", "tokenizer", "vae")


def save_generator(folder: Path, parts: Parts, vae: AutoencoderKL) -> None:
    """Codec and UNet in float16. The text encoder stays in float32, half a megabyte: recent transformers load a model
    in the precision of its file, and the other parts are loaded in float32.
    """
    unet, vae = (deepcopy(part).half().requires_grad_(True) for part in (parts.unet, vae))
    save_pipeline(folder, parts.tokenizer, parts.text_encoder, vae, unet, parts.scheduler)


def save_editor(folder: Path, generator: Path, editor: UNet2DConditionModel) -> None:
    """The 8-channel UNet in float16; all else is the generator's, by relative links."""
    folder.mkdir(parents=True, exist_ok=True)
    deepcopy(editor).half().save_pretrained(folder / "unet")
    for part in SHARED:
        link = folder / part
        if not link.is_symlink():
            link.symlink_to(Path(os.path.relpath(generator / part, folder)), target_is_directory=True)
    index = json.loads((generator / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionInstructPix2PixPipeline"
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_generator(folder: Path) -> tuple[Parts, AutoencoderKL]:
    """What `save_generator` wrote, in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    parts = Parts(pipeline.tokenizer, pipeline.text_encoder, quick(pipeline.unet), pipeline.scheduler)
    return parts, pipeline.vae
