"""The page's results: images for the browser, as data URIs so that none is written to disk, and files for
download, in the inference scripts' formats and in the session's own folder.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import torch
from PIL import Image
from torch.nn import functional as F

from utils.errors import InputError
from utils.image_io.panels import small, to_byte
from utils.inference.output import Output
from utils.inference.prediction import Prediction, uncertainty_picture
from utils.inference.write import write
from utils.intrinsics import ALBEDO
from utils.kinds.axes import to_frame
from utils.pages import data_uri
from utils.system.atomic import make_folder

SIDE = 1024  # longest side of an image in the slider, in pixels
LIT_SIDE = 640  # longest side of the scene under the light, which is computed for every move of the lamp
PREVIEW_SIDE = 256  # longest side of the surface in the 3D view, in pixels
JPEG = {"quality": 92, "subsampling": 0}
FORMATS = {"PNG, 16 bits": "png16", "EXR": "exr", "GLB": "glb"}  # label on the page -> name in --formats


def compare(image: Image.Image, maps: Mapping[str, Prediction]) -> dict:
    """The slider's value: the image, every map and every uncertainty by title, and which two it starts with."""
    images = {"image": image}
    for prediction in maps.values():
        panels = prediction.intrinsic.map_kind.shown(prediction.values)
        images |= {title: Image.fromarray(pixels) for title, pixels in panels.items()}
        if prediction.uncertainty is not None:
            grey = uncertainty_picture(prediction.uncertainty, prediction.intrinsic)
            images[f"{prediction.intrinsic.name}, uncertainty"] = Image.fromarray(grey)
    titles = list(images)
    return {
        "images": {title: data_uri(small(one, SIDE), "JPEG", **JPEG) for title, one in images.items()},
        "left": titles[0],
        "right": titles[min(1, len(titles) - 1)],
        "ratio": image.width / image.height,
    }


def relit(maps: Mapping[str, Prediction]) -> dict | None:
    """The light's value: normals in opengl axes, (n + 1) / 2 in 8 bits, and sRGB-coded albedo, both as lossless PNG of
    one size. None without normals. Without an albedo the scene is white.
    """
    normals = next((one for one in maps.values() if one.intrinsic.map_kind.has_axes), None)
    if normals is None:
        return None
    height, width = normals.shape
    scale = min(1.0, LIT_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    area = F.interpolate(torch.from_numpy(normals.values).permute(2, 0, 1)[None], size=size, mode="area")[0]
    vectors = F.normalize(area, dim=0, eps=1e-12).permute(1, 2, 0).numpy()
    value = {
        "normals": data_uri(Image.fromarray(to_byte(to_frame(vectors, "opengl") / 2 + 0.5)), "PNG"),
        "albedo": None,
    }
    if ALBEDO.name in maps:
        albedo = Image.fromarray(ALBEDO.map_kind.shown(maps[ALBEDO.name].values)[ALBEDO.name])
        value["albedo"] = data_uri(albedo.resize(size[::-1], Image.Resampling.BOX), "PNG")
    return value


@dataclass
class Result:
    """The maps of one image in one session, and the folder of files made from them."""

    image: Image.Image
    stem: str
    maps: Mapping[str, Prediction]
    folder: Path = field(default_factory=lambda: Path(mkdtemp(prefix="maps-")))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def surface(result: Result, near: float, far: float, fov: float) -> Path | None:
    """A small .glb of the depth, to look at; None without depth. Raises `Output`'s InputErrors."""
    depth = next((one for one in result.maps.values() if one.intrinsic.map_kind.has_surface), None)
    if depth is None:
        return None
    output = Output(("glb",), near=near, far=far, fov=fov)
    small = shrunk(depth, PREVIEW_SIDE)
    path = result.folder / "preview" / f"{result.stem}_3d.png"
    write(small, path, output, result.image.resize(small.shape[::-1]))
    return path.with_suffix(".glb")


def export(result: Result, names: Sequence[str], near: float, far: float, fov: float) -> list[Path]:
    """Write all maps in these formats, keys of FORMATS; return the files. InputError if no format is ticked, or
    `Output`'s.
    """
    formats = tuple(FORMATS[name] for name in names if name in FORMATS)
    if not formats:
        raise InputError("no format is ticked; tick at least one")
    output = Output(formats, near=near, far=far, fov=fov) if "glb" in formats else Output(formats)
    output.check([one.intrinsic for one in result.maps.values()])
    folder = result.folder / "files"
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder, "the temporary folder")
    for name, prediction in result.maps.items():
        write(prediction, folder / f"{result.stem}_{name}.png", output, result.image)
    return sorted(folder.iterdir())


def shrunk(prediction: Prediction, side: int) -> Prediction:
    """A prediction of depth or colour whose longest side is at most `side` pixels."""
    height, width = prediction.shape
    scale = side / max(height, width)
    if scale >= 1:
        return prediction
    size = (max(2, round(height * scale)), max(2, round(width * scale)))
    return Prediction(
        prediction.intrinsic, F.interpolate(prediction.map[None], size=size, mode="area")[0], None, prediction.facts
    )
