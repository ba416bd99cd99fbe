"""One HTML page of images and their maps: no server, nothing loaded from elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError, note
from utils.image_io.images import read_rgb
from utils.image_io.panels import small
from utils.inference.job import Job, short
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.pages import data_uri, write_page

SIDE = 1024  # longest side of an image in the page, in pixels; the files have the full size
QUALITY = 90
TITLE = "Intrinsic images"


class Page:
    """The page of a run, filled image by image. names: file -> its title; colours: the frame of normals'
    colours; output: what the files hold; square: maps are of the centre square.
    """

    def __init__(self, names: Mapping[Path, str], colours: str, output: Output, square: bool = False):
        self.names, self.colours, self.output, self.square = names, colours, output, square
        self.sections: list[dict[str, object]] = []

    def add(self, path: Path, maps: Mapping[str, Prediction]) -> None:
        """One image and its maps, all shown at one size."""
        image = read_rgb(path)
        panels: dict[str, np.ndarray] = {}
        for prediction in maps.values():
            panels |= prediction.intrinsic.map_kind.shown(prediction.values, self.colours)
        if self.square:
            side = min(image.size)
            image = ImageOps.fit(image, (side, side))
        shown = {"image": image} | {title: Image.fromarray(pixels) for title, pixels in panels.items()}
        jpeg = {"quality": QUALITY, "subsampling": 0}
        uris = {title: data_uri(small(one, SIDE), "JPEG", **jpeg) for title, one in shown.items()}
        self.sections.append({"name": self.names[path], "images": uris, "ratio": f"{image.width / image.height:.4f}"})

    def write(self, folder: str | Path, jobs: Sequence[Job]) -> Path:
        """Write index.html into `folder`; its path. Raises InputError where the folder cannot be written."""
        kinds = [(job.intrinsic.map_kind, self.output.convention(job.intrinsic)[1]) for job in jobs]
        legends = [kind.legend(self.colours, meaning) for kind, meaning in kinds]
        facts = [f"{job.intrinsic.name}: {short(job.name)}" for job in jobs] + [f"base: {short(jobs[0].model)}"]
        facts += [legend for legend in legends if legend is not None]
        return write_page(folder, "--output_dir", "comparison.html", title=TITLE, facts=facts, sections=self.sections)


def refuse_other_page(folder: str | Path) -> None:
    """InputError where `folder` has an index.html that is not a page of this kind; a note where it is: maps stay, but
    the page shows the images of one run.
    """
    path = Path(folder) / "index.html"
    if not path.is_file():
        return
    if f"<title>{TITLE}</title>" not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise InputError(f"--output_dir: {path} is another page, which would be overwritten; name another folder")
    note(f"{path}: the page of an earlier run is replaced; its maps stay")
