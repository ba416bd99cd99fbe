"""One HTML page of images and their maps: no server, nothing loaded from elsewhere."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.errors import InputError, note
from utils.image_io.images import read_rgb
from utils.image_io.panels import data_uri, small
from utils.inference.job import Job, short
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.system.atomic import make_folder, save_bytes

SIDE = 1024  # longest side of an image in the page, in pixels; the files have the full size
QUALITY = 90
TITLE = "<title>Intrinsic images</title>"


class Page:
    """The page of a run, filled image by image. names: file -> its title; colours: the frame of normals'
    colours; output: what the files hold; square: maps are of the centre square.
    """

    def __init__(self, names: Mapping[Path, str], colours: str, output: Output, square: bool = False):
        self.names, self.colours, self.output, self.square = names, colours, output, square
        self.sections: list[str] = []

    def add(self, path: Path, maps: Mapping[str, Prediction]) -> None:
        """One image and its maps, all shown at one size."""
        image = read_rgb(path)
        panels: dict[str, np.ndarray] = {}
        for prediction in maps.values():
            panels |= prediction.intrinsic.map_kind.shown(prediction.values, self.colours)
        if self.square:
            side = min(image.size)
            image = ImageOps.fit(image, (side, side))
        pictures = {"image": image} | {title: Image.fromarray(pixels) for title, pixels in panels.items()}
        jpeg = {"quality": QUALITY, "subsampling": 0}
        uris = {title: data_uri(small(picture, SIDE), "JPEG", **jpeg) for title, picture in pictures.items()}
        self.sections.append(_section(len(self.sections), self.names[path], uris, image.width / image.height))

    def write(self, folder: str | Path, jobs: Sequence[Job]) -> Path:
        """Write index.html into `folder`; its path. Raises InputError where the folder cannot be written."""
        path = Path(folder) / "index.html"
        make_folder(path.parent, "--output_dir")
        facts = [f"{job.intrinsic.name}: {short(job.name)}" for job in jobs] + [f"base: {short(jobs[0].model)}"]
        legends = [
            job.intrinsic.map_kind.legend(self.colours, self.output.convention(job.intrinsic)[1]) for job in jobs
        ]
        facts += [legend for legend in legends if legend is not None]
        text = PAGE.replace("TITLE", TITLE).replace("FACTS", "".join(f"<p>{escape(fact)}</p>" for fact in facts))
        text = text.replace("BODY", "".join(self.sections))
        save_bytes(path, text.encode(errors="backslashreplace"))
        return path


def refuse_other_page(folder: str | Path) -> None:
    """InputError where `folder` has an index.html that is not a page of this kind; a note where it is: maps stay, but
    the page shows the images of one run.
    """
    path = Path(folder) / "index.html"
    if not path.is_file():
        return
    if TITLE not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise InputError(f"--output_dir: {path} is another page, which would be overwritten; name another folder")
    note(f"{path}: the page of an earlier run is replaced; its maps stay")


def _section(number: int, name: str, pictures: Mapping[str, str], ratio: float) -> str:
    """The compare slider and, below it, all images, each a button that puts it on the right."""
    titles = list(pictures)
    right = titles[min(1, len(titles) - 1)]
    name = escape(name)
    thumbs = "".join(
        f'<button type="button" data-title="{escape(title)}"><img src="{uri}" alt="{escape(title)} of {name}">'
        f"<span>{escape(title)}</span></button>"
        for title, uri in pictures.items()
    )
    return f"""
<section id="s{number}">
<h2>{name}</h2>
<div class="bar">{_choice("left", titles, titles[0])}{_choice("right", titles, right)}</div>
<div class="compare" style="--ratio: {ratio:.4f}">
<img class="right" src="{pictures[right]}" alt="{escape(right)} of {name}">
<img class="left" src="{pictures[titles[0]]}" alt="image {name}">
<div class="line"></div>
<input type="range" min="0" max="100" value="50" step="0.5" aria-label="compare left and right of {name}">
</div>
<div class="thumbs">{thumbs}</div>
</section>"""


def _choice(side: str, titles: Sequence[str], chosen: str) -> str:
    options = "".join(f"<option{' selected' if t == chosen else ''}>{escape(t)}</option>" for t in titles)
    return f'<label>{side} <select class="{side}">{options}</select></label>'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
TITLE
<style>
:root { color-scheme: light dark; --line: #8885; }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem } h2 { font-size: 1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere }
p { margin: .2rem 0; opacity: .8; font-size: .9rem; overflow-wrap: anywhere }
.bar { display: flex; gap: 1.5rem; flex-wrap: wrap; margin-bottom: .5rem }
select { font: inherit; max-width: 40vw }
.compare { position: relative; width: min(100%, calc(78vh * var(--ratio)));
 --at: 50%; line-height: 0; border-radius: 6px; overflow: hidden }
.compare img { width: 100%; display: block }
.compare .left { position: absolute; inset: 0; height: 100%; clip-path: inset(0 calc(100% - var(--at)) 0 0) }
.compare .line { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px;
 background: #fff; box-shadow: 0 0 3px #000 }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize }
.compare:focus-within { outline: 3px solid #48f }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .5rem; margin-top: .5rem }
.thumbs button { all: unset; cursor: pointer; border: 1px solid var(--line); border-radius: 6px; overflow: hidden }
.thumbs button:focus-visible { outline: 3px solid #48f }
.thumbs img { width: 100%; display: block } .thumbs span { display: block; padding: .2rem .4rem; font-size: .8rem }
</style>
</head>
<body>
<h1>Intrinsic images</h1>
FACTS
BODY
<script>
for (const section of document.querySelectorAll("section")) {
  const compare = section.querySelector(".compare"), source = {};
  for (const button of section.querySelectorAll("button")) {
    source[button.dataset.title] = button.querySelector("img");
    button.addEventListener("click", () => choose("right", button.dataset.title));
  }
  function choose(side, title) {
    const image = compare.querySelector("img." + side);
    image.src = source[title].src;
    image.alt = source[title].alt;
    section.querySelector("select." + side).value = title;
  }
  for (const side of ["left", "right"]) {
    const select = section.querySelector("select." + side);
    select.addEventListener("change", () => choose(side, select.value));
  }
  const slider = compare.querySelector("input");
  slider.addEventListener("input", () => compare.style.setProperty("--at", slider.value + "%"));
}
</script>
</body>
</html>
"""
