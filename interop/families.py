"""Lays out LoRAs on the other families of base models for probe.py: tiny random models of the real classes.

python -m interop.families WORLD CASES

CASES/families/<family> gets base/ (a pipeline's folder), inputs.pt (the network's arguments in a single step), and
files/<name>/: LoRAs trained here for two steps on "attention" and "all" layers, and what `utils.lora convert` makes of
the second, as all-<format>.
"""

import inspect
import os
import shutil
import sys
from pathlib import Path

import torch

from interop.page import PIPELINES
from tests import tiny_families
from tests.helpers import run_here
from utils.base_model.families import open_base
from utils.lora import SAFETENSORS
from utils.lora.__main__ import READ_AS, main


def arguments(base, image: torch.Tensor) -> dict:
    """The network's arguments for predicting from image (B,3,H,W), by name."""
    found: list[dict] = []

    def spy(module, args, kwargs) -> None:
        found.append(dict(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments))

    states = base.encode_prompt("surface normal")
    with base.network.register_forward_pre_hook(spy, with_kwargs=True), torch.no_grad():
        base.predict(base.network, base.scaled(base.latent_mode(image)), base.timestep(), states)
    return {name: value for name, value in found[0].items() if name not in ("self", "return_dict")}


def lay_out(family: str, world: Path, place: Path) -> None:
    base = tiny_families.save(family, place / "base")
    generator = torch.Generator().manual_seed(0)
    torch.save(
        arguments(open_base(str(base)), torch.rand(2, 3, 32, 48, generator=generator) * 2 - 1), place / "inputs.pt"
    )
    for targets in ("attention", "all"):
        # a large rate, so that two steps change the output by more than the comparison's tolerance, many times over
        words = ["--train_data_dir", world / "normals", "--pseudo_root", world / "pseudo" / "normal"]
        words += ["--pretrained_model_name_or_path", base, "--output_dir", place / targets, "--lora_targets", targets]
        words += ["--resolution", 32, "--train_batch_size", 2, "--max_train_steps", 2, "--learning_rate", 0.03]
        words += ["--report_to", "none", "--validation_steps", 1000]
        run_here("sd_single_diode_pseudo_normal.py", [str(word) for word in words])
        file = place / "files" / targets / SAFETENSORS
        file.parent.mkdir(parents=True)
        shutil.copy(place / targets / SAFETENSORS, file)
    for form in (form for form, families in READ_AS.items() if family in families):
        file = place / "files" / f"all-{form}" / SAFETENSORS
        main(["convert", str(place / "all"), str(file), "--format", form])


if __name__ == "__main__":
    world, cases = map(Path, sys.argv[1:])
    os.environ["XDG_CACHE_HOME"] = str(cases / "cache")
    for family in PIPELINES:
        lay_out(family, world, cases / "families" / family)
