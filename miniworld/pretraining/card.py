"""The model card of a base that predicts velocity. Its tables come from `report`; mini-sd's own card is by hand."""

import os
from pathlib import Path

from miniworld.pretraining.report import BEGIN, END
from miniworld.pretraining.stage import Stage

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# {name}

[{generator}]({link}/README.md), trained to predict velocity on a noise schedule whose last step is pure noise: the
stand-in for Stable Diffusion 2.1, as {generator} is for 1.5. v = a_t eps - sigma_t z0; zero terminal SNR
(arXiv 2305.08891, algorithm 1), trailing spacing, so that sampling starts at t = T-1.

It started as {generator}. UNet and text encoder were trained together for {steps} more steps of {batch} images,
on the same rendered images and captions, with AdamW, learning rate {rate:g} after a warm-up of {warmup} steps,
falling to 0 at the end, plain mean squared error of v, one caption in ten left out, and moving averages of
{ema:g}. No normal, depth, albedo or shading map took part. `vae` and `tokenizer` are links to {generator}'s:
keep the two folders side by side.
mini-ip2p's `conv_in` fits it (`--augment_from`).

```bash
{command}
```

{begin}
{end}
"""


def write_velocity_card(folder: Path, generator: Path, batch: int, stage: Stage) -> None:
    """Write `folder`'s README.md again, with the two marks between which `report` puts its tables."""
    command = f"python -m miniworld.pretrain --velocity_from {generator} --out {folder} --velocity_steps {stage.steps}"
    names = {"name": folder.name, "generator": generator.name, "command": command}
    names |= {"link": os.path.relpath(generator, folder), "begin": BEGIN, "end": END}
    values = {"steps": stage.steps, "batch": batch, "rate": stage.learning_rate, "warmup": stage.warmup}
    (folder / "README.md").write_text(CARD.format(**names, **values, ema=stage.ema_decay))
