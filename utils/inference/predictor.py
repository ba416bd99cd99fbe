"""From LoRA files to a function of images: the base is loaded once, whatever the number of LoRAs.

The plain case is `prepare`, `begin`, `_maps`, `_pass`, `_back` of `Engine`. Mirrored passes and ensembles (here) and
tiles (tiles.py) wrap it. `Predictor` is an engine of LoRA files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, overload

import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from utils.base_model.families import open_base
from utils.base_model.names import FAMILIES, note_revision
from utils.base_model.parts import Family
from utils.base_model.stable_diffusion import Base, load_base, load_donor, widen_conv_in
from utils.base_model.tiny_vae import use_tiny_vae
from utils.errors import InputError, note
from utils.image_io.images import Crop
from utils.image_io.opening import LARGE, check_ratio
from utils.image_io.panels import to_uint8
from utils.image_io.rgb import AnyImage, upright_rgb
from utils.inference.canvas import Canvas, up
from utils.inference.job import Job, by_task, describe, find_base, short
from utils.inference.prediction import Prediction, merge_batches
from utils.inference.tiles import Maps, Tiling
from utils.inference.view import View
from utils.intrinsics import Intrinsic
from utils.kinds.alignment import linear_map
from utils.latents import reduction
from utils.lora import fuse_lora, load_attn_procs
from utils.lora.layers import layers_of, lora_targets
from utils.noise import gaussian, noise_of
from utils.objectives import AugUNet, SingleStep, zero_snr_scheduler
from utils.system.compute import compile_unet, dtype_of, warn_of_slow_bf16

DONOR = "timbrooks/instruct-pix2pix"
MAP_BYTES = 60  # per pixel while a map is brought to its own size and written (measured: normals, all formats, 12 MP)
HELD_BYTES = 12  # per pixel of every further map, which waits for that

Finish = Callable[[], Prediction]


@dataclass
class Adapter:
    """One LoRA on the base: what it predicts and how, and the side in pixels of its training images.

    depth_coding: of the labels it was trained on; undone first, so that everything after it is linear.
    weights: the UNet's layers with the LoRA added, by module name, and conv_in, where the base serves several LoRAs;
    where there is one, it is in the UNet. facts: as `Prediction` has them.
    """

    intrinsic: Intrinsic
    method: SingleStep | AugUNet
    trained_at: int
    depth_coding: str = "linear"
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    conv_in: nn.Conv2d | None = None
    facts: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it, (3,H,W) in [-1,1], how its maps are brought back, and the RGB image itself,
    None where nobody needs it any more.
    """

    rgb: Tensor
    canvas: Canvas | Crop
    image: Image.Image | None

    @property
    def bytes_back(self) -> int:
        """Memory that one of its maps takes while it is brought back and written."""
        height, width = self.canvas.window if isinstance(self.canvas, Crop) else self.canvas.own
        return height * width * MAP_BYTES

    def shown(self, shape: tuple[int, int]) -> Image.Image:
        """The image that a map of `shape` (height, width) belongs to, in its size."""
        if isinstance(self.canvas, Crop):
            return Image.fromarray(to_uint8(self.rgb))
        if self.image is None:
            raise ValueError("the image was not kept")
        return self.image if self.image.size == shape[::-1] else self.image.resize(shape[::-1])


class Engine:
    """Prediction with a loaded base and its LoRAs, for the predictor and both inference scripts.

    own: the base's own weights of the layers that any adapter replaces. The members of an ensemble begin with other
    noise, by (seed, name, member); a single step has no noise and no ensemble.
    """

    def __init__(
        self,
        base: Family,
        adapters: Sequence[Adapter],
        view: View | None = None,
        *,
        batch_size: int = 1,
        ensemble_size: int = 1,
        seed: int = 1234,
        own: dict[str, Tensor] | None = None,
    ):
        self.base, self.network = base, base.network
        self.adapters, self.view = list(adapters), view or View()
        self.batch_size, self.ensemble_size, self.seed = batch_size, ensemble_size, seed
        self.own, self._active = own or {}, self.adapters[0] if len(self.adapters) == 1 else None
        self.factor, self.multiple = reduction(base.vae), base.multiple  # pixels per latent, and of sides
        self.trained_at = max(adapter.trained_at for adapter in self.adapters)
        if self.view.center_crop:
            base.check_side(self.resolution or self.trained_at)
        self.tiling = None
        if self.view.tile or self.view.wrap:
            self.tiling = Tiling(
                self.view.tile,
                self.view.overlap,
                self.view.wrap,
                self.factor,
                self.multiple,
                self.trained_at,
                batch_size,
            )
        if self.view.tile is not None and self.view.tile % self.multiple:
            raise InputError(f"--tile={self.view.tile}: must be a multiple of {self.multiple} for this base model")

    @property
    def intrinsics(self) -> list[Intrinsic]:
        """The intrinsics that it predicts."""
        return [adapter.intrinsic for adapter in self.adapters]

    @property
    def facts(self) -> dict[str, Mapping[str, str]]:
        """Facts of base and LoRA by name of the intrinsic, as the files' metadata has them."""
        return {adapter.intrinsic.name: adapter.facts for adapter in self.adapters}

    @property
    def resolution(self) -> int | None:
        """The length that the short side is resized to; None: images keep their size."""
        if self.view.resolution is not None:
            return self.view.resolution
        return None if self.view.tile else self.trained_at

    def prepare(self, image: Image.Image) -> Prepared:
        """An RGB image, resized, cropped or padded as the view says. InputError: it is too long to be predicted whole,
        or its maps do not fit into memory; the message does not name the image.
        """
        width, height = image.size
        canvas: Canvas | Crop
        if self.view.center_crop:
            canvas = Crop.of(width, height, self.resolution or self.trained_at)
        else:
            if self.view.tile is None:
                check_ratio(width, height, f"pass --tile {up(self.trained_at, self.multiple)}, or crop it")
            canvas = Canvas.of((height, width), self.resolution, self.multiple, self.view.wrap)
        if self.view.output_size == "input" and not self.view.center_crop:
            _check_memory(width, height, len(self.adapters), "scale it down, or pass --output_size network")
        inner = (canvas.width, canvas.height) if isinstance(canvas, Crop) else canvas.outer[::-1]
        _check_memory(*inner, len(self.adapters), "crop it, or lower --resolution")
        return Prepared(canvas.picture(image), canvas, image)

    @overload
    def __call__(self, images: AnyImage, names: Sequence[str] | None = None) -> dict[str, Prediction]: ...

    @overload
    def __call__(
        self, images: list[AnyImage] | tuple[AnyImage, ...], names: Sequence[str] | None = None
    ) -> list[dict[str, Prediction]]: ...

    def __call__(self, images: Any, names: Any = None) -> Any:
        """Maps by name of the intrinsic; of a list of images, a list.

        images: a file's path, a PIL image, an array or a tensor, as `upright_rgb` takes them. names: AugUNet's noise
        depends on them and on the seed; default: the files' names, else empty.
        """
        if not isinstance(images, (list, tuple)):
            return self([images], names)[0]
        if names is None:
            names = [Path(image).name if isinstance(image, (str, Path)) else "" for image in images]
        return self.predict([self.prepare(upright_rgb(image)) for image in images], names)

    def predict(self, images: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Prediction]]:
        """All maps of every image: name of the intrinsic -> Prediction. Images of one size share UNet passes."""
        return [{name: finish() for name, finish in each.items()} for each in self.begin(images, names)]

    @torch.inference_mode()
    def begin(self, images: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Finish]]:
        """`predict` up to the network's maps: name of the intrinsic -> what brings its map to the image's own size,
        in any thread, at once or later: until then it is small.
        """
        found: list[dict[str, Finish]] = [{} for _ in images]
        for group in self._groups(images):
            rgb, of_group = torch.stack([images[i].rgb for i in group]), [names[i] for i in group]
            maps = self._maps(rgb, of_group, 0, self.adapters)
            several = self._ensembles(rgb, of_group, maps) if self.ensemble_size > 1 else {}
            for adapter in self.adapters:
                name = adapter.intrinsic.name
                merged, doubts = several.get(name, (maps[name], [None] * len(group)))
                for i, one, doubt in zip(group, merged, doubts, strict=True):
                    found[i][name] = partial(self._back, images[i].canvas, adapter, one, doubt)
        return found

    def _groups(self, images: Sequence[Prepared]) -> Iterator[list[int]]:
        """Indices of images of one size, at most a batch; one by one where they are tiled."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_shape.setdefault(tuple(image.rgb.shape), []).append(i)
        size = 1 if self.tiling else self.batch_size
        for indices in by_shape.values():
            for first in range(0, len(indices), size):
                yield indices[first : first + size]

    @torch.inference_mode()
    def _back(self, canvas: Canvas | Crop, adapter: Adapter, one: Tensor, uncertainty: Tensor | None) -> Prediction:
        """A map and its uncertainty as they are written. A large one is resized by the GPU, if it has the memory."""
        if isinstance(canvas, Canvas):
            to_own, device = self.view.output_size == "input", self.base.vae.device
            if uncertainty is not None:
                uncertainty = canvas.uncertainty_back(uncertainty, to_own)
            try:
                one = canvas.back(one.to(device), adapter.intrinsic, to_own).cpu()
            except torch.OutOfMemoryError:
                one = canvas.back(one.cpu(), adapter.intrinsic, to_own)
        return Prediction(adapter.intrinsic, one, uncertainty, adapter.facts)

    def _maps(self, rgb: Tensor, names: Sequence[str], member: int, adapters: Sequence[Adapter]) -> Maps:
        """rgb (B,3,H,W) on the CPU -> maps (B,3,H,W) on the CPU. member: of an ensemble, from 0."""

        def noise(height: int, width: int) -> Tensor:
            """Standard normal (B,4,height,width) for latents of that size."""
            like = torch.empty(0, device=self.base.vae.device)  # fp32
            sources = [noise_of(self.seed, name, member) for name in names]
            return gaussian((len(names), self.base.vae.config.latent_channels, height, width), sources, like)

        sides = [side // self.factor for side in rgb.shape[-2:]]
        eps = noise(*sides) if any(isinstance(adapter.method, AugUNet) for adapter in adapters) else None
        if self.tiling is not None:
            return self.tiling.predict(self._mirrored, rgb, eps, noise, adapters)
        return self._mirrored(rgb, eps, adapters)

    def _ensembles(
        self, rgb: Tensor, names: Sequence[str], maps: Maps
    ) -> dict[str, tuple[Sequence[Tensor], Sequence[Tensor | None]]]:
        """Name -> (maps, uncertainties) of what is sampled, from `maps` and the other members: they begin with other
        noise.
        """
        sampled = [adapter for adapter in self.adapters if isinstance(adapter.method, AugUNet)]
        others = [self._maps(rgb, names, member, sampled) for member in range(1, self.ensemble_size) if sampled]
        each = [(one.intrinsic.name, one.intrinsic) for one in sampled]
        return {name: merge_batches([maps[name], *(one[name] for one in others)], of) for name, of in each}

    def _mirrored(self, rgb: Tensor, eps: Tensor | None, adapters: Sequence[Adapter]) -> Maps:
        """Maps of rgb (B,3,H,W) with eps (B,4,h,w); with flip_tta the mean with those of the mirrored images."""
        maps = self._pass(rgb, eps, adapters)
        if self.view.flip_tta:
            mirrored = self._pass(rgb.flip(-1), None if eps is None else eps.flip(-1), adapters)
            for one in adapters:
                name = one.intrinsic.name
                maps[name] = one.intrinsic.map_kind.mirrored_mean(maps[name], mirrored[name].flip(-1))
        return maps

    def _pass(self, rgb: Tensor, eps: Tensor | None, adapters: Sequence[Adapter]) -> Maps:
        """One pass of the VAE's encoder for all adapters; each adapter's latents and its map (B,3,H,W)."""
        cond, maps = self.base.latent_mode(rgb.to(self.base.vae.device)), {}
        for adapter in adapters:
            if adapter is not self._active:
                self._use(adapter)
            map_ = self.base.decode(adapter.method.latents(self.network, cond, eps)).float().cpu()
            if adapter.depth_coding != "linear":
                map_ = linear_map(map_, adapter.depth_coding)
            maps[adapter.intrinsic.name] = map_
        return maps

    def _use(self, adapter: Adapter) -> None:
        """Put this adapter's weights into the UNet: a change of pointers, nothing is computed or copied."""
        for name, weight in (self.own | adapter.weights).items():
            self.network.get_submodule(name).weight.data = weight
        if adapter.conv_in is not None:
            self.network.conv_in = adapter.conv_in
            self.network.register_to_config(in_channels=adapter.conv_in.in_channels)
        self._active = adapter


def _check_memory(width: int, height: int, maps: int, cure: str) -> None:
    """InputError where the maps of a large image, of that size, need more memory than there is."""
    if width * height <= LARGE:
        return
    needed, free = width * height * (MAP_BYTES + HELD_BYTES * (maps - 1)), psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InputError(
            f"maps of {width}x{height} pixels need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; "
            f"{cure}"
        )


class Predictor(Engine):
    """Predictor("path/to/lora")(image) -> {"normal": Prediction}, of the whole image at its own size.

    lora: .safetensors, .bin, a training's output folder or a hub name; several predict several maps from one base and
    one pass of its encoder. A folder or repository with a file named for each intrinsic counts as several, of which
    `task` chooses one. base: a folder or hub name, else the one that the LoRAs were made for. device: None: a GPU if
    there is one. dtype: fp32, fp16 or bf16. base_precision: int8 or nf4 of the network's linear layers, for one LoRA.
    vae: folder or hub name of an AutoencoderTiny that decodes instead of the base's VAE, and with `vae_encodes` also
    encodes, for previews.
    method, task, prompt, timestep, depth_coding: for files whose metadata lacks them.
    steps, guidance_scale, ensemble_size, seed, augment_from: of AugUNet's LoRAs, as inference_augunet.py has them.
    view: the fields of `View`, such as resolution=768, center_crop=True or tile=512.

    Raises InputError where a file, the base or the device is not available, or they do not fit together.
    """

    def __init__(
        self,
        lora: str | Path | Sequence[str | Path],
        base: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str = "fp32",
        *,
        base_precision: str | None = None,
        method: str | None = None,
        task: str | None = None,
        prompt: str | None = None,
        revision: str | None = None,
        vae: str | Path | None = None,
        vae_encodes: bool = False,
        timestep: float | None = None,
        depth_coding: str | None = None,
        augment_from: str | None = None,
        steps: int = 25,
        guidance_scale: float = 3.0,
        ensemble_size: int = 1,
        seed: int = 1234,
        batch_size: int = 1,
        compile: bool = False,
        **view: Any,
    ):
        loras = by_task([lora] if isinstance(lora, (str, Path)) else list(lora), task)
        known_base = None if base is None else str(base)
        self.jobs = [describe(one, method, task, prompt, known_base, depth_coding) for one in loras]
        name = _one_base(self.jobs)
        if base is None:  # else `check_base` has looked at it
            note_revision(name, revision)
            if bare := [f"{Path(job.name).name} ({job.intrinsic.name})" for job in self.jobs if not job.trained_on]:
                note(f"{', '.join(bare)}: no base model in the header; taking the paper's, {name}")
        if base_precision is not None and len(self.jobs) > 1:
            raise InputError(
                f"--base_precision={base_precision}: {len(self.jobs)} LoRAs, and only one fits on a quantised network "
                "at a time; pass one"
            )
        widened = any(job.method == "augunet" for job in self.jobs)  # which only Stable Diffusion's UNets are
        precision = {"dtype": dtype_of(dtype), "precision": base_precision}
        loaded = load_base(name, revision, **precision) if widened else open_base(name, revision, **precision)
        if vae is not None:
            use_tiny_vae(loaded.vae, str(vae), vae_encodes)
        for job in self.jobs:
            _check_base(job, loaded)
            if (of_training := job.lora.metadata.get("base_precision")) != base_precision:
                note(
                    f"{job.name} was trained on a network in {of_training or '16 or 32 bits'}, predicting with one in "
                    f"{base_precision or '16 or 32 bits'} (--base_precision)"
                )
        place = pick_device(device)
        warn_of_slow_bf16(dtype_of(dtype), place.type, "dtype fp32")
        changes = _add_loras(loaded.network, self.jobs, augment_from, fused=base_precision is None)
        loaded.to(place, dtype_of(dtype))
        if compile:
            compile_unet(loaded.network, place)
        adapters, preview = [], {} if vae is None else {"vae": short(str(vae))}
        for job, (weights, conv_in) in zip(self.jobs, changes, strict=True):
            known: SingleStep | AugUNet
            if isinstance(loaded, Base) and job.method == "augunet":
                prompts = loaded.encode_prompt(job.prompt), loaded.encode_prompt("")
                schedule = zero_snr_scheduler(loaded.scheduler)
                known = AugUNet(loaded.vae, *prompts, schedule, steps=steps, guidance_scale=guidance_scale)
            else:
                t = _timestep(loaded, job) if timestep is None else loaded.timestep(timestep)
                if timestep is not None and job.timestep not in (None, timestep):
                    note(f"{job.name} was trained at timestep {job.timestep}, predicting at {timestep}")
                known = SingleStep(loaded, loaded.encode_prompt(job.prompt), t)
            weights = {name: weight.to(place, dtype_of(dtype)) for name, weight in weights.items()}
            conv_in = None if conv_in is None else conv_in.to(place, dtype_of(dtype))
            adapters.append(
                Adapter(job.intrinsic, known, job.trained_at, job.depth_coding, weights, conv_in, job.facts | preview)
            )
        touched = {name for adapter in adapters for name in adapter.weights}
        own = {name: loaded.network.get_submodule(name).weight.data for name in touched}
        sizes = {"batch_size": batch_size, "ensemble_size": ensemble_size, "seed": seed}
        super().__init__(loaded, adapters, View(**view), own=own, **sizes)


def pick_device(wanted: str | torch.device | None) -> torch.device:
    """The device wanted, or a GPU (CUDA, Apple's MPS) if there is one, as accelerate chooses it for the scripts.

    Raises InputError where this machine has none of that name.
    """
    try:
        here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = torch.device(wanted or here or "cpu")
        torch.empty(1, device=device).cpu()  # the meta device has nothing to copy
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise InputError(f"--device={wanted}: {reason}; try cpu, or leave it out") from None
    return device


def _one_base(jobs: Sequence[Job]) -> str:
    """The base of all LoRAs. InputError where they have several, or two LoRAs predict the same."""
    if not jobs:
        raise InputError("--lora: no LoRA given")
    for i, job in enumerate(jobs):
        for other in jobs[:i]:
            if job.intrinsic == other.intrinsic:
                raise InputError(f"--lora: {other.name} and {job.name} both predict {job.intrinsic.name}; use one")
            if job.model != other.model:
                raise InputError(
                    f"--lora: {other.name} was made for {other.model}, {job.name} for {job.model}: one base at a time"
                )
    return jobs[0].model


def _timestep(base: Family, job: Job) -> float:
    """The time in the LoRA's header, else the base's own. InputError where the base lacks it."""
    try:
        return base.timestep(job.timestep)
    except InputError as error:
        raise InputError(f"{job.name}: its header has timestep={job.timestep}, but {error}") from None


def _check_base(job: Job, base: Family) -> None:
    """InputError where a LoRA was made for another family; a note where it was made for another base of the family."""
    family = job.lora.metadata.get("family", base.family if job.trained_on is None else "sd")
    if family != base.family:
        made_for = FAMILIES.get(family, family)
        own = f"its own, {job.trained_on}" if job.trained_on else "its base"
        raise InputError(f"{job.name}: made for {made_for}, but {base.name} is {FAMILIES[base.family]}; pass {own}")
    trained_on = job.trained_on or base.name
    if base.name not in (trained_on, str(Path(trained_on).resolve())):
        note(f"{job.name} was trained on {trained_on}, predicting with {base.name}")


def _add_loras(
    unet: nn.Module, jobs: Sequence[Job], augment_from: str | None, fused: bool
) -> list[tuple[dict[str, Tensor], nn.Conv2d | None]]:
    """A single LoRA is added to the UNet's weights, in place, or where not `fused` stays layers of its own, and
    ({}, None) is returned. Of several, each one's layers with the LoRA added, and its conv_in; the UNet stays the
    base's own.
    """
    first, found = getattr(unet, "conv_in", None), []  # which transformers have not
    for job in jobs:
        load_attn_procs(unet, job.lora)
        layers = layers_of(unet, lora_targets(unet))
        before = {name: layer.weight.data.clone() for name, layer in layers.items()} if len(jobs) > 1 else {}
        if fused:
            fuse_lora(unet)
        if job.method == "augunet":
            _widen(unet, job, augment_from)
        if len(jobs) == 1:
            return [({}, None)]
        own = {name: unet.get_submodule(name).weight.data for name in before}
        found.append((own, first and unet.conv_in))
        for name, weight in before.items():
            unet.get_submodule(name).weight.data = weight
        if first is not None:
            unet.conv_in = first
            unet.register_to_config(in_channels=first.in_channels)
    return found


def _widen(unet: nn.Module, job: Job, augment_from: str | None) -> None:
    """AugUNet's conv_in: the one the LoRA brings along, or made again as in training, from the donor in its header."""
    if unet.config.in_channels == unet.config.out_channels:
        stated = job.lora.metadata.get("augment_from")
        stated = None if stated in (None, "None") else find_base(stated, job.lora.path)
        if None not in (augment_from, stated) and Path(str(augment_from)) != Path(str(stated)):
            note(f"{job.name} was trained with the conv_in of {stated}, predicting with that of {augment_from}")
        widen_conv_in(unet, load_donor(augment_from or stated or DONOR))
    elif augment_from:
        raise InputError(f"--augment_from: {job.name} has its own conv_in.safetensors; leave the flag out")
