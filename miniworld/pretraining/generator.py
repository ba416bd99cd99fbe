"""Stage 2: the generator, a text encoder and a UNet that learn to draw scenes from their captions.

The UNet sees latents of finished pictures and captions, nothing else: never a normal, depth, albedo or shading map.
Loss of a picture's latents z0 (scaled to unit variance), at t uniform in 0..T-1 with eps ~ N(0, I):

    z_t = a_t z0 + sigma_t eps;    min(SNR_t, 5) / SNR_t * mse(unet(z_t, t, c), eps)

The weight (arXiv 2303.09556, equation 5 in epsilon's terms) keeps the nearly clean timesteps, which are the most
numerous in this sense, from taking over the gradient. The caption is empty for one picture in ten, for guidance.

The same stage trains a base that predicts velocity (`continued.py`). Its loss is plain, mse(unet(z_t, t, c), v) with
v = a_t eps - sigma_t z0 (arXiv 2202.00512, appendix D): where the last step is pure noise, SNR_t reaches 0 there.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from miniworld.pretraining.random_sd import WORDS, build_scheduler, build_text_encoder, build_tokenizer, build_unet
from miniworld.pretraining.stage import Stage
from miniworld.pretraining.vae import save_sheet, to_tensor

MORE_WORDS = ("ball", "balls", "teal", "under")
CONTEXT_LENGTH = 32  # the longest caption has 25 tokens; CLIP's 77 would triple the text's share of a step
GROUPS = 8  # 8 channels a group, about as many as Stable Diffusion's first level has
DROPPED = 0.1
SNR_LIMIT = 5.0
GUIDANCE = 3.0


@dataclass
class Latents:
    """What the UNet is trained on: posterior means and deviations (N,4,h,w) of pictures, not scaled, and token ids."""

    mean: Tensor
    std: Tensor
    tokens: Tensor  # (N,L)
    empty: Tensor  # (L,), the tokens of ""
    scale: float

    def draw(self, chosen: Tensor, rng: Generator) -> Tensor:
        """z0 of pictures `chosen` (B,): a sample of the posterior, scaled, (B,4,h,w)."""
        mean, std = self.mean[chosen].float(), self.std[chosen].float()
        return self.scale * (mean + std * torch.randn(mean.shape, generator=rng))


@dataclass
class Parts:
    """A Stable Diffusion but for its VAE."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler


def build_generator() -> Parts:
    tokenizer = build_tokenizer((*WORDS, *MORE_WORDS), CONTEXT_LENGTH)
    return Parts(tokenizer, build_text_encoder(tokenizer), quick(build_unet(groups=GROUPS)), build_scheduler())


def quick(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same UNet, quicker to train on a CPU: there, fused attention's backward is the slowest of all kernels."""
    unet.set_attn_processor(AttnProcessor())
    return unet.to(memory_format=torch.channels_last)


def encode_pictures(vae, rgb: np.ndarray, captions: list[str], tokenizer, folder: Path, half: bool) -> Latents:
    """The latents of all pictures (N,S,S,3) uint8, kept in `folder` for the next run. scale: 1 / std over all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"latents-{fingerprint(vae.encoder, vae.quant_conv):08x}-{len(rgb)}.pt"
    if not path.exists():
        means, stds = [], []
        for chunk in tqdm(torch.arange(len(rgb)).split(64), desc="encoding pictures", mininterval=2):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                mean, std = encode(vae, to_tensor(rgb[chunk.numpy()]) * 2 - 1)
            means.append(mean.half())
            stds.append(std.half())
        draft = path.with_suffix(".tmp")
        torch.save((torch.cat(means), torch.cat(stds)), draft)
        draft.replace(path)
    mean, std = torch.load(path, weights_only=True)
    tokens = tokenize(tokenizer, captions)
    scale = 1 / (mean.float().var() + std.float().pow(2).mean()).sqrt().item()
    return Latents(mean, std, tokens, tokenize(tokenizer, [""])[0], scale)


@torch.no_grad()
def encode(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of pictures (B,3,S,S) in [-1,1]."""
    posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
    return posterior.mean, posterior.std


def fingerprint(*modules: nn.Module) -> int:
    """A number that changes with the weights."""
    weights = (weight.detach().contiguous() for module in modules for weight in module.parameters())
    return zlib.crc32(b"".join(weight.cpu().numpy().tobytes() for weight in weights))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions -> ids (N,L)."""
    settings = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(captions, return_tensors="pt", **settings).input_ids


def generator_stage(
    parts: Parts, data: Latents, vae, folder: Path, batch: int, half: bool, name: str = "unet", **settings
) -> Stage:
    """Train UNet and text encoder of `parts` together on `data`; `name` chooses the batches and the noise."""

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return {"loss": generator_loss(parts, data, batch, rng)}

    def sheet(modules: dict, path: Path, count: int = 10, seeds: int = 3) -> None:
        tokens = data.tokens[torch.arange(count).repeat(seeds)]
        z = sample(modules["unet"], modules["text_encoder"], parts.scheduler, tokens, data.empty, seed=0)
        save_sheet(list(decode(vae, z / data.scale).split(count)), path)

    modules = {"unet": parts.unet, "text_encoder": parts.text_encoder}
    return Stage(name, folder, modules, loss, sheet, **settings)


def generator_loss(parts: Parts, data: Latents, batch: int, rng: Generator) -> Tensor:
    """The loss of the module's docstring for a random batch, by the scheduler's prediction type; a scalar in fp32."""
    chosen = torch.randint(len(data.tokens), (batch,), generator=rng)
    z0 = data.draw(chosen, rng)
    dropped = torch.rand(batch, 1, generator=rng) < DROPPED
    text = parts.text_encoder(torch.where(dropped, data.empty, data.tokens[chosen]))[0]
    z_t, t, eps = diffuse(parts.scheduler, z0, rng)
    prediction = parts.unet(z_t, t, text).sample
    if predicts_velocity(parts.scheduler):
        return F.mse_loss(prediction.float(), parts.scheduler.get_velocity(z0, eps, t))
    return weighted_mse(parts.scheduler, prediction, eps, t)


def predicts_velocity(scheduler: DDIMScheduler) -> bool:
    return scheduler.config.prediction_type == "v_prediction"


def diffuse(scheduler: DDIMScheduler, z0: Tensor, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """z_t, t, eps at random times."""
    t = torch.randint(scheduler.config.num_train_timesteps, (len(z0),), generator=rng)
    eps = torch.randn(z0.shape, generator=rng)
    return scheduler.add_noise(z0, eps, t).contiguous(memory_format=torch.channels_last), t, eps


def weighted_mse(scheduler: DDIMScheduler, prediction: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """mean of min(SNR_t, 5) / SNR_t * mse, a scalar in fp32."""
    kept = scheduler.alphas_cumprod[t]
    snr = kept / (1 - kept)
    errors = F.mse_loss(prediction.float(), eps, reduction="none").mean(dim=(1, 2, 3))
    return (errors * snr.clamp_max(SNR_LIMIT) / snr).mean()


@torch.no_grad()
def sample(
    unet, text_encoder, scheduler, tokens: Tensor, empty: Tensor, seed: int, steps: int = 20, guidance=GUIDANCE
):
    """Captions' tokens (B,L) -> scaled latents (B,4,16,16), by DDIM; guidance 1 costs half.

    DDIM's step reads noise or velocity as the scheduler says; the scheduler's spacing says where it begins, which for
    a schedule of zero terminal SNR must be T-1.
    """
    scheduler = DDIMScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    side = unet.config.sample_size
    noise = torch.randn(len(tokens), 4, side, side, generator=Generator().manual_seed(seed))
    drawn = []
    for z, ids in zip(noise.split(32), tokens.split(32)):
        text = text_encoder(ids)[0]
        if guidance != 1:
            text = torch.cat([text_encoder(empty.expand(len(ids), -1))[0], text])
        for t in scheduler.timesteps:
            doubled = z if guidance == 1 else z.repeat(2, 1, 1, 1)
            with torch.autocast("cpu", torch.bfloat16):
                predicted = unet(doubled.contiguous(memory_format=torch.channels_last), t, text).sample.float()
            if guidance != 1:
                uncond, cond = predicted.chunk(2)
                predicted = uncond + guidance * (cond - uncond)
            z = scheduler.step(predicted, t, z).prev_sample
        drawn.append(z)
    return torch.cat(drawn)


@torch.no_grad()
def decode(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Latents (B,4,h,w), not scaled -> pictures (B,3,S,S) in [-1,1]."""
    with torch.autocast("cpu", torch.bfloat16):
        drawn = [vae.decode(part.contiguous(memory_format=torch.channels_last)).sample for part in z.split(64)]
    return torch.cat(drawn).float().clamp(-1, 1)
