"""LoRAs on rooms rendered in Blender: the shipped ones, trained on another world, and ones trained on rooms.

    python -m integrations.blender.rooms --out data/rooms --bpy_python .bpy/bin/python
    python -m studies.rooms --data data/rooms --out runs/rooms

Trains a LoRA for each intrinsic on the two training rooms with the single-step script, predicts the third room, which
no training image shows, with it and with miniworld/mini-loras, and scores both as evaluate.py does. The reference is
the mean of the training labels, pixel by pixel. Writes <out>/results.md and <out>/rooms.jpg. Existing LoRAs are kept.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from dataloaders.folder import open_folder
from dataloaders.listing import folder_samples
from miniworld.demo_steps import python
from miniworld.references import evaluation_flags, write_mean_label
from utils.cli import Parser, path_flag
from utils.errors import InputError, run
from utils.evaluation.args import parse_args
from utils.evaluation.run import evaluate
from utils.image_io.colour_space import to_srgb
from utils.image_io.panels import sheet
from utils.intrinsics import INTRINSICS
from utils.lora import SAFETENSORS
from utils.paths import ROOT

ROWS = {"mini": "LoRA of the mini world", "rooms": "LoRA trained on rooms", "mean": "mean of the training labels"}
SIDE, SHOWN = 64, (0, 5, 10, 15)  # images of the third room


def train(task: str, data: Path, out: Path, steps: int) -> None:
    """The command of docs/training.md on the two training rooms."""
    words = [
        "--pretrained_model_name_or_path=miniworld/mini-sd",
        "--dataset=folder",
        f"--train_data_dir={data / task}",
    ]
    words += [f"--output_dir={out}", "--resolution=64", "--timestep=400", "--learning_rate=4e-3"]
    words += ["--lr_scheduler=linear", f"--max_train_steps={steps}", "--lora_targets=all", "--validation_steps=0"]
    python(f"sd_single_diode_pseudo_{task}.py", *words, "--report_to=none")


def predict(data: Path, out: Path) -> None:
    """The third room's maps: <out>/<mini|rooms|mean>/<task>/predicted/. All tasks have the same images."""
    images = data / "normal" / "images" / "val"
    for name, loras in {"mini": ROOT / "miniworld" / "mini-loras", "rooms": out / "loras"}.items():
        words = [images, "--lora", *(loras / task for task in INTRINSICS), "--output_dir", out / name]
        python("predict.py", *words, "--center_crop", "--formats", "npy", "--batch_size", 10)
    shutil.rmtree(out / "mean", ignore_errors=True)
    for task, intrinsic in INTRINSICS.items():
        seen, _ = open_folder(folder_samples(data / task), intrinsic, 0.1, 0, resolution=SIDE)
        write_mean_label(seen, [path.stem for path in images.iterdir()], intrinsic, out / "mean")


def truth(task: str, data: Path, out: Path) -> tuple[Path, Path]:
    """Folders of ground truth and masks: the rendered ones; of colours their means over as many pixels as a pixel of
    the prediction covers, because a path tracer's noise is in them.
    """
    folders = {what: data / task / what / "val" for what in ("gt", "masks")}
    if not INTRINSICS[task].map_kind.in_diode:
        for what, folder in folders.items():
            folders[what] = out / "truth" / task / what
            folders[what].mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                values = np.load(file, allow_pickle=False)
                cell = len(values) // SIDE
                cells = values.reshape(SIDE, cell, SIDE, cell, *values.shape[2:]).swapaxes(1, 2)
                np.save(folders[what] / file.name, cells.all((2, 3)) if what == "masks" else cells.mean((2, 3)))
    return folders["gt"], folders["masks"]


def score(task: str, out: Path, row: str, gt: Path, masks: Path) -> str:
    """The first metric with its interval."""
    intrinsic = INTRINSICS[task]
    words = ["--task", task, "--pred_dir", out / row / task / "predicted", "--gt_dir", gt, "--mask_dir", masks]
    words += [
        "--center_crop",
        *(("--protocol", "plain") if intrinsic.map_kind.has_surface else evaluation_flags(intrinsic)),
    ]
    found = evaluate(parse_args("", [str(word) for word in words]))
    name = next(iter(intrinsic.scores))
    low, high = found["intervals"][name]
    return f"{found['metrics'][name]:.3g} [{low:.3g}, {high:.3g}]"


def draw(data: Path, out: Path) -> Image.Image:
    """For some images of the third room: RGB; exact map, the two predictions of each intrinsic."""
    images = sorted((data / "normal" / "images" / "val").iterdir())
    rows, columns = [], ["RGB", *(word for task in INTRINSICS for word in (f"{task}, exact", "mini world", "rooms"))]
    for image in [images[index] for index in SHOWN if index < len(images)]:
        tiles = [np.asarray(Image.open(image).convert("RGB"))]
        for task, intrinsic in INTRINSICS.items():
            exact = np.load(data / task / "gt" / "val" / f"{image.stem}.npy", allow_pickle=False)
            exact = -exact if intrinsic.map_kind.has_surface else exact  # near = large, as predictions are
            if not intrinsic.map_kind.in_diode:
                exact = to_srgb(np.clip(exact / max(1, np.percentile(exact, 99)), 0, 1))
            maps = [exact]
            for row in ("mini", "rooms"):
                path = out / row / task / "predicted" / f"{image.stem}_{task}.npy"
                maps.append(np.load(path, allow_pickle=False))
            tiles += [next(iter(intrinsic.map_kind.shown(values).values())) for values in maps]
        sized = [np.asarray(Image.fromarray(tile).resize((96, 96), Image.Resampling.BOX)) for tile in tiles]
        rows.append(Image.fromarray(np.hstack(sized)))
    return sheet(rows, columns)


def parse(argv: list[str] | None = None):
    parser = Parser(prog="python -m studies.rooms", description=__doc__)
    add = parser.add_argument
    add("--data", type=path_flag, default=Path("data/rooms"), help="what integrations.blender.rooms has written")
    add("--out", type=path_flag, default=Path("runs/rooms"), help="LoRAs, maps, scores and figure")
    add("--steps", type=int, default=300, help="of each training")
    args = parser.parse_args(argv)
    if not (args.data / "normal" / "images" / "val").is_dir():
        raise InputError(f"--data={args.data}: no rooms there; python -m integrations.blender.rooms renders them")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    data, out = args.data.resolve(), args.out.resolve()
    lines = ["| intrinsic | error | " + " | ".join(ROWS.values()) + " |", "|---" * (2 + len(ROWS)) + "|"]
    for task in INTRINSICS:
        if not (out / "loras" / task / SAFETENSORS).is_file():
            train(task, data, out / "loras" / task, args.steps)
    predict(data, out)
    for task, intrinsic in INTRINSICS.items():
        folders = truth(task, data, out)
        cells = [score(task, out, row, *folders) for row in ROWS]
        lines.append(f"| {task} | {next(iter(intrinsic.scores.values()))} | {' | '.join(cells)} |")
    draw(data, out).save(out / "rooms.jpg", quality=90)
    (out / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines) + f"\n{out / 'rooms.jpg'}")


if __name__ == "__main__":
    run(main)
