"""An autoregressive image generator: images as rows of tokens, and a transformer that continues them.

    [start] image tokens [start] label tokens    one by one
    [start] image tokens image tokens            in one pass: each token, when read again, predicts the label's there

A generator has only seen sequences as long as one image. So the label's tokens are given the image's positions again,
and the second start token is where an image begins. With `on` the positions continue instead.

The generator is a folder of this project, or Janus:

    <folder>/vq             diffusers' VQModel                   (images to tokens and back)
    <folder>/transformer    transformers' LlamaForCausalLM; an image begins with the last token of its vocabulary

or <folder>/config.json of transformers' JanusForConditionalGeneration, such as deepseek-community/Janus-Pro-1B.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers import VQModel
from torch import Generator, Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM

from utils.base_model.names import is_folder
from utils.errors import InputError
from utils.system.atomic import check_sums
from utils.system.network import require

Positions = Literal["again", "on"]


class Tokens(Protocol):
    """A frozen VQ model: images (B,3,S,S) in [-1,1] to tokens (B,N), row by row, and back."""

    vq: Any

    def encode(self, rgb: Tensor) -> Tensor: ...

    def decode(self, tokens: Tensor) -> Tensor: ...


class VQTokens:
    """diffusers' VQModel as `Tokens`."""

    def __init__(self, vq: VQModel):
        self.vq: Any = vq

    @torch.no_grad()
    def encode(self, rgb: Tensor) -> Tensor:
        latents = self.vq.encode(rgb.to(self.vq.dtype)).latents
        return self.vq.quantize(latents)[2][2].view(len(rgb), -1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        side = int(tokens.shape[1] ** 0.5)
        shape = (len(tokens), side, side, self.vq.config.vq_embed_dim or self.vq.config.latent_channels)
        latents = self.vq.quantize.get_codebook_entry(tokens.reshape(-1), shape)
        return self.vq.decode(latents, force_not_quantize=True).sample


class JanusTokens:
    """Janus' VQ model as `Tokens`."""

    def __init__(self, vq: nn.Module):
        self.vq: Any = vq

    @torch.no_grad()
    def encode(self, rgb: Tensor) -> Tensor:
        return self.vq.encode(rgb.to(next(self.vq.parameters()).dtype)).image_tokens.view(len(rgb), -1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        return self.vq.decode(tokens)


class ImageTransformer(nn.Module):
    """Tokens of an image, and of the label so far -> logits of the label's next token.

    language_model: transformers' LlamaModel, on which the LoRA sits. embed: tokens (B,L) -> (B,L,C). head: (B,L,C) ->
    logits (B,L,V), of which the first `codes` are image tokens. start: embedding (C,) that an image begins with.
    """

    def __init__(self, language_model: nn.Module, embed: nn.Module, head: nn.Module, start: Tensor, codes: int):
        super().__init__()
        self.language_model, self.embed, self.head, self.codes = language_model, embed, head, codes
        self.register_buffer("start", start.detach().clone()[None, None])

    def forward(self, image: Tensor, label: Tensor | None, positions: Positions = "again") -> Tensor:
        """Logits (B,N,V) of all label tokens; image, label (B,N). Token i of the label is not read to predict token i.

        label: None if none of it is read; see `at_once`.
        """
        if label is None:
            return self.at_once(image, positions)
        sequence = self.sequence(image, label[:, :-1])
        place = order(image.shape[1], positions, image.device)[: sequence.shape[1]]
        states = self.states(sequence, place.expand(len(image), -1))
        return self.head(states[:, image.shape[1] + 1 :])[..., : self.codes]

    def at_once(self, image: Tensor, positions: Positions = "again") -> Tensor:
        """Logits (B,N,V) of all label tokens from the image alone (B,N), which is read twice: the second time, each
        token has seen the whole image, and predicts the label's token in its place.
        """
        count, embedded = image.shape[1], self.embed(image)
        sequence = torch.cat([self.start.expand(len(image), -1, -1), embedded, embedded], dim=1)
        place = order(count, positions, image.device)
        place = torch.cat([place[: count + 1], place[count + 2 :]])
        return self.head(self.states(sequence, place.expand(len(image), -1))[:, count + 1 :])[..., : self.codes]

    def sequence(self, image: Tensor, label: Tensor) -> Tensor:
        """[start] image [start] label, embedded."""
        start = self.start.expand(len(image), -1, -1).to(self.start.dtype)
        return torch.cat([start, self.embed(image), start, self.embed(label)], dim=1)

    def states(self, embedded: Tensor, place: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Last hidden states (B,L,C) of embeddings (B,L,C) at positions `place` (B,L), causal in the sequence's order.

        A mask of ones is passed because without one transformers takes a position smaller than the previous one for
        the start of another text, which must not attend to this one.
        """
        before = 0 if cache is None else cache.get_seq_length()
        mask = torch.ones(len(embedded), before + embedded.shape[1], dtype=torch.long, device=embedded.device)
        found = self.language_model(
            inputs_embeds=embedded,
            position_ids=place,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return found.last_hidden_state

    @torch.no_grad()
    def complete(
        self,
        image: Tensor,
        positions: Positions = "again",
        temperature: float = 0.0,
        noise: Sequence[Generator] = (),
    ) -> Tensor:
        """The label's tokens (B,N), one after the other: the likeliest, or sampled with `noise` at a temperature."""
        place = order(image.shape[1], positions, image.device)
        return self.extend(self.sequence(image, image[:, :0]), place, temperature, noise)

    @torch.no_grad()
    def sample(self, count: int, noise: Sequence[Generator], temperature: float = 1.0) -> Tensor:
        """The tokens (B,count) of one new image for each generator in `noise`."""
        place = torch.arange(count + 1, device=self.start.device)
        return self.extend(self.start.expand(len(noise), -1, -1), place, temperature, noise)

    def extend(self, embedded: Tensor, place: Tensor, temperature: float, noise: Sequence[Generator]) -> Tensor:
        """The tokens that follow the embeddings (B,L,C): one for each position of `place` (P,) after the first L."""
        places, cache, tokens = place.expand(len(embedded), -1), DynamicCache(), []
        first, begun = 0, embedded.shape[1]
        for last in range(begun, len(place)):
            states = self.states(embedded, places[:, first:last], cache)
            tokens.append(choose(self.head(states[:, -1])[..., : self.codes].float(), temperature, noise))
            embedded, first = self.embed(tokens[-1][:, None]), last
        return torch.stack(tokens, dim=1)


def order(count: int, positions: Positions, device: torch.device) -> Tensor:
    """Positions (2 count + 2,) of [start] image [start] label."""
    once = torch.arange(count + 1, device=device)
    return torch.cat([once, once if positions == "again" else once + count + 1])


def choose(logits: Tensor, temperature: float, noise: Sequence[Generator]) -> Tensor:
    """Logits (B,...,V) -> tokens (B,...): the likeliest, or sampled at a temperature with one generator per item."""
    if not temperature:
        return logits.argmax(-1)
    chances = (logits / temperature).softmax(-1).cpu()
    sampled = [
        torch.multinomial(one.view(-1, one.shape[-1]), 1, generator=generator).view(one.shape[:-1])
        for one, generator in zip(chances, noise, strict=True)
    ]
    return torch.stack(sampled).to(logits.device)


@dataclass
class Autoregressive:
    """A frozen generator, in eval mode and fp32. resolution: side of its images, in pixels."""

    name: str
    network: ImageTransformer
    tokens: Tokens
    resolution: int
    revision: str | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Autoregressive":
        """Move and cast both parts in place."""
        for part in (self.network, self.tokens.vq):
            part.to(device)
            if dtype != torch.float32:  # the dtype they were loaded in
                part.to(dtype)
        return self


def load_autoregressive(name: str, revision: str | None = None) -> Autoregressive:
    """Load a generator from a folder or the hub, in fp32 on the CPU. InputError if it cannot be read."""
    here = is_folder(name)
    folder = Path(name)
    try:
        parts = _mini(folder) if here and (folder / "transformer").is_dir() else _janus(name, revision, here)
    except InputError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: cannot be loaded as an autoregressive generator: {reason}") from None
    network, tokens, resolution = parts
    for part in (network, tokens.vq):
        part.requires_grad_(False).eval().float()
    return Autoregressive(str(folder.resolve()) if here else name, network, tokens, resolution, revision)


def _mini(folder: Path) -> tuple[ImageTransformer, VQTokens, int]:
    check_sums(folder)
    vq, whole = VQModel.from_pretrained(folder / "vq"), LlamaForCausalLM.from_pretrained(folder / "transformer")
    codes = vq.config.num_vq_embeddings
    network = ImageTransformer(whole.model, whole.model.embed_tokens, whole.lm_head, start_of(whole), codes)
    return network, VQTokens(vq), vq.config.sample_size


def start_of(whole: LlamaForCausalLM) -> torch.Tensor:
    """The embedding (C,) of the token that an image begins with, the last of the vocabulary."""
    return whole.model.embed_tokens.weight[-1]


def _model_type(folder: Path) -> str | None:
    """The model in a folder: the model type of transformers, or the pipeline class of diffusers. None: neither."""
    for file, key in (("config.json", "model_type"), ("model_index.json", "_class_name")):
        if (folder / file).is_file():
            return json.loads((folder / file).read_text()).get(key)
    return None


def _janus(name: str, revision: str | None, here: bool) -> tuple[ImageTransformer, JanusTokens, int]:
    """Janus' language model between its own embedding of image tokens and its own head for them."""
    from transformers import JanusForConditionalGeneration  # only here: its import prints warnings

    if here:
        kind = _model_type(Path(name))
        if kind != "janus":
            what = f"a {kind}" if kind else "not a model of transformers"
            raise InputError(f"{name}: {what}; an autoregressive generator is a Janus, or has vq/ and transformer/")
    where = {} if here else {"local_files_only": require(name, revision)}
    model = JanusForConditionalGeneration.from_pretrained(name, revision=revision, **where)
    inside = model.model
    begin = model.generation_config.generation_kwargs["boi_token_id"]
    embed = nn.Sequential(inside.generation_embeddings, inside.generation_aligner)
    start = inside.language_model.embed_tokens.weight[begin]
    vq = inside.vqmodel.config
    network = ImageTransformer(inside.language_model, embed, inside.generation_head, start, vq.num_embeddings)
    return network, JanusTokens(inside.vqmodel), vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)
