"""minimal.py computes the same losses as the real script, and its file loads everywhere else."""

import numpy as np
import pytest
import torch
from helpers import fork, losses, run_here
from PIL import Image

import minimal
from dataloaders.diode import Diode
from utils.intrinsics import NORMAL
from utils.lora import load_attn_procs
from utils.noise import gaussian, generators
from utils.training.data import EndlessBatches

SCRIPT = "sd_single_diode_pseudo_normal.py"


def test_its_losses_are_those_of_the_real_script_on_the_same_data(flags, bases, diode, tmp_path):
    steps, batch, seed = 4, 2, 1234
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", steps, "--learning_rate", 1e-2))
    data = Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train", resolution=32, seed=seed)
    unet, vae, c = minimal.load_base(str(bases["sd15"]), "surface normal")
    parameters = minimal.add_lora(unet, 8, seed)
    optimizer, found = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2), {}
    for step, chosen in zip(range(steps), EndlessBatches(len(data), batch, seed)):
        stems = [data.stems[index] for index, _ in chosen]
        rgb = torch.stack([minimal.read(data.rgb_path(stem), 32) for stem in stems])
        label = torch.stack([minimal.read(data.label_path(stem), 32) for stem in stems])
        noise = generators(seed, step * batch, batch)
        loss = minimal.loss_of(unet, vae, c, rgb, label, 999, lambda shape: gaussian(shape, noise, rgb))  # noqa: B023
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found[step + 1] = loss.item()
    real = losses(tmp_path / "run")
    assert found == pytest.approx(real, rel=1e-5)
    assert len({round(loss, 4) for loss in real.values()}) == steps, "losses that do not change prove nothing"


def test_it_trains_and_predicts_as_in_its_docstring(bases, diode, tmp_path):
    def run(*words):
        return fork("minimal.py", *words).stdout

    shared = ["--base", bases["sd15"], "--size", 32]
    images, labels = diode / "depths/train", diode / "pseudo/normal/train"
    run("train", *shared, "--images", images, "--labels", labels, "--out", tmp_path / "lora", "--steps", 2)
    image = next(images.rglob("*.png"))
    run("predict", *shared, "--images", image, "--lora", tmp_path / "lora", "--out", tmp_path / "map.png")
    assert np.asarray(Image.open(tmp_path / "map.png")).shape == (32, 32, 3)
    unet, _, _ = minimal.load_base(str(bases["sd15"]), "surface normal")
    load_attn_procs(unet, tmp_path / "lora")  # raises where a key finds no layer
