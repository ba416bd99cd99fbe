"""The page itself, in Gradio 6: what is where, and the handlers of its events.

In a handler, an InputError becomes one line on the page. Any other exception is a defect and is only logged.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

from app.models import Models, Progress
from app.results import FORMATS, Result, compare, export, relit, surface
from app.upload import read_upload, remark, safe_stem
from utils.errors import InputError
from utils.image_io.files import PICTURES
from utils.inference.prediction import Prediction

HERE = Path(__file__).parent
INTRO = """# Intrinsic images
Choose an image and LoRAs, predict, then compare the maps, light the scene and turn the surface."""
MODEL = "model"  # events of this name wait for each other, because there is one model
SPACE = (1.0, 4.0, 60.0)  # metres of the nearest and the farthest pixel, and field of view in degrees, at the start
FIRST = "room"  # stem of the example that is chosen at the start
AGE = 3600  # seconds after which uploads and files for download are deleted while the server runs
Made = TypeVar("Made")


def build(models: Models, examples: Path) -> gr.Blocks:
    """The page. examples: a folder of images to try. The first is chosen at the start and predicted when the page is
    first opened: FIRST if it is there, because the shipped LoRAs were trained on rendered rooms.
    """
    found = (path for path in examples.glob("*") if path.suffix.lower() in PICTURES)
    images = sorted(found, key=lambda path: (path.stem != FIRST, path))
    handlers = Handlers(models, images)
    title = "Intrinsic images"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(AGE // 4, AGE)) as page:
        gr.Markdown("\n\n".join(filter(None, (INTRO, models.toys()))), elem_id="intro")
        result = gr.State(None, time_to_live=AGE, delete_callback=forget)
        with gr.Row():
            with gr.Column(scale=2, min_width=240):
                file, gallery = _image_input(images)
                notice = gr.Markdown(visible=False, elem_id="notice")
                loras, ensemble = _choice(models)
                predict = gr.Button("Predict", variant="primary", elem_id="predict")
            with gr.Column(scale=5, min_width=240):
                first = compare(read_upload(images[0]), {}) if images else None
                slider = _part("compare", first)
        with gr.Row():
            with gr.Column(min_width=240):
                light = _part("light", None)
            with gr.Column(min_width=240):
                model = gr.Model3D(label="Depth as a surface", elem_id="surface", height=380, interactive=False)
                space = _space()
        made, make, formats = _downloads()

        views = [slider, light, model, made]
        # two events: whoever has chosen another image while the first one was predicted keeps it
        opened = page.load(handlers.prepare, None, notice, show_progress_on=slider, **closed(MODEL))
        started = opened.success(handlers.first, [file, result], [result, *views], show_progress="hidden", **closed())
        shown = [notice, result, *views]
        file.change(handlers.show, [file, result], shown, show_progress="hidden", cancels=started, **closed())
        gallery.select(handlers.example, None, file, show_progress="hidden", **closed())
        inputs = [file, loras, ensemble, *space, result]
        predict.click(handlers.predict, inputs, [result, *views], show_progress_on=slider, **closed(MODEL))
        for number in space:
            number.release(handlers.turn, [result, *space], model, **closed())
        make.click(handlers.files, [result, formats, *space], made, **closed())
    return page


def closed(group: str | None = None) -> dict[str, Any]:
    """Keywords of an event that the API does not offer. Events of a group wait for each other."""
    return {"api_visibility": "private", "concurrency_id": group, "concurrency_limit": 1}


def look() -> dict[str, Any]:
    """Gradio's theme with system fonts, so that none is loaded, and the page's style. It is put into the head because
    Gradio's own parameter for it would restrict it to the inside of the page.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "head": f"<style>{(HERE / 'app.css').read_text()}</style>"}


def _part(name: str, value: Any) -> gr.HTML:
    """A part of the page that <name>.js fills and updates in the browser."""
    script = (HERE / f"{name}.js").read_text()
    return gr.HTML(value, html_template=f'<div class="{name}-part"></div>', js_on_load=script, elem_id=name)


def _image_input(examples: list[Path]) -> tuple[gr.File, gr.Gallery]:
    file = gr.File(
        str(examples[0]) if examples else None, label="Image", file_types=list(PICTURES), height=120, elem_id="file"
    )
    gallery = gr.Gallery(
        [(str(path), path.stem) for path in examples],
        label="Examples",
        columns=4,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=bool(examples),
        elem_id="examples",
    )
    return file, gallery


def _choice(models: Models) -> tuple[gr.CheckboxGroup, gr.Slider]:
    labels, chosen = list(models.jobs), models.first_choice()
    loras = gr.CheckboxGroup(labels, value=chosen, label="LoRAs", elem_id="loras")
    diffusing = any(job.method == "augunet" for job in models.jobs.values())
    ensemble = gr.Slider(1, 10, 1, step=1, visible=diffusing, label="Ensemble", elem_id="ensemble",
        info="for LoRAs that diffuse; 2 or more also give uncertainties")  # fmt: skip
    return loras, ensemble


def _space() -> list[gr.Slider]:
    """The scale of the surface, which a predicted depth does not have."""
    with gr.Row():
        near = gr.Slider(0.1, 10, SPACE[0], step=0.1, label="Nearest, metres", min_width=160, elem_id="near")
        far = gr.Slider(0.2, 50, SPACE[1], step=0.1, label="Farthest, metres", min_width=160, elem_id="far")
        fov = gr.Slider(10, 120, SPACE[2], step=1, label="Field of view, degrees", min_width=160, elem_id="fov")
    return [near, far, fov]


def _downloads() -> tuple[gr.File, gr.Button, gr.CheckboxGroup]:
    with gr.Row():
        with gr.Column(min_width=240):
            formats = gr.CheckboxGroup(list(FORMATS), value=list(FORMATS), label="Files", elem_id="formats",
                info="GLB is the depth as a surface, with the metres above")  # fmt: skip
            make = gr.Button("Make files", elem_id="make")
        with gr.Column(scale=2, min_width=240):
            made = gr.File(label="Download", file_count="multiple", interactive=False, elem_id="made")
    return made, make, formats


def one_line(handler: Callable[..., Made]) -> Callable[..., Made]:
    """`handler` with its InputErrors shown to the user. Gradio reads messages as HTML, so file names are escaped."""

    @wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Made:
        try:
            return handler(*args, **kwargs)
        except InputError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None

    return wrapped


class Handlers:
    """The page's event handlers. examples: image files, in the order of the gallery."""

    def __init__(self, models: Models, examples: Sequence[Path]):
        self.models, self.examples = models, examples
        self.made: tuple[Image.Image, Mapping[str, Prediction]] | None = None  # the first example, predicted

    @one_line
    def prepare(self, progress: gr.Progress = gr.Progress()) -> dict:  # noqa: B008 - how Gradio passes its progress bar
        """Predict the first example with the LoRAs that are ticked at first, once for all who open the page. Not by
        diffusion, which may take minutes, during which nobody could predict anything else.
        """
        labels = self.models.first_choice()
        diffusing = any(self.models.jobs[label].method == "augunet" for label in labels)
        if self.made is None and self.examples and not diffusing:
            image = read_upload(self.examples[0])
            self.made = image, self.models.predict(image, self.examples[0].name, labels, 1, reporter(progress))
        return gr.skip()

    def first(self, path: str | None, result: Result | None) -> tuple:
        """The first example's (result, slider, light, surface, files), if it is still the one on the page, and nothing
        has been predicted meanwhile.
        """
        chosen = self.made is not None and path is not None and Path(path).name == self.examples[0].name
        if self.made is None or not chosen or result is not None:
            return (gr.skip(),) * 5
        image, maps = self.made
        return views_of(Result(image, safe_stem(self.examples[0]), maps), *SPACE)

    @one_line
    def show(self, path: str | None, old: Result | None) -> tuple:
        """Take a new image: (notice, result, slider, light, surface, files), those after the slider empty."""
        forget(old)
        if path is None:
            return gr.update(visible=False), None, None, None, None, None
        image = read_upload(path)
        said = remark(path, image)
        return gr.update(value=escape(said), visible=bool(said)), None, compare(image, {}), None, None, None

    def example(self, event: gr.SelectData) -> str:
        """The image that was clicked in the gallery."""
        return str(self.examples[int(event.index)])

    @one_line
    def predict(
        self,
        path: str | None,
        labels: list[str],
        ensemble: float,
        near: float,
        far: float,
        fov: float,
        old: Result | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio passes its progress bar
    ) -> tuple:
        """Predict all maps of the image: (result, slider, light, surface, files)."""
        if path is None:
            raise InputError("no image is chosen; upload one, or take an example")
        self.models.check(labels)
        image = read_upload(path)
        maps = self.models.predict(image, Path(path).name, labels, int(ensemble), reporter(progress))
        forget(old)
        return views_of(Result(image, safe_stem(path), maps), near, far, fov)

    @one_line
    def turn(self, result: Result | None, near: float, far: float, fov: float) -> str | None:
        """The surface at another scale."""
        return None if result is None else surface_file(result, near, far, fov)

    @one_line
    def files(self, result: Result | None, formats: list[str], near: float, far: float, fov: float) -> list[str]:
        """Write files of all maps in these formats."""
        if result is None:
            raise InputError("nothing is predicted yet; press Predict first")
        return [str(path) for path in export(result, formats, near, far, fov)]


def reporter(progress: gr.Progress) -> Progress:
    """Gradio's bar, which counts UNet passes."""
    return lambda done, total, what: progress((done, total) if done else 0, desc=what, unit="passes")


def views_of(result: Result, near: float, far: float, fov: float) -> tuple:
    """(result, slider, light, surface, files), the last empty."""
    maps = result.maps
    return result, compare(result.image, maps), relit(maps), surface_file(result, near, far, fov), None


def forget(result: Result | None) -> None:
    """Delete the files of a result that is no longer needed."""
    if result is not None:
        result.remove()


def surface_file(result: Result, near: float, far: float, fov: float) -> str | None:
    """The surface's file. If it cannot be made, None and a warning on the page: the maps are still there."""
    try:
        path = surface(result, near, far, fov)
    except InputError as error:
        gr.Warning(escape(str(error)))
        return None
    return None if path is None else str(path)
