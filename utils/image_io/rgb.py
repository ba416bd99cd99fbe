"""Any image (a file, an opened image, an array, a tensor) to upright 8-bit sRGB: the one place that decides."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageCms, ImageOps

from utils.errors import InputError, note, warn
from utils.image_io.colour_space import ADOBE_RGB, HDR, PRIMARIES, SRGB, TRANSFERS, Chromaticities, Transfer, to_srgb8
from utils.image_io.opening import once, open_image

if TYPE_CHECKING:
    import torch

AnyImage: TypeAlias = "str | Path | Image.Image | np.ndarray | torch.Tensor"

READING = 2  # version of the rules here; what was computed from pixels read by other rules is not reused
ORIENTATION = 0x0112  # EXIF's tag
INTEGERS = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # modes of grey with more than 8 bits
FRAMES = {"TIFF": "pages", "MPO": "images", "HEIF": "images", "ICO": "sizes"}  # by format; else "frames"
FLAGS = (
    ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE
)  # LittleCMS's flags: black stays black; transforms are shared by threads
CLOSE = 2  # grey levels: a colour space that differs from sRGB by no more is left as it is


@dataclass(frozen=True)
class Meaning:
    """The meaning of pixel values, as the file states it.

    white: value of white in grey of more than 8 bits. inverted: 0 is white, and Pillow has not turned it. key: the
    value that is transparent, in the units of Pillow's pixels. icc, transfer, primaries: as `_in_srgb` takes them.
    """

    white: int = 65535
    inverted: bool = False
    key: Any = None
    icc: bytes | None = None
    transfer: Transfer | None = None
    primaries: Chromaticities | None = None
    space: str = ""


def upright_rgb(image: AnyImage, name: str = "") -> Image.Image:
    """Any image as 8-bit sRGB, upright, without metadata. The image that is passed in stays as it is.

    A file and the image that `PIL.Image.open` makes of it: turned by the EXIF orientation; grey of 16 bits scaled from
    0..65535 (of 12 bits from 0..4095); transparent areas on white; converted from its ICC profile or from what else
    states its colour space; of several pages or frames the first, with a note.
    An array (H,W), (H,W,1), RGB (H,W,3) or RGBA (H,W,4): uint8; uint16, also in wider integers; bool; floats in [0,1].
    A tensor: the same, or with the channels first.

    name: for messages, where the image has no file name.

    Raises:
        InputError: the image cannot be read, or its values have no known meaning.
    """
    if isinstance(image, (str, Path)):
        with open_image(image) as opened:
            return _from_pillow(opened, str(image))
    if isinstance(image, Image.Image):
        name = name or str(getattr(image, "filename", "") or "image")
        try:
            return _from_pillow(image, name, keep=True)
        except InputError:
            raise
        except Exception as error:  # a file that was closed, or is broken: Pillow decodes it only now
            raise InputError(
                f"{name}: cannot be decoded ({' '.join(str(error).split())[:200]}); open it again"
            ) from None
    if isinstance(image, np.ndarray):
        return _from_pillow(_from_array(image, name or "image array"), name or "image array")
    torch = sys.modules.get("torch")  # a tensor exists only where torch is imported; the evaluation does without
    if torch is not None and isinstance(image, torch.Tensor):
        return _from_pillow(_from_array(_channels_last(image), name or "image tensor"), name or "image tensor")
    raise InputError(f"{name or 'image'}: pass a path, a PIL image, an array or a tensor, not {type(image).__name__}")


# Arrays and tensors ------------------------------------------------------------------------------------------------


def _channels_last(image: torch.Tensor) -> np.ndarray:
    """A tensor (H,W), (H,W,C) or (C,H,W) as an array with the channels last."""
    if image.ndim == 3:
        first, last = image.shape[0] in (1, 3, 4), image.shape[2] in (1, 3, 4)
        if first and last:
            raise InputError(f"image tensor: {tuple(image.shape)} may be (H,W,C) or (C,H,W); pass .numpy() of (H,W,C)")
        if first:
            image = image.permute(1, 2, 0)
    if image.ndim == 4:
        raise InputError(f"image tensor: {tuple(image.shape)} is a batch; pass a list of its images, list(batch)")
    image = image.detach().cpu()
    return (image.float() if image.is_floating_point() else image).numpy()


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    """The array as a Pillow image whose meaning is known; see `upright_rgb`."""
    shape, kind = array.shape, array.dtype.kind
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or 0 in shape or (array.ndim == 3 and shape[2] not in (3, 4)):
        hint = "; channels go last: pass array.transpose(1, 2, 0)" if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        hint = "; pass a list of its images" if array.ndim == 4 else hint
        raise InputError(f"{name}: shape {shape}, but an image is (H,W), (H,W,1), (H,W,3) or (H,W,4){hint}")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if kind == "b":
        return Image.fromarray(array.astype(np.uint8) * np.uint8(255))
    if kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # NaN too
            hint = (
                "x / 2 + 0.5" if -1 <= low < 0 and high <= 1 else "x / 255, or uint8," if high > 1 else "finite values"
            )
            raise InputError(f"{name}: floats from {low:.4g} to {high:.4g}, but an image has [0, 1]; pass {hint}")
        return Image.fromarray(np.rint(array.astype(np.float32) * 255).astype(np.uint8))
    if kind not in "iu" or array.dtype.itemsize == 1:
        raise InputError(f"{name}: {array.dtype} has no known white; pass uint8, uint16 or floats in [0, 1]")
    if array.dtype.itemsize > 2 or kind == "i":
        _check_integers(int(array.min()), int(array.max()), str(array.dtype), name)
    if array.ndim == 2:
        return Image.fromarray(array.astype(np.uint16))
    return Image.fromarray(np.rint(array / 257).astype(np.uint8))


def _check_integers(low: int, high: int, what: str, name: str) -> None:
    """InputError unless integers of more than 16 bits are sure to hold 16-bit values."""
    if low < 0 or high > 65535:
        raise InputError(f"{name}: {what} pixels have no known white; save the image with 8 or 16 bits")
    if 0 < high <= 255:
        raise InputError(f"{name}: {what} pixels up to {high} may have 8 or 16 bits; save the image with 8 or 16 bits")


# Pillow's images ---------------------------------------------------------------------------------------------------


def _from_pillow(image: Image.Image, name: str, keep: bool = False) -> Image.Image:
    """keep: `image` is the caller's, and stays as it is."""
    passed_in = image if keep else None
    _note_frames(image, name)
    meaning = _meaning(image, name)  # before the pixels are decoded: Pillow forgets part of it then
    image.load()
    image = _upright(image)
    if image.mode == "F":
        raise InputError(f"{name}: F pixels have no known white; save the image with 8 or 16 bits")
    alpha = None
    if image.mode in INTEGERS:
        values = np.asarray(image)
        if meaning.key is not None:
            alpha = Image.fromarray(np.where(values == meaning.key, 0, 255).astype(np.uint8))
        rgb = _from_integers(values, image.mode, meaning, name)
    else:
        base, alpha = _split(image, meaning)
        rgb = _in_srgb(base, meaning, name)
    if alpha is not None and np.asarray(alpha).min() < 255:
        once(note, "alpha", f"{name}: transparent areas are shown on white")
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    if rgb is passed_in:
        rgb = rgb.copy()
    rgb.info = {}  # all of it has been applied, and must not be applied twice
    return rgb


def read_label(path: str | Path) -> Image.Image:
    """An 8-bit pseudo label as RGB. Labels are data: no colour space is converted, and nothing in them is transparent.

    Raises:
        InputError: the file has 16 bits or floats, which Pillow would clip to white, transparent pixels, inks instead
            of colours, or several pages.
    """
    with open_image(path) as image:
        meaning = _meaning(image, str(path))
        if (count := getattr(image, "n_frames", 1)) > 1:
            raise InputError(f"{path}: a label of {count} pages or frames; save the one that is meant")
        image.load()
        image = _upright(image)
        if image.mode in (*INTEGERS, "F"):
            raise InputError(
                f"{path}: a 16-bit label (mode {image.mode}) would clip to white as RGB; "
                "write labels with 8 bits (near = white, far = black for depth)"
            )
        if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa"):
            raise InputError(f"{path}: a label of mode {image.mode}; save it as 8-bit grey or RGB")
        base, alpha = _split(image, meaning)
        if alpha is not None and np.asarray(alpha).min() < 255:
            raise InputError(
                f"{path}: a label with transparent pixels, whose values are unknown; save it without alpha, and the "
                "unknown pixels as a mask"
            )
        return base if base.mode == "RGB" else base.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; itself where there is nothing to turn."""
    turned = image.getexif().get(ORIENTATION, 1) in range(2, 9)
    return ImageOps.exif_transpose(image) if turned else image


def _note_frames(image: Image.Image, name: str) -> None:
    """A note where a file holds more than the image that is read. A frame that the caller has chosen needs none."""
    try:
        count, chosen = len(image.info.get("sizes", ())) or getattr(image, "n_frames", 1), image.tell()
    except Exception:  # a file that is closed, whose frame is loaded, or a broken one: decoding will tell
        return
    if chosen == 0 and getattr(image, "tag_v2", {}).get(254, 0) & 1 and count > 1:
        raise InputError(f"{name}: the first of its {count} pages is a thumbnail; save the full image as its own file")
    primary = image.info.get("primary") is True  # of HEIF, which opens it wherever it stands
    if count > 1 and (primary or not chosen):
        what = FRAMES.get(image.format or "", "frames")
        which = "largest" if what == "sizes" else "primary" if primary else "first"
        size = f"{image.width}x{image.height}"
        once(note, f"frames {image.format}", f"{name}: of its {count} {what} the {which} alone is read, {size}")


def _meaning(image: Image.Image, name: str) -> Meaning:
    """The meaning of an opened image's pixels, as its file states it."""
    known: dict[str, Any] = {"icc": image.info.get("icc_profile") or None}
    tiles = getattr(image, "tile", None)  # how the file's values become Pillow's; gone once it is decoded
    raw = tiles[0][3] if tiles else ""
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode == "1":
        key = 255 * bool(key)
    elif isinstance(key, int) and raw in ("L;2", "L;4"):  # stated in the file's bits, while Pillow scales the pixels
        key *= 85 if raw == "L;2" else 17
    elif isinstance(key, tuple) and max(key) > 255:  # 16 bits, of which Pillow keeps the upper eight
        key = tuple(value >> 8 for value in key)
    known["key"] = key
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        tags = image.tag_v2
        bits = tuple(tags.get(258, (1,)))
        if 2 in tuple(tags.get(339, (1,))) and max(bits) <= 16:  # with 32 bits it is how Pillow writes its mode I
            raise InputError(f"{name}: signed pixels have no known white; save the image with 8 or 16 bits")
        if tags.get(262) == 6 and tags.get(259, 1) == 1:
            raise InputError(f"{name}: uncompressed YCbCr, which Pillow does not decode; save it as PNG")
        known["white"] = 4095 if bits == (12,) else 65535
        known["inverted"] = tags.get(262) == 0 and image.mode in INTEGERS
    if known["icc"] is None and image.mode not in ("CMYK", "LAB"):
        known |= _png_space(image, name) if image.format == "PNG" else _nclx(image, name) or _exif_space(image)
    elif image.format == "PNG":
        known |= _cicp(image, name)
    return Meaning(**known)


def _png_space(image: Image.Image, name: str) -> dict[str, Any]:
    """The colour space in a PNG's chunks cICP, sRGB, gAMA and cHRM, which count in this order."""
    if found := _cicp(image, name):
        return found
    if "srgb" in image.info:
        return {}
    found = {}
    gamma, places = image.info.get("gamma"), image.info.get("chromaticity")
    if gamma and abs(gamma * 2.2 - 1) > 0.02:  # 1 / 2.2 is how sRGB is written
        found |= {"transfer": lambda v: v ** (1 / gamma), "space": f"gamma {gamma:.4g}"}
    if places and len(places) == 8 and min(places) > 0 and max(abs(a - b) for a, b in zip(places, SRGB)) > 0.005:
        found |= {"primaries": tuple(places), "space": f"{found.get('space', '')} own primaries".strip()}
    return found


def _cicp(image: Image.Image, name: str) -> dict[str, Any]:
    """The colour space in a PNG's chunk cICP, which counts more than an ICC profile; Pillow does not read it."""
    code = png_chunks(getattr(image, "filename", "") or getattr(image, "fp", None)).get(b"cICP")
    if code is None or len(code) != 4:
        return {}
    primaries, transfer, matrix, full = code
    if matrix or full != 1:
        raise InputError(f"{name}: colours by cICP {tuple(code)}, which is not read; save it as sRGB")
    return {"icc": None} | _by_codes("cICP", primaries, transfer, name)


def _nclx(image: Image.Image, name: str) -> dict[str, Any]:
    """The colour space in a HEIC or AVIF file's nclx box, where it is not sRGB's; without it HDR would look grey."""
    if image.format == "HEIF" and (box := image.info.get("nclx_profile")):
        codes = box["color_primaries"], box["transfer_characteristics"]
    elif image.format == "AVIF" and (box := _start_of(image).partition(b"colrnclx")[2][:4]):  # Pillow leaves it out
        codes = int.from_bytes(box[:2]), int.from_bytes(box[2:])
    else:
        return {}
    found = _by_codes("nclx", *codes, name)
    return found if found["primaries"] or found["transfer"] else {}


def _by_codes(source: str, primaries: int, transfer: int, name: str) -> dict[str, Any]:
    """The colour space by its code points in ITU-T H.273."""
    if primaries not in PRIMARIES or transfer not in TRANSFERS:
        raise InputError(f"{name}: colours by {source} {primaries}, {transfer}, which is not read; save it as sRGB")
    space = f"{source} {primaries}, {HDR.get(transfer, transfer)}"
    return {"primaries": PRIMARIES[primaries], "transfer": TRANSFERS[transfer], "space": space}


def _start_of(image: Image.Image) -> bytes:
    """The first 64 kB of an opened image's file, in which the headers of AVIF are; empty where it has none."""
    name: str = getattr(image, "filename", "")
    file: Any = getattr(image, "fp", None)
    if name and Path(name).is_file():
        with Path(name).open("rb") as opened:
            return opened.read(1 << 16)
    try:
        start = file.tell()
        file.seek(0)
        head = file.read(1 << 16)
        file.seek(start)
    except (AttributeError, ValueError, OSError):
        return b""
    return head


def _exif_space(image: Image.Image) -> dict[str, Any]:
    """Adobe RGB, as cameras state it without an ICC profile: EXIF's ColorSpace, or the interoperability index."""
    try:
        exif = image.getexif()
        details = exif.get_ifd(0x8769) if 0x8769 in exif else {}
        index = exif.get_ifd(0xA005).get(1, "") if 0xA005 in details else ""
    except Exception:  # EXIF is often broken, and this part of it seldom there
        return {}
    if details.get(0xA001) == 2 or str(index).startswith("R03"):
        return {"primaries": ADOBE_RGB, "transfer": lambda v: v**2.19921875, "space": "Adobe RGB by EXIF"}
    return {}


def png_chunks(source: Any) -> dict[bytes, bytes]:
    """A PNG's chunks by name, those behind its pixels too; only the content of small ones is read. A path or a file,
    whose position stays; {} where it is neither.
    """
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            return {}
        with Path(source).open("rb") as file:
            return png_chunks(file)
    try:
        start = source.tell()
        source.seek(8)
    except (AttributeError, ValueError, OSError):
        return {}
    found = {}
    while len(head := source.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        found[head[4:]] = source.read(length) if length <= 64 else b""
        source.seek((0 if length <= 64 else length) + 4, io.SEEK_CUR)
    source.seek(start)
    return found


def _from_integers(values: np.ndarray, mode: str, meaning: Meaning, name: str) -> Image.Image:
    """Grey of more than 8 bits (H,W), scaled so that white is 255."""
    low, high = int(values.min()), int(values.max())
    if mode == "I":
        _check_integers(low, high, "I", name)
    white = meaning.white
    high = white - low if meaning.inverted else high
    if white == 65535 and 0 < high <= 4095:
        once(
            warn,
            "dark",
            f"{name}: 16-bit grey whose largest value is {high} of 65535 is read as nearly black; if it was stored "
            f"with {high.bit_length()} bits, multiply it by {65536 >> high.bit_length()}",
        )
    shares = np.arange(65536).clip(0, white) / white
    shares = 1 - shares if meaning.inverted else shares
    table = np.rint(255 * shares).astype(np.uint8)
    if meaning.icc or meaning.transfer or meaning.primaries:
        ramp = _in_srgb(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), meaning, name)
        levels = np.asarray(ramp)[0].astype(float)
        table = np.stack([np.rint(np.interp(255 * shares, np.arange(256), levels[:, c])) for c in range(3)], axis=1)
        table = table.astype(np.uint8)
    found = np.empty((*values.shape, *table.shape[1:]), np.uint8)
    for first in range(0, len(values), 256):  # rows at a time: indices take eight bytes a pixel
        found[first : first + 256] = table[values[first : first + 256].astype(np.intp)]
    return Image.fromarray(found).convert("RGB")


def _split(image: Image.Image, meaning: Meaning) -> tuple[Image.Image, Image.Image | None]:
    """An 8-bit image as (L, RGB, CMYK or LAB; its alpha, L, or None)."""
    if image.mode == "La":  # multiplied by alpha; Pillow does not undo it
        grey, alpha = np.moveaxis(np.asarray(image).astype(np.uint16), 2, 0)
        grey = np.minimum(255 * grey // np.maximum(alpha, 1), 255)
        return Image.fromarray(grey.astype(np.uint8)), Image.fromarray(alpha.astype(np.uint8))
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    key = meaning.key
    fits = (
        isinstance(key, (bytes, int)) if image.mode == "P" else isinstance(key, tuple if image.mode == "RGB" else int)
    )
    if key is not None and fits and image.mode in ("1", "L", "P", "RGB"):
        image = image.copy()
        image.info["transparency"] = key
        image = image.convert("RGBA")
    elif image.mode == "RGBa" or image.mode == "PA":
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return image.convert("RGB"), image.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


# Colour spaces -----------------------------------------------------------------------------------------------------


def _in_srgb(image: Image.Image, meaning: Meaning, name: str) -> Image.Image:
    """L, RGB, CMYK or LAB -> sRGB; unchanged where nothing else is stated, or it differs by at most `CLOSE` levels."""
    if meaning.icc and image.mode != "LAB":
        transform, takes, about = _by_profile(meaning.icc, image.mode)
        if transform is not None:
            once(note, f"space {about}", f"{name}: converted to sRGB from its ICC profile, {about}")
            return _apply(image if image.mode == takes else image.convert(takes), transform)
        if about:
            once(warn, "profile", f"{name}: its ICC profile {about}; the colours are read as sRGB")
    elif meaning.transfer or meaning.primaries:
        once(note, f"space {meaning.space}", f"{name}: converted to sRGB from {meaning.space}")
        pixels = np.asarray(image.convert("RGB"))
        return Image.fromarray(to_srgb8(pixels, meaning.transfer, meaning.primaries))
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(32)
def _by_profile(icc: bytes, mode: str) -> tuple[Any, str, str]:
    """(transform to sRGB, or None where nothing is to be done; the mode it takes; the profile's name, or what is wrong
    with it). A profile is judged by what it does to colours, not by its name.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        space, about = profile.profile.xcolor_space.strip(), profile.profile.profile_description
        takes = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space, "")
        if takes != mode and not (mode == "L" and takes == "RGB"):  # a grey image may have the profile of its greys
            return None, "", f"is one of {space} but the pixels are {mode}"
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        found = ImageCms.buildTransform(profile, srgb, takes, "RGB", intent, FLAGS)
    except Exception as error:  # LittleCMS's, and Pillow's of a broken header
        return None, "", f"cannot be read ({error})"
    if takes != "CMYK":
        steps = np.linspace(0, 255, 16).round().astype(np.uint8)
        probe = np.arange(256, dtype=np.uint8)[None]
        if takes == "RGB":
            lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
            probe = np.concatenate([np.repeat(probe[..., None], 3, axis=2), lattice], axis=1)
        colours = Image.fromarray(probe)
        was, now = (np.asarray(image.convert("RGB")).astype(int) for image in (colours, _apply(colours, found)))
        if np.abs(was - now).max() <= CLOSE:
            return None, takes, ""
    return found, takes, about or "without a name"


def _apply(image: Image.Image, transform: Any) -> Image.Image:
    """LittleCMS's transform of an image, which stays as it is."""
    found = ImageCms.applyTransform(image, transform)
    assert found is not None  # None is for changes in place
    return found
