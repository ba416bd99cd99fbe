"""Stable Diffusion 1.x and 2.x: its frozen parts, from a folder, a hub name or one file, and the one change that
AugUNet makes to them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from utils.base_model.names import FAMILIES, family_of, is_folder, resolve
from utils.base_model.parts import Family, load_component
from utils.base_model.single_file import is_single_file
from utils.base_model.single_file_parts import load_conv_in, load_parts
from utils.errors import InputError
from utils.latents import reduction
from utils.lora.files import CONV_IN
from utils.system.atomic import check_sums
from utils.system.network import download

DONOR_CONFIGS = ("config.json", "unet/config.json")  # next to CONV_IN; of a donor with a whole UNet

KINDS = {
    "tokenizer": CLIPTokenizer,
    "text_encoder": CLIPTextModel,
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "scheduler": DDIMScheduler,
}


@dataclass
class Base(Family):
    """All parts of a Stable Diffusion, frozen and in eval mode.

    name: hub name, or absolute path of the folder or file; revision: of the hub model. scheduler: has the
    training noise schedule.
    """

    family: ClassVar[str] = "sd"
    prefix: ClassVar[str] = "unet"

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    revision: str | None = None

    @property
    def network(self) -> UNet2DConditionModel:
        """The network that the LoRA sits on."""
        return self.unet

    @property
    def steps(self) -> int:  # type: ignore[override]
        """T of the schedule."""
        return self.scheduler.config.num_train_timesteps

    @property
    def multiple(self) -> int:
        """Pixels whose multiples all levels of the UNet halve: 64."""
        return reduction(self.vae) * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def predict(self, network: nn.Module, z: Tensor, t: float, states: Any) -> Tensor:
        """unet(z, t, c), z (B,4,h,w), states: c (1,77,D)."""
        steps = torch.full((len(z),), t, device=z.device)
        return network(z, steps, states.expand(len(z), -1, -1)).sample

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Tensor:
        """Text -> CLIP states (1,77,D), padded to the tokenizer's length, on the UNet's device and in its dtype."""
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids)[0].to(self.unet.device, self.unet.dtype)


def load_base(
    name: str, revision: str | None = None, dtype: torch.dtype = torch.float32, precision: str | None = None
) -> Base:
    """Load a Stable Diffusion 1.x or 2.x from a local folder, a .safetensors or .ckpt file, or the hub, on the CPU:
    the UNet in `dtype` or quantised (see `load_component`), the other parts in fp32. Other families are loaded by
    `open_base` (families.py).

    Raises:
        InputError: a component is missing or unreadable; the message names folder or file and what was expected in it.
            Or the base is of another family.
    """
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", once per text encoder
    name = resolve(name)
    if (family := family_of(name, revision)) != "sd":
        raise InputError(
            f"{name}: is {FAMILIES[family]}; a 4-channel UNet of Stable Diffusion 1.x or 2.x is needed here, because "
            "InstructPix2Pix's conv_in fits no other; the sd_single_*.py scripts train a LoRA on this model"
        )
    if is_single_file(name):
        if precision is not None:
            raise InputError(f"--base_precision={precision}: {name} is read whole; pass a model folder or hub name")
        parts = load_parts(Path(name), dtype)
    else:
        kinds = [(component, kind) for component, kind in KINDS.items() if component != "unet"]
        parts = {component: load_component(kind, name, component, revision) for component, kind in kinds}
        parts["unet"] = load_component(UNet2DConditionModel, name, "unet", revision, dtype, precision)
    if parts["unet"].config.in_channels != parts["unet"].config.out_channels:
        raise InputError(
            f"{name}: its UNet reads {parts['unet'].config.in_channels} channels; a text-to-image base reads 4"
        )
    for component, kept in (("text_encoder", torch.float32), ("vae", torch.float32), ("unet", dtype)):
        nn.Module.to(parts[component].requires_grad_(False).eval(), kept)  # transformers keeps the file's precision
    return Base(str(Path(name).resolve()) if Path(name).exists() else name, **parts, revision=revision)


def load_donor(name: str) -> nn.Conv2d:
    """InstructPix2Pix's conv_in, from a local folder, a .safetensors or .ckpt file, or the hub.

    A folder or repository with CONV_IN, and the UNet's config.json next to it, needs no other weights.

    Raises:
        InputError: there is no such donor, or its conv_in is missing, unreadable or not the one in its config.
    """
    if is_single_file(name):
        return load_conv_in(Path(name))
    name = resolve(name)
    folder = Path(name) if is_folder(name) else download(name, (CONV_IN, *DONOR_CONFIGS))
    if not (folder / CONV_IN).is_file():
        return load_component(UNet2DConditionModel, name, "unet").conv_in
    check_sums(folder)
    try:
        config = json.loads((folder / DONOR_CONFIGS[0]).read_text())
        conv = nn.Conv2d(config["in_channels"], config["block_out_channels"][0], config["conv_in_kernel"], padding=1)
        conv.load_state_dict(load_file(folder / CONV_IN))
    except Exception as error:  # a damaged file, another one's config, ...: the donor cannot be used
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--augment_from: {folder / CONV_IN} and {DONOR_CONFIGS[0]} next to it do not fit "
            f"({type(error).__name__}: {reason}); copy both from one InstructPix2Pix"
        ) from None
    return conv


def widen_conv_in(unet: UNet2DConditionModel, donor: nn.Conv2d) -> None:
    """Give a 4-channel UNet the 8-channel conv_in of InstructPix2Pix (arXiv 2211.09800, section 3.2), in place.

    Channels 0-3 and the bias stay the UNet's own and read the noisy latents; channels 4-7 are `donor`'s and read the
    image's latents. Frozen like the rest of the UNet.

    Raises:
        InputError: `donor` is not an 8-channel conv of the same width.
    """
    old = unet.conv_in
    expected = (old.out_channels, 2 * old.in_channels, *old.kernel_size)
    if tuple(donor.weight.shape) != expected:
        raise InputError(
            f"--augment_from: its UNet's conv_in has weights {tuple(donor.weight.shape)}, expected {expected}; pass "
            "an InstructPix2Pix of this base's architecture (for mini-sd and mini-sd-2: --augment_from "
            "miniworld/mini-ip2p)"
        )
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    weight = torch.cat([old.weight, donor.weight[:, old.in_channels :].to(old.weight)], dim=1)
    new.load_state_dict({"weight": weight, "bias": old.bias})
    unet.conv_in = new.to(old.weight).requires_grad_(False)
    unet.register_to_config(in_channels=new.in_channels)
