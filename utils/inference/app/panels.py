"""What the browser is sent: pictures as data URIs, so that nothing of them lies on the disk."""

from collections.abc import Mapping

import torch
from PIL import Image
from torch.nn import functional as F

from utils.image_io.panels import data_uri, small, to_byte
from utils.inference.prediction import Prediction, uncertainty_picture
from utils.intrinsics import ALBEDO
from utils.kinds.axes import to_frame

SIDE = 1024  # longest side of a picture in the slider, in pixels
LIT_SIDE = 640  # and of the scene under the light, which is computed anew for every move
JPEG = {"quality": 92, "subsampling": 0}


def compare(image: Image.Image, maps: Mapping[str, Prediction]) -> dict:
    """The slider's value: title -> picture of the image, every map and every uncertainty; what it begins with."""
    pictures = {"image": image}
    for prediction in maps.values():
        panels = prediction.intrinsic.map_kind.shown(prediction.values)
        pictures |= {title: Image.fromarray(pixels) for title, pixels in panels.items()}
        if prediction.uncertainty is not None:
            grey = uncertainty_picture(prediction.uncertainty, prediction.intrinsic)
            pictures[f"{prediction.intrinsic.name}, uncertainty"] = Image.fromarray(grey)
    titles = list(pictures)
    return {
        "pictures": {title: data_uri(small(one, SIDE), "JPEG", **JPEG) for title, one in pictures.items()},
        "left": titles[0],
        "right": titles[min(1, len(titles) - 1)],
        "ratio": image.width / image.height,
    }


def relit(maps: Mapping[str, Prediction]) -> dict | None:
    """The light's value: normals in opengl axes, (n + 1) / 2 in 8 bits, and albedo, sRGB-coded, both as lossless PNG
    of one size; None where no map holds normals. Without an albedo the scene is white.
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
