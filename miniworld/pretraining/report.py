"""The report of `miniworld.pretrain`: gates, distances during training, contact sheet, and the model cards."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from miniworld.pretraining.continued import MORE, VELOCITY
from miniworld.pretraining.editor import condition_gain
from miniworld.pretraining.gates import (
    Gate,
    batched,
    distance,
    gates_table,
    sheet_of_samples,
    unseen_scenes,
    vae_gates,
)
from miniworld.pretraining.generator import Parts, fingerprint, predicts_velocity
from miniworld.pretraining.model_folder import EDITOR, load_generator
from miniworld.pretraining.stage import Stage
from miniworld.pretraining.vae import reconstruct
from miniworld.pretraining.wasserstein import sliced_wasserstein

VAE_SCENES = 256
DRAWN = 128
SHOWN = 30
TRAILING, AT_THE_END, CODED = "trailing", "final, from t = T-1", "scenes through the VAE"
BEGIN, END = "<!-- report -->", "<!-- end of report -->"
TITLES = {
    "vae": "VAE",
    "decoder": "its decoder alone",
    "unet": "text encoder and UNet",
    "ip2p": "UNet with an image as input",
    MORE: "text encoder and UNet, continued",
    f"ip2p-{MORE}": "UNet with an image as input, trained again",
    VELOCITY: "text encoder and UNet, from noise to velocity",
    "flow": "flow transformer",
    "gan": "generator and discriminator",
    "ar": "transformer",
    "teacher": "network",
}
STAGES = {  # last stage of a generator -> the stages that made it and its editor
    "unet": ("vae", "decoder", "unet", "ip2p"),
    MORE: ("vae", "decoder", "unet", MORE, f"ip2p-{MORE}"),
    VELOCITY: (VELOCITY,),
}

VELOCITY_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags:
- toy
---

# {name}

[{generator}]({link}/README.md), trained further to predict velocity on a noise schedule whose last step is pure noise:
the stand-in for Stable Diffusion 2.1, as {generator} is for 1.5. v = a_t eps - sigma_t z0; zero terminal SNR
(arXiv 2305.08891, algorithm 1), trailing spacing, so that sampling starts at t = T-1.

It started from {generator}. UNet and text encoder were trained together for {steps} more steps of {batch} images, on
the same rendered images and captions: AdamW, learning rate {rate:g} after a warm-up of {warmup} steps, falling to 0 at
the end, plain mean squared error of v, one caption in ten dropped, moving averages with decay {ema:g}. No normal,
depth, albedo or shading map was used. `vae` and `tokenizer` are links to {generator}'s, so keep the two folders
together. mini-ip2p's `conv_in` fits it (`--augment_from`).

```bash
{command}
```

{begin}
{end}
"""


def report(out: Path, work: Path, sheet: Path, seed: int, last: str) -> None:
    """Measure, print and write the sheet. If the training's logs exist, write the tables into the model card.

    last: "unet" or MORE, the stage that made the generator in `out`. A base that predicts velocity was made by
    VELOCITY and has no editor of its own: mini-ip2p is measured with the generator that it started from.
    """
    parts, vae = load_generator(out)
    velocity = predicts_velocity(parts.scheduler)
    last = VELOCITY if velocity else last
    maps, seen, captions = unseen_scenes(seed, VAE_SCENES)
    gates = vae_gates(vae, maps, seen)
    along = distances_along(parts, vae, maps["rgb"], captions, work / last, seed)
    gates += distance_gates(along)
    if not velocity and (out.parent / EDITOR / "unet").is_dir():  # only its conv_in is shipped
        editor = UNet2DConditionModel.from_pretrained(out.parent / EDITOR, subfolder="unet")
        gain = condition_gain(editor, parts, vae, maps["rgb"][:64], captions[:64])
        gates.append(
            Gate("mini-ip2p's error with another scene's image / with its own", f"{gain:.2f}", "above 1", gain > 1)
        )
    sheet_of_samples(parts, vae, captions[:SHOWN], sheet, seed)
    text = "\n\n".join([gates_table(gates), trend(along), hours(work, STAGES[last])])
    print(text)
    print(f"\nsamples: {sheet}")
    if (work / last / "log.jsonl").exists():  # without it, the card contains more than this report
        write_card(out / "README.md", text)


def distances_along(parts: Parts, vae: AutoencoderKL, rgb, captions: list[str], folder: Path, seed: int) -> dict:
    """Step -> distances per level, for each snapshot and for the final model ("final"). Also for other scenes
    ("scenes"), and for those after the VAE.

    A scheduler with leading spacing starts 10 steps at t = 901, although on pure noise. For a base with such a
    scheduler, the final model's distance is also measured from t = T-1 (AT_THE_END; arXiv 2305.08891, section 3.3).
    """
    other = rgb[DRAWN : 2 * DRAWN]
    here, prompts = rgb[:DRAWN], captions[DRAWN : 2 * DRAWN]
    final = [part.state_dict() for part in (parts.unet, parts.text_encoder)]
    final = [{key: value.clone() for key, value in state.items()} for state in final]
    known = folder / f"distances-{fingerprint(vae):08x}.json"  # samples are compared after decoding
    along = json.loads(known.read_text()) if known.exists() else {}
    for path in sorted(folder.glob("ema-*.pt")):
        step = str(int(path.stem.split("-")[1]))
        if step not in along:
            state = torch.load(path, weights_only=True)
            parts.unet.load_state_dict(state["unet"])
            parts.text_encoder.load_state_dict(state["text_encoder"])
            along[step] = distance(parts, vae, here, prompts, seed)
            known.write_text(json.dumps(along))
    parts.unet.load_state_dict(final[0])
    parts.text_encoder.load_state_dict(final[1])
    along["final"] = distance(parts, vae, here, prompts, seed)
    if parts.scheduler.config.timestep_spacing != TRAILING:
        scheduler = DDIMScheduler.from_config(parts.scheduler.config, timestep_spacing=TRAILING)
        along[AT_THE_END] = distance(replace(parts, scheduler=scheduler), vae, here, prompts, seed)
    coded = batched(lambda x: reconstruct(vae, x).clamp(-1, 1), other)
    return along | {"scenes": sliced_wasserstein(other, here), CODED: sliced_wasserstein(coded, here)}


def distance_gates(along: dict) -> list[Gate]:
    """The final distance, that of other scenes, and Spearman's rank correlation with the step: negative if it fell."""
    steps = sorted((step for step in along if step.isdigit()), key=int)
    means = {name: sum(levels) / len(levels) for name, levels in along.items()}
    gates = [
        Gate("sliced Wasserstein distance of samples, mean of levels", f"{means['final']:.1f}"),
        *(Gate("the same, sampled from t = T-1 on", f"{means[name]:.1f}") for name in (AT_THE_END,) if name in means),
        Gate("the same of other scenes (the floor)", f"{means['scenes']:.1f}"),
        Gate("the same of other scenes through the VAE", f"{means[CODED]:.1f}"),
    ]
    if len(steps) > 2:
        order = torch.tensor([means[step] for step in steps]).argsort().argsort().double()
        rho = torch.corrcoef(torch.stack([order, torch.arange(len(steps)).double()]))[0, 1].item()
        name = f"rank correlation of distance and step, {len(steps)} snapshots"
        gates.append(Gate(name, f"{rho:.2f}", "falling", rho < 0))
    return gates


def trend(along: dict, unit: str = "UNet steps") -> str:
    """Distances per level during training, as a Markdown table. unit: of the first column."""
    rows = []
    for name in sorted(along, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name)):
        levels = along[name]
        rows.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in (*levels, sum(levels) / len(levels)))} |")
    head = f"Sliced Wasserstein distance x 1000, {DRAWN} samples without guidance against as many scenes:"
    return "\n".join([head, "", f"| {unit} | 64 px | 32 px | 16 px | mean |", "|---|---|---|---|---|", *rows])


def hours(work: Path, stages: tuple[str, ...]) -> str:
    """Steps and wall time of each stage from its log, as a Markdown table; "" without logs."""
    rows = []
    for stage in stages:
        path = work / stage / "log.jsonl"
        if path.exists():
            records = [json.loads(line) for line in path.read_text().splitlines()]
            seconds, last = 0.0, 0
            for record in records:
                seconds += record["seconds_per_step"] * (record["step"] - last)
                last = record["step"]
            rows.append(f"| {TITLES[stage]} | {last} | {seconds / 3600:.2f} |")
    return "\n".join(["| stage | steps | hours |", "|---|---|---|", *rows]) if rows else ""


def write_card(path: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put the text between the card's two marks; the rest of the card is hand-written."""
    begin, end = marks
    card = path.read_text() if path.exists() else f"{begin}\n{end}\n"
    before, rest = card.split(begin)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def write_velocity_card(folder: Path, generator: Path, batch: int, stage: Stage) -> None:
    """Write `folder`'s README.md, with the two marks between which `report` inserts its tables."""
    command = f"python -m miniworld.pretrain --velocity_from {generator} --out {folder} --velocity_steps {stage.steps}"
    names = {"name": folder.name, "generator": generator.name, "command": command}
    names |= {"link": os.path.relpath(generator, folder), "begin": BEGIN, "end": END}
    values = {"steps": stage.steps, "batch": batch, "rate": stage.learning_rate, "warmup": stage.warmup}
    (folder / "README.md").write_text(VELOCITY_CARD.format(**names, **values, ema=stage.ema_decay))
