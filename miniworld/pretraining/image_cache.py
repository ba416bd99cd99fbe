"""Images and captions of `miniworld.scenes.stream`, rendered once and then read at memory speed.

A chunk of 256 images is two files, NNNNN.npy (256, S, S, 3) uint8 and its captions, NNNNN.json. Image `index` is the
stream's image `index`, regardless of how many are cached.
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from miniworld.scenes import stream

CHUNK = 256


def cached_images(folder: Path, seed: int, count: int, size: int, workers: int = 1) -> tuple[np.ndarray, list[str]]:
    """The first `count` images (count, size, size, 3) uint8, and their captions.

    Images from earlier calls with this seed and size are kept, even if those calls were interrupted.
    """
    parts = folder / f"seed{seed}-size{size}"
    parts.mkdir(parents=True, exist_ok=True)
    chunks = range((count + CHUNK - 1) // CHUNK)
    missing = [chunk for chunk in chunks if not (parts / f"{chunk:05d}.json").exists()]
    if missing:
        render = partial(render_chunk, parts, seed, size)
        bar = partial(tqdm, total=len(missing), desc=f"rendering {len(missing) * CHUNK} scenes", unit="chunk")
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                for _ in bar(pool.map(render, missing)):
                    pass
        else:
            for chunk in bar(missing):
                render(chunk)
    captions = [text for chunk in chunks for text in json.loads((parts / f"{chunk:05d}.json").read_text())]
    rgb = np.concatenate([np.load(parts / f"{chunk:05d}.npy", mmap_mode="r", allow_pickle=False) for chunk in chunks])
    return rgb[:count], captions[:count]


def render_chunk(folder: Path, seed: int, size: int, chunk: int) -> None:
    """Render the images from number CHUNK * chunk. The captions' file is written last: it marks a complete chunk."""
    pairs = list(islice(stream(seed, size, start=CHUNK * chunk), CHUNK))
    np.save(folder / f"{chunk:05d}.npy", np.stack([rgb for rgb, _ in pairs]))
    draft = folder / f"{chunk:05d}.tmp"
    draft.write_text(json.dumps([caption for _, caption in pairs]))
    draft.replace(folder / f"{chunk:05d}.json")
