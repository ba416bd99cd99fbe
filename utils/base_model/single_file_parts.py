"""From a single file's weights to the five parts of a Stable Diffusion.

The configurations (sd1/, sd2/) and CLIP's merges (see LICENSE) are in this folder: no hub is needed.
"""

import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from utils.base_model.single_file import CONV_IN, NAMES, TEXT, check_file, read_checkpoint
from utils.errors import InputError

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
CONFIGS = {kind: Path(__file__).with_name(kind) for kind in TEXT}
_OPEN_CLIP = {  # OpenCLIP's names of a text encoder's layers -> transformers'
    "positional_embedding": "embeddings.position_embedding.weight", "token_embedding.": "embeddings.token_embedding.",
    "ln_final.": "final_layer_norm.", "transformer.resblocks.": "encoder.layers.", ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.", ".c_fc.": ".fc1.", ".c_proj.": ".fc2.", ".attn.": ".self_attn.",
}  # fmt: skip


def load_parts(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """ "tokenizer", "text_encoder", "vae", "unet", "scheduler" from one file, read once, on the CPU. dtype: of the
    UNet.

    Raises:
        InputError: it is not a whole Stable Diffusion 1.x or 2.x, or its layers have other sizes.
    """
    kind, state = read_checkpoint(path)
    config = CONFIGS[kind]
    channels = state[CONV_IN].shape[1]  # 8 and 9 are editors and inpainters
    unet = _converted(UNet2DConditionModel, "unet", state, config, path, kind, in_channels=channels, torch_dtype=dtype)
    return {
        "tokenizer": clip_tokenizer(config / "tokenizer"),
        "text_encoder": text_encoder(state, kind, config / "text_encoder", path),
        "vae": _converted(AutoencoderKL, "vae", state, config, path, kind),
        "unet": unet,
        "scheduler": DDIMScheduler.from_pretrained(config / "scheduler"),
    }


def load_conv_in(path: Path) -> nn.Conv2d:
    """The first convolution of a checkpoint's UNet."""
    check_file(path)
    _, state = read_checkpoint(path)
    weight, bias = state[CONV_IN], state[CONV_IN.replace("weight", "bias")]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv


def text_encoder(state: Mapping[str, Tensor], kind: str, config: Path, path: Path) -> CLIPTextModel:
    """The checkpoint's text encoder, without the layers beyond those that Stable Diffusion reads (2.x: the last)."""
    settings = CLIPTextConfig.from_pretrained(config)
    weights = {key.removeprefix(TEXT[kind]): value for key, value in state.items() if key.startswith(TEXT[kind])}
    weights = _from_open_clip(weights) if kind == "sd2" else weights
    weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    with torch.random.fork_rng(devices=[]):
        model = CLIPTextModel(settings)
    prefix = "text_model." if any(key.startswith("text_model.") for key in model.state_dict()) else ""
    own = {key.removeprefix(prefix) for key in model.state_dict()}
    try:
        model.load_state_dict({prefix + key: value for key, value in weights.items() if key in own})
    except RuntimeError as error:
        raise _misfit(path, "text encoder", kind, error) from None
    return model


def clip_tokenizer(config: Path) -> CLIPTokenizer:
    """Stable Diffusion's tokenizer from CLIP's list of merges. config: a folder with tokenizer_config.json, for
    the padding token and the length.

    Token ids are CLIP's: the 256 byte characters, the same at a word's end, one per merge, start, end.
    """
    merges = gzip.decompress(MERGES.read_bytes()).decode()
    letters = list(map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]))  # the bytes that print
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # the others, in their order
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges.splitlines()]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        Path(folder, "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
        shutil.copy(config / "tokenizer_config.json", folder)
        return CLIPTokenizer.from_pretrained(folder)


def _from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names -> transformers', with its joint projection of queries, keys and values split in three."""
    renamed = {}
    for key, value in weights.items():
        for old, new in _OPEN_CLIP.items():
            key = key.replace(old, new)
        if joint := re.fullmatch(r"(.+\.)in_proj_(weight|bias)", key):
            for name, part in zip("qkv", value.chunk(3)):
                renamed[f"{joint[1]}{name}_proj.{joint[2]}"] = part
        else:
            renamed[key] = value
    return renamed


def _converted(
    kind: Any, part: str, state: dict, config: Path, path: Path, architecture: str, **options: Any
) -> nn.Module:
    """A UNet or VAE by diffusers' own conversion, with every weight from the file."""
    try:  # a copy: the conversion takes out of the dict what it has used
        model = kind.from_single_file(
            dict(state), config=str(config), subfolder=part, local_files_only=True, **options
        )
        if lost := [name for name, weight in model.state_dict().items() if weight.is_meta]:
            raise ValueError(f"{len(lost)} of its weights are not in the file, e.g. {lost[0]}")
    except (ValueError, KeyError, IndexError, RuntimeError, AttributeError) as error:
        raise _misfit(path, {"unet": "UNet", "vae": "VAE"}[part], architecture, error) from None
    return model


def _misfit(path: Path, part: str, kind: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{path}: its {part} is not that of {NAMES[kind]} ({reason}); take another base model")
