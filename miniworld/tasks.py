"""The four intrinsics of a rendered tree: data set, folder of the ground truth, prompt, scores and picture of each.

The one table of tasks, for programs that treat them alike (the demo, the benchmarks); a training script names its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from dataloaders.diode import Diode, DiodeDepth, DiodeNormals
from dataloaders.diode_colour import DiodeAlbedo, DiodeShading
from utils.inference.args import PROMPTS
from utils.maps.pictures import colour_picture, depth_picture, normals_picture
from utils.metrics.scores import score_colour, score_depth, score_normals


@dataclass(frozen=True)
class Task:
    """folder: below the tree's root, for the data set as for `evaluate.py --gt_dir`. metrics: name -> title, the
    first being the one to watch. score and picture: of a drawing and its ground truth."""

    dataset: type[Diode]
    folder: str
    prompt: str
    score: Callable[[Tensor, Tensor, Tensor], dict[str, float] | None]
    picture: Callable[[Tensor, Tensor], Tensor]
    metrics: dict[str, str]
    evaluation: tuple[str, ...] = field(default=())


LINEAR = ("--pred_space", "srgb", "--gt_space", "linear")
COLOUR = {"rmse": "RMSE after scale, linear", "ssim": "SSIM (higher is better)"}
TASKS = {
    "normal": Task(
        DiodeNormals, "normals", PROMPTS["normal"], score_normals, normals_picture,
        {"mean": "mean angle, degrees", "median": "median angle, degrees"}, ("--protocol", "pooled"),
    ),
    "depth": Task(
        DiodeDepth, "depths", PROMPTS["depth"], score_depth, depth_picture,
        {"abs_rel": "AbsRel after scale and shift", "delta1": "delta1 (higher is better)"},
        ("--protocol", "diode", "--erode", "0"),
    ),
    "albedo": Task(DiodeAlbedo, "truth/albedo", PROMPTS["albedo"], score_colour, colour_picture, COLOUR, LINEAR),
    "shading": Task(DiodeShading, "truth/shading", PROMPTS["shading"], score_colour, colour_picture, COLOUR, LINEAR),
}  # fmt: skip
