"""The autoregressive generator: images as 16 x 16 tokens, and a transformer that predicts them one after the other.

The VQ model is diffusers' VQModel with the layers and weights of mini-sd's VAE. Its codebook is k-means over that
VAE's latents of images with the VAE's colour augmentation, so that it can also encode maps. It is not trained further.
The transformer learns to predict the next token, by cross-entropy, on the tokens of rendered images only.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from torch import Generator, Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from generators.transformer import ImageTransformer, VQTokens, start_of
from miniworld.pretraining.gates import Gate, channels_last, unseen_scenes
from miniworld.pretraining.generator import fingerprint
from miniworld.pretraining.stage import Stage, save_atomically
from miniworld.pretraining.vae import save_sheet, to_tensor, vae_batch
from utils.kinds.normals import angular_error

CODES = 1024
WIDTH, LAYERS, HEADS = 128, 6, 4
LIKE_THE_VAE = (
    "block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "latent_channels",
    "norm_num_groups", "mid_block_add_attention",
)  # fmt: skip
NAME = "ar"


@torch.no_grad()
def build_vq(vae: AutoencoderKL, rgb: np.ndarray, seed: int = 0) -> VQModel:
    """A VQModel with the layers of `vae`, latents scaled to unit deviation, and a codebook fitted to those."""
    side = rgb.shape[1]
    layers = {name: vae.config[name] for name in LIKE_THE_VAE}
    vq = VQModel(**layers, sample_size=side, num_vq_embeddings=CODES)
    state, scale = vae.state_dict(), vae.config.scaling_factor
    # the VAE's mean, scaled, is quant_conv[:4] of all eight outputs of conv_out: one convolution does both
    mix, shift = scale * state["quant_conv.weight"][:4, :, 0, 0], scale * state["quant_conv.bias"][:4]
    out = {name: state.pop(f"encoder.conv_out.{name}") for name in ("weight", "bias")}
    state["encoder.conv_out.weight"] = torch.einsum("oi,ihwk->ohwk", mix, out["weight"])
    state["encoder.conv_out.bias"] = mix @ out["bias"] + shift
    state |= {"quant_conv.weight": torch.eye(4)[:, :, None, None], "quant_conv.bias": torch.zeros(4)}
    state["post_quant_conv.weight"] = state["post_quant_conv.weight"] / scale
    vq.load_state_dict(state | {"quantize.embedding.weight": vq.quantize.embedding.weight})
    rng = Generator().manual_seed(seed)
    x = torch.cat([vae_batch(rgb, 64, rng, side) for _ in range(8)])
    z = torch.cat([vq.encode(part).latents for part in x.split(64)]).permute(0, 2, 3, 1).reshape(-1, 4)
    vq.quantize.embedding.weight.copy_(kmeans(z, CODES, rng))
    return vq.to(memory_format=torch.channels_last)


def kmeans(x: Tensor, count: int, rng: Generator, rounds: int = 10) -> Tensor:
    """Centres (count,D) of points x (N,D), initialised with `count` of them."""
    centres = x[torch.randperm(len(x), generator=rng)[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in x.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def build_transformer(tokens: int) -> LlamaForCausalLM:
    """A small decoder-only transformer over the codebook and one start token, with rotary positions."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=CODES + 1,
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=2 * (tokens + 1),
            bos_token_id=CODES,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    )


@torch.no_grad()
def cached_tokens(vq: VQModel, rgb: np.ndarray, folder: Path) -> Tensor:
    """Tokens (N,L) int16 of all images, kept in `folder` for the next run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tokens-{fingerprint(vq):08x}-{len(rgb)}.pt"
    if not path.exists():
        coder, bar = VQTokens(vq), tqdm(torch.arange(len(rgb)).split(64), desc="images to tokens", mininterval=2)
        save_atomically(torch.cat([coder.encode(to_tensor(rgb[part.numpy()]) * 2 - 1).short() for part in bar]), path)
    return torch.load(path, weights_only=True)


def transformer_stage(
    whole: LlamaForCausalLM, vq: VQModel, tokens: Tensor, folder: Path, batch: int, **settings
) -> Stage:
    """Train `whole` to continue images' tokens (N,L)."""

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        chosen = tokens[torch.randint(len(tokens), (batch,), generator=rng)].long()
        shifted = F.pad(chosen[:, :-1], (1, 0), value=CODES)
        return {"loss": F.cross_entropy(whole(shifted).logits.transpose(1, 2), chosen)}

    def sheet(modules: dict, path: Path) -> None:
        sampled = sample(modules["transformer"], vq, 40, seed=0)
        save_sheet(list(sampled.split(10)), path)

    return Stage(NAME, folder, {"transformer": whole}, loss, sheet, **settings)


@torch.no_grad()
def sample(whole: LlamaForCausalLM, vq: VQModel, count: int, seed: int, temperature: float = 1.0) -> Tensor:
    """`count` images (count,3,S,S) in [-1,1], sampled token by token."""
    network = ImageTransformer(whole.model, whole.model.embed_tokens, whole.lm_head, start_of(whole), CODES)
    length = (vq.config.sample_size // 2 ** (len(vq.config.block_out_channels) - 1)) ** 2
    noise = [Generator().manual_seed(seed * count + number) for number in range(count)]
    return VQTokens(vq).decode(network.sample(length, noise, temperature)).clamp(-1, 1)


def vq_gates(vq: VQModel, seed: int) -> list[Gate]:
    """How well unseen images and normals survive tokenisation."""
    maps, seen, _ = unseen_scenes(seed, 2 * 64)
    coder = VQTokens(vq)
    rgb, normal = (coder.decode(coder.encode(maps[name])) for name in ("rgb", "normal"))
    psnr = (10 * torch.log10(4 / (rgb.clamp(-1, 1) - maps["rgb"]).square().mean((1, 2, 3)))).mean().item()
    angle = angular_error(channels_last(normal)[seen], channels_last(maps["normal"])[seen]).mean()
    return [
        Gate("RGB through the tokens, mean PSNR", f"{psnr:.2f} dB"),
        Gate("normal maps through the tokens, mean error", f"{angle:.2f} degrees"),
    ]
