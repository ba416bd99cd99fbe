"""A video's frames through an engine: predicted with one setting, written one by one, joined to a video on demand.

Two passes, both in constant memory. The first predicts every frame; the range of a depth is known only when all are,
so its 8-bit images wait for the second, and its float maps are kept on disk. An interrupted run continues with the
first frame whose files are missing.
"""

import json
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from utils.errors import InputError, note, one_line
from utils.image_io.files import SIXTEEN, save_png, to_16_bits
from utils.image_io.rgb import READING
from utils.inference.output import Output
from utils.inference.predictor import Adapter, Engine
from utils.inference.video_files import frame_count, frames, join
from utils.inference.write import write_prediction
from utils.intrinsics import Intrinsic
from utils.objectives import AugUNet
from utils.system.atomic import make_folder, write_json
from utils.system.atomic import replace as put

SETTINGS = "settings.json"
WORDS = {"reading": "version of reading", "bytes": "bytes of the video", "modified": "time of the video"}


def predict_video(source: Path, engine: Engine, output_dir: str | Path, output: Output, joined: bool) -> None:
    """Maps of every frame to <output_dir>/<task>/predicted/<stem>/000000_<task>.png, and so on from 0.

    joined: also <output_dir>/<task>/predicted/<stem>_<task>.mp4, with the source's times and sound, upright. Depth is
    scaled once for the clip: 0 and 255 are its least and largest value in any frame. All frames of AugUNet begin with
    the same noise. Raises InputError where the folder holds frames of other settings.
    """
    if output.meshes:
        raise InputError(f"--formats={output.meshes[0]}: of images only; leave it out for a video")
    if joined and "png" not in output.formats:
        raise InputError("--video: made of the 8-bit images; add png to --formats")
    adapters = {adapter.intrinsic.name: adapter for adapter in engine.adapters}
    folders = {name: Path(output_dir) / name / "predicted" / source.stem for name in adapters}
    for name, adapter in adapters.items():
        _claim(folders[name], _settings(source, engine, output, adapter))
    first = {name: _first_pass(adapter.intrinsic, output) for name, adapter in adapters.items()}
    count = done = 0
    total = frame_count(source)
    title = one_line(f"predicting {', '.join(adapters)} of {source.name}")
    bar = tqdm(desc=title if total else f"{title} (of unknown length)", total=total, unit="frame")
    stream = enumerate(image for image, _ in frames(source))
    while batch := list(islice(stream, engine.batch_size)):
        count += len(batch)
        paths = {i: {name: folder / f"{i:06d}_{name}.png" for name, folder in folders.items()} for i, _ in batch}
        todo = [(i, image) for i, image in batch if not all(_is_there(paths[i][name], first[name]) for name in first)]
        done += len(batch) - len(todo)
        try:
            prepared = [engine.prepare(image) for _, image in todo]
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        found = engine.predict(prepared, [source.name] * len(todo)) if todo else []
        for (i, _), maps in zip(todo, found):
            for name, one in maps.items():
                write_prediction(one, folders[name].parents[1], f"{source.stem}/{i:06d}_{name}.png", first[name])
        bar.update(len(batch))
    bar.close()
    if not count:
        raise InputError(f"{source}: holds no frame that can be decoded; replace it")
    note(f"{source}: {count} frames" + (f", {done} of them were there already" if done else ""))
    for name, folder in folders.items():
        pictures = [folder / f"{i:06d}_{name}.png" for i in range(count)]
        if adapters[name].intrinsic.map_kind.stretched:
            _scale(pictures, adapters[name].intrinsic, output, dict(adapters[name].facts))
        if joined:
            target = folder.with_name(f"{source.stem}_{name}.mp4")
            put(target, partial(join, source, pictures), durable=False)
            note(f"video: {target}")


def _first_pass(intrinsic: Intrinsic, output: Output) -> Output:
    """The output that can be written before the clip's range is known: of depth no images, but the values."""
    if not intrinsic.map_kind.stretched:
        return output
    return replace(output, formats=("npy", *(name for name in output.formats if name == "exr")))


def _is_there(path: Path, output: Output) -> bool:
    endings = {"png": ".png", "png16": f"{SIXTEEN}.png"}
    return all(path.with_name(path.stem + endings.get(name, f".{name}")).is_file() for name in output.formats)


def _scale(pictures: list[Path], intrinsic: Intrinsic, output: Output, facts: dict[str, str]) -> None:
    """The 8-bit images of a clip's depths, from their float maps, between the least and the largest of all frames.

    The values stay: a later run continues from them, and no image can give them back.
    """
    low, high = float("inf"), float("-inf")
    for path in pictures:
        values = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    key, meaning = output.convention(intrinsic)
    about = {"task": intrinsic.name, key: meaning, **facts}
    about |= {"value_at_0": repr(low), "range": "of the whole clip"}
    for path in pictures:
        shares = (np.load(path.with_suffix(".npy"), allow_pickle=False) - np.float64(low)) / max(high - low, 1e-12)
        if "png16" in output.formats:
            sixteen = path.with_name(f"{path.stem}{SIXTEEN}.png")
            save_png(sixteen, to_16_bits(shares), about | {"value_at_65535": repr(high)})
        if "png" in output.formats:
            save_png(path, (shares * 255).astype(np.uint8), about | {"value_at_255": repr(high)})


def _settings(source: Path, engine: Engine, output: Output, adapter: Adapter) -> dict:
    """Everything that the frames depend on, as it comes back from JSON."""
    stat = source.stat()
    about = {
        "reading": READING,
        "source": source.name,
        "bytes": stat.st_size,
        "modified": stat.st_mtime_ns,
        **adapter.facts,
    }
    about |= {"ensemble_size": engine.ensemble_size, "seed": engine.seed, "dtype": str(engine.network.dtype)}
    about |= {"view": asdict(engine.view), "frame": output.frame, "invert_depth": output.invert_depth}
    if isinstance(adapter.method, AugUNet):
        about |= {"steps": adapter.method.steps, "guidance_scale": adapter.method.guidance_scale}
    return json.loads(json.dumps(about | dict(adapter.method.metadata)))


def _claim(folder: Path, about: dict) -> None:
    """Begin `folder`, or continue in it. InputError where its frames were made with other settings."""
    make_folder(folder, "--output_dir")
    path = folder / SETTINGS
    if not path.is_file():
        if any(folder.iterdir()):
            raise InputError(f"{folder}: holds files of unknown origin; name another --output_dir")
        write_json(path, about)
        return
    earlier, now = (each | each["view"] for each in (json.loads(path.read_text()), about))
    changed = sorted(
        f"{WORDS.get(key, key.replace('_', ' '))} {earlier.get(key)}, now {now.get(key)}"
        for key in (earlier.keys() | now.keys()) - {"view"}
        if earlier.get(key) != now.get(key)
    )
    if changed:
        raise InputError(
            f"{folder}: holds frames made with other settings ({'; '.join(changed)}); remove it, or name another "
            "--output_dir"
        )
