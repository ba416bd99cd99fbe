"""LoRA layers on a UNet: add, save, load, fuse."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import InputError, note, warn
from utils.lora.files import BIN, CONV_IN, SAFETENSORS, LoraFile, brings_conv_in, read_lora
from utils.lora.keys import Layer, key_format, make_key, parse_layers, split_key, strip_wrappers
from utils.lora.scale import WRAPPERS, rank_record
from utils.lora.targets import ALL, ATTENTION, KINDS, kind_of, kinds_of, module_pattern, parse_targets, place_of
from utils.system.atomic import check_sums, replace

ADAPTER = "default"
METADATA_TARGETS = "lora_targets"  # the header's key for the kinds of layers that the file covers


class LoraLinear(nn.Linear):
    """A linear layer of a LoRA: fp32 weights that compute in their input's dtype, whatever it is. No bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class LoraConv2d(nn.Conv2d):
    """The same of a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), None)


def add_lora(
    unet: nn.Module,
    rank: int,
    seed: int = 0,
    targets: Sequence[str] = ATTENTION,
    ranks: Mapping[str, int] | None = None,
) -> list[nn.Parameter]:
    """Freeze `unet` and put a trainable fp32 LoRA on all layers of the kinds `targets` (see targets.py), in place.

    W x becomes W x + up(down(x)), scale 1 (alpha = rank), no bias, no dropout; down ~ N(0, std 1/rank) drawn from
    `seed`, up = 0, so that the UNet's output does not change yet. A convolution's down has its kernel, its up is 1x1.
    Both compute in x's dtype: peft's own would cast x to fp32, which costs a kernel and a saved copy per layer.
    ranks: of the layers whose rank is another.
    Returns the LoRA's parameters. Raises InputError for an unknown kind, or one that this UNet lacks.
    """
    targets = parse_targets(",".join(targets), known=KINDS)
    found = layers_of(unet, KINDS)
    if targets == ALL and any(place_of(name)[0] == "transformer" for name in found):
        targets = kinds_of(found)
    for kind in targets:
        if not layers_of(unet, (kind,)):
            raise InputError(f"--lora_targets: this UNet has no {kind} layers; leave {kind} out")
    unet.requires_grad_(False)
    others = {f"^{re.escape(name)}": own for name, own in (ranks or {}).items() if own != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        init_lora_weights="gaussian",
        target_modules=module_pattern(targets),
        rank_pattern=others,
        alpha_pattern=dict(others),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(unet, "fuse_lora"):  # diffusers' own, so that its pipelines know of the adapter
            unet.add_adapter(config, adapter_name=ADAPTER)
        else:
            inject_adapter_in_model(config, unet, ADAPTER)
    for module in _lora_modules(unet).values():
        module.cast_input_dtype_enabled = False
        for layer in (module.lora_A[ADAPTER], module.lora_B[ADAPTER]):
            layer.float().__class__ = LoraLinear if isinstance(layer, nn.Linear) else LoraConv2d
    return lora_parameters(unet)


def layers_of(unet: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Name -> the UNet's own layer, for all layers of these kinds, whether a LoRA sits on them or not."""
    named = {strip_wrappers(name): getattr(m, "base_layer", m) for name, m in unet.named_modules()}
    named = {name: module for name, module in named.items() if kind_of(name) in targets}
    return {name: module for name, module in named.items() if isinstance(module, (nn.Linear, nn.Conv2d))}


def lora_parameters(unet: nn.Module) -> list[nn.Parameter]:
    """The LoRA's parameters in a fixed order: the only ones that train."""
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of torch.compile, DDP, FSDP and DeepSpeed, in any order, with its own names.

    Used wherever parameters are named or saved, and wherever a network is more than called.
    """
    while True:
        # a child; but accelerate keeps the original of a network with compiled parts in __dict__
        held = {**network.__dict__, **network._modules}
        name = next((name for name in (*WRAPPERS.split("|"), "module") if name in held), None)
        if name is None:
            return network
        network = held[name]


def lora_targets(unet: nn.Module) -> tuple[str, ...]:
    """The kinds of layers that `unet`'s LoRA sits on; none where it has no LoRA."""
    return kinds_of(_lora_modules(unet))


def is_sd(unet: nn.Module) -> bool:
    """True for the UNets of Stable Diffusion 1.x and 2.x, and what else has their names; SDXL's reads more inputs."""
    return not hasattr(unet, "add_embedding") and all(place_of(name)[0] == "unet" for name in _lora_modules(unet))


def lora_state(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA's weights as fp32 CPU tensors: under format B keys (`diffusers`) where it sits on the attention of a
    Stable Diffusion 1.x or 2.x alone, for the most loaders read those; else under format D (`peft`), which has names
    for all layers.

    The keys do not depend on what wraps the network or parts of it. Raises ValueError for a name that is no layer's.
    """
    unet = unwrap(unet)
    old = lora_targets(unet) == ATTENTION and is_sd(unet)
    to, state = "diffusers" if old else "peft", {}
    for path, module in _lora_modules(unet).items():
        name = strip_wrappers(path)
        for part, layers in (("down", module.lora_A), ("up", module.lora_B)):
            key = make_key(name, part, to)
            if key in state or split_key(key) != (name, part) or any(word.startswith("_") for word in key.split(".")):
                raise ValueError(f"{path}: not a plain path of a layer, so no loader could read its key {key}")
            state[key] = layers[ADAPTER].weight.detach().float().cpu().contiguous()
    return state


def save_lora(unet: nn.Module, folder: str | Path, metadata: Mapping[str, object], with_bin: bool = False) -> Path:
    """Write `pytorch_lora_weights.safetensors` (`lora_state`, metadata as strings in its header) into `folder`.

    `with_bin` also writes the .bin that the paper's line `unet.load_attn_procs(torch.load(...))` reads. A widened
    conv_in (AugUNet) goes into `conv_in.safetensors`, so that the folder and the base model are all that it takes.
    A LoRA on more than attention says so in its header, as `lora_targets`.
    Returns the path of the safetensors file. Raises InputError where the disk refuses it.
    """
    unet = unwrap(unet)
    folder, state, targets = Path(folder), lora_state(unet), lora_targets(unet)
    header = {key: str(value) for key, value in metadata.items()}
    ranks = {name: module.r[ADAPTER] for name, module in _lora_modules(unet).items()}
    header |= rank_record(ranks, place_of(next(iter(ranks)))[0])
    if targets != ATTENTION or METADATA_TARGETS in header:
        header[METADATA_TARGETS] = ",".join(targets)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_widened(unet):
            conv_in = {k: v.float().contiguous() for k, v in unet.conv_in.state_dict().items()}
            replace(folder / CONV_IN, lambda part: save_file(conv_in, part))
        if with_bin:
            replace(folder / BIN, lambda part: torch.save(state, part))
        replace(folder / SAFETENSORS, lambda part: save_file(state, part, header))  # last: what a reader looks for
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder}: cannot write the LoRA ({error})") from None
    return folder / SAFETENSORS


def load_attn_procs(unet: nn.Module, source: str | Path | LoraFile | Mapping[str, Tensor]) -> dict[str, str]:
    """Load a LoRA in any key format, on any kinds of layers, into `unet`, adding the layers if it has none yet.

    Args:
        unet: diffusers' UNet2DConditionModel.
        source: a .safetensors or .bin file, a folder with one of them, what `read_lora` read, or a state dict.

    The file must cover every layer of the kinds that its metadata declares (`lora_targets`) or, where that is silent,
    of the kinds among its keys. A `conv_in.safetensors` next to the file (AugUNet) is put into the UNet too. Returns
    the file's metadata (empty for .bin files and state dicts).

    Raises:
        InputError: not a LoRA, another architecture's, another rank or other kinds of layers than `unet`'s LoRA has,
            or keys or layers left without a partner. Nothing is loaded then.
    """
    if isinstance(source, Mapping):
        source, conv_in = LoraFile(source, {}, "state dict"), None
    else:
        source = source if isinstance(source, LoraFile) else read_lora(source)
        own = brings_conv_in(source.path, source.metadata)
        conv_in = _read_conv_in(unet, Path(source.path).parent / CONV_IN) if own else None
    state, metadata, name = source
    layers = parse_layers(state, name, metadata)
    if any(strip_wrappers(str(key)) != str(key) for key in state):
        note(f"{name}: its keys carry the names of wrappers (torch.compile, DDP or FSDP); it is read without them")
    if all(layer.scale == 0 for layer in layers.values()):
        note(
            f"{name}: states scale 0, so loading it changes nothing (alpha 0 by {next(iter(layers.values())).stated})"
        )
    targets = _declared(layers, metadata, name)
    made_for = f" (it was made for {metadata['base_model']})" if "base_model" in metadata else ""
    if metadata.get("method") == "single-step" and _is_widened(unet):
        raise InputError(
            f"{name}: made for a UNet whose conv_in is its own, and this one's is widened; load the base again"
        )
    wanted = layers_of(unet, targets)
    spared = _spared(wanted, layers, source)
    _match(layers, {name: layer for name, layer in wanted.items() if name not in spared}, targets, name, made_for)
    _check_numbers(layers, name)
    present = _modules_for(unet, {module: layer.down.shape[0] for module, layer in layers.items()}, targets, name)
    for module in spared:
        present[module].lora_B[ADAPTER].weight.data.zero_()
    for module, layer in layers.items():
        for own, weight in zip((present[module].lora_A, present[module].lora_B), layer.folded()):
            own[ADAPTER].weight.data.copy_(weight)
    if conv_in is not None:
        unet.conv_in = conv_in
        unet.register_to_config(in_channels=conv_in.in_channels)
    return metadata


def _modules_for(unet: nn.Module, ranks: dict[str, int], targets: tuple[str, ...], name: str) -> dict[str, nn.Module]:
    """The UNet's LoRA layers, which are added if it has none. InputError where those it has differ from the file's."""
    present = _lora_modules(unet)
    if present and lora_targets(unet) != targets:
        raise InputError(
            f"{name}: a LoRA on {','.join(targets)} layers, but the UNet's is on {','.join(lora_targets(unet))}"
        )
    if not present:
        add_lora(unet, Counter(ranks.values()).most_common()[0][0], targets=targets, ranks=ranks)
        present = _lora_modules(unet)
    for module, rank in ranks.items():
        if (own_rank := present[module].r[ADAPTER]) != rank:
            raise InputError(f"{name}: {module} has rank {rank}, but the UNet's LoRA has rank {own_rank}")
    return present


def fuse_lora(unet: nn.Module) -> None:
    """Add the LoRA to the frozen weights, W <- W + up down, and remove its layers, in place: the same function for
    less work. The sum is made in fp32, layer by layer, and rounded once to the weights' own dtype.

    Raises InputError where the weights are quantised.
    """
    modules = _lora_modules(unet)
    if any(not module.base_layer.weight.is_floating_point() for module in modules.values()):
        raise InputError("a LoRA cannot be merged into quantised weights; load the base without base_precision")
    for name, module in modules.items():
        layer, dtype = module.base_layer, module.base_layer.weight.dtype
        layer.float()
        module.merge()
        layer.to(dtype)
        if not hasattr(unet, "unload_lora"):
            unet.set_submodule(name, layer)
    if hasattr(unet, "unload_lora"):  # diffusers' own, which forgets the adapter too
        unet.unload_lora()


def _declared(layers: Mapping[str, Layer], metadata: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The kinds of layers that a file must cover: what its metadata says, else what its keys touch."""
    found = kinds_of(layers)
    if METADATA_TARGETS not in metadata:
        return found
    declared = parse_targets(metadata[METADATA_TARGETS], f"{name}: {METADATA_TARGETS} in its metadata", KINDS)
    if odd := [kind for kind in found if kind not in declared]:
        raise InputError(
            f"{name}: holds {', '.join(odd)} layers, but its metadata says {METADATA_TARGETS}={','.join(declared)}"
        )
    return declared


def _spared(wanted: Mapping[str, object], layers: Mapping[str, Layer], file: LoraFile) -> list[str]:
    """Modules that may go without a LoRA: sd-scripts puts none on time_embedding, but on the other `time` layers."""
    ours = [module for module in wanted if module.startswith(("time_embedding.", "add_embedding."))]
    by_sd_scripts = METADATA_TARGETS not in file.metadata and all(
        key_format(str(key)) == "kohya" for key in file.state
    )
    return ours if by_sd_scripts and not any(module in layers for module in ours) else []


def _match(
    layers: Mapping[str, Layer],
    wanted: Mapping[str, nn.Linear | nn.Conv2d],
    targets: Sequence[str],
    name: str,
    made_for: str,
) -> None:
    """Every LoRA layer finds a module of its shape, and every module finds a LoRA layer; else say which do not."""
    unknown, bare = sorted(set(layers) - set(wanted)), sorted(set(wanted) - set(layers))
    own = f"of the UNet's {' and '.join(targets)} layers are not in it"
    for left, what in ((unknown, "of its layers are not in this UNet"), (bare, own)):
        if left:
            raise InputError(f"{name}{made_for}: {len(left)} {what}, e.g. {', '.join(left[:3])}")
    for module, layer in layers.items():
        own_layer = wanted[module]
        if isinstance(own_layer, nn.Linear):  # a quantised one has weights of another shape
            want: tuple[int, ...] = (own_layer.in_features, own_layer.out_features)
        else:
            want = (own_layer.weight.shape[1], own_layer.weight.shape[0], *own_layer.weight.shape[2:])
        if layer.shape != want:
            raise InputError(
                f"{name}{made_for}: {module} maps {_maps(layer.shape)}, the UNet's {_maps(want)}: "
                "it belongs to another base model"
            )


def _maps(shape: Sequence[int]) -> str:
    """(320, 640, 3, 3) -> "320 to 640 features (3x3)"."""
    return f"{shape[0]} to {shape[1]} features" + (f" ({'x'.join(map(str, shape[2:]))})" if shape[2:] else "")


def _check_numbers(layers: Mapping[str, Layer], name: str) -> None:
    """InputError where layers hold nothing, or anything but finite numbers."""
    for module, layer in layers.items():
        if not layer.down.shape[0]:
            raise InputError(f"{name}: {module} has rank 0: there is nothing in it; take another file")
        if not all(torch.isfinite(weight).all() for weight in layer.folded()):
            raise InputError(f"{name}: {module} holds NaN or infinity; take an earlier checkpoint")


def _lora_modules(unet: nn.Module) -> dict[str, nn.Module]:
    """By the layers' own names, also where torch.compile, DDP or FSDP wraps the UNet or a part of it."""
    named = {strip_wrappers(name): m for name, m in unet.named_modules() if hasattr(m, "lora_A")}
    return {name: module for name, module in named.items() if kind_of(name)}


def _is_widened(unet: nn.Module) -> bool:
    return hasattr(unet, "conv_in") and unet.conv_in.in_channels != unet.config.out_channels


def _read_conv_in(unet: nn.Module, path: Path) -> nn.Conv2d:
    old = unet.conv_in
    check_sums(path)
    try:
        state = load_file(path)
        new = nn.Conv2d(state["weight"].shape[1], old.out_channels, old.kernel_size, old.stride, old.padding)
        new.load_state_dict(state)
    except Exception as error:
        raise InputError(f"{path}: does not fit this UNet's conv_in ({' '.join(str(error).split())[:200]})") from None
    if not all(torch.isfinite(weight).all() for weight in state.values()):
        raise InputError(f"{path}: holds NaN or infinity; copy it again from where the LoRA is from")
    new = new.to(old.weight).requires_grad_(False)
    own = old.in_channels  # those are the base's own; the others read the image
    if not _is_widened(unet) and not _close(new.weight[:, :own], old.weight):
        warn(
            f"{path}: its first {own} channels are not those of this base model's conv_in: it belongs to another base "
            "or another LoRA, and maps will be wrong unless the base was fine-tuned"
        )
    return new


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal, but for what a file in half precision has lost."""
    return one.shape == other.shape and bool((one - other).abs().max() <= 0.02 * other.abs().max())
