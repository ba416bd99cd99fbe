"""Maps to files for download: the inference scripts' formats, in a folder of the session's own."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image

from utils.errors import InputError
from utils.inference.app.panels import shrunk
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.write import write
from utils.system.atomic import make_folder

FORMATS = {"PNG, 16 bits": "png16", "EXR": "exr", "GLB": "glb"}  # as the page calls them
PREVIEW_SIDE = 256  # longest side of the surface in the 3D view, in pixels


@dataclass
class Result:
    """The maps of one image in one session, and the folder of files made of them."""

    image: Image.Image
    stem: str
    maps: Mapping[str, Prediction]
    folder: Path = field(default_factory=lambda: Path(mkdtemp(prefix="maps-")))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def surface(result: Result, near: float, far: float, fov: float) -> Path | None:
    """A small .glb of the depth, for the eye; None where there is no depth. InputError as `Output` has it."""
    depth = next((one for one in result.maps.values() if one.intrinsic.map_kind.has_surface), None)
    if depth is None:
        return None
    output = Output(("glb",), near=near, far=far, fov=fov)
    small = shrunk(depth, PREVIEW_SIDE)
    path = result.folder / "preview" / f"{result.stem}_3d.png"
    write(small, path, output, result.image.resize(small.shape[::-1]))
    return path.with_suffix(".glb")


def export(result: Result, names: Sequence[str], near: float, far: float, fov: float) -> list[Path]:
    """Write all maps in these formats, keys of FORMATS; the files. InputError where there is none, or as `Output`."""
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
