"""Saving a text encoder so that every transformers since 4.46 reads it."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

PREFIX = "text_model."


def save_text_encoder(text_encoder: CLIPTextModel, folder: Path) -> None:
    """Write config and weights into `folder`, under the key names of Stable Diffusion's own folders.

    transformers 5 leaves PREFIX out of the keys and reads them either way; 4.46 to 4.57 read them only with it.
    """
    text_encoder.save_pretrained(folder)
    add_prefix(folder / "model.safetensors")


def add_prefix(file: Path) -> None:
    """Give every key of a saved text encoder PREFIX, in place; keys that have it stay."""
    state = {key.removeprefix(PREFIX): weight for key, weight in load_file(file).items()}
    save_file({PREFIX + key: weight for key, weight in state.items()}, file, {"format": "pt"})
