"""Stable Diffusion 1.x and 2.x: its frozen parts, from a folder, a hub name or one file, and the one change that
AugUNet makes to them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from utils.base_model.names import is_folder, resolve
from utils.base_model.single_file import SUFFIXES, is_single_file
from utils.base_model.single_file_parts import load_conv_in, load_parts
from utils.errors import InputError, note
from utils.lora.files import CONV_IN
from utils.system.atomic import check_sums
from utils.system.network import download, require

DONOR_CONFIGS = ("config.json", "unet/config.json")  # next to CONV_IN; of a donor with a whole UNet

Component = TypeVar(
    "Component", bound=CLIPTokenizer | CLIPTextModel | AutoencoderKL | UNet2DConditionModel | DDIMScheduler
)

COMPONENTS = {  # subfolder -> a file that it must hold
    "tokenizer": "vocab.json",
    "text_encoder": "config.json",
    "vae": "config.json",
    "unet": "config.json",
    "scheduler": "scheduler_config.json",
}
HALF = "fp16"  # the variant that many repositories hold alone: model.fp16.safetensors


def load_component(kind: type[Component], name: str, component: str, revision: str | None = None) -> Component:
    """One part of a model folder or hub repository, e.g. (UNet2DConditionModel, name, "unet").

    Where there are only half-precision files (*.fp16.safetensors), those are read, with a note.

    Raises:
        InputError: the name is neither a model folder nor a hub name, or the part is missing or unreadable.
    """
    folder = Path(name)
    here = is_folder(name)
    if here:
        _check_folder(folder, component)
        check_sums(folder / component)
    where: dict[str, str | bool | None] = {"subfolder": component, "revision": revision}
    where |= {} if here else {"local_files_only": require(name, revision)}
    try:
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(name, **where)
        part, info = _from_pretrained(kind, name, component, where, here)
        if lost := sorted(info["missing_keys"]):  # the libraries would continue with random numbers in their place
            raise ValueError(f"{len(lost)} of its weights are not in the file, e.g. {lost[0]}")
        return part
    except Exception as error:  # OSError, HTTP errors, SafetensorError, ...: all mean that the part is not readable
        place = folder / component if here else f"{component} of {name} on the hub"
        hint = "" if here else "; check the name and the network, or pass a local folder"
        raise InputError(f"{place}: cannot be loaded: {' '.join(str(error).split())[:300]}{hint}") from error


def _from_pretrained(kind: Any, name: str, component: str, where: dict, here: bool) -> tuple:
    """The part and what was missing: in full precision, or in half where that is all there is."""
    half = where | {"variant": HALF}
    if here and not _has_weights(Path(name) / component, half=False) and _has_weights(Path(name) / component, True):
        note(f"{Path(name) / component}: holds only {HALF} weights; they are read, and computed with in --dtype")
        return kind.from_pretrained(name, output_loading_info=True, **half)
    try:
        return kind.from_pretrained(name, output_loading_info=True, **where)
    except OSError as error:
        if here or "file named" not in str(error):  # both libraries word it like this when a repository lacks a file
            raise
        try:
            found = kind.from_pretrained(name, output_loading_info=True, **half)
        except OSError:
            raise error from None
    note(f"{component} of {name}: only {HALF} weights are there; they are read, and computed with in --dtype")
    return found


def _has_weights(folder: Path, half: bool) -> bool:
    """True if the folder of a component has weights in full precision or, with `half`, in half precision."""
    files = [path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    return any((f".{HALF}" in name) == half for name in files)


def _check_folder(folder: Path, component: str) -> None:
    """InputError where `folder` is not a model or lacks this component; the message names what is there instead."""
    expected = folder / component / COMPONENTS[component]
    try:
        if expected.is_file() or expected.with_name("tokenizer.json").is_file():
            return
        parts = [part for part in COMPONENTS if (folder / part).is_dir()]
        files = [path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size, default=None)
    except OSError as error:
        raise InputError(f"{expected}: cannot be read ({error.strerror})") from None
    if parts:
        raise InputError(
            f"{folder / component}: {COMPONENTS[component]} expected here; is {folder} a diffusers folder?"
        )
    whole = (
        f"pass the checkpoint itself, {largest}" if largest else "pass one that holds unet/, vae/, text_encoder/, ..."
    )
    raise InputError(f"{folder}: a folder, but not a model in diffusers' format; {whole}")


KINDS = {
    "tokenizer": CLIPTokenizer,
    "text_encoder": CLIPTextModel,
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "scheduler": DDIMScheduler,
}


@dataclass
class Base:
    """All parts of a Stable Diffusion, frozen and in eval mode.

    name: hub name, or absolute path of the folder or file; revision: of the hub model. scheduler: has the
    training noise schedule.
    """

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

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Base":
        """Move and cast UNet and VAE, in place. The text encoder stays on the CPU: it reads only one prompt."""
        for part in (self.vae, self.unet):
            # In one call, so that a GPU never holds a part in fp32 and in half precision. torch's own method, because
            # diffusers' does the same after a warning about layers to keep in fp32, even where there are none.
            nn.Module.to(part, device, dtype)
        return self

    def timestep(self, number: int | None = None) -> int:
        """A single step's timestep: `number`, or the schedule's last, T-1. InputError if the schedule lacks it."""
        last = self.scheduler.config.num_train_timesteps - 1
        if number is not None and not 0 <= number <= last:
            raise InputError(f"--timestep={number}: the schedule of {self.name} has 0 to {last}")
        return last if number is None else number

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


def load_base(name: str, revision: str | None = None) -> Base:
    """Load a Stable Diffusion from a local folder, a .safetensors or .ckpt file, or the hub, in fp32 on the CPU.

    Raises:
        InputError: a component is missing or unreadable; the message names folder or file and what was expected in it.
    """
    transformers.utils.logging.disable_progress_bar()  # "Loading weights", once per text encoder
    name = resolve(name)
    if is_single_file(name):
        parts = load_parts(Path(name))
    else:
        parts = {component: load_component(kind, name, component, revision) for component, kind in KINDS.items()}
    if parts["unet"].config.in_channels != parts["unet"].config.out_channels:
        raise InputError(
            f"{name}: its UNet reads {parts['unet'].config.in_channels} channels; a text-to-image base reads 4"
        )
    for component in ("text_encoder", "vae", "unet"):
        parts[component].requires_grad_(False).eval().float()  # transformers keeps the file's precision
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
