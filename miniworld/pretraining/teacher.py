"""The supervised teacher: one small network for all four intrinsics, trained on rendered scenes with exact labels.

Loss for an image's maps, with 8-bit labels in [-1,1]:

    1 - cos(normal, label) + |depth - label| + |albedo - label| + |shading - label|        (means over pixels)
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F
from tqdm import tqdm

from miniworld.pretraining.gates import UNSEEN, Gate
from miniworld.pretraining.stage import Stage
from miniworld.pretraining.vae import save_sheet, to_tensor
from miniworld.render.diode_tree import TASKS, encode_labels
from miniworld.scenes import KINDS, render
from utils.kinds.alignment import depth_metrics
from utils.kinds.axes import convert_frame
from utils.kinds.normals import angular_error
from utils.labels.teachers import ABOUT, CHANNELS, MAPS, load_teacher, predict_maps

PATCH, NAME, CHUNK = 2, "teacher", 256
LAYERS = ("rgb", *TASKS)
TESTED, DEGREES, ABS_REL = 100, 8.0, 0.05  # unseen scenes, and the errors that the teacher must stay below


def build_teacher(size: int = 64) -> UNet2DModel:
    """Images in patches of 2 x 2 pixels: 12 channels in, 40 out, at half the side."""
    return UNet2DModel(
        sample_size=size // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=MAPS * PATCH**2,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=32,
    )


def cached_maps(folder: Path, seed: int, count: int, size: int) -> np.ndarray:
    """Images with their labels (count,5,size,size,3) uint8, in the order of LAYERS; the scenes of `stream`."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [folder / f"seed{seed}-size{size}-{index:05d}.npy" for index in range(-(-count // CHUNK))]
    for index, path in enumerate(tqdm(chunks, desc="rendering scenes and labels", unit="chunk", mininterval=2)):
        if not path.exists():
            whole = np.stack([maps_of(seed, CHUNK * index + place, size) for place in range(CHUNK)])
            draft = path.with_suffix(".tmp.npy")
            np.save(draft, whole)
            draft.replace(path)
    return np.concatenate([np.load(path, mmap_mode="r", allow_pickle=False) for path in chunks])[:count]


def maps_of(seed: int, index: int, size: int) -> np.ndarray:
    scene = render(np.random.SeedSequence([seed, index]), "yard" if index % 2 else "room", size, size)
    labels = {"rgb": scene.rgb, **encode_labels(scene)}
    return np.stack([labels[name] for name in LAYERS])


def teacher_stage(network: UNet2DModel, maps: np.ndarray, folder: Path, batch: int, **settings) -> Stage:
    """Train `network` on images and labels `maps` (N,5,S,S,3) uint8."""

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(maps), (batch,), generator=rng).numpy()
        rgb, labels = layers(maps[chosen])
        return teacher_losses(predict_maps(network, rgb, PATCH), labels)

    def sheet(modules: dict, path: Path) -> None:
        rgb, labels = layers(maps[:8])
        predicted = predict_maps(modules["teacher"], rgb, PATCH)
        rows = [(labels[name], predicted[:, CHANNELS[name]].expand(-1, 3, -1, -1)) for name in TASKS]
        save_sheet([rgb, *(row for pair in rows for row in pair)], path)

    return Stage(NAME, folder, {"teacher": network}, loss, sheet, **settings)


def layers(maps: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
    """(B,5,S,S,3) uint8 -> rgb (B,3,S,S) and labels by name, in [-1,1]."""
    values = {name: to_tensor(maps[:, place]) * 2 - 1 for place, name in enumerate(LAYERS)}
    return values.pop("rgb"), values


def teacher_losses(maps: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms of the loss in the module's docstring, by intrinsic."""
    losses = {name: (maps[:, CHANNELS[name]] - labels[name]).abs().mean() for name in ("albedo", "shading")}
    losses["depth"] = (maps[:, CHANNELS["depth"]] - labels["depth"][:, :1]).abs().mean()
    normal = maps[:, CHANNELS["normal"]]
    losses["normal"] = (1 - F.cosine_similarity(normal, labels["normal"], eps=1e-6)).mean()
    return losses


def save_teacher(folder: Path, network: UNet2DModel, size: int) -> None:
    """Write the network in fp16, in the format that `utils.labels.teachers` reads."""
    network.half().save_pretrained(folder)
    network.float()
    (folder / ABOUT).write_text(json.dumps({"patch": PATCH, "resolution": size}, indent=2) + "\n")


def teacher_gates(folder: Path, seed: int, size: int = 64) -> list[Gate]:
    """Requirements of a teacher's folder, measured with `pseudo_label.py`'s code on TESTED unseen scenes: the mean
    angle of normals, and AbsRel of depth after scale and shift.
    """
    predict = {
        task: load_teacher(task, str(folder), None, torch.device("cpu"), torch.float32).predict
        for task in ("normal", "depth")
    }
    angles, errors, kinds = [], [], list(KINDS)
    for index in range(TESTED):
        scene = render(np.random.SeedSequence([seed + UNSEEN, index]), kinds[index % 2], size, size)
        image, valid = Image.fromarray(scene.rgb), scene.depth > 0
        truth = convert_frame(scene.normal, "opengl")[valid]
        angles.append(angular_error(predict["normal"](image, [])[valid], truth).mean())
        nearness = -predict["depth"](image, [])
        errors.append(depth_metrics(nearness, scene.depth, valid, "depth", 1e-3, np.inf)["abs_rel"])
    angle, error = float(np.mean(angles)), float(np.mean(errors))
    return [
        Gate("normals, mean angle", f"{angle:.1f} degrees", f"below {DEGREES:g}", angle < DEGREES),
        Gate("depth, AbsRel after scale and shift", f"{error:.3f}", f"below {ABS_REL:g}", error < ABS_REL),
    ]
