"""The paper's two methods, side by side: how each trains (`loss`) and how each predicts (`predict`).

Notation: E, D the VAE's encoder and decoder, s its scaling factor, c the prompt's CLIP states, T the schedule's number
of steps. All noise comes from one generator per sample (`noise`), so that a sample's noise does not depend on how the
batch is cut into processes and micro-steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from utils.latents import cells, mode, training_latents
from utils.noise import gaussian, to_device


class Objective(Protocol):
    """The interface between a method and the training loop.

    vae: the frozen VAE, which the loop moves between devices. metadata: the method in the header of its LoRA files,
    "method", and whatever else inference needs.
    """

    @property
    def vae(self) -> Any: ...

    @property
    def metadata(self) -> Mapping[str, object]: ...

    def loss(self, unet: nn.Module, batch: dict[str, Tensor], noise: list[Generator]) -> Tensor:
        """A scalar in fp32, of rgb and target (B,3,H,W) in [-1,1], or of their latents (utils/latents.py).

        Where the batch has a mask, only the valid latent cells count: `masked_mse`.
        """

    def predict(self, unet: nn.Module, rgb: Tensor, noise: list[Generator], /) -> Tensor:
        """rgb (B,3,H,W) in [-1,1] -> map (B,3,H,W) about [-1,1], not clamped."""


class LatentModel(Protocol):
    """The part of a base model that the single step uses (utils/base_model/parts.py: `Family`)."""

    vae: Any
    family: ClassVar[str]

    @property
    def times(self) -> str: ...

    def check_side(self, side: int, flag: str = ..., /) -> None: ...

    def latent_mode(self, image: Tensor) -> Tensor: ...

    def scaled(self, latents: Tensor) -> Tensor: ...

    def predict(self, network: nn.Module, z: Tensor, t: float, states: Any) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


@dataclass
class SingleStep:
    """One pass of the network from image to map: D(unet(s E(rgb), T-1, c) / s) (arXiv 2311.17137).

    t is constant and there is no noise: the network predicts its answer in one pass, and the schedule is not used. The
    base decides what s and the pass are, also where it is not a Stable Diffusion: `LatentModel`.
    """

    base: LatentModel
    prompt: Any  # c: what the base's `encode_prompt` returned, (1,77,D) of Stable Diffusion
    timestep: float  # T-1 in the paper; 0 to 1 for flow models

    @property
    def vae(self) -> Any:
        """The base's VAE, which the loop moves between devices."""
        return self.base.vae

    @property
    def metadata(self) -> dict[str, object]:
        family = {} if self.base.family == "sd" else {"family": self.base.family}
        return {"method": "single-step", "timestep": self.timestep, **family}

    def loss(self, unet: nn.Module, batch: dict[str, Tensor], noise: list[Generator]) -> Tensor:
        """mse(unet(s E(rgb).mode(), T-1, c), s E(target).sample()), a scalar in fp32.

        batch: rgb, target (B,3,H,W) in [-1,1], or their latents (utils/latents.py); mask: see `masked_mse`. The target
        is sampled, the input is the mode, as in the released code.
        """
        rgb, target = training_latents(self.vae, batch, noise)
        z0 = self.base.scaled(target.float())
        return masked_mse(self.latents(unet, rgb).float(), z0, batch.get("mask"))

    def predict(self, unet: nn.Module, rgb: Tensor, noise: list[Generator] | None = None) -> Tensor:
        """rgb (B,3,H,W) in [-1,1] -> map (B,3,H,W) about [-1,1], not clamped. Deterministic; `noise` is not used."""
        return self.base.decode(self.latents(unet, self.base.latent_mode(rgb)))

    def latents(self, unet: nn.Module, rgb: Tensor, noise: Tensor | None = None) -> Tensor:
        """unet(s rgb, t, c), the map's scaled latents, of the image's latents (B,C,h,w), not scaled."""
        return self.base.predict(unet, self.base.scaled(rgb), self.timestep, self.prompt)


@dataclass
class AugUNet:
    """Diffusion of the map, conditioned on the image's latents (arXiv 2311.17137; InstructPix2Pix 2211.09800).

    The UNet reads [z_t, E(rgb)] (8 channels) and predicts velocity on a schedule whose last step is pure noise
    (zero terminal SNR, arXiv 2305.08891, algorithm 1): `scheduler` must come from `zero_snr_scheduler`.
    """

    vae: AutoencoderKL
    prompt: Tensor  # c (1,77,D)
    empty_prompt: Tensor  # (1,77,D), the other end of the guidance
    scheduler: DDIMScheduler
    noise_offset: float = 0.0
    steps: int = 25
    guidance_scale: float = 3.0
    guidance_rescale: float = 0.7
    augment_from: str | None = None  # where conv_in's image channels came from, for the metadata

    @property
    def metadata(self) -> dict[str, object]:
        source = {} if self.augment_from is None else {"augment_from": self.augment_from}
        return {"method": "augunet", "schedule": "v-prediction, zero terminal SNR", **source}

    def loss(self, unet: nn.Module, batch: dict[str, Tensor], noise: list[Generator]) -> Tensor:
        """mse(unet([z_t, E(rgb).mode()], t, c), v), a scalar in fp32.

        z_t = a_t z0 + sigma_t eps; v = a_t eps - sigma_t z0 (arXiv 2202.00512, appendix D); z0 = s E(target).sample();
        t uniform in 0..T-1. All of them are fp32, whatever the network's dtype: in bf16 1 - a_t^2 is 0 for t < 10.
        batch: rgb, target (B,3,H,W) in [-1,1], or their latents (utils/latents.py); mask: see `masked_mse`.
        """
        # cond is not scaled: InstructPix2Pix trained conv_in's image channels like this
        cond, target = training_latents(self.vae, batch, noise)
        z0 = self.vae.config.scaling_factor * target.float()
        eps = gaussian(z0.shape, noise, z0)
        if self.noise_offset:
            eps = eps + self.noise_offset * gaussian((*z0.shape[:2], 1, 1), noise, z0)
        steps = self.scheduler.config.num_train_timesteps
        t = to_device(torch.cat([torch.randint(steps, (1,), generator=each) for each in noise]), z0.device)
        z_t = self.scheduler.add_noise(z0, eps, t)
        v = self.scheduler.get_velocity(z0, eps, t)
        inputs = torch.cat([z_t.to(cond.dtype), cond], dim=1)
        prediction = unet(inputs, t, self.prompt.expand(len(z0), -1, -1)).sample
        return masked_mse(prediction.float(), v, batch.get("mask"))

    def predict(self, unet: nn.Module, rgb: Tensor, noise: list[Generator]) -> Tensor:
        """rgb (B,3,H,W) in [-1,1] -> map (B,3,H,W) about [-1,1], not clamped.

        DPM-Solver++ (arXiv 2211.01095), order 2, midpoint, from pure noise at t = T-1.
        """
        cond = mode(self.vae, rgb)
        return decode(self.vae, self.latents(unet, cond, gaussian(cond.shape, noise, cond.float())))

    def latents(self, unet: nn.Module, cond: Tensor, noise: Tensor) -> Tensor:
        """The map's scaled latents from the image's, not scaled, and standard normal noise: (B,4,h,w) each. The
        sampler's state is fp32, as `noise` is, whatever the network's dtype.
        """
        solver = DPMSolverMultistepScheduler.from_config(
            self.scheduler.config, solver_order=2, solver_type="midpoint", algorithm_type="dpmsolver++"
        )
        solver.set_timesteps(self.steps, device=cond.device)
        z = noise * solver.init_noise_sigma
        for t in solver.timesteps:
            v = self.guided(unet, solver.scale_model_input(z, t), cond, t)
            z = solver.step(v, t, z, return_dict=False)[0]
        return z

    def guided(self, unet: nn.Module, z_t: Tensor, cond: Tensor, t: Tensor) -> Tensor:
        """Guided and rescaled velocity (B,4,h,w) in fp32, from two UNet evaluations in one batch.

        InstructPix2Pix's guidance (equation 3) is e(0,0) + s_I (e(I,0) - e(0,0)) + s_T (e(I,c) - e(I,0)). The released
        code has s_I = 1, where the first two terms are e(I,0): the unconditional branch need not be computed.
        """
        text = torch.cat([self.empty_prompt.expand(len(z_t), -1, -1), self.prompt.expand(len(z_t), -1, -1)])
        both = unet(torch.cat([z_t.to(cond.dtype), cond], dim=1).repeat(2, 1, 1, 1), t, text).sample
        image_only, image_and_text = both.float().chunk(2)
        guided = image_only + self.guidance_scale * (image_and_text - image_only)
        return rescale(guided, image_and_text, self.guidance_rescale)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error (B,4,h,w) over the latent cells that count, a scalar; without a mask the plain one.

    mask: bool (B,1,H,W), valid pixels, or cells (B,1,h,w); see `cells`. The mean over each image's cells, then over
    the images: so it does not depend on how a batch is cut into processes and micro-steps. An image without a cell
    adds 0.
    """
    if mask is None:
        return F.mse_loss(prediction, target)
    count = cells(mask, (target.shape[-2], target.shape[-1]))
    error = torch.where(count, prediction - target, 0).square().mean(1).flatten(1)
    return (error.sum(1) / count.flatten(1).sum(1).clamp(min=1)).mean()


def rescale(guided: Tensor, reference: Tensor, amount: float) -> Tensor:
    """Pull each sample's std back toward the reference's (arXiv 2305.08891, equations 14-16). (B,...) -> (B,...)"""
    over = list(range(1, guided.ndim))
    matched = guided * (reference.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True))
    return amount * matched + (1 - amount) * guided


def zero_snr_scheduler(scheduler: DDIMScheduler) -> DDIMScheduler:
    """The base model's schedule, rescaled so that the last step is pure noise, predicting velocity."""
    return DDIMScheduler.from_config(
        scheduler.config,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",  # start sampling at T-1, where alpha is 0; "leading" would start short of it
        prediction_type="v_prediction",
    )


def decode(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Latents (B,4,h,w), scaled -> image (B,3,H,W) about [-1,1], not clamped."""
    return vae.decode((z / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
