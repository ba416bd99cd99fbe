"""What the page's events do. An InputError becomes one line on the page; all else is a defect, and only logged."""

from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from utils.errors import InputError
from utils.inference.app.files import Result, export, surface
from utils.inference.app.models import Models
from utils.inference.app.panels import compare, relit
from utils.inference.app.upload import read_upload, safe_stem

Made = TypeVar("Made")


def one_line(handler: Callable[..., Made]) -> Callable[..., Made]:
    """The handler, its InputErrors shown to the user. Gradio takes messages for HTML: names of files are escaped."""

    @wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Made:
        try:
            return handler(*args, **kwargs)
        except InputError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None

    return wrapped


class Handlers:
    """models: what predicts. examples: pictures, in the order of the gallery."""

    def __init__(self, models: Models, examples: Sequence[Path]):
        self.models, self.examples = models, examples

    @one_line
    def show(self, path: str | None, old: Result | None) -> tuple:
        """A new picture: (result, slider, light, surface, files), all but the slider empty."""
        forget(old)
        value = None if path is None else compare(read_upload(path), {})
        return None, value, None, None, None

    def example(self, event: gr.SelectData) -> str:
        """The picture that was clicked on in the gallery."""
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
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio hands its bar over
    ) -> tuple:
        """All maps of the picture: (result, slider, light, surface, files)."""
        if path is None:
            raise InputError("no picture is chosen; upload one, or take an example")
        self.models.check(labels)
        image = read_upload(path)

        def report(done: int, total: int, what: str) -> None:
            progress((done, total) if done else 0, desc=what, unit="passes")

        maps = self.models.predict(image, Path(path).name, labels, int(ensemble), report)
        forget(old)
        result = Result(image, safe_stem(path), maps)
        return result, compare(image, maps), relit(maps), seen(result, near, far, fov), None

    @one_line
    def turn(self, result: Result | None, near: float, far: float, fov: float) -> str | None:
        """The surface with other metres."""
        return None if result is None else seen(result, near, far, fov)

    @one_line
    def files(self, result: Result | None, formats: list[str], near: float, far: float, fov: float) -> list[str]:
        """Files of all maps in these formats."""
        if result is None:
            raise InputError("there are no maps yet; press Predict first")
        return [str(path) for path in export(result, formats, near, far, fov)]


def forget(result: Result | None) -> None:
    """Delete what lies on the disk of a result that is no longer wanted."""
    if result is not None:
        result.remove()


def seen(result: Result, near: float, far: float, fov: float) -> str | None:
    """The surface's file; None, and a warning on the page, where it cannot be made: the maps are there anyhow."""
    try:
        path = surface(result, near, far, fov)
    except InputError as error:
        gr.Warning(escape(str(error)))
        return None
    return None if path is None else str(path)
