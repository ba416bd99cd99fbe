"""Images through a frozen base and one or several LoRAs: batches, mirrored passes, tiles, ensembles."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psutil
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from utils.errors import InputError
from utils.image_io.images import Crop
from utils.image_io.opening import LARGE
from utils.image_io.panels import to_uint8
from utils.inference import tiles
from utils.inference.canvas import Canvas, up
from utils.inference.ensemble import merge_batches
from utils.inference.prediction import Prediction
from utils.inference.view import View
from utils.intrinsics import Intrinsic
from utils.kinds.alignment import linear_map
from utils.latents import mode
from utils.noise import gaussian, noise_of
from utils.objectives import AugUNet, SingleStep, decode

MAP_BYTES = 52  # per pixel while a map is brought to the image's own size and written (measured at 24 megapixels)
HELD_BYTES = 12  # per pixel of every further map, which waits for that

Maps = dict[str, Tensor]  # name of the intrinsic -> map
Noise = Callable[[int, int], Tensor]  # height and width of latents -> standard normal (B,4,h,w)


@dataclass
class Adapter:
    """One LoRA on the base: what it predicts and how, and the side in pixels of its training images.

    depth_coding: of the labels it has learnt; undone at once, so that all that follows is linear.
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
    """An image as the network takes it, (3,H,W) in [-1,1], how its maps are brought back, and the RGB image itself."""

    rgb: Tensor
    canvas: Canvas | Crop
    image: Image.Image

    def shown(self, shape: tuple[int, int]) -> Image.Image:
        """What a map of `shape` (height, width) is a map of, at its size."""
        if isinstance(self.canvas, Crop):
            return Image.fromarray(to_uint8(self.rgb))
        return self.image if self.image.size == shape[::-1] else self.image.resize(shape[::-1])


class Engine:
    """What the predictor and both inference scripts do once everything is loaded.

    own: the base's own weights of the layers that any adapter replaces. The members of an ensemble begin with other
    noise, by (seed, name, member); a single step has no noise and no ensemble.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        adapters: Sequence[Adapter],
        view: View | None = None,
        *,
        batch_size: int = 1,
        ensemble_size: int = 1,
        seed: int = 1234,
        own: dict[str, Tensor] | None = None,
    ):
        self.vae, self.unet, self.adapters, self.view = vae, unet, list(adapters), view or View()
        self.batch_size, self.ensemble_size, self.seed = batch_size, ensemble_size, seed
        self.own, self._active = own or {}, self.adapters[0] if len(self.adapters) == 1 else None
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)  # of the latents: 8 in Stable Diffusion
        self.multiple = self.factor * 2 ** (len(unet.config.block_out_channels) - 1)  # so that all levels halve: 64
        self.trained_at = max(adapter.trained_at for adapter in self.adapters)
        if self.view.tile is not None and self.view.tile % self.multiple:
            raise InputError(f"--tile={self.view.tile}: must be a multiple of {self.multiple} for this base model")

    @property
    def intrinsics(self) -> list[Intrinsic]:
        """What it predicts."""
        return [adapter.intrinsic for adapter in self.adapters]

    @property
    def resolution(self) -> int | None:
        """What the short side is brought to; None: images keep their size."""
        if self.view.resolution is not None:
            return self.view.resolution
        return None if self.view.tile else self.trained_at

    def prepare(self, image: Image.Image) -> Prepared:
        """An RGB image, resized, cropped or padded as the view says. InputError: its maps do not fit into memory."""
        width, height = image.size
        if self.view.output_size == "input" and not self.view.center_crop:
            _check_memory(width, height, len(self.adapters))
        canvas: Canvas | Crop
        if self.view.center_crop:
            canvas = Crop.of(width, height, self.resolution or self.trained_at)
        else:
            canvas = Canvas.of((height, width), self.resolution, self.multiple, self.view.wrap)
        return Prepared(canvas.picture(image), canvas, image)

    @torch.inference_mode()
    def predict(self, images: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Prediction]]:
        """All maps of every image: name of the intrinsic -> Prediction. Images of one size share UNet passes."""
        found: list[dict[str, Prediction]] = [{} for _ in images]
        for group in self._groups(images):
            rgb = torch.stack([images[i].rgb for i in group]) if len(group) > 1 else images[group[0]].rgb[None]
            for name, (maps, uncertainties) in self._members(rgb, [names[i] for i in group]).items():
                for i, one, uncertainty in zip(group, maps, uncertainties, strict=True):
                    found[i][name] = self._back(images[i].canvas, self._adapter(name), one, uncertainty)
        return [{adapter.intrinsic.name: maps[adapter.intrinsic.name] for adapter in self.adapters} for maps in found]

    def _groups(self, images: Sequence[Prepared]) -> Iterator[list[int]]:
        """Indices of images of one size, at most a batch; one by one where they are tiled."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_shape.setdefault(tuple(image.rgb.shape), []).append(i)
        size = 1 if self.view.tile or self.view.wrap else self.batch_size
        for indices in by_shape.values():
            for first in range(0, len(indices), size):
                yield indices[first : first + size]

    def _back(self, canvas: Canvas | Crop, adapter: Adapter, one: Tensor, uncertainty: Tensor | None) -> Prediction:
        if isinstance(canvas, Crop):
            return Prediction(adapter.intrinsic, one, uncertainty, adapter.facts)
        to_own = self.view.output_size == "input"
        if uncertainty is not None:
            uncertainty = canvas.uncertainty_back(uncertainty, to_own)
        return Prediction(adapter.intrinsic, canvas.back(one, adapter.intrinsic, to_own), uncertainty, adapter.facts)

    def _members(
        self, rgb: Tensor, names: Sequence[str]
    ) -> dict[str, tuple[Sequence[Tensor], Sequence[Tensor | None]]]:
        """Name -> (maps, uncertainties or Nones), one of each per image (B,3,H,W)."""
        diffusing = [adapter for adapter in self.adapters if isinstance(adapter.method, AugUNet)]
        members: dict[str, list[Tensor]] = {}
        for member in range(self.ensemble_size if diffusing else 1):
            for name, maps in self._maps(
                rgb, self._noise(names, member), diffusing if member else self.adapters
            ).items():
                members.setdefault(name, []).append(maps)
        return {name: merge_batches(maps, self._adapter(name).intrinsic) for name, maps in members.items()}

    def _noise(self, names: Sequence[str], member: int) -> Noise:
        channels, like = self.vae.config.latent_channels, torch.empty(0, device=self.vae.device, dtype=self.vae.dtype)

        def noise(height: int, width: int) -> Tensor:
            sources = [noise_of(self.seed, name, member) for name in names]
            return gaussian((len(names), channels, height, width), sources, like)

        return noise

    def _maps(self, rgb: Tensor, noise: Noise, adapters: Sequence[Adapter]) -> Maps:
        """rgb (B,3,H,W) on the CPU -> maps (B,3,H,W) on the CPU, tiled as the view says."""
        size = (self._window(rgb.shape[-2]), self._window(rgb.shape[-1]))
        latents = tuple(side // self.factor for side in rgb.shape[-2:])
        eps = noise(*latents) if any(isinstance(adapter.method, AugUNet) for adapter in adapters) else None
        if size == tuple(rgb.shape[-2:]):
            return self._mirrored(rgb, eps, adapters)
        return self._tiled(rgb[0], None if eps is None else eps[0], noise, size, adapters)

    def _window(self, side: int) -> int:
        """The length of a window on a canvas's side; the side's own where one window without wrapping does."""
        if not self.view.wrap:
            return min(side, self.view.tile or side)
        return min(self.view.tile or 2 * side, side + min(up(max(self._overlap, 1), self.multiple), side))

    @property
    def _overlap(self) -> int:
        return (self.view.tile or self.trained_at) // 4 if self.view.overlap is None else self.view.overlap

    def _tiled(
        self, rgb: Tensor, eps: Tensor | None, noise: Noise, size: tuple[int, int], adapters: Sequence[Adapter]
    ) -> Maps:
        """rgb (3,H,W), eps (4,h,w) -> maps (1,3,H,W), predicted window by window and merged."""
        shape, wrap = (rgb.shape[-2], rgb.shape[-1]), self.view.wrap
        overlap = min(self._overlap, *(side // 2 for side in size))
        places = list(tiles.windows(shape, size, overlap, self.factor, wrap))
        mosaics = {a.intrinsic.name: tiles.Mosaic(shape, size, overlap, a.intrinsic) for a in adapters}
        references = self._references(rgb, noise, adapters) if len(places) > 1 else {}
        bar = tqdm(range(0, len(places), self.batch_size), desc="tiles", leave=False, delay=3)
        for first in bar:
            chunk = places[first : first + self.batch_size]
            pixels = torch.stack([tiles.cut(rgb, place) for place in chunk])
            noises = None
            if eps is not None:
                noises = torch.stack([tiles.cut(eps, self._in_latents(place)) for place in chunk])
            for name, maps in self._mirrored(pixels, noises, adapters).items():
                for place, one in zip(chunk, maps, strict=True):
                    reference = tiles.cut(references[name], place) if name in references else None
                    mosaics[name].add(one, place, reference)
        return {name: mosaic.merged()[None] for name, mosaic in mosaics.items()}

    def _in_latents(self, window: tiles.Window) -> tiles.Window:
        rows, columns = (slice(part.start // self.factor, part.stop // self.factor) for part in window)
        return rows, columns

    def _references(self, rgb: Tensor, noise: Noise, adapters: Sequence[Adapter]) -> Maps:
        """Depth of the whole image at the training's resolution, (1,H,W), which the tiles' depths are brought to."""
        adapters = [adapter for adapter in adapters if adapter.intrinsic.map_kind.reference]
        if not adapters:
            return {}
        shape = (rgb.shape[-2], rgb.shape[-1])
        low = Canvas.of(shape, min(self.trained_at, *shape), self.multiple, wrap=True).inner
        small = nn.functional.interpolate(rgb[None], size=low, mode="bilinear", antialias=True)
        eps = noise(*(side // self.factor for side in low))
        return {name: tiles.enlarged(maps[0], shape) for name, maps in self._mirrored(small, eps, adapters).items()}

    def _mirrored(self, rgb: Tensor, eps: Tensor | None, adapters: Sequence[Adapter]) -> Maps:
        """Maps of rgb (B,3,H,W) with eps (B,4,h,w); with flip_tta the mean with those of the mirrored images."""
        plain = self._pass(rgb, eps, adapters)
        if not self.view.flip_tta:
            return plain
        mirrored = self._pass(rgb.flip(-1), None if eps is None else eps.flip(-1), adapters)
        return {
            name: self._adapter(name).intrinsic.map_kind.mirrored_mean(plain[name], mirrored[name].flip(-1))
            for name in plain
        }

    def _pass(self, rgb: Tensor, eps: Tensor | None, adapters: Sequence[Adapter]) -> Maps:
        """One pass of the VAE's encoder for all adapters; each adapter's latents and its map (B,3,H,W)."""
        cond, maps = mode(self.vae, rgb.to(self.vae.device)), {}
        for adapter in adapters:
            self._use(adapter)
            z = adapter.method.latents(self.unet, cond, eps)
            maps[adapter.intrinsic.name] = linear_map(decode(self.vae, z).float().cpu(), adapter.depth_coding)
        return maps

    def _use(self, adapter: Adapter) -> None:
        """Put this adapter's weights into the UNet: a change of pointers, nothing is computed or copied."""
        if adapter is self._active:
            return
        for name, weight in (self.own | adapter.weights).items():
            self.unet.get_submodule(name).weight.data = weight
        if adapter.conv_in is not None:
            self.unet.conv_in = adapter.conv_in
            self.unet.register_to_config(in_channels=adapter.conv_in.in_channels)
        self._active = adapter

    def _adapter(self, name: str) -> Adapter:
        return next(adapter for adapter in self.adapters if adapter.intrinsic.name == name)


def _check_memory(width: int, height: int, maps: int) -> None:
    """InputError where the maps of a large image, at its own size, need more memory than there is."""
    if width * height <= LARGE:
        return
    needed, free = width * height * (MAP_BYTES + HELD_BYTES * (maps - 1)), psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InputError(
            f"maps of {width}x{height} pixels need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; "
            "scale it down, or pass --output_size network"
        )
