"""A tiny autoencoder in place of a base's VAE, for previews: diffusers' AutoencoderTiny, such as TAESD.

It works on scaled latents. Its parts are put into the VAE, which scales for them: so that encoder and decoder keep
their interface, and AugUNet's condition, which is not scaled, stays as it is.
"""

import logging

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from utils.base_model.names import is_folder
from utils.errors import InputError
from utils.latents import reduction
from utils.system.network import require

CHECKED = 8  # latents per side of the image on which it is compared with the VAE
LEAST_PSNR = 15.0  # dB, for values in [-1,1]; one grey instead of that image is at 10, another base's latents below


class TinyEncoder(nn.Module):
    """Images (B,3,H,W) in [-1,1] -> mean, not scaled, and log-variance of a posterior as narrow as it may be,
    (B,2C,h,w).
    """

    def __init__(self, encoder: nn.Module, scale: float, shift: float):
        super().__init__()
        self.encoder, self.scale, self.shift = encoder, scale, shift

    def forward(self, rgb: Tensor) -> Tensor:
        mean = self.encoder(rgb) / self.scale + self.shift
        return torch.cat([mean, torch.full_like(mean, -30)], dim=1)


class TinyDecoder(nn.Module):
    """Latents (B,C,h,w), not scaled -> images (B,3,H,W) about [-1,1]."""

    def __init__(self, decoder: nn.Module, scale: float, shift: float):
        super().__init__()
        self.decoder, self.scale, self.shift = decoder, scale, shift

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder((z - self.shift) * self.scale)


def use_tiny_vae(vae: AutoencoderKL, name: str, encodes: bool = False) -> None:
    """Replace the decoder of `vae`, in place, by that of the AutoencoderTiny `name`, a folder or hub name; with
    `encodes` its encoder, too. On the CPU, in fp32.

    Raises InputError where it cannot be loaded, or was made for another base: its latents have another number of
    channels or another size, or it draws a test image unlike the VAE. Whether its maps are good enough cannot be
    checked.
    """
    if type(vae) is not AutoencoderKL:
        raise InputError(f"--vae={name}: this base has another kind of VAE ({type(vae).__name__}); leave it out")
    tiny = load_tiny(name)
    sizes = {
        "channels": (tiny.config.latent_channels, vae.config.latent_channels),
        "pixels per latent": (reduction(tiny), reduction(vae)),
    }
    for what, (found, expected) in sizes.items():
        if found != expected:
            raise InputError(f"--vae={name}: made for another base ({found} {what}, this base has {expected}); "
                "pass the tiny autoencoder of this base")  # fmt: skip
    image = smooth_image(CHECKED * reduction(vae))
    with torch.no_grad():
        latents = vae.encode(image).latent_dist.mode()
        drawn = vae.decode(latents).sample
        own = vae.decoder, vae.post_quant_conv
        put_in_decoder(vae, tiny)
        _check_alike(name, "decoder", drawn, vae.decode(latents).sample)
        if encodes:
            put_in_encoder(vae, tiny)
            latents, tinys = vae.encode(image).latent_dist.mode(), (vae.decoder, vae.post_quant_conv)
            vae.decoder, vae.post_quant_conv = own
            _check_alike(name, "encoder", drawn, vae.decode(latents).sample)
            vae.decoder, vae.post_quant_conv = tinys


def put_in_decoder(vae: AutoencoderKL, tiny: AutoencoderTiny) -> None:
    """Replace the decoder of `vae`, without a check."""
    vae.decoder, vae.post_quant_conv = TinyDecoder(tiny.decoder, *_scale(vae)), nn.Identity()


def put_in_encoder(vae: AutoencoderKL, tiny: AutoencoderTiny) -> None:
    """Replace the encoder of `vae`, without a check."""
    vae.encoder, vae.quant_conv = TinyEncoder(tiny.encoder, *_scale(vae)), nn.Identity()


def load_tiny(name: str) -> AutoencoderTiny:
    """An AutoencoderTiny from a folder or the hub, frozen, in fp32 on the CPU. InputError where that is not one."""
    where = {} if is_folder(name) else {"local_files_only": require(name)}
    logger = logging.getLogger("diffusers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of block_out_channels, which diffusers itself writes into the file
    try:
        kind = AutoencoderTiny.load_config(name, **where).get("_class_name")
        if kind != "AutoencoderTiny":  # diffusers would take random weights for those that it does not find
            raise ValueError(f"it is an {kind}")
        tiny, info = AutoencoderTiny.from_pretrained(name, output_loading_info=True, **where)
        if lost := sorted(info["missing_keys"]):
            raise ValueError(f"{len(lost)} of its weights are not in the file, e.g. {lost[0]}")
    except Exception as error:  # OSError, HTTP errors, SafetensorError, ...: all mean that it is not readable
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--vae={name}: not a readable AutoencoderTiny ({reason}); pass its diffusers folder or hub "
            "name, such as madebyollin/taesd for Stable Diffusion 1 and 2") from None  # fmt: skip
    finally:
        logger.setLevel(level)
    return tiny.requires_grad_(False).eval().float()


def smooth_image(side: int) -> Tensor:
    """A colour gradient, (1,3,side,side) in [-1,1]: red to the right, green down, blue to the left and up."""
    ramp = torch.linspace(-1, 1, side)
    red, green = ramp.expand(side, side), ramp[:, None].expand(side, side)
    return torch.stack([red, green, -(red + green) / 2])[None]


def _scale(vae: AutoencoderKL) -> tuple[float, float]:
    return vae.config.scaling_factor, vae.config.shift_factor or 0.0


def _check_alike(name: str, part: str, drawn: Tensor, tinys: Tensor) -> None:
    """InputError where the test image differs from the VAE's own by more than a preview may."""
    psnr = 10 * torch.log10(4 / (tinys.clamp(-1, 1) - drawn.clamp(-1, 1)).square().mean()).item()
    if not psnr >= LEAST_PSNR:
        raise InputError(
            f"--vae={name}: made for another base (its {part} is at {psnr:.1f} dB from this base's VAE on a colour "
            f"gradient, at least {LEAST_PSNR:g} expected); pass the tiny autoencoder of this base"
        )
