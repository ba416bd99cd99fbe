"""Autoregressive generators of pictures: a folder of this project, or Janus.

<folder>/vq             diffusers' VQModel                                  (pictures to tokens and back)
<folder>/transformer    transformers' LlamaForCausalLM; its last token is the one that a picture begins with

or <folder>/config.json of transformers' JanusForConditionalGeneration, such as deepseek-community/Janus-Pro-1B.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import VQModel
from torch import nn
from transformers import LlamaForCausalLM

from utils.base_model.names import is_folder
from utils.errors import InputError
from utils.generators.picture_tokens import JanusTokens, PictureTransformer, Tokens, VQTokens
from utils.system.network import require


@dataclass
class Autoregressive:
    """A generator, frozen, in eval mode and fp32. resolution: side of its pictures, in pixels."""

    name: str
    network: PictureTransformer
    tokens: Tokens
    resolution: int
    revision: str | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Autoregressive":
        """Move and cast both parts, in place."""
        for part in (self.network, self.tokens.vq):
            part.to(device)
            if dtype != torch.float32:  # what they were loaded in
                part.to(dtype)
        return self


def load_autoregressive(name: str, revision: str | None = None) -> Autoregressive:
    """Load a generator from a folder or the hub, in fp32 on the CPU. InputError where it cannot be read."""
    here = is_folder(name)
    folder = Path(name)
    try:
        found = _mini(folder) if here and (folder / "transformer").is_dir() else _janus(name, revision, here)
    except InputError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: cannot be loaded as an autoregressive generator: {reason}") from None
    network, tokens, resolution = found
    for part in (network, tokens.vq):
        part.requires_grad_(False).eval().float()
    return Autoregressive(str(folder.resolve()) if here else name, network, tokens, resolution, revision)


def _mini(folder: Path) -> tuple[PictureTransformer, VQTokens, int]:
    vq, whole = VQModel.from_pretrained(folder / "vq"), LlamaForCausalLM.from_pretrained(folder / "transformer")
    codes = vq.config.num_vq_embeddings
    network = PictureTransformer(whole.model, whole.model.embed_tokens, whole.lm_head, start_of(whole), codes)
    return network, VQTokens(vq), vq.config.sample_size


def start_of(whole: LlamaForCausalLM) -> torch.Tensor:
    """The embedding (C,) of the token that a picture begins with, the last of the vocabulary."""
    return whole.model.embed_tokens.weight[-1]


def _kind(folder: Path) -> str | None:
    """What a folder says it holds: the type of a model of transformers, or the class of a pipeline of diffusers."""
    for file, key in (("config.json", "model_type"), ("model_index.json", "_class_name")):
        if (folder / file).is_file():
            return json.loads((folder / file).read_text()).get(key)
    return None


def _janus(name: str, revision: str | None, here: bool) -> tuple[PictureTransformer, JanusTokens, int]:
    """Janus' language model between its own embedding of picture tokens and its own head for them."""
    from transformers import JanusForConditionalGeneration  # warns at its import, which others need not see

    if here:
        kind = _kind(Path(name))
        if kind != "janus":
            what = f"a {kind}" if kind else "no model of transformers"
            raise InputError(f"{name}: {what}; an autoregressive generator is a Janus, or has vq/ and transformer/")
    where = {} if here else {"local_files_only": require(name, revision)}
    model = JanusForConditionalGeneration.from_pretrained(name, revision=revision, **where)
    inside = model.model
    begin = model.generation_config.generation_kwargs["boi_token_id"]
    embed = nn.Sequential(inside.generation_embeddings, inside.generation_aligner)
    start = inside.language_model.embed_tokens.weight[begin]
    vq = inside.vqmodel.config
    network = PictureTransformer(inside.language_model, embed, inside.generation_head, start, vq.num_embeddings)
    return network, JanusTokens(inside.vqmodel), vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)
