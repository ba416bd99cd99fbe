"""How much of the training set a masked loss looks at."""

import numpy as np

from utils.errors import InputError
from utils.latents import cells
from utils.training.training_set import TrainingSet

LOOKED_AT = 32  # samples


def share(train_set: TrainingSet, factor: int, seed: int) -> str:
    """One line: the share of pixels and of latent cells that count, over up to 32 samples that `seed` chooses.

    factor: pixels per side of a latent cell. Raises InputError where no cell of them counts: nothing would be learnt.
    """
    chosen = np.random.default_rng([seed, len(train_set)]).permutation(len(train_set))[:LOOKED_AT]
    pixels, counted, empty = [], [], 0
    for index in sorted(chosen):
        mask = train_set[int(index)]["mask"][None]
        kept = cells(mask, (mask.shape[-2] // factor, mask.shape[-1] // factor))
        pixels.append(mask.float().mean().item())
        counted.append(kept.float().mean().item())
        empty += not kept.any()
    looked = f"of {len(chosen)} training images"
    if empty == len(chosen):
        raise InputError(f"--masked_loss: no latent cell {looked} has valid pixels alone; check the masks")
    if min(counted) == 1:
        return f"masked loss: all pixels {looked} are valid, so on them --masked_loss does nothing"
    line = (
        f"masked loss: {np.mean(counted):.1%} of the latent cells count, {np.mean(pixels):.1%} of the pixels are valid"
    )
    return f"{line} ({looked[3:]}{f'; {empty} of them have no cell that counts' if empty else ''})"
