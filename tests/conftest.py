"""Everything the tests run on is made here: a rendered DIODE tree and randomly initialised Stable Diffusions."""

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# before any library reads them; one thread, because the tests run in two processes on two cores
os.environ.update(WANDB_MODE="offline", HF_HUB_OFFLINE="1", WANDB_SILENT="true", OMP_NUM_THREADS="1")
if "gpu" not in sys.argv:  # pytest -m gpu: the tests that run on one; the others' figures and bits are a CPU's
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# caches of the session's own: a developer's may contain models, a token or accelerate's configuration, and another
# process's tests write there too; only matplotlib keeps its list of fonts, which takes seconds to make
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache/matplotlib"))
os.environ.update(XDG_CACHE_HOME=tempfile.mkdtemp(prefix="caches-"))
os.environ.pop("HF_HOME", None)
os.environ.pop("HF_HUB_CACHE", None)
os.environ.pop("HF_TOKEN", None)

import pytest
from helpers import SCRIPTS

from miniworld import scenes
from miniworld.pretraining.random_sd import save_random_sd


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def diode(tmp_path_factory) -> Path:
    """A DIODE tree with pseudo labels and all truth: 24 training and 10 validation images of 96x72."""
    root = tmp_path_factory.mktemp("diode")
    scenes.main(["--root", str(root), "--train", "24", "--val", "10", "--size", "96x72", "--seed", "7", "--truth"])
    return root


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Folders in the formats of SD 1.5 ("sd15"), SD 2.1 ("sd21") and InstructPix2Pix ("ip2p"), with random weights."""
    folder, small = tmp_path_factory.mktemp("bases"), {"channels": (32, 64, 64)}
    save_random_sd(folder / "sd15", seed=0, **small)
    save_random_sd(folder / "sd21", seed=1, prediction_type="v_prediction", **small)
    save_random_sd(folder / "ip2p", seed=2, in_channels=8, **small)
    return {name: folder / name for name in ("sd15", "sd21", "ip2p")}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[[str], Path]:
    """name in `tiny_families.FAMILIES` -> the folder of that family's pipeline, tiny and with random weights."""
    import tiny_families  # imports diffusers' pipelines, for the tests that need them

    return functools.cache(lambda family: tiny_families.save(family, tmp_path_factory.mktemp(family)))


@pytest.fixture
def flags(diode, bases):
    """script name, output folder, more flags -> the argument list of a short run on the mini world."""

    def build(script: str, output: Path, *more: object) -> list[str]:
        task = SCRIPTS[script]
        multi_step = script.startswith("augunet")
        truth = diode / f"{task}s" if task in ("normal", "depth") else diode / "truth" / task
        words = ["--pretrained_model_name_or_path", bases["sd21" if multi_step else "sd15"]]
        words += ["--augment_from", bases["ip2p"]] if multi_step else []
        words += ["--train_data_dir", truth, "--pseudo_root", diode / "pseudo" / task]
        words += ["--output_dir", output, "--resolution", 32, "--train_batch_size", 2, "--report_to", "none"]
        words += ["--validation_steps", 1000, "--checkpointing_steps", 1000]
        return [str(word) for word in (*words, *more)]

    return build
