"""A disk without space is one line that names the file and status 2, whichever library was writing."""

import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fork
from PIL import Image
from safetensors.torch import save_file

from utils import errors
from utils.image_io.files import save_png, write_exr
from utils.system import atomic
from utils.training import checkpoint

SMALL = 256  # kB of the disk


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A folder on a disk of SMALL kB; only the superuser can make one."""
    folder = tmp_path_factory.mktemp("disk")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}k", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a forked server may still have it open


@pytest.fixture
def full(disk):
    """The same with 8 kB left."""
    (disk / "ballast").write_bytes(bytes(1024 * (SMALL - 8)))
    yield disk
    for path in disk.iterdir():
        path.unlink()


def large(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def exr(part: Path) -> None:
    pytest.importorskip("OpenEXR")
    write_exr(part, large(300, 300, 3) + np.random.default_rng(0).random((300, 300, 3)), "RGB", {})


def film(part: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(part), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(large(240, 320, 3), "rgb24")))
        out.mux(stream.encode(None))


WRITERS = {
    "map.png": lambda path: save_png(path, large(300, 300, 3)),
    "map.npy": lambda path: atomic.save_npy(path, large(300, 300)),
    "map.exr": lambda path: atomic.save(path, exr),
    "page.html": lambda path: atomic.save_bytes(path, bytes(300_000)),
    "metrics.json": lambda path: atomic.write_json(path, list(range(100_000))),
    "lora.safetensors": lambda path: atomic.replace(path, partial(save_file, {"a": torch.rand(100_000)})),
    "lora.bin": lambda path: atomic.replace(path, lambda part: torch.save({"a": torch.rand(100_000)}, part)),
    "film.mp4": lambda path: atomic.replace(path, film),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_names_its_file_in_one_line_and_leaves_nothing(name, full, capsys):
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: WRITERS[name](full / name))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "o space left on device" in line and str(full / name) in line
    assert [path.name for path in full.iterdir()] == ["ballast"]


def test_a_training_continues_without_a_checkpoint_and_gives_the_reason(full, capsys, monkeypatch):
    state = {"optimizer": torch.optim.SGD([torch.nn.Parameter(torch.rand(100_000))], momentum=0.9)}
    state["optimizer"].param_groups[0]["params"][0].grad = torch.rand(100_000)
    state["optimizer"].step()
    monkeypatch.setattr(checkpoint, "save_lora", lambda unet, folder, metadata: folder.mkdir())
    assert checkpoint.save(full, 4, 4, torch.nn.Linear(1, 1), state, {}, {}) is None
    assert "checkpoint-4 could not be written (no space left on device)" in capsys.readouterr().err


def test_tensorboards_writer_ends_in_two_lines(full, capsys):
    """Its thread fails first, then the main one, which writes again."""
    from torch.utils.tensorboard import SummaryWriter

    def write() -> None:
        writer = SummaryWriter(full)
        for step in range(1000):
            writer.add_text("config", "a" * 4000, step)
            writer.flush()

    with pytest.raises(SystemExit) as ended:
        errors.run(write)
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and "no space left on device" in warning
    assert ended.value.code == 2 and error.startswith("error: ") and "no space left on device" in error


def test_a_limit_on_the_size_of_files_is_the_same_mistake(tmp_path):
    """Without superuser: the real script, whose first map is too large."""
    Image.fromarray(large(200, 200, 3)).save(tmp_path / "a.png")
    words = ["--lora", "miniworld/mini-loras/normal", "--device", "cpu", "--input_dir", tmp_path / "a.png"]
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384)); "
    limited += "runpy.run_path('inference_sd_single.py', run_name='__main__')"
    done = fork("-c", limited, *words, "--output_dir", tmp_path / "out", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/out/normal/predicted/a_normal.png: ")
