"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer that predicts a rectified flow's velocity."""

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from utils.base_model.parts import Family, States
from utils.latents import reduction


class StableDiffusion3(Family):
    """Its network's time is 1000 s for z_s = s eps + (1 - s) z_0: the schedule's shift is in s already, so a single
    step needs none. The output was trained as the velocity eps - z_0.
    """

    family: ClassVar[str] = "sd3"
    vae_kind: ClassVar[Any] = AutoencoderKL
    network_kind: ClassVar[Any] = SD3Transformer2DModel
    pipeline_kind: ClassVar[Any] = StableDiffusion3Pipeline

    @property
    def multiple(self) -> int:
        return reduction(self.vae) * self.network.config.patch_size

    def states(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """text (1,77+256,4096): two CLIPs' last but one layer, padded with zeros, then T5's, zeros without one; pooled
        (1,2048): both CLIPs'.
        """
        text, _, pooled, _ = pipeline.encode_prompt(
            prompt, None, None, device="cpu", do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def predict(self, network: nn.Module, z: Tensor, t: float, states: States) -> Tensor:
        """transformer(z, text, pooled, 1000 t), z (B,16,h,w), t in 0..1."""
        count, text = len(z), states["text"]
        return network(
            hidden_states=z.to(text.dtype),
            encoder_hidden_states=text.expand(count, -1, -1),
            pooled_projections=states["pooled"].expand(count, -1),
            timestep=torch.full((count,), 1000 * t, device=z.device),
        ).sample
