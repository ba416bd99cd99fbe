"""Shared by the tests: the project's root, its scripts, ways to run them, and readers of a run's files."""

import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import huggingface_hub
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch.distributed import TCPStore

from dataloaders import base, label_check
from utils.base_model.stable_diffusion import Base
from utils.lora import SAFETENSORS
from utils.objectives import AugUNet
from utils.system import signals

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 900  # seconds until a process that does not end has failed, on a machine that has 20 times as much to do
SCRIPTS = {
    "sd_single_diode_pseudo_normal.py": "normal",
    "sd_single_diode_pseudo_depth.py": "depth",
    "sd_single_diode_pseudo_albedo.py": "albedo",
    "sd_single_diode_pseudo_shading.py": "shading",
    "augunet_diode_pseudo_normal.py": "normal",
    "augunet_diode_pseudo_depth.py": "depth",
    "augunet_diode_pseudo_albedo.py": "albedo",
    "augunet_diode_pseudo_shading.py": "shading",
}


def python(*words: object, env: dict | None = None, check: bool = True) -> subprocess.CompletedProcess:
    """Run Python in the project's root; with `check`, a failure shows the output. `env`: None removes a variable."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={key: value for key, value in {**os.environ, **(env or {})}.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def launch(
    script: str, *words: object, processes: int = 1, more: tuple[str, ...] = (), **kwargs
) -> subprocess.CompletedProcess:
    """`accelerate launch` on the CPU; `more`: options of the launcher."""
    options = ["--num_processes", processes, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += more
    return python("-m", "accelerate.commands.launch", *options, ROOT / script, *words, **kwargs)


def run_here(script: str, words: list[str], whole: bool = False) -> None:
    """A script's main in this process: the cheapest way, for tests whose subject is not the process.

    whole: see `shortened`.
    """
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    try:
        with shortened(whole):
            importlib.import_module(script.removesuffix(".py")).main(words)
    finally:
        signals.forget()  # a training that an error has ended


@contextlib.contextmanager
def shortened(whole: bool) -> Iterator[None]:
    """Shorter work around the steps of a training: 2 images of each split are validated, not 4, in 2 steps of
    AugUNet's sampler unless a flag sets them, not 25, and 4 labels are checked at the start, not 16.

    Training does not depend on them, and in a run of few steps they take half of the time. whole: none of this.
    """
    with contextlib.ExitStack() as patches:
        if not whole:
            few_steps = functools.partialmethod(AugUNet.__init__, steps=2)
            for target, name, value in (
                (AugUNet, "__init__", few_steps), (base, "FIXED", 2), (label_check, "SAMPLES", 4),
            ):  # fmt: skip
                patches.enter_context(mock.patch.object(target, name, value))
        yield


def wait_for(
    condition: Callable[[], object], alive: Callable[[], object] = lambda: True, output: Path | None = None
) -> None:
    """Return once `condition()` is true; fail, with the text in `output`, once what would make it so is not `alive()`.

    The one way to wait in tests: a fixed pause is too short on a busy machine, and too long on any other.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if (not alive() and not condition()) or time.monotonic() > deadline:
            raise AssertionError(output.read_text() if output and output.exists() else "still waiting")
        time.sleep(0.02)


@contextlib.contextmanager
def meeting_point(processes: int) -> Iterator[dict[str, object]]:
    """The environment in which several processes find each other, at a store that the test itself serves.

    So the system chooses the port of a socket that is already open; a number chosen before may be taken by then.
    """
    if processes == 1:
        yield {}
        return
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # rank 0 serves none of its own
    }
    del store


@functools.cache
def fork_server() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have everything a training imports, for a tenth of a second instead of ten."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pytest", "helpers", "utils.training.loop", "dataloaders.open_data"])
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    with mock.patch.dict(os.environ, {"PYTHONPATH": paths}):  # the server reads it; its forks get what `fork` passes
        multiprocessing.forkserver.ensure_running()
    return server


def fork(
    *words: object,
    processes: int = 1,
    env: dict | None = None,
    check: bool = True,
    cwd: Path = ROOT,
    whole: bool = False,
) -> subprocess.CompletedProcess:
    """Like `python(*words)`, or `launch` with several processes, in forks of a process that is already warm.

    Each has its own arguments, environment, output and exit status, and is a training's rank where there are several;
    when one fails, the others are ended. The outputs come one after the other, by rank, never mixed. Use `python` or
    `launch` where imports, the end of the interpreter or the launcher are the subject.
    words: a script (a path below the project's root) or -c and a program or -m and a module, then its arguments.
    """
    env = {key: value for key, value in {**os.environ, **(env or {})}.items() if value is not None}
    running = []
    with tempfile.TemporaryDirectory() as folder, meeting_point(processes) as shared:
        outputs = [Path(folder, str(rank)) for rank in range(processes)]
        for rank, output in enumerate(outputs):
            own = shared | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
            output.mkdir()
            running.append(start_fork(words, output, env | {key: str(own[key]) for key in own}, cwd, whole))
        in_time = True
        try:
            wait_for(lambda: not any(one.is_alive() for one in running) or any(one.exitcode for one in running))
        except AssertionError:
            in_time = False
        status = next((one.exitcode for one in running if one.exitcode), 0)
        for one in running:
            one.kill()
            one.join()
        output = ["".join((one / name).read_text() for one in outputs) for name in ("stdout", "stderr")]
    assert in_time, f"still busy after {PATIENCE} s: {output}"
    assert not check or status == 0, "".join(output)
    return subprocess.CompletedProcess(words, status, *output)


def start_fork(
    words: tuple[object, ...],
    output: Path,
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
    whole: bool = False,
) -> multiprocessing.process.BaseProcess:
    """One process of `fork`, running; it writes what it prints to `output`/stdout and `output`/stderr."""
    given = dict(os.environ) if env is None else env
    args = ([str(word) for word in words], given, str(output), cwd, whole)
    process = fork_server().Process(target=_forked, args=args)
    process.start()
    return process


def _forked(words: list[str], env: dict[str, str], folder: str, cwd: Path, whole: bool) -> None:
    """The body of a process of `fork`."""
    multiprocessing.set_start_method("fork", force=True)  # as in any other process; here it would be "forkserver"
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    constants = importlib.reload(huggingface_hub.constants)  # read from the environment once, when imported
    huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE = constants.HUGGINGFACE_CO_URL_TEMPLATE  # before 1.0
    sys.modules["transformers.utils.hub"]._is_offline_mode = constants.HF_HUB_OFFLINE  # before 5.0
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    status: object = 1
    try:
        with shortened(whole):
            if words[0] == "-c":
                sys.argv = ["-c", *words[2:]]
                sys.modules["__main__"] = types.ModuleType("__main__")
                exec(words[1], sys.modules["__main__"].__dict__)
            elif words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)  # multiprocessing's own end would wait for data workers


def lora(folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA in a run's output folder."""
    return load_file(folder / SAFETENSORS)


def distance(a: Path, b: Path) -> float:
    """Largest difference between the LoRA weights of two runs."""
    first, second = lora(a), lora(b)
    return max((first[key] - second[key]).abs().max().item() for key in first | second)


def records(output: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> dict[int, float]:
    """step -> training loss of a run."""
    return {record["step"]: record["train_loss"] for record in records(output) if "train_loss" in record}


def random_lora(unet, seed: int = 0, rank: int = 4) -> dict[str, torch.Tensor]:
    """A random LoRA for every attention layer in format A, both halves non-zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name in unet.attn_processors:
        layer = unet.get_submodule(name.removesuffix(".processor"))
        for target, linear in (
            ("to_q", layer.to_q),
            ("to_k", layer.to_k),
            ("to_v", layer.to_v),
            ("to_out", layer.to_out[0]),
        ):
            down = torch.randn(rank, linear.in_features, generator=generator) / rank
            up = torch.randn(linear.out_features, rank, generator=generator) / 10
            state |= {f"{name}.{target}_lora.down.weight": down, f"{name}.{target}_lora.up.weight": up}
    return state


def around(vae) -> Base:
    """A Stable Diffusion of which only the VAE is there, for a single step with another network."""
    return Base("bare", None, None, vae, None, None)
