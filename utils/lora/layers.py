"""LoRA layers on a UNet's attention: add, save, load, fuse."""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.errors import InputError
from utils.lora.files import BIN, CONV_IN, SAFETENSORS, read_lora
from utils.lora.keys import make_key, parse_layers
from utils.system.atomic import replace

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
ADAPTER = "default"


def add_lora(unet: nn.Module, rank: int, seed: int = 0) -> list[nn.Parameter]:
    """Freeze `unet` and put a trainable fp32 LoRA on q, k, v and out of every attention layer, in place.

    W x becomes W x + up(down(x)), scale 1 (alpha = rank), no bias, no dropout; down ~ N(0, std 1/rank) drawn from
    `seed`, up = 0, so that the UNet's output does not change yet. Returns the LoRA's parameters.
    """
    unet.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config, adapter_name=ADAPTER)
    for parameter in lora_parameters(unet):
        parameter.data = parameter.data.float()
    return lora_parameters(unet)


def lora_parameters(unet: nn.Module) -> list[nn.Parameter]:
    """The LoRA's parameters in a fixed order: the only ones that train."""
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def lora_state(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA's weights as fp32 CPU tensors under format B keys (`diffusers`)."""
    state = {}
    for name, module in _lora_modules(unet).items():
        for part, linears in (("down", module.lora_A), ("up", module.lora_B)):
            weight = linears[ADAPTER].weight.detach().float().cpu().contiguous()
            state[make_key(name, part, "diffusers")] = weight
    return state


def save_lora(unet: nn.Module, folder: str | Path, metadata: Mapping[str, object], with_bin: bool = False) -> Path:
    """Write `pytorch_lora_weights.safetensors` (format B, metadata as strings in its header) into `folder`.

    `with_bin` also writes the .bin that the paper's line `unet.load_attn_procs(torch.load(...))` reads. A widened
    conv_in (AugUNet) goes into `conv_in.safetensors`, so that the folder and the base model are all that it takes.
    Returns the path of the safetensors file. Raises InputError where the disk refuses it.
    """
    folder, state = Path(folder), lora_state(unet)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_widened(unet):
            conv_in = {k: v.float().contiguous() for k, v in unet.conv_in.state_dict().items()}
            replace(folder / CONV_IN, lambda part: save_file(conv_in, part))
        if with_bin:
            replace(folder / BIN, lambda part: torch.save(state, part))
        header = {key: str(value) for key, value in metadata.items()}
        replace(folder / SAFETENSORS, lambda part: save_file(state, part, header))  # last: what a reader looks for
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder}: cannot write the LoRA ({error})") from None
    return folder / SAFETENSORS


def load_attn_procs(unet: nn.Module, source: str | Path | Mapping[str, Tensor]) -> dict[str, str]:
    """Load a LoRA in any key format into `unet`, adding the layers if it has none yet.

    Args:
        source: a state dict, a .safetensors or .bin file, or a folder with one of them.

    A `conv_in.safetensors` beside the file (AugUNet) is put into the UNet too. Returns the file's metadata (empty for
    .bin files and state dicts).

    Raises:
        InputError: not a LoRA, another architecture's, another rank than `unet` already has, or keys or attention
            layers left without a partner. Nothing is loaded then.
    """
    state, metadata, name = (source, {}, "state dict") if isinstance(source, Mapping) else read_lora(source)
    layers = {module: layer.folded() for module, layer in parse_layers(state, name).items()}
    linears = {n: m for n, m in unet.named_modules() if isinstance(m, nn.Linear) and n.endswith(TARGETS)}
    conv_in = None if isinstance(source, Mapping) else _read_conv_in(unet, Path(name).parent / CONV_IN)
    present = _lora_modules(unet)
    targets = {n: m.base_layer for n, m in present.items()} or linears
    made_for = f" (it was made for {metadata['base_model']})" if "base_model" in metadata else ""
    _match(layers, targets, name, made_for)
    ranks = {down.shape[0] for down, _ in layers.values()}
    if len(ranks) > 1:
        raise InputError(f"{name}: its layers have several ranks {sorted(ranks)}; one is expected")
    rank = ranks.pop()
    _check_numbers(layers, rank, name)
    if not present:
        add_lora(unet, rank)
        present = _lora_modules(unet)
    for module_name, (down, up) in layers.items():
        module = present[module_name]
        if module.r[ADAPTER] != rank:
            raise InputError(f"{name}: rank {rank}, but the UNet's LoRA has rank {module.r[ADAPTER]}")
        for linear, weight in ((module.lora_A[ADAPTER], down), (module.lora_B[ADAPTER], up)):
            linear.weight.data.copy_(weight)
    if conv_in is not None:
        unet.conv_in = conv_in
        unet.register_to_config(in_channels=conv_in.in_channels)
    return metadata


def fuse_lora(unet: nn.Module) -> None:
    """Add the LoRA to the frozen weights, W <- W + up down, and remove its layers, in place: the same function for
    less work. To be called while the weights are fp32: in half precision the sum would lose bits of the LoRA."""
    unet.fuse_lora()
    unet.unload_lora()


def _match(layers: dict, targets: dict[str, nn.Linear], name: str, made_for: str) -> None:
    """Every LoRA layer finds a module of its shape, and every attention module finds a LoRA; else say which do not."""
    unknown = sorted(set(layers) - set(targets))
    bare = sorted(set(targets) - set(layers))
    for left, what in ((unknown, "of its layers are not in this UNet"), (bare, "of the UNet's layers are not in it")):
        if left:
            raise InputError(f"{name}{made_for}: {len(left)} {what}, e.g. {', '.join(left[:3])}")
    for module, (down, up) in layers.items():
        want = (targets[module].in_features, targets[module].out_features)
        if (down.shape[1], up.shape[0]) != want:
            raise InputError(
                f"{name}{made_for}: {module} maps {down.shape[1]} to {up.shape[0]} features, the UNet's {want[0]} to "
                f"{want[1]}: it belongs to another base model"
            )


def _check_numbers(layers: dict[str, tuple[Tensor, Tensor]], rank: int, name: str) -> None:
    if not rank:
        raise InputError(f"{name}: rank 0: there is nothing in its layers; take another file")
    for module, weights in layers.items():
        for weight in weights:
            if not weight.is_floating_point():
                raise InputError(f"{name}: {module} holds {weight.dtype}, not floats: it is no LoRA that was trained")
            if not torch.isfinite(weight).all():
                raise InputError(f"{name}: {module} holds NaN or infinity; take an earlier checkpoint")


def _lora_modules(unet: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module for name, module in unet.named_modules() if hasattr(module, "lora_A") and name.endswith(TARGETS)
    }


def _is_widened(unet: nn.Module) -> bool:
    return unet.conv_in.in_channels != unet.config.out_channels


def _read_conv_in(unet: nn.Module, path: Path) -> nn.Conv2d | None:
    if not path.is_file():
        return None
    old = unet.conv_in
    try:
        state = load_file(path)
        new = nn.Conv2d(state["weight"].shape[1], old.out_channels, old.kernel_size, old.stride, old.padding)
        new.load_state_dict(state)
    except Exception as error:
        raise InputError(f"{path}: does not fit this UNet's conv_in ({' '.join(str(error).split())[:200]})") from None
    return new.to(old.weight).requires_grad_(False)
