"""Z-Image: a flow transformer with one stream. Its time runs the other way: 0 is noise, 1 the image.

It takes and gives lists, because its images and texts may differ in size. (Facts: diffusers' ZImagePipeline.)
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn

from utils.base_model.parts import Family, States


class ZImage(Family):
    """z (B,16,h,w), shifted and scaled as Stable Diffusion 3's."""

    family = "z_image"
    vae_kind, network_kind, pipeline_kind = AutoencoderKL, ZImageTransformer2DModel, ZImagePipeline

    def predict(self, network: nn.Module, z: Tensor, t: float, states: States) -> Tensor:
        """The output as it is: image minus noise, which the pipeline negates. t is 0 for the image as everywhere."""
        time = torch.full((len(z),), 1 - t, device=z.device)
        out = network(list(z.unsqueeze(2)), time, [states["text"]] * len(z), return_dict=False)[0]
        return torch.stack(out).squeeze(2)

    def states(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """text (L,D): Qwen3's last but one hidden state, without padding."""
        return {"text": pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[0][0]}
