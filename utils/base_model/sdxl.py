"""Stable Diffusion XL (arXiv 2307.01952): a UNet that also reads a pooled text state and the image's size."""

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from utils.base_model.parts import Family, States
from utils.latents import reduction


class StableDiffusionXL(Family):
    """Noise prediction at t in 0..999. The UNet reads clean latents as they are: the schedule's `scale_model_input`,
    which divides noisy ones, is not for them.
    """

    family: ClassVar[str] = "sdxl"
    prefix: ClassVar[str] = "unet"
    vae_kind: ClassVar[Any] = AutoencoderKL
    network_kind: ClassVar[Any] = UNet2DConditionModel
    pipeline_kind: ClassVar[Any] = StableDiffusionXLPipeline
    steps = 1000

    @property
    def multiple(self) -> int:
        """Pixels whose multiples all levels of the UNet halve: 32."""
        return reduction(self.vae) * 2 ** (len(self.network.config.block_out_channels) - 1)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "StableDiffusionXL":
        """As `Family`'s, but in fp16 the VAE stays in fp32: its activations leave fp16's range."""
        nn.Module.to(self.network, device, dtype)
        nn.Module.to(self.vae, device, torch.float32 if dtype == torch.float16 else dtype)
        return self

    def latent_mode(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):  # a validation's autocast may be fp16
            return super().latent_mode(image)

    def decode(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return super().decode(z)

    def states(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """text (1,77,2048): both encoders' last but one layer; pooled (1,1280): the second's."""
        text, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def predict(self, network: nn.Module, z: Tensor, t: float, states: States) -> Tensor:
        """unet(z, t, text, pooled, (H,W,0,0,H,W)), z (B,4,h,w): an image of its own size that is not cropped."""
        count, text = len(z), states["text"]
        height, width = (side * reduction(self.vae) for side in z.shape[-2:])
        ids = torch.tensor([[height, width, 0, 0, height, width]], device=z.device, dtype=text.dtype)
        added = {"text_embeds": states["pooled"].expand(count, -1), "time_ids": ids.expand(count, -1)}
        times = torch.full((count,), int(t), device=z.device)
        return network(z.to(text.dtype), times, text.expand(count, -1, -1), added_cond_kwargs=added).sample
