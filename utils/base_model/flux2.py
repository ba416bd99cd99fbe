"""FLUX.2-klein: a flow transformer whose first blocks have a stream each for image and text, the others one for both.

A token is a patch of 2x2 latents, normalised by statistics that the VAE keeps in a batch norm. The text is what Qwen3
thinks of the prompt at three depths. (Facts: diffusers' Flux2KleinPipeline.)
"""

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from utils.base_model.parts import Family, States


class Flux2(Family):
    """z (B,4C,h/2,w/2) of latents (B,C,h,w): 128 channels, a sixteenth of the image's side.

    mean, std: (1,4C,1,1) of patches, in fp32. They are the VAE's buffers, which `to` would round.
    """

    family = "flux2"
    vae_kind, network_kind, pipeline_kind = AutoencoderKLFlux2, Flux2Transformer2DModel, Flux2KleinPipeline

    def __init__(self, name: str, vae: Any, network: Any, revision: str | None = None):
        super().__init__(name, vae, network, revision)
        self.mean = vae.bn.running_mean.float().view(1, -1, 1, 1).clone()
        self.std = (vae.bn.running_var.float() + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)

    def scaled(self, latents: Tensor) -> Tensor:
        """(B,C,h,w) -> z (B,4C,h/2,w/2), channel 4c + 2i + j from row i and column j of a patch."""
        patches = pixel_unshuffle(latents.float(), 2)
        return ((patches - self.mean.to(patches.device)) / self.std.to(patches.device)).to(latents.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """z (B,4C,h/2,w/2) -> image (B,3,H,W) about [-1,1], not clamped."""
        patches = z.float() * self.std.to(z.device) + self.mean.to(z.device)
        return self.vae.decode(pixel_shuffle(patches, 2).to(self.vae.dtype), return_dict=False)[0]

    def predict(self, network: nn.Module, z: Tensor, t: float, states: States) -> Tensor:
        """Tokens (B,N,4C) row by row, positions (0, row, column, 0), and (0, 0, 0, i) of the text's tokens."""
        text = states["text"].expand(len(z), -1, -1)
        out = network(
            hidden_states=z.flatten(2).transpose(1, 2),
            encoder_hidden_states=text,
            timestep=torch.full((len(z),), t, dtype=z.dtype, device=z.device),
            img_ids=positions(1, *z.shape[2:], 1, like=z),
            txt_ids=positions(1, 1, 1, text.shape[1], like=z),
            return_dict=False,
        )[0]
        return out.transpose(1, 2).unflatten(2, z.shape[2:])

    def states(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """text (1,512,3D): Qwen3's hidden states 9, 18 and 27 side by side, padded and with the padding attended."""
        return {"text": pipeline.encode_prompt(prompt, device="cpu")[0]}


def positions(*sizes: int, like: Tensor) -> Tensor:
    """All positions of a grid of `sizes`, the last axis fastest, for each of `like`'s images: (B,N,len(sizes))."""
    grid = torch.cartesian_prod(*(torch.arange(size, device=like.device) for size in sizes))
    return grid.expand(len(like), -1, -1)
