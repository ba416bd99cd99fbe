"""Shared by the families of base models: loading their parts, and `Family`, the interface of a base model.

A family is a subclass in a module of its own. It sets the constants below and writes what differs: `scaled`, `decode`,
`predict` and `states`. See docs/extending.md.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.base_model.names import is_folder, model_index
from utils.base_model.quantised import load_quantised
from utils.base_model.single_file import SUFFIXES
from utils.errors import InputError, note
from utils.latents import moments, posterior, reduction
from utils.system.atomic import check_sums, replace
from utils.system.network import require

EXPECTED = {"tokenizer": "vocab.json", "scheduler": "scheduler_config.json"}  # in a part's folder; else config.json
COMPONENTS = ("tokenizer", "text_encoder", "vae", "unet", "transformer", "scheduler")
HALF = "fp16"  # the variant that many repositories hold alone: model.fp16.safetensors
LARGE = 10**9  # parameters of a text encoder that computes in bf16, because in fp32 it would not fit into memory
Component = TypeVar("Component")
States = Mapping[str, Tensor]  # of one prompt, by the names that the family gives them


class Family:
    """A frozen base model: VAE, network and the states of a prompt. Everything that differs between families is here
    or in a subclass.

    name: hub name, or absolute path of the folder; revision: of the hub model. steps: T of a diffusion model, whose
    timesteps are 0 to T-1; None: a flow model, whose times are 0 (image) to 1 (noise).
    """

    family: ClassVar[str]  # in the LoRA's header
    prefix: ClassVar[str] = "transformer"  # the network's subfolder, and the first word of its keys in LoRA files
    vae_kind: ClassVar[Any]
    network_kind: ClassVar[Any]
    pipeline_kind: ClassVar[Any]
    patch: ClassVar[int] = 2  # latents per side of a token
    recommended: ClassVar[float] = 0.4  # time of a flow model's single step

    name: str
    revision: str | None
    vae: Any
    steps: int | None = None

    def __init__(self, name: str, vae: Any, network: Any, revision: str | None = None):
        self.name, self.vae, self.revision = name, vae, revision
        self._network = network

    @classmethod
    def load(
        cls,
        name: str,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        precision: str | None = None,
    ) -> Self:
        """From a local folder or the hub, on the CPU: the network in `dtype`, which it has from its first byte in
        memory, or quantised, the VAE in fp32. InputError: a part is missing or unreadable.
        """
        vae = load_component(cls.vae_kind, name, "vae", revision)
        network = load_component(cls.network_kind, name, cls.prefix, revision, dtype, precision)
        vae.requires_grad_(False).eval().float()
        nn.Module.to(network.requires_grad_(False).eval(), dtype)
        return cls(str(Path(name).resolve()) if Path(name).exists() else name, vae, network, revision)

    @property
    def network(self) -> Any:
        """The network that the LoRA sits on."""
        return self._network

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Move and cast network and VAE, in place. Text encoders stay on the CPU: they read only one prompt."""
        for part in (self.vae, self.network):
            # In one call, so that a GPU never holds a part in fp32 and in half precision. torch's own method, because
            # diffusers' does the same after a warning about layers to keep in fp32, even where there are none.
            nn.Module.to(part, device, dtype)
        return self

    # Sizes

    @property
    def multiple(self) -> int:
        """Pixels that an image's sides are rounded to a multiple of."""
        return reduction(self.vae) * self.patch

    def check_side(self, side: int, flag: str = "--resolution") -> None:
        """InputError where the network cannot read an image of this side; UNets take every multiple of 8."""
        if self.prefix != "unet" and side % self.multiple:
            raise InputError(f"{flag}={side}: {self.name} needs a multiple of {self.multiple}; from 256 on, 64 is one")

    # Latents

    def latent_mode(self, image: Tensor) -> Tensor:
        """E(image).mode(), the VAE's own latents (B,C,h,w), not scaled, of image (B,3,H,W) in [-1,1]."""
        return posterior(self.vae, image)[0]

    def moments(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """rgb_mode, target_mean and target_std, (B,C,h,w) each, not scaled: what the latent cache keeps."""
        return moments(self.vae, batch)

    def scaled(self, latents: Tensor) -> Tensor:
        """The VAE's own latents (B,C,h,w) -> z, which the network reads and predicts."""
        shift = self.vae.config.shift_factor
        return self.vae.config.scaling_factor * (latents - shift if shift else latents)

    def decode(self, z: Tensor) -> Tensor:
        """z -> image (B,3,H,W) about [-1,1], not clamped."""
        shift, latents = self.vae.config.shift_factor, z / self.vae.config.scaling_factor
        return self.vae.decode((latents + shift if shift else latents).to(self.vae.dtype), return_dict=False)[0]

    # The single step

    @property
    def times(self) -> str:
        """The range of `timestep` in words."""
        return "0 to 1" if self.steps is None else f"0 to {self.steps - 1}"

    def timestep(self, number: float | None = None) -> float:
        """A single step's time: `number`; by default a diffusion model's last timestep, T-1, a flow model's
        `recommended` time. InputError if the model has no such time.
        """
        if self.steps is not None:
            if isinstance(number, float):
                raise InputError(
                    f"--timestep={number}: {self.name} is a diffusion model; pass a whole number, {self.times}"
                )
            if number is not None and not 0 <= number < self.steps:
                raise InputError(f"--timestep={number}: the schedule of {self.name} has {self.times}")
            return self.steps - 1 if number is None else number
        if number is not None and not 0 <= number <= 1:
            raise InputError(
                f"--timestep={number}: {self.name} is a flow model, whose times are 0 (image) to 1 (noise); pass one "
                f"of these, as in {self.recommended}"
            )
        return self.recommended if number is None else float(number)

    def predict(self, network: nn.Module, z: Tensor, t: float, states: States) -> Tensor:
        """The map's z from the image's, in one pass of `network` (the base's own, or what wraps it) at time t.

        The network's output itself is read as the map's latents, whatever it was trained to predict.
        """
        raise NotImplementedError

    # Prompt

    def states(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """The states of a prompt by the family's own pipeline, which has text encoders, on the CPU."""
        raise NotImplementedError

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Any:
        """The states of one prompt, on the network's device and in its dtype; for `predict` alone.

        They are kept on disk by base and prompt; only where they are not, the text encoders are loaded, and dropped.
        """
        file = self._states_file(prompt)
        states = None
        with suppress(OSError, SafetensorError):
            states = load_file(file)
        if states is None:
            states = {name: value.contiguous() for name, value in self.states(self._pipeline(), prompt).items()}
            with suppress(OSError, SafetensorError):  # a full disk: the next run encodes them again
                file.parent.mkdir(parents=True, exist_ok=True)
                replace(file, partial(save_file, states))
        return {name: value.to(self.network.device, self.network.dtype) for name, value in states.items()}

    def _pipeline(self) -> Any:
        """The family's own pipeline with its text encoders, in fp32, large ones in bf16."""
        index = model_index(self.name, self.revision)
        assert index is not None, "other bases are Stable Diffusion's"
        content = json.loads(index.read_text(encoding="utf-8"))
        parts = {part: kind for part, kind in content.items() if isinstance(kind, list)}
        where: dict[str, Any] = {part: None for part, kind in parts.items() if kind[0] is None}  # such as SD 3's T5
        where |= {"revision": self.revision, "vae": self.vae, self.prefix: self.network}
        if not is_folder(self.name):
            where |= {"local_files_only": require(self.name, self.revision)}
        elif lost := [part for part in parts if part not in where and not (index.parent / part).is_dir()]:
            raise InputError(f"{index.parent / lost[0]}: not there, but model_index.json has it; copy the whole model")
        errors = []
        for variant in (None, HALF):
            try:
                pipeline = self.pipeline_kind.from_pretrained(self.name, variant=variant, **where)
                break
            except Exception as error:  # as in `load_component`
                errors.append(error)
        else:
            reason = " ".join(str(errors[0]).split())[:300]
            raise InputError(f"{self.name}: its text encoders cannot be loaded: {reason}") from errors[0]
        for name, part in pipeline.components.items():
            if name.startswith("text_encoder") and part is not None:
                large = sum(parameter.numel() for parameter in part.parameters()) > LARGE
                part.requires_grad_(False).eval().to(torch.bfloat16 if large else torch.float32)
        return pipeline

    def _states_file(self, prompt: str) -> Path:
        """The file of a prompt's states, named for everything that they depend on."""
        index = model_index(self.name, self.revision)
        assert index is not None, "other bases are Stable Diffusion's"
        about: list[object] = [self.family, prompt, transformers.__version__, str(index.parent.resolve())]
        local = is_folder(self.name)  # a hub model's folder is named for its commit
        for path in sorted(index.parent.glob("t*/*")) if local else ():
            if path.parent.name.startswith(("text_encoder", "tokenizer")):
                status = path.stat()
                about.append([path.parent.name, path.name, status.st_size, status.st_mtime_ns])
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return cache / "intrinsic-lora" / "prompts" / f"{digest}.safetensors"


def load_component(
    kind: type[Component],
    name: str,
    component: str,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    precision: str | None = None,
) -> Component:
    """One part of a model folder or hub repository, e.g. (UNet2DConditionModel, name, "unet").

    dtype: of a network's weights, to which they are cast while they are read; None: the library's choice. precision:
    "int8" or "nf4" of its linear layers (quantised.py), which then compute in dtype.
    Where there are only half-precision files (*.fp16.safetensors), those are read, with a note.

    Raises:
        InputError: the name is neither a model folder nor a hub name, or the part is missing or unreadable.
    """
    folder = Path(name)
    here = is_folder(name)
    if here:
        _check_folder(folder, component)
        check_sums(folder / component)
    where: dict[str, Any] = {"subfolder": component, "revision": revision}
    where |= {} if here else {"local_files_only": require(name, revision)}
    where |= {} if dtype is None else {"torch_dtype": dtype}
    try:
        if precision is not None:
            files = folder / component if here else _network_files(name, component, revision)
            return load_quantised(kind, files, precision, dtype or torch.float32)
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(name, **where)  # type: ignore[attr-defined]
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


def _network_files(name: str, component: str, revision: str | None) -> Path:
    """The folder of a network of the hub, with its configuration and its .safetensors in full precision or, where
    these are not there, in half.
    """
    patterns, folder = [f"{component}/{file}" for file in ("config.json", "diffusion*.safetensors")], Path()
    for unused in (["*fp16*", "*non_ema*"], ["*non_ema*"]):
        root = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=unused, local_files_only=require(name)
        )
        folder = Path(root, component)
        if any(folder.glob("*.safetensors")):
            break
    return folder


def _has_weights(folder: Path, half: bool) -> bool:
    """True if the folder of a component has weights in full precision or, with `half`, in half precision."""
    files = [path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    return any((f".{HALF}" in name) == half for name in files)


def _check_folder(folder: Path, component: str) -> None:
    """InputError where `folder` is not a model or lacks this component; the message names what is there instead."""
    expected = folder / component / EXPECTED.get(component, "config.json")
    try:
        if expected.is_file() or expected.with_name("tokenizer.json").is_file():
            return
        parts = [part for part in COMPONENTS if (folder / part).is_dir()]
        files = [path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size, default=None)
    except OSError as error:
        raise InputError(f"{expected}: cannot be read ({error.strerror})") from None
    if parts:
        raise InputError(f"{folder / component}: {expected.name} expected here; is {folder} a diffusers folder?")
    whole = (
        f"pass the checkpoint itself, {largest}" if largest else "pass one that holds unet/, vae/, text_encoder/, ..."
    )
    raise InputError(f"{folder}: a folder, but not a model in diffusers' format; {whole}")
