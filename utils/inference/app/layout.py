"""The page itself, in Gradio 6: what stands where, and which handler answers what."""

from pathlib import Path
from typing import Any

import gradio as gr

from utils.image_io.files import PICTURES
from utils.inference.app.files import FORMATS
from utils.inference.app.handlers import Handlers, forget
from utils.inference.app.models import Models
from utils.inference.app.panels import compare
from utils.inference.app.server import AGE
from utils.inference.app.upload import read_upload

HERE = Path(__file__).parent
INTRO = """# Intrinsic images
Choose a picture and LoRAs, predict, then compare, light and turn what comes out."""
MODEL = "model"  # events of this name wait for each other: there is one model


def build(models: Models, examples: Path, about: str = "") -> gr.Blocks:
    """The page. examples: a folder of pictures to try; the first is there from the start. about: a word on the
    LoRAs.
    """
    pictures = sorted(path for path in examples.glob("*") if path.suffix.lower() in PICTURES)
    handlers = Handlers(models, pictures)
    title = "Intrinsic images"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(AGE // 4, AGE)) as page:
        gr.Markdown(INTRO)
        result = gr.State(None, time_to_live=AGE, delete_callback=forget)
        with gr.Row():
            with gr.Column(scale=2, min_width=240):
                file, gallery = _pictures(pictures)
                loras, ensemble = _choice(models, about)
                predict = gr.Button("Predict", variant="primary", elem_id="predict")
            with gr.Column(scale=5, min_width=240):
                first = compare(read_upload(pictures[0]), {}) if pictures else None
                slider = _part("compare", first)
        with gr.Row():
            with gr.Column(min_width=240):
                light = _part("light", None)
            with gr.Column(min_width=240):
                model = gr.Model3D(label="Depth as a surface", elem_id="surface", height=380, interactive=False)
                space = _space()
        made, make, formats = _downloads()

        views = [slider, light, model, made]
        file.change(handlers.show, [file, result], [result, *views], show_progress="hidden", **closed())
        gallery.select(handlers.example, None, file, show_progress="hidden", **closed())
        inputs = [file, loras, ensemble, *space, result]
        predict.click(handlers.predict, inputs, [result, *views], show_progress_on=slider, **closed(MODEL))
        for number in space:
            number.release(handlers.turn, [result, *space], model, **closed())
        make.click(handlers.files, [result, formats, *space], made, **closed())
    return page


def closed(group: str | None = None) -> dict[str, Any]:
    """Keywords of an event: no door of the API leads to it; events of a group wait for each other."""
    return {"api_visibility": "private", "concurrency_id": group, "concurrency_limit": 1}


def look() -> dict[str, Any]:
    """Gradio's theme with the system's own fonts, so that none is loaded, and the page's style, which Gradio's own
    parameter for it would confine to the inside of the page.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "head": f"<style>{(HERE / 'app.css').read_text()}</style>"}


def _part(name: str, value: Any) -> gr.HTML:
    """A part of the page that <name>.js fills and keeps alive, in the browser alone."""
    script = (HERE / f"{name}.js").read_text()
    return gr.HTML(value, html_template=f'<div class="{name}-part"></div>', js_on_load=script, elem_id=name)


def _pictures(examples: list[Path]) -> tuple[gr.File, gr.Gallery]:
    file = gr.File(
        str(examples[0]) if examples else None, label="Picture", file_types=list(PICTURES), height=120, elem_id="file"
    )
    gallery = gr.Gallery(
        [(str(path), path.stem) for path in examples],
        label="Examples",
        columns=3,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=bool(examples),
        elem_id="examples",
    )
    return file, gallery


def _choice(models: Models, about: str) -> tuple[gr.CheckboxGroup, gr.Slider]:
    labels, chosen = list(models.jobs), models.first_choice()
    loras = gr.CheckboxGroup(labels, value=chosen, label="LoRAs", info=about or None, elem_id="loras")
    diffusing = any(job.method == "augunet" for job in models.jobs.values())
    ensemble = gr.Slider(1, 10, 1, step=1, visible=diffusing, label="Ensemble", elem_id="ensemble",
        info="of LoRAs that diffuse; from 2 on with uncertainty")  # fmt: skip
    return loras, ensemble


def _space() -> list[gr.Slider]:
    """Depth has no scale: these give a surface one."""
    with gr.Row():
        near = gr.Slider(0.1, 10, 1, step=0.1, label="Nearest, metres", min_width=160, elem_id="near")
        far = gr.Slider(0.2, 50, 4, step=0.1, label="Farthest, metres", min_width=160, elem_id="far")
        fov = gr.Slider(10, 120, 60, step=1, label="Field of view, degrees", min_width=160, elem_id="fov")
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
