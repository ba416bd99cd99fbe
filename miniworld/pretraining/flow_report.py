"""The report of the flow transformer: distances during training, contact sheet and model card."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from miniworld.pretraining.flow import ABSENT, NAME, PlainJointAttention, Text, encode_text, sample_flow
from miniworld.pretraining.gates import Gate, contact_sheet, distance, gates_table, unseen_scenes
from miniworld.pretraining.generator import GUIDANCE, decode, fingerprint, tokenize
from miniworld.pretraining.model_folder import load_generator
from miniworld.pretraining.report import BEGIN, DRAWN, END, SHOWN, TRAILING, hours, trend, write_card
from miniworld.pretraining.wasserstein import sliced_wasserstein

LORA_MARKS = "<!-- lora -->", "<!-- end of lora -->"  # studies/answers.py writes a table between them

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags:
- toy
---

# {name}

A flow transformer of {millions:.1f} million parameters on the VAE and text encoder of [{generator}]({link}/README.md):
the stand-in for Stable Diffusion 3 and its successors, as mini-sd is for Stable Diffusion 1.5. It is a folder of
diffusers' StableDiffusion3Pipeline:

```python
from diffusers import StableDiffusion3Pipeline

pipeline = StableDiffusion3Pipeline.from_pretrained("{path}")
pipeline("a room with striped red walls and two spheres", guidance_scale=3).images[0]
```

![samples](../../docs/{name}-samples.png)

Each sample was drawn for the caption below it, with guidance 3, 25 Euler steps and seed 0, without selection.

## The parts

* **Transformer**: an SD3Transformer2DModel with {layers} blocks of width {width} and {heads} heads on patches of
  {patch}x{patch} latents. It predicts eps - z0 at z_s = (1 - s) z0 + s eps and is given 1000 s as its time.
* **VAE**: {generator}'s, by a link. Only the configuration is a file, because the pipeline wants a shift (0).
* **Text**: the pipeline concatenates the states of two CLIP text encoders. {generator} has one, which is therefore
  used as both (`text_encoder_2` is a link). The pipeline reads the states before the last layer, and the state of the
  end of the text through a projection, which is the identity. It also opens only with a third encoder. So
  `text_encoder_3` is a T5 without layers, whose states are the zeros that the pipeline itself uses without a T5.
* These {absent} zeros are tokens after the text. Half of the training's batches had them and half did not, so that
  both work. `from_pretrained(..., text_encoder_3=None, tokenizer_3=None)` and then `max_sequence_length=0` leave them
  out, which is several times as fast.

`vae` and the tokenizers contain links to {generator}, so keep the two folders together. The transformer's file is
float16. The text encoder's is float32, because recent versions of transformers load a model in the precision of its
file.

## Training

`python -m miniworld.pretrain --stage flow`, on {generator}'s rendered images and their captions. **No normal, depth,
albedo or shading map was used.** Rectified flow (arXiv 2209.03003) with half of the times logit-normal
(arXiv 2403.03206) and half uniform, one caption in ten dropped, batches of 32, AdamW at 1e-3, betas 0.9 and 0.99,
a warm-up of 100 steps, gradients clipped to norm 1, and moving averages with decay 0.999. Text encoder and VAE were
not trained. A step takes about 13 milliseconds of one CPU core per image.

## Quality

`python -m miniworld.pretrain --stage flow --report` measures on unseen scenes:

{begin}
{end}

## LoRAs on it

`python -m studies.paper_questions --questions 7` trains LoRAs for normals on all of its linear layers,
without the {absent} zeros after the text. The network is given the image's latents without noise at a time s, and its
output is read as the map's latents. Mean angle on 100 unseen scenes:

{begin_lora}
{end_lora}

With the zeros and 200 steps of 8 of 300 labels, one seed: mini-sd on all layers 15.0 [13.9, 16.1] degrees; mini-flow
22.5 at s = 0.05, 21.0 [19.6, 22.5] at 0.2, 21.0 [19.6, 22.4] at 0.4, 21.6 at 0.7; random weights 29.9 [28.1, 31.7].

A trial before the long training looked for the cause of the gap to mini-sd. Mean angle on 60 unseen scenes, one seed.
Unless stated otherwise: 300 labels, batches of 8, learning rate 4e-3 falling to 0, s = 0.4, rank 8.

| network | images of pretraining | LoRA | mean angle, degrees |
|---|---|---|---|
| mini-sd | 160,000 | all layers, 200 steps | 16.2 |
| random weights, not trained | 0 | 200 steps | 35.2 |
| random weights, not trained | 0 | 600 steps | 30.0 |
| patches of 2x2, 6 blocks of width 160, 4 heads | 6,144 | 200 steps | 30.0 |
| the same | 6,144 | 200 steps, also on the patch embedding | 30.3 |
| the same | 6,144 | 200 steps, rank 32 | 30.8 |
| the same | 6,144 | none: all weights trained, at 1e-3 | 29.7 |
| the same | 6,144 | 600 steps | 27.3 |
| patches of 1x1 | 6,144 | 200 steps | 29.9 |
| 10 blocks of width 128 | 6,144 | 200 steps | 29.7 |
| 10 heads | 6,144 | 200 steps | 30.0 |
| 2x2, 6 blocks, 4 heads | 16,384 | 200 steps | 29.1 |
| the same | 16,384 | 600 steps | 27.1 |
| the same | 32,768 | 200 steps | 27.7 |
| the same | 32,768 | 600 steps | 25.4 |
| the same | 32,768 | 200 steps, s = 0.15 | 28.5 |
| the same | 32,768 | 200 steps, float32 | 27.7 |
| the same | 32,768 | 200 steps, constant rate | 29.2 |
| the same | 32,768 | 200 steps, rate 1.5e-3 | 30.6 |
| the same | 32,768 | 200 steps, rate 8e-3 | 27.5 |

At 6,144 images patch size, depth, heads and rank make no difference, and training all weights hardly any. A longer
pretraining and a longer training of the LoRA help. Patches of 1x1 take 3.4 times as long per image. Networks this
young may hide differences that appear later: mini-sd's snapshots before 6,400 images do as badly as a random UNet.

## Licence

Apache-2.0, like the project.
"""


def report_flow(out: Path, generator: Path, work: Path, sheet: Path, seed: int) -> None:
    """Measure, print and write the sheet. With the training's log, write the tables into the card, too."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(out)
    transformer, vae = pipeline.transformer, pipeline.vae
    transformer.set_attn_processor(PlainJointAttention())
    maps, _, captions = unseen_scenes(seed, 2 * DRAWN)
    text = encode_text(pipeline.text_encoder, tokenize(pipeline.tokenizer, [*captions, ""]))
    along = flow_distances(transformer, vae, maps["rgb"], text, work / NAME, seed)
    gates = flow_gates(along, base_distance(generator, maps["rgb"], captions, seed))
    images = draw_flow(transformer, vae, text, torch.arange(SHOWN), seed, GUIDANCE, 25)
    contact_sheet(images, captions[:SHOWN], sheet)
    found = "\n\n".join([gates_table(gates), trend(along, "steps"), hours(work, (NAME,))])
    print(f"{found}\n\nsamples: {sheet}")
    if (work / NAME / "log.jsonl").exists():  # without it, the card contains more than this report
        card = out / "README.md"
        if not card.exists():
            card.write_text(card_of(out, generator, transformer))
        write_card(card, found)


def card_of(out: Path, generator: Path, transformer: SD3Transformer2DModel) -> str:
    """The folder's README.md, with the two marks between which the report inserts its tables."""
    config = transformer.config
    heads = config.num_attention_heads
    return CARD.format(
        name=out.name,
        path=out,
        generator=generator.name,
        link=os.path.relpath(generator, out),
        millions=transformer.num_parameters() / 1e6,
        layers=config.num_layers,
        width=heads * config.attention_head_dim,
        heads=heads,
        patch=config.patch_size,
        absent=ABSENT,
        begin=BEGIN,
        end=END,
        begin_lora=LORA_MARKS[0],
        end_lora=LORA_MARKS[1],
    )


def draw_flow(
    transformer: SD3Transformer2DModel,
    vae: AutoencoderKL,
    text: Text,
    chosen: Tensor,
    seed: int,
    guidance: float,
    steps: int,
) -> Tensor:
    """An image (3,S,S) in [-1,1] for each of the captions `chosen`; the last of `text` is the empty one."""
    empty = text.take(torch.tensor([-1]))
    z = sample_flow(transformer, *text.take(chosen), *empty, seed=seed, steps=steps, guidance=guidance)
    return decode(vae, z / vae.config.scaling_factor)


def flow_distances(
    transformer: SD3Transformer2DModel, vae: AutoencoderKL, rgb: Tensor, text: Text, folder: Path, seed: int
) -> dict[str, list[float]]:
    """Step -> distances per level, for each snapshot in `folder` and for the final model ("final"). Also for other
    scenes ("scenes").

    Scenes, captions and number of steps are those of mini-sd's distances.
    """
    here, prompts = rgb[:DRAWN], torch.arange(DRAWN, 2 * DRAWN)

    def measure() -> list[float]:
        return sliced_wasserstein(draw_flow(transformer, vae, text, prompts, seed, 1, 10), here)

    final = {key: value.clone() for key, value in transformer.state_dict().items()}
    known = folder / f"distances-{fingerprint(vae):08x}.json"  # samples are compared after decoding
    along = json.loads(known.read_text()) if known.exists() else {}
    for path in sorted(folder.glob("ema-*.pt")):
        step = str(int(path.stem.split("-")[1]))
        if step not in along:
            transformer.load_state_dict(final | torch.load(path, weights_only=True)["transformer"])
            along[step] = measure()
            known.write_text(json.dumps(along))
    transformer.load_state_dict(final)
    return along | {"final": measure(), "scenes": sliced_wasserstein(rgb[DRAWN : 2 * DRAWN], here)}


def base_distance(generator: Path, rgb: Tensor, captions: list[str], seed: int) -> float:
    """The generator's distance, mean of levels, with the same trailing spacing."""
    parts, vae = load_generator(generator)
    parts = replace(parts, scheduler=DDIMScheduler.from_config(parts.scheduler.config, timestep_spacing=TRAILING))
    levels = distance(parts, vae, rgb[:DRAWN], captions[DRAWN : 2 * DRAWN], seed)
    return sum(levels) / len(levels)


def flow_gates(along: dict[str, list[float]], base: float) -> list[Gate]:
    """The final distance against the generator's, `base`."""
    own, floor = (sum(along[name]) / len(along[name]) for name in ("final", "scenes"))
    return [
        Gate(
            "sliced Wasserstein distance of samples, mean of levels", f"{own:.1f}", f"at most {base:.1f}", own <= base
        ),
        Gate("the same of mini-sd, 10 steps from t = T-1", f"{base:.1f}"),
        Gate("the same of other scenes (the floor)", f"{floor:.1f}"),
    ]
