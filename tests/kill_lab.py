"""Kills real runs at chosen moments and starts them again: each must end as one that was never killed, bit for bit.

    python -m tests.kill_lab --kills 100 [--seed 1] [--folder /tmp/lab] [--kind plain] [--way saving]

Every kind of run (KINDS, one line each) is made once without interruption. Then it is made again and killed with
SIGKILL in one of the WAYS, started again by the same command, killed again, and in the end compared: of a training the
LoRA, the optimiser's whole state, the schedule, and every loss, gradient norm, learning rate and validation score,
each of them once in metrics.jsonl, TensorBoard and wandb; of a prediction every byte of every file.

With --folder the lab itself can be killed: the same command continues with the first series that is not finished. The
runs are forks of this process, which has everything imported: a start costs a fraction of a second.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")

import av
import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm.auto import tqdm

import augunet_diode_pseudo_depth
import inference_sd_single
import pseudo_label
import sd_single_diode_pseudo_normal
from dataloaders.__main__ import main as dataloaders
from dataloaders.prepare.hypersim import TANGENT
from miniworld.pretraining.random_sd import save_random_sd
from tests import layouts, tiny_families
from utils.base_model import names
from utils.errors import run
from utils.lora import SAFETENSORS
from utils.paths import ROOT
from utils.system import atomic
from utils.training import checkpoint, wandb_run

TIMED = {"samples_per_second"}  # the only values that may differ
PRELOADED = (  # what the scripts import only when they run
    "dataloaders.open_data", "torch.utils.tensorboard", "utils.inference.predictor", "utils.inference.run",
    "utils.labels.run", "utils.training.loop", "wandb",
)  # fmt: skip
LOST_RANK = 60  # seconds within which a process must notice that another one has died
_PORTS = itertools.count()
STUCK = 600  # seconds after which a run that should have ended has not
DISK = 64  # MB of the disk that fills up
HOUR = 3600


# Comparison: name -> tensor, number or text


def trained(output: Path) -> dict[str, object]:
    """All that a training leaves, except times."""
    last = checkpoint.find(output)[-1]
    assert atomic.damage(last) is None, f"{last} is damaged"
    state = torch.load(last / checkpoint.STATE, weights_only=True)
    found = {f"final {key}": value for key, value in load_file(output / SAFETENSORS).items()}
    found |= {f"checkpoint {key}": value for key, value in load_file(last / SAFETENSORS).items()}
    for index, moments in state["optimizer"]["state"].items():
        found |= {f"optimizer {index} {name}": value for name, value in moments.items()}
    for number, pair in enumerate(zip(*(state.get("averages", {}).get(name, ()) for name in ("weights", "averages")))):
        found |= {f"averages {number} {name}": value for name, value in zip(("weight", "average"), pair)}
    found |= {"schedule": json.dumps(state["schedule"], default=str), "step": state["step"], "last": last.name}
    return found | {f"{step} {name}": value for (step, name), value in logged(output).items() if name not in TIMED}


def logged(output: Path) -> dict[tuple[int, str], float]:
    """(step, scalar) -> value of metrics.jsonl; an AssertionError where one is there twice."""
    found: dict[tuple[int, str], float] = {}
    for line in (output / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name in record.keys() - {"step"}:
            assert (record["step"], name) not in found, f"{name} of step {record['step']} is written twice"
            found[record["step"], name] = record[name]
    return found


def tracked(output: Path) -> dict[str, object]:
    """`trained`, after a check that TensorBoard and wandb have every scalar of metrics.jsonl, none twice."""
    expected = sorted(logged(output))
    board = EventAccumulator(str(output / "logs" / "lab"), size_guidance={"scalars": 0})
    board.Reload()
    shown = [(event.step, name) for name in board.Tags()["scalars"] for event in board.Scalars(name)]
    sent = [pair for file in output.glob("wandb/*run-*/run-*.wandb") for pair in wandb_run._history(file)]
    sent = [pair for pair in sent if not pair[1].startswith(("_", "validation"))]
    for where, pairs in (("TensorBoard", shown), ("wandb", sent)):
        twice = sorted({pair for pair in pairs if pairs.count(pair) > 1})
        assert not twice, f"{where} has these twice: {twice[:5]}"
        wrong = sorted(set(pairs) ^ set(expected))
        assert not wrong, f"{where} and metrics.jsonl do not have the same: {wrong[:5]}"
    return trained(output)


def written(output: Path) -> dict[str, object]:
    """The bytes of every map, film and record."""
    files = [path for path in output.rglob("*") if path.suffix in (".png", ".npy", ".mp4", ".json", ".jsonl")]
    assert files, "nothing was written"
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The run, and how it is killed


class Kind(NamedTuple):
    """main: of a script. flags: its command line; {world} and {output} are folders. outcome: what is compared."""

    main: Callable[[list[str]], int | None]
    flags: str
    processes: int = 1
    outcome: Callable[[Path], dict[str, object]] = trained


# 72 images: with 2 a step, epochs end at step 36; checkpoints are written in the middle of epochs
COMMON = (
    "--pretrained_model_name_or_path {world}/sd --output_dir {output} --resolution 32 --rank 2 --validation_steps 15 "
    "--resume_from_checkpoint latest"
)
NORMALS = f"{COMMON} --report_to none --train_data_dir {{world}}/normals --pseudo_root {{world}}/pseudo/normal"
DEPTHS = NORMALS.replace("normal", "depth") + " --augment_from {world}/ip2p"
OWN = f"{COMMON} --report_to none --dataset folder --train_data_dir {{world}}/own --gt_frame opengl"
MAPS = "--device cpu --output_dir {output} --npy --lora " + str(ROOT / "miniworld" / "mini-loras")
normal, augunet = sd_single_diode_pseudo_normal.main, augunet_diode_pseudo_depth.main
OTHER = sorted(names.FAMILIES.keys() - {"sd"})  # families of bases
KINDS = {  # all but "workers", whose crops are random, and "no cache" build and read a cache of latents
    "plain": Kind(normal, f"{NORMALS} --train_batch_size 2 --max_train_steps 40 --checkpointing_steps 5"),
    "all layers": Kind(normal, f"{NORMALS} --train_batch_size 2 --max_train_steps 24 --checkpointing_steps 4 "
                       "--lora_targets all"),
    "buckets": Kind(normal, f"{OWN} --train_batch_size 2 --max_train_steps 30 --checkpointing_steps 4 --crop none"),
    "masks": Kind(normal, f"{NORMALS} --train_batch_size 2 --max_train_steps 30 --checkpointing_steps 4 "
                  "--masked_loss"),
    "averages": Kind(normal, f"{NORMALS} --train_batch_size 2 --max_train_steps 30 --checkpointing_steps 4 "
                     "--ema_decay 0.9"),
    "accumulation": Kind(normal, f"{NORMALS} --train_batch_size 1 --gradient_accumulation_steps 3 --max_train_steps "
                         "30 --checkpointing_steps 4 --checkpoints_total_limit 2"),
    "workers": Kind(normal, f"{NORMALS} --train_batch_size 2 --dataloader_num_workers 2 --no-center_crop "
                    "--max_train_steps 30 --checkpointing_steps 3 --checkpoints_total_limit 1 --lr_scheduler cosine"),
    "augunet": Kind(augunet, f"{DEPTHS} --train_batch_size 2 --max_train_steps 26 --checkpointing_steps 4"),
    "two processes": Kind(normal, f"{NORMALS} --train_batch_size 2 --max_train_steps 24 --checkpointing_steps 4 "
                          "--checkpoints_total_limit 2", processes=2),
    "no cache": Kind(normal, f"{NORMALS} --train_batch_size 2 --max_train_steps 20 --checkpointing_steps 6 "
                     "--no_cache_latents"),
    "mixed": Kind(normal, OWN.replace("{world}/own", "{world}/own,{world}/far") + " --mix 0.75,0.25 --crop none "
                  "--train_batch_size 2 --max_train_steps 30 --checkpointing_steps 4"),
    **{family: Kind(normal, NORMALS.replace("/sd ", f"/{family} ") + " --train_batch_size 2 --max_train_steps 16 "
                    "--checkpointing_steps 3") for family in OTHER},
    "trackers": Kind(normal, NORMALS.replace("none", "tensorboard,wandb") + " --train_batch_size 2 --max_train_steps "
                     "30 --checkpointing_steps 4 --tracker_project lab", outcome=tracked),
    "tracked averages": Kind(normal, NORMALS.replace("none", "tensorboard,wandb") + " --train_batch_size 2 "
                             "--max_train_steps 30 --checkpointing_steps 4 --ema_decay 0.9 --tracker_project lab",
                             outcome=tracked),
    "folder": Kind(inference_sd_single.main, f"{MAPS}/normal --input_dir {{world}}/depths/val", outcome=written),
    "video": Kind(inference_sd_single.main, f"{MAPS}/depth --input_dir {{world}}/film.mkv --video",
                  outcome=written),
    "labels": Kind(pseudo_label.main, "--task depth --from ground_truth --input_dir {world} --output_dir {output} "
                   "--npy --device cpu", outcome=written),
    "prepare": Kind(dataloaders, "prepare hypersim --source {world}/hypersim --split_csv {world}/hypersim/split.csv "
                    "--root {output} --workers 1", outcome=written),
}  # fmt: skip
TRAININGS = [name for name, kind in KINDS.items() if kind.outcome is not written and kind.processes == 1]
TRACKED = [name for name, kind in KINDS.items() if kind.outcome is tracked]
CACHED = [name for name in TRAININGS if name not in ("workers", "no cache")]
WAYS = {  # how a run is killed -> kills out of 100, and the kinds that are
    "any moment": (45, [name for name in KINDS if name != "two processes"]),
    "saving": (20, [name for name in KINDS if name not in ("two processes", "labels")]),
    "building the cache": (10, CACHED),
    "two processes": (10, ["two processes"]),
    "full disk": (10, [name for name in KINDS if name not in ("two processes", *TRACKED, "labels")]),
    "clock set back": (5, [*TRACKED, "plain", "video"]),
}


def make_world(folder: Path) -> None:
    """Rendered scenes in DIODE's layout and in two folders of one's own, random models in the formats of Stable
    Diffusion and InstructPix2Pix, and a film.
    """
    scenes = ["-m", "miniworld.scenes", "--root", folder, "--train", "72", "--val", "12", "--size", "96x72"]
    subprocess.run([sys.executable, *map(str, scenes)], cwd=ROOT, check=True, capture_output=True)
    for seed, (name, channels) in enumerate({"sd": 4, "ip2p": 8}.items()):
        save_random_sd(folder / name, seed, in_channels=channels, channels=(32, 64, 64))
    for name in ("own/images", "own/labels", "far/images", "far/labels"):
        (folder / name).mkdir(parents=True)
    with av.open(str(folder / "film.mkv"), "w") as film:
        stream = film.add_stream("ffv1", rate=25)
        # below 128 pixels x264 reads memory that it has not written: the same frames give other bytes each time
        stream.width, stream.height, stream.pix_fmt = 128, 96, "bgr0"
        for i, image in enumerate(sorted((folder / "depths" / "train").rglob("*.png"))):
            label = folder / "pseudo" / "normal" / image.relative_to(folder / "depths")
            width = 48 if i % 3 == 0 else 96  # two shapes
            for name, path in (("images", image), ("labels", label)):
                target = folder / ("own" if i < 48 else "far") / name / f"{i:02d}.png"
                Image.open(path).crop((0, 0, width, 72)).save(target)
            if i < 20:
                frame = np.asarray(Image.open(image).resize((128, 96)))
                film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        film.mux(stream.encode(None))


def make_rooms(folder: Path) -> None:
    """Hypersim's published files of a few rooms, one in each scene."""
    rooms = [(f"ai_001_{i:03d}", 0, "train" if i < 8 else "val") for i in range(10)]
    for seed, (scene, frame, _) in enumerate(rooms):
        layouts.hypersim_shot(folder, scene, frame, layouts.of_scene(layouts.room(seed, TANGENT)))
    layouts.split_csv(folder / "split.csv", rooms)


# what few kinds of runs need is made with the first of them: folder of the world -> how
RARE = {family: partial(tiny_families.save, family) for family in OTHER} | {"hypersim": make_rooms}


def make_once(folder: Path, make: Callable[[Path], object]) -> None:
    """Make a folder, unless it is there. A kill leaves it whole or not at all."""
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        make(part)
        part.rename(folder)


def free_port() -> int:
    """A port of this process's own, below those that the system gives to connections, so that no other process takes
    it before it is used.
    """
    while True:
        port = 10_000 + (20 * os.getpid() + next(_PORTS)) % 20_000
        with suppress(OSError), socket.create_server(("", port)):
            return port


def fork_run(kind: Kind, words: list[str], log: Path, cache: Path, clock: int = 0) -> list[int]:
    """Start a run in one or two processes; their ids. What they print goes to the end of `log`.

    cache: stands for the user's own cache folder, which keeps states of prompts. clock: seconds by which Python's
    clock differs from the machine's.
    """
    port = free_port()
    ids = []
    for rank in range(kind.processes):
        child = os.fork()
        if child:
            ids.append(child)
            continue
        status = 1
        try:
            os.setsid()
            with log.open("ab", buffering=0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.environ["XDG_CACHE_HOME"] = str(cache)
            if kind.processes > 1:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(kind.processes),
                    LOCAL_WORLD_SIZE=str(kind.processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )  # fmt: skip
            if clock:
                time.time = partial(shifted, time.time, clock)
            run(lambda: kind.main(words))
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return ids


def shifted(now: Callable[[], float], seconds: int) -> float:
    """The time of a clock that is wrong by so much."""
    return now() + seconds


class Running:
    """The processes of a run."""

    def __init__(self, ids: list[int]):
        self.ids, self.states = ids, dict[int, int]()

    def wait(self, seconds: float) -> bool:
        """Wait until all have ended or `seconds` are over; True once all have."""
        deadline = time.monotonic() + seconds
        while True:
            for each in [each for each in self.ids if each not in self.states]:
                done, status = os.waitpid(each, os.WNOHANG)
                if done:
                    self.states[each] = os.waitstatus_to_exitcode(status)
            if len(self.states) == len(self.ids) or time.monotonic() >= deadline:
                return len(self.states) == len(self.ids)
            time.sleep(0.002)

    @property
    def alive(self) -> list[int]:
        return [each for each in self.ids if each not in self.states]

    def send(self, number: int) -> None:
        for each in self.alive:
            os.kill(each, number)

    def stop_when(self, condition: Callable[[], bool]) -> bool:
        """Stop the processes (SIGSTOP) in a moment where `condition` is true; False if they end without one."""
        while not self.wait(0.001):
            if condition():
                self.send(signal.SIGSTOP)
                for each in self.alive:
                    while psutil.Process(each).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                        time.sleep(0.001)
                if condition() and not self.wait(0):
                    return True
                self.send(signal.SIGCONT)
        return False

    def kill(self, chance: random.Random) -> None:
        """SIGKILL to one process; the others must end by themselves."""
        victim = chance.choice(self.alive)
        os.kill(victim, signal.SIGKILL)
        self.send(signal.SIGCONT)
        assert self.wait(LOST_RANK), f"a process still ran {LOST_RANK} s after another one had been killed"
        deadline = time.monotonic() + LOST_RANK
        while left := self.helpers():
            assert time.monotonic() < deadline, f"{left} still ran {LOST_RANK} s after their run had been killed"
            time.sleep(0.01)

    def helpers(self) -> list[str]:
        """Command lines of processes that the run has started, and that still run."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) in self.ids and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(shlex.join(process.cmdline())[-200:])
        return found


def is_building(output: Path) -> bool:
    """True while a cache of latents is incomplete."""
    return any(0 in file.read_bytes() for file in output.glob("latent_cache/*/done.bin"))


def is_saving(output: Path) -> bool:
    """True while a checkpoint or another file is incomplete."""
    with suppress(OSError):  # a folder that is removed meanwhile
        return next(output.rglob(".*.part"), None) is not None
    return False


def strike(running: Running, way: str, output: Path, life: float, chance: random.Random) -> str:
    """Kill a run in this way, at a moment of its `life` in seconds: "killed", or how it came to end before that:
    "finished", or "refused" where it has reported a full disk with status 2.
    """
    conditions = {"saving": lambda: is_saving(output), "building the cache": lambda: is_building(output)}
    moment = way if way not in ("two processes", "full disk") else chance.choice(["any moment", *conditions])
    if moment == "building the cache" and checkpoint.find(output):
        moment = "any moment"
    condition = conditions.get(moment, lambda: True)
    if moment != "building the cache":
        running.wait(chance.uniform(0, life))
    if not running.stop_when(condition):
        return "finished"
    if way == "full disk":
        fill(output.parent)
        running.send(signal.SIGCONT)
        if running.wait(chance.uniform(0, life / 4)):
            return "refused" if set(running.states.values()) == {2} else "finished"
    running.kill(chance)
    return "killed"


def fill(folder: Path) -> None:
    """Use up the disk of this folder, up to its last byte."""
    with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        for size in (2**20, 1):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


@contextmanager
def place(folder: Path, way: str) -> Iterator[Path]:
    """The folder in which a series runs: on a small disk, where that shall fill up, which takes the superuser."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if way != "full disk":
        yield folder
        return
    assert mounted(folder), f"{folder}: a small disk cannot be mounted"
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mounted(folder: Path) -> bool:
    """Mount a small disk at this folder, if that is permitted."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", folder]
    return subprocess.run(words, capture_output=True).returncode == 0


def differences(a: dict[str, object], b: dict[str, object]) -> list[str]:
    """Names of what is not the same to the last bit."""
    missing = sorted(set(a) ^ set(b))
    same = {
        key: torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]
        for key in set(a) & set(b)
    }
    return missing + sorted(key for key, equal in same.items() if not equal)


class Lab:
    """A folder with the world, the uninterrupted runs, and a line of results.jsonl for every finished series."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed, self.results = folder, seed, folder / "results.jsonl"
        self.whole: dict[str, tuple[float, dict[str, object]]] = {}
        make_once(folder / "world", make_world)

    def start(self, name: str, output: Path, log: Path, clock: int = 0) -> Running:
        words = KINDS[name].flags.format(world=self.folder / "world", output=output).split()
        return Running(fork_run(KINDS[name], words, log, output.with_name("cache"), clock))

    def uninterrupted(self, name: str) -> tuple[float, dict[str, object]]:
        """How many seconds the run takes, and its outcome."""
        if name not in self.whole:
            for part in RARE:
                if f"{{world}}/{part} " in KINDS[name].flags:
                    make_once(self.folder / "world" / part, RARE[part])
            with place(self.folder / name.replace(" ", "-"), "") as folder:
                began = time.monotonic()
                running = self.start(name, folder / "run", folder / "log")
                running.wait(STUCK)
                self.check_end(running, folder / "log")
                self.whole[name] = time.monotonic() - began, KINDS[name].outcome(folder / "run")
        return self.whole[name]

    @staticmethod
    def check_end(running: Running, log: Path) -> None:
        states = list(running.states.values())
        running.send(signal.SIGKILL)
        assert states == [0] * len(running.ids), f"ended with {states}:\n{log.read_text()[-3000:]}"

    def series(self, way: str, name: str, kills: int, bar: tqdm) -> dict[str, object]:
        """Kill a run `kills` times in this way and compare its end. A run that ends before is compared too, and
        another one begun. Returns counts: killed, refused, saving, building (of the kills), runs, compared.
        """
        chance = random.Random(f"{self.seed} {way} {name}")
        life, expected = self.uninterrupted(name)
        done = {"killed": 0, "refused": 0, "saving": 0, "building": 0, "runs": 0, "compared": len(expected)}
        with place(self.folder / f"{way} {name}".replace(" ", "-"), way) as folder:
            log = self.folder / f"{way} {name}.log".replace(" ", "-")
            while (hits := done["killed"] + done["refused"]) < kills:
                output = folder / f"run-{done['runs']}"
                done["runs"] += 1
                assert done["runs"] <= 20 + kills, f"{done['runs']} runs, and only {hits} could be killed"
                clock, ended = 0, ""
                while ended != "finished":
                    running = self.start(name, output, log, clock)
                    if done["killed"] + done["refused"] == kills:
                        running.wait(STUCK)
                        break
                    ended = strike(running, way, output, life, chance)
                    if ended != "finished":
                        done[ended] += 1
                        done["saving"] += is_saving(output)
                        done["building"] += is_building(output)
                        bar.update(1)
                    (folder / "ballast").unlink(missing_ok=True)
                    if way == "clock set back":
                        clock -= HOUR
                        for path in output.rglob("*"):
                            with suppress(FileNotFoundError):
                                os.utime(path, (path.stat().st_mtime + 24 * HOUR,) * 2)
                self.check_end(running, log)
                wrong = differences(expected, KINDS[name].outcome(output))
                assert not wrong, f"these differ: {', '.join(wrong[:5])} ({len(wrong)} in all)"
                left = [path.name for path in output.rglob(".*.part")]
                assert not left, f"left half-written: {left}"
        return done


def plan(kills: int, ways: list[str], kinds: list[str], seed: int) -> dict[tuple[str, str], int]:
    """(way, kind) -> kills: shared out among the ways by their shares, and evenly among the kinds of each."""
    shares = {way: share for way, (share, names) in WAYS.items() if way in ways and set(names) & set(kinds)}
    given, series = dict.fromkeys(shares, 0), dict[tuple[str, str], int]()
    for _ in range(kills):
        way = min(shares, key=lambda each: given[each] / shares[each])
        names = [name for name in WAYS[way][1] if name in kinds]
        key = (way, names[(seed + given[way]) % len(names)])
        series[key] = series.get(key, 0) + 1
        given[way] += 1
    return series


def table(done: list[dict[str, object]], by: str) -> None:
    """Print the results by way or by kind."""
    columns = ("killed", "refused", "saving", "building", "runs")
    print(f"\n| {by} | {' | '.join(columns)} | failed |\n|---|{'---|' * (len(columns) + 1)}")
    for each in [*dict.fromkeys(result[by] for result in done), "all"]:
        chosen = [result for result in done if each in (result[by], "all")]
        counts = [sum(int(result.get(column, 0)) for result in chosen) for column in columns]
        print(f"| {each} | {' | '.join(map(str, counts))} | {sum('failed' in result for result in chosen)} |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, shared out (default: 100)")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="only this one; may be repeated")
    parser.add_argument("--way", choices=list(WAYS), action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--folder", type=Path, help="keep everything here, and continue what is there")
    args = parser.parse_args(argv)
    for name in PRELOADED:
        importlib.import_module(name)
    tqdm.monitor_interval = 0  # its thread would be in every fork
    tqdm.set_lock(threading.RLock())  # the usual one is shared by the forks: killed in a print, they would keep it
    ways = args.way or list(WAYS)
    with tempfile.TemporaryDirectory() as temporary:
        if "full disk" in ways:
            if mounted(Path(temporary)):
                subprocess.run(["umount", temporary], check=True)
            else:
                ways = [way for way in ways if way != "full disk"]
                print("warning: no kills on a full disk: they take the right to mount a small one", file=sys.stderr)
        series = plan(args.kills, ways, args.kind or list(KINDS), args.seed)
        lab = Lab(args.folder or Path(temporary, "lab"), args.seed)
        lines = lab.results.read_text().splitlines() if lab.results.is_file() else []
        finished = {(one["way"], one["kind"], one["kills"], one["seed"]): one for one in map(json.loads, lines)}
        done: list[dict[str, object]] = []
        with tqdm(total=args.kills, desc="kills", unit="kill") as bar:
            for (way, kind), kills in series.items():
                key = {"way": way, "kind": kind, "kills": kills, "seed": args.seed}
                if result := finished.get(tuple(key.values())):
                    bar.update(kills)
                    done.append(result)
                    continue
                try:
                    done.append(key | lab.series(way, kind, kills, bar))
                except AssertionError as error:
                    done.append(key | {"failed": str(error)})
                    tqdm.write(f"FAILED: {kind}, {way}: {error}")
                with lab.results.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    table(done, "way")
    table(done, "kind")
    failed = [result for result in done if "failed" in result]
    survived = sum(int(result["kills"]) for result in done if "failed" not in result)
    print(f"\n{survived} of {args.kills} kills survived, bit for bit")
    return int(bool(failed))


if __name__ == "__main__":
    run(main)
