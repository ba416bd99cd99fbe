"""Pictures as rows of tokens, and a transformer that continues them: an autoregressive generator, ready for a LoRA.

    [start] picture tokens [start] label tokens             one by one
    [start] picture tokens picture tokens                   at once: each says its own place's label

A generator has only ever seen one picture's length of tokens. So the label's tokens are given the picture's positions
again, and the second start token is where a picture begins; `on` goes on counting instead.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from diffusers import VQModel
from torch import Generator, Tensor, nn
from transformers import DynamicCache

Positions = Literal["again", "on"]


class Tokens(Protocol):
    """A frozen VQ model: pictures (B,3,S,S) in [-1,1] to tokens (B,N), row by row, and back."""

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


class PictureTransformer(nn.Module):
    """Tokens of a picture, and of the label so far -> logits of the label's next ones.

    language_model: transformers' LlamaModel, on which the LoRA sits. embed: tokens (B,L) -> (B,L,C). head: (B,L,C) ->
    logits (B,L,V), of which the first `codes` are pictures' tokens. start: (C,), what a picture begins with.
    """

    def __init__(self, language_model: nn.Module, embed: nn.Module, head: nn.Module, start: Tensor, codes: int):
        super().__init__()
        self.language_model, self.embed, self.head, self.codes = language_model, embed, head, codes
        self.register_buffer("start", start.detach().clone()[None, None])

    def forward(self, picture: Tensor, label: Tensor | None, positions: Positions = "again") -> Tensor:
        """Logits (B,N,V) of all label tokens; picture, label (B,N). Token i of the label is not read for its own.

        label: None where nothing of it is read, see `at_once`.
        """
        if label is None:
            return self.at_once(picture, positions)
        sequence = self.sequence(picture, label[:, :-1])
        place = order(picture.shape[1], positions, picture.device)[: sequence.shape[1]]
        states = self.states(sequence, place.expand(len(picture), -1))
        return self.head(states[:, picture.shape[1] + 1 :])[..., : self.codes]

    def at_once(self, picture: Tensor, positions: Positions = "again") -> Tensor:
        """Logits (B,N,V) of all label tokens from the picture alone (B,N), read twice: the second time each token has
        read all of it, and stands for the label's token in its place.
        """
        count, embedded = picture.shape[1], self.embed(picture)
        sequence = torch.cat([self.start.expand(len(picture), -1, -1), embedded, embedded], dim=1)
        place = order(count, positions, picture.device)
        place = torch.cat([place[: count + 1], place[count + 2 :]])
        return self.head(self.states(sequence, place.expand(len(picture), -1))[:, count + 1 :])[..., : self.codes]

    def sequence(self, picture: Tensor, label: Tensor) -> Tensor:
        """[start] picture [start] label, embedded."""
        start = self.start.expand(len(picture), -1, -1).to(self.start.dtype)
        return torch.cat([start, self.embed(picture), start, self.embed(label)], dim=1)

    def states(self, embedded: Tensor, place: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Last hidden states (B,L,C) of (B,L,C) at positions `place` (B,L); causal in the order of the sequence.

        A mask of ones is passed, for without one transformers takes a position that is smaller than the one before
        as the beginning of another text, which may not see this one.
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
        picture: Tensor,
        positions: Positions = "again",
        temperature: float = 0.0,
        noise: Sequence[Generator] = (),
    ) -> Tensor:
        """The label's tokens (B,N), one after the other: the likeliest, or, at a temperature, sampled by `noise`."""
        place = order(picture.shape[1], positions, picture.device)
        return self.extend(self.sequence(picture, picture[:, :0]), place, temperature, noise)

    @torch.no_grad()
    def sample(self, count: int, noise: Sequence[Generator], temperature: float = 1.0) -> Tensor:
        """A new picture's tokens (B,count) for each generator of `noise`."""
        place = torch.arange(count + 1, device=self.start.device)
        return self.extend(self.start.expand(len(noise), -1, -1), place, temperature, noise)

    def extend(self, embedded: Tensor, place: Tensor, temperature: float, noise: Sequence[Generator]) -> Tensor:
        """The tokens that follow (B,L,C), one at each later position of `place` (P,), the first of which L have."""
        places, cache, tokens = place.expand(len(embedded), -1), DynamicCache(), []
        first, begun = 0, embedded.shape[1]
        for last in range(begun, len(place)):
            states = self.states(embedded, places[:, first:last], cache)
            tokens.append(choose(self.head(states[:, -1])[..., : self.codes].float(), temperature, noise))
            embedded, first = self.embed(tokens[-1][:, None]), last
        return torch.stack(tokens, dim=1)


def order(count: int, positions: Positions, device: torch.device) -> Tensor:
    """Positions (2 count + 2,) of [start] picture [start] label."""
    once = torch.arange(count + 1, device=device)
    return torch.cat([once, once if positions == "again" else once + count + 1])


def choose(logits: Tensor, temperature: float, noise: Sequence[Generator]) -> Tensor:
    """Logits (B,...,V) -> tokens (B,...)."""
    if not temperature:
        return logits.argmax(-1)
    chances = (logits / temperature).softmax(-1).cpu()
    sampled = [
        torch.multinomial(one.view(-1, one.shape[-1]), 1, generator=generator).view(one.shape[:-1])
        for one, generator in zip(chances, noise, strict=True)
    ]
    return torch.stack(sampled).to(logits.device)
