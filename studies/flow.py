"""LoRAs on the flow transformer, compared with LoRAs on mini-sd and on random weights: the second half of its gates.

    python -m studies.flow

Single-step normals from a LoRA of rank 8 on all linear layers of mini-flow, at several times, with the same labels in
the same order and the same unseen scenes as a LoRA on all layers of mini-sd. The table is written to mini-flow's card.
Every result is kept in --work, and the same command continues an interrupted study.
"""

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from miniworld.pretraining.flow import (
    TIMES,
    PlainJointAttention,
    encode_text,
    velocity,
    with_projection,
)
from miniworld.pretraining.flow_report import LORA_MARKS
from miniworld.pretraining.generator import tokenize
from miniworld.pretraining.model_folder import FLOW_TIME, TIMESTEP
from miniworld.pretraining.report import write_card
from studies.paper_questions import render
from studies.probe import Recipe, Setting, TaskData, errors, load_task, probe, train
from studies.tables import table, with_interval
from studies.tried import Errors, kept
from utils.base_model.stable_diffusion import Base, load_base
from utils.cli import Parser, path_flag
from utils.errors import note, run
from utils.intrinsics import INTRINSICS
from utils.lora.layers import ADAPTER
from utils.objectives import SingleStep
from utils.system.compute import slow_bf16

TASK, LABELS = "normal", 300
TIMES_TRIED = (50, 200, 400, 700)  # thousandths


@dataclass
class FlowStep(SingleStep):
    """The single step with a flow transformer: it reads the image's clean latents at a time and its output, which it
    learned as a velocity, is taken as the map's latents. prompt (1,L,D), pooled (1,D).
    """

    pooled: Tensor

    def latents(self, unet: nn.Module, rgb: Tensor, noise: Tensor | None = None) -> Tensor:
        z, count = self.vae.config.scaling_factor * rgb, len(rgb)
        s = torch.full((count,), self.timestep / TIMES)
        return velocity(unet, z, s, self.prompt.expand(count, -1, -1), self.pooled.expand(count, -1))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m studies.flow", description=__doc__)
    add = parser.add_argument
    add("--flow", type=path_flag, default=Path("miniworld/mini-flow"), help="folder of the flow transformer")
    add("--base", default="miniworld/mini-sd", help="Stable Diffusion whose VAE and text encoder it has")
    add("--data", type=path_flag, help="DIODE-like tree, as for paper_questions; left out: rendered")
    add("--work", type=path_flag, default=Path("output/flow"), help="trainings, latents, rendered scenes")
    add("--snapshots", type=path_flag, help="pretraining's folder with snapshots (ema-*.pt), to be probed too")
    add("--seeds", type=int, default=1, help="trainings of each setting")
    add("--steps", type=int, default=200, help="of each training, with 8 labels each")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.data or render(args.work / "DIODE", LABELS, 100)
    recipe = Recipe(args.steps, 8, "no" if slow_bf16("cpu") else "bf16", 64)
    note(f"trained with --mixed_precision {recipe.mixed_precision}")
    base = load_base(args.base)
    task = load_task(data, TASK, base, recipe, args.work)
    usual = Setting(task=TASK, labels=LABELS, targets="all", timestep=TIMESTEP)
    settings = {"mini-sd, all layers": usual}
    settings |= {f"mini-flow, s = {t / TIMES:g}": replace(usual, timestep=t, base="flow") for t in TIMES_TRIED}
    best = replace(usual, base="flow", timestep=round(TIMES * FLOW_TIME))
    settings["random weights"] = replace(best, unet="random")
    for path in sorted(args.snapshots.glob("ema-*.pt")) if args.snapshots else ():
        settings[f"after {int(path.stem.split('-')[1])} steps"] = replace(best, unet=str(path))

    def trained(setting: Setting, seed: int) -> dict[str, Errors]:
        setting = replace(setting, seed=seed)
        if setting.base != "flow":
            return {"": probe(base, task, setting, recipe)["errors"]}
        return {"": flow_errors(load_transformer(args.flow, setting.unet, seed), base, task, setting, recipe)}

    lines = []
    for title, setting in settings.items():
        name = f"{setting.name}-{args.steps}-{recipe.mixed_precision}"
        each = [
            kept(args.work / f"{name}-{seed}.json", partial(trained, setting), seed)[""] for seed in range(args.seeds)
        ]
        lines.append((title, with_interval(np.array(each, float))))
    text = table((f"LoRA of rank {usual.rank}, {args.steps} steps of 8 labels", "mean angle, degrees"), lines)
    write_card(args.flow / "README.md", text, LORA_MARKS)
    print(text)


def add_linear_lora(transformer: nn.Module, rank: int, seed: int) -> list[nn.Parameter]:
    """Freeze `transformer` and put a LoRA on all its linear layers, in place; returns the LoRA's parameters."""
    transformer.requires_grad_(False)
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=names)
        inject_adapter_in_model(config, transformer, ADAPTER)
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def load_transformer(folder: Path, weights: str = "pretrained", seed: int = 0) -> SD3Transformer2DModel:
    """The folder's transformer; weights: "pretrained", "random" (of `seed`), or the path of a snapshot."""
    transformer = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = SD3Transformer2DModel.from_config(transformer.config)
    elif weights != "pretrained":
        state = torch.load(weights, weights_only=True)["transformer"]
        transformer.load_state_dict(transformer.state_dict() | state)
    transformer.set_attn_processor(PlainJointAttention())
    return transformer.eval()


def flow_errors(
    transformer: SD3Transformer2DModel, base: Base, data: TaskData, setting: Setting, recipe: Recipe
) -> Errors:
    """Train the setting's LoRA; the error of every unseen image."""
    intrinsic = INTRINSICS[setting.task]
    text = encode_text(with_projection(base.text_encoder), tokenize(base.tokenizer, [intrinsic.prompt]))
    states, pooled = text.take(torch.tensor([0]))
    objective = FlowStep(base.vae, states, setting.timestep, pooled)
    parameters = add_linear_lora(transformer, setting.rank, setting.seed)
    train(transformer, parameters, objective, data.latents, setting, recipe)
    return errors(transformer, objective, data, intrinsic, recipe)


if __name__ == "__main__":
    run(main)
