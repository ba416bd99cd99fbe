"""Coverage-guided fuzzing of every reader of strangers' files, with atheris (libFuzzer for Python).

    pip install atheris
    python tests/fuzz.py --seconds 600                # all targets, one after the other
    python tests/fuzz.py exr archive --seconds 60

A reader returns something or raises its error for users: InputError, or ValueError where its caller adds the file's
name. Anything else, a hang of 20 seconds and 4 GB of memory are finds. Their bytes are kept in .fuzz/<target>, with
the inputs that have reached new lines, from which the next run continues. A find becomes a case of tests/bad_inputs.
"""

import argparse
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
KEPT = ROOT / ".fuzz"


class Target(NamedTuple):
    """suffix: of the file. read: the reader. seeds: good files. refusal: the error for users."""

    suffix: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    refusal: type[Exception] = ValueError  # InputError is one


def images() -> list[bytes]:
    from bad_files import encoded

    return [encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF")]


def npys() -> list[bytes]:
    import numpy as np

    found = []
    for array in (np.ones((4, 5, 3), np.float32), np.ones((4, 5), bool), np.ones((4, 5), ">f8"), np.ones(3, "U3")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(buffer.getvalue())
    return found


def pngs() -> list[bytes]:
    import numpy as np

    from utils.image_io.files import png

    sizes = [((4, 5), np.uint8), ((4, 5, 3), np.uint8), ((4, 5), np.uint16), ((4, 5, 3), np.uint16)]
    return [png(np.ones(shape, kind), {"axes": "opengl"}) for shape, kind in sizes]


def exrs() -> list[bytes]:
    import numpy as np

    from utils.image_io.files import write_exr

    path, found = Path(tempfile.mkdtemp()) / "a.exr", []
    for channels in ("RGB", "Z", "RGBA"):
        write_exr(path, np.ones((4, 5, len(channels)), np.float32), list(channels), {"axes": "opengl"})
        found.append(path.read_bytes())
    return found


def loras(suffix: str) -> list[bytes]:
    import torch
    from safetensors.torch import save

    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    state = {f"{layer}.down.weight": torch.ones(2, 4), f"{layer}.up.weight": torch.ones(4, 2)}
    if suffix == ".safetensors":
        return [save(state, {"task": "normal", "rank": "2", "method": "single-step"}), save({"a": torch.ones(1)})]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return [buffer.getvalue()]


def checkpoints(suffix: str) -> list[bytes]:
    import torch
    from safetensors.torch import save

    from utils.base_model.single_file import CONV_IN, TEXT, VAE

    state = {key: torch.ones(1) for key in (CONV_IN, f"{VAE}encoder.conv_in.weight", *TEXT.values())}
    if suffix == ".safetensors":
        return [save(state)]
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    return [buffer.getvalue()]


def archives() -> list[bytes]:
    found, name = [], "val/indoors/scene_00001/scan_00002/00001_00002_indoors_000_000.png"
    for mode in ("w", "w:gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"image"))
        found.append(buffer.getvalue())
    return found


def unpacked(path: Path) -> None:
    from dataloaders.prepare.archives import unpack

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        before = {one for one in path.parent.rglob("*") if Path(folder) not in one.parents}
        try:
            unpack(path, Path(folder), "depths")
        finally:
            after = {one for one in path.parent.rglob("*") if Path(folder) not in one.parents}
            assert after == before, f"written outside: {after - before}"


def lines() -> list[bytes]:
    return [
        b'{"image": "a.png", "label": "b.png", "split": "val"}\n',
        b'\xef\xbb\xbf{"image": "a.png", "gt": "a.npy"}',
    ]


def names() -> list[bytes]:
    stem = "00001_00002_indoors_000_000"
    return [json.dumps({"train": {"indoors": {"scene_00001": {"scan_00002": [stem]}}}}).encode()]


def listed(path: Path) -> None:
    from utils.image_io.diode_names import _names_in, read_meta

    path.replace(path.with_name("diode_meta.json"))
    _names_in(read_meta(path.parent))


def films() -> list[bytes]:
    return [(ROOT / "examples" / "clip.mp4").read_bytes()]


def called(module: str, name: str) -> Callable[[Path], object]:
    """A reader by name, so that its module is imported where atheris watches."""
    return lambda path: getattr(importlib.import_module(module), name)(path)


def framed(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """`read` of a .safetensors file whose header is the input."""

    def reader(path: Path) -> object:
        content = path.read_bytes()
        path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(64))
        return read(path)

    return reader


def headers() -> list[bytes]:
    return [file[8 : 8 + int.from_bytes(file[:8], "little")] for file in loras(".safetensors")]


def parsed(path: Path) -> None:
    from utils.lora.files import read_arrays
    from utils.lora.keys import parse_layers

    found, _ = read_arrays(path)
    parse_layers(found.state, str(path), found.metadata)


TARGETS = {
    "image": Target(".png", called("utils.image_io.images", "read_rgb"), images),
    "label": Target(".png", called("utils.image_io.images", "read_label"), images),
    "upload": Target(".png", called("app.upload", "read_upload"), images),
    "npy": Target(".npy", called("utils.image_io.files", "read_raw"), npys),
    "png": Target(".png", called("utils.image_io.files", "read_raw"), pngs),
    "exr": Target(".exr", called("utils.image_io.files", "read_raw"), exrs),
    "mask": Target(".npy", called("utils.image_io.files", "read_mask_named"), npys),
    "lora": Target(".safetensors", parsed, lambda: loras(".safetensors")),
    "lora-bin": Target(".bin", parsed, lambda: loras(".bin")),
    "checkpoint": Target(
        ".safetensors", called("utils.base_model.single_file", "read_checkpoint"), lambda: checkpoints(".safetensors")
    ),
    "checkpoint-ckpt": Target(
        ".ckpt", called("utils.base_model.single_file", "read_checkpoint"), lambda: checkpoints(".ckpt")
    ),
    "lora-header": Target(".safetensors", framed(parsed), headers),
    "checkpoint-header": Target(".safetensors", framed(called("utils.base_model.single_file", "check_file")), headers),
    "archive": Target(".tar.gz", unpacked, archives),
    "manifest": Target(".jsonl", called("dataloaders.listing", "manifest_samples"), lines),
    "names": Target(".json", listed, names),
    "video": Target(".mp4", lambda path: list(called("utils.inference.video_files", "frames")(path)), films),
}


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    target, kept = TARGETS[name], KEPT / name
    seeds = kept / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(target.seeds()):
        (seeds / f"good-{number}").write_bytes(content)
    for module in [one for one in sys.modules if one.split(".")[0] in ("utils", "dataloaders", "app")]:
        del sys.modules[module]  # imported for the seeds, where atheris did not watch
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    path = folder / f"a{target.suffix}"

    def one_input(content: bytes) -> None:
        path.write_bytes(content)
        try:
            target.read(path)
        except target.refusal as error:
            assert "\n" not in str(error) or target.refusal is not ValueError or not is_for_users(error), repr(error)

    with atheris.instrument_imports(include=["utils", "dataloaders", "app", "PIL", "numpy.lib", "tarfile", "json"]):
        for content in sorted(seeds.glob("good-*")):
            one_input(content.read_bytes())
    flags = [f"-max_total_time={seconds}", f"-artifact_prefix={kept}/", "-timeout=20", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *flags, "-print_final_stats=1", "-verbosity=0", str(seeds)], one_input)
    atheris.Fuzz()


def is_for_users(error: Exception) -> bool:
    return type(error).__name__ == "InputError"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="seconds for each target (default: 60)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the process of one target
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("error: atheris is not installed: pip install atheris (Linux, up to Python 3.13)")
    if args.here:
        fuzz(args.targets[0], args.seconds)
    failed = []
    for name in args.targets or TARGETS:
        before = set(KEPT.glob(f"{name}/*-*"))
        words = [sys.executable, __file__, name, "--seconds", str(args.seconds), "--here"]
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        found = sorted(str(one) for one in set(KEPT.glob(f"{name}/*-*")) - before if one.is_file())
        result = ", ".join(found) or ("did not run" if done.returncode else "no find")
        print(f"{name:16} {runs[0] if runs else '?':>9} inputs, {result}", flush=True)
        if done.returncode:
            failed.append(name)
            print("\n".join(done.stderr.splitlines()[-30:]), flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
