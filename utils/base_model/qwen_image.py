"""Qwen-Image: a flow transformer with two streams on the latents of a VAE for videos, whose frames are images here.

(Facts: diffusers' QwenImagePipeline. The Edit pipelines also show the image to the text encoder and are not read.)
"""

from inspect import signature
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from utils.base_model.parts import Family, States

NEEDS_LENGTHS = "txt_seq_lens" in signature(QwenImageTransformer2DModel.forward).parameters  # of old diffusers


class QwenImage(Family):
    """z (B,16,h,w): latents with mean 0 and deviation 1, by the VAE's own figures for each channel."""

    family = "qwen_image"
    vae_kind, network_kind, pipeline_kind = AutoencoderKLQwenImage, QwenImageTransformer2DModel, QwenImagePipeline

    def scaled(self, latents: Tensor) -> Tensor:
        """(latents - mean) / std, both (B,C,h,w)."""
        return (latents - self._each("mean", latents)) / self._each("std", latents)

    def decode(self, z: Tensor) -> Tensor:
        """z (B,C,h,w) -> image (B,3,H,W) about [-1,1], not clamped."""
        latents = z * self._each("std", z) + self._each("mean", z)
        return self.vae.decode(latents.unsqueeze(2).to(self.vae.dtype), return_dict=False)[0].squeeze(2)

    def predict(self, network: nn.Module, z: Tensor, t: float, states: States) -> Tensor:
        """Tokens (B,N,4C): patches of 2x2 latents row by row, channel 4c + 2i + j from row i and column j of a patch.

        The text has no mask, because one prompt is never padded.
        """
        patches, text = pixel_unshuffle(z, 2), states["text"].expand(len(z), -1, -1)
        out = network(
            hidden_states=patches.flatten(2).transpose(1, 2),
            encoder_hidden_states=text,
            timestep=torch.full((len(z),), t, dtype=z.dtype, device=z.device),
            img_shapes=[[(1, *patches.shape[2:])]] * len(z),
            return_dict=False,
            **({"txt_seq_lens": [text.shape[1]] * len(z)} if NEEDS_LENGTHS else {}),
        )[0]
        return pixel_shuffle(out.transpose(1, 2).unflatten(2, patches.shape[2:]), 2)

    def states(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """text (1,L,D): Qwen2.5-VL's last hidden state after the 34 tokens of the pipeline's own instruction."""
        return {"text": pipeline.encode_prompt(prompt, device="cpu")[0]}

    def _each(self, name: str, like: Tensor) -> Tensor:
        """The VAE's mean or std of each channel, (1,C,1,1)."""
        return like.new_tensor(self.vae.config[f"latents_{name}"]).view(1, -1, 1, 1)
