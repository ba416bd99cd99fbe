"""The best, the median and the worst image: photo, prediction, truth and where the error lies."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from utils.evaluation import scoring
from utils.evaluation.pairs import Pair
from utils.evaluation.report.text import number
from utils.image_io.images import read_rgb
from utils.image_io.panels import data_uri
from utils.kinds.base import ErrorAxis, Rules

PICTURE_WIDTH = 420


INVALID = (70, 74, 82)


ERROR_COLOURS = ((13, 8, 55), (98, 20, 122), (196, 51, 92), (247, 138, 43), (252, 244, 170))


def examples(result: dict, headline: str, pairs: list[Pair], rules: Rules, photos: Mapping[str, Path]) -> str:
    images = [image for image in result["per_image"] if np.isfinite(image.get(headline, np.nan))]
    ranked = sorted(images, key=lambda image: (image[headline], image["name"]))
    if not ranked:
        return ""
    chosen = {"Best": ranked[0], "Median": ranked[(len(ranked) - 1) // 2], "Worst": ranked[-1]}
    by_name = {pair.name: pair for pair in pairs}
    return "".join(
        _example(kind, image, headline, by_name[image["name"]], rules, photos.get(image["name"]))
        for kind, image in chosen.items()
    )


def _example(kind: str, image: dict, headline: str, pair: Pair, rules: Rules, photo: Path | None) -> str:
    caption = (
        f"<h3>{kind} <span>{escape(pair.name)} · {headline} {number(image[headline])} · "
        f"{image['pixels']:,} pixels</span></h3>"
    )
    if pair.gt is None:
        pred, _ = scoring.load_prediction(pair, rules, None)
        figure = _figure(_colour_picture(pred[..., [0, -1, -1]] if pred.shape[2] == 1 else pred, None), "prediction")
        return f"{caption}<div class=figures>{figure}</div>"
    truth = scoring.load_truth(pair, rules)
    gt, valid = truth.gt, truth.valid
    pred, error = rules.kind.compare(scoring.load_prediction(pair, rules, truth)[0], gt, valid, rules)
    maps, note = rules.kind.figures(pred, gt, valid, rules)
    figures = [
        _figure(_colour_picture(values, valid), f"{name}<br><small>{note}</small>")
        for name, values in zip(("prediction", "ground truth"), maps)
    ]
    if photo is not None:
        figures.insert(0, _figure(np.asarray(read_rgb(photo))[truth.window], "image"))
    axis = rules.kind.axis
    figures.append(_figure(_error_picture(error, valid, axis), "error" + _colour_bar(axis)))
    return f"{caption}<div class=figures>{''.join(figures)}</div>"


def _colour_picture(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """uint8 (H, W, 3) from values in [0, 1]; pixels that do not count are dark grey."""
    picture = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)
    return picture if valid is None else np.where(valid[..., None], picture, np.array(INVALID, np.uint8))


def _error_picture(error: np.ndarray, valid: np.ndarray, axis: ErrorAxis) -> np.ndarray:
    places = np.linspace(0, axis.map_limit, len(ERROR_COLOURS))
    error = np.where(valid, error, 0)
    channels = [np.interp(error, places, [colour[c] for colour in ERROR_COLOURS]) / 255 for c in range(3)]
    return _colour_picture(np.stack(channels, axis=2), valid)


def _colour_bar(axis: ErrorAxis) -> str:
    stops = ", ".join(f"rgb{colour}" for colour in ERROR_COLOURS)
    ticks = "".join(f"<i>{axis.map_limit * k / 4:g}{axis.unit}</i>" for k in range(4))
    return (
        f'<div class=scale style="background:linear-gradient(90deg, {stops})"></div>'
        f"<div class=ticks>{ticks}<i>≥&nbsp;{axis.map_limit:g}{axis.unit}</i></div><small>{axis.label}; "
        "dark grey: no valid ground truth</small>"
    )


def _figure(picture: np.ndarray, caption: str) -> str:
    image = Image.fromarray(picture)
    if image.width > PICTURE_WIDTH:
        height = max(1, round(image.height * PICTURE_WIDTH / image.width))
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.BOX)
    uri = data_uri(image, "PNG", optimize=True)
    return f'<figure><img alt="" src="{uri}"><figcaption>{caption}</figcaption></figure>'
