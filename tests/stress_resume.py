"""Kills real training runs at random moments and resumes them: each must end as one that was never killed.

    python tests/stress_resume.py --kills 30 [--case workers] [--seed 1]

Every case trains a small random Stable Diffusion once without interruption. Then it is trained again and killed with
SIGKILL again and again: at moments drawn over its whole life, from before its first step to after its last, and, one
time in three each, while it writes a checkpoint or builds its cache of latents. In the end these are compared bit for
bit: the LoRA, the optimiser's whole state, the schedule, and every loss, gradient norm, learning rate and validation
score of metrics.jsonl.

The runs are forks of this process, which has everything imported: a start costs a fraction of a second.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import torch
from safetensors.torch import load_file

import augunet_diode_pseudo_depth
import sd_single_diode_pseudo_normal
from miniworld.pretraining.random_sd import save_random_sd
from utils.errors import run
from utils.lora import SAFETENSORS
from utils.system import atomic
from utils.training import checkpoint

ROOT = Path(__file__).resolve().parent.parent
TIMED = {"samples_per_second"}  # the only values that may differ
LOST_RANK = 60  # seconds within which a process must notice that another one has died

# 24 images: with 2 a step, epochs end at steps 12, 24, 36; checkpoints are written in the middle of epochs
COMMON = "--resolution 32 --rank 2 --report_to none --validation_steps 15 --resume_from_checkpoint latest"
CASES = {  # name -> (script, processes, flags)
    "plain": (sd_single_diode_pseudo_normal, 1, "--train_batch_size 2 --max_train_steps 40 --checkpointing_steps 5"),
    "accumulation": (
        sd_single_diode_pseudo_normal, 1,
        "--train_batch_size 1 --gradient_accumulation_steps 3 --max_train_steps 24 --checkpointing_steps 4 "
        "--checkpoints_total_limit 2",
    ),
    "workers": (
        sd_single_diode_pseudo_normal, 1,
        "--train_batch_size 2 --dataloader_num_workers 2 --no-center_crop --max_train_steps 30 "
        "--checkpointing_steps 3 --checkpoints_total_limit 1 --lr_scheduler cosine",
    ),
    "augunet": (
        augunet_diode_pseudo_depth, 1, "--train_batch_size 2 --max_train_steps 26 --checkpointing_steps 4",
    ),
    "two processes": (
        sd_single_diode_pseudo_normal, 2,
        "--train_batch_size 2 --max_train_steps 24 --checkpointing_steps 4 --checkpoints_total_limit 2",
    ),
    "no cache": (  # the others but "workers", whose crops are random, build and read a cache of latents
        sd_single_diode_pseudo_normal, 1,
        "--train_batch_size 2 --max_train_steps 20 --checkpointing_steps 6 --no_cache_latents",
    ),
}  # fmt: skip


def make_world(folder: Path) -> None:
    """Rendered scenes in DIODE's layout, and random models in the formats of Stable Diffusion and InstructPix2Pix."""
    scenes = ["-m", "miniworld.scenes", "--root", folder, "--train", "24", "--val", "4", "--size", "96x72"]
    subprocess.run([sys.executable, *map(str, scenes)], cwd=ROOT, check=True, capture_output=True)
    for seed, (name, channels) in enumerate({"sd": 4, "ip2p": 8}.items()):
        save_random_sd(folder / name, seed, in_channels=channels, channels=(32, 64, 64))


def words_of(case: str, world: Path, output: Path) -> list[str]:
    """The command line of a case's script."""
    script, _, flags = CASES[case]
    task = script.__name__.rsplit("_", 1)[1]
    words = f"{COMMON} {flags} --pretrained_model_name_or_path {world}/sd --output_dir {output}"
    words += f" --train_data_dir {world}/{task}s --pseudo_root {world}/pseudo/{task}"
    return (words + (f" --augment_from {world}/ip2p" if script.__name__.startswith("augunet") else "")).split()


def fork_run(case: str, words: list[str], log: Path) -> list[int]:
    """Start the case's script in one or two processes; their ids. What they print goes to the end of `log`."""
    script, count, _ = CASES[case]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ids = []
    for rank in range(count):
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
            if count > 1:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )  # fmt: skip
            run(lambda: script.main(words))
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return ids


def wait(ids: list[int], seconds: float) -> list[int | None]:
    """Exit statuses once all have ended, or after `seconds`; None: still alive, negative: killed by that signal."""
    states: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while True:
        for each in [each for each in ids if each not in states]:
            done, status = os.waitpid(each, os.WNOHANG)
            if done:
                states[each] = os.waitstatus_to_exitcode(status)
        if len(states) == len(ids) or time.monotonic() >= deadline:
            break
        time.sleep(0.002)
    return [states.get(each) for each in ids]


def is_building(output: Path) -> bool:
    """True while a cache of latents is incomplete."""
    return any(0 in file.read_bytes() for file in output.glob("latent_cache/*/done.bin"))


def is_saving(output: Path) -> bool:
    """True while a checkpoint is incomplete."""
    return bool(list(output.glob(checkpoint.ASIDE.format("*"))))


def kill_sometime(ids: list[int], output: Path, life: float, chance: random.Random, number: int) -> list | None:
    """SIGKILL one process of a run; None, or how it ended before that.

    number: of the kill. Of three, one comes at a moment drawn from the run's `life` in seconds, one in the middle of
    writing the first checkpoint after such a moment, and one while the cache is built, if this run does build one.
    """
    states = [None] * len(ids)
    if number % 3 == 0 and not checkpoint.find(output):
        while None in states and not is_building(output) and not checkpoint.find(output):
            states = wait_on(ids, states, 0.001)
    else:
        states = wait(ids, chance.uniform(0, life))
    if number % 3 == 1:
        while None in states and not is_saving(output):
            states = wait_on(ids, states, 0.001)
    states = wait_on(ids, states, chance.uniform(0, 0.03) if number % 3 < 2 else 0)
    alive = [each for each, state in zip(ids, states) if state is None]
    if not alive:
        return states
    victim = chance.choice(alive)
    os.kill(victim, signal.SIGKILL)
    if None in wait(alive, LOST_RANK):
        raise SystemExit(f"a process still ran {LOST_RANK} s after another one had been killed")
    return None


def wait_on(ids: list[int], states: list[int | None], seconds: float) -> list[int | None]:
    """`states` with those that end within `seconds`."""
    alive = [each for each, state in zip(ids, states) if state is None]
    ended = dict(zip(alive, wait(alive, seconds)))
    return [ended.get(each) if state is None else state for each, state in zip(ids, states)]


def outcome(output: Path) -> dict[str, object]:
    """All that must be equal: name -> tensor, number or text."""
    last = checkpoint.find(output)[-1]
    assert atomic.damage(last) is None and not list(output.glob(".checkpoint-*")), "left half written"
    state = torch.load(last / checkpoint.STATE, weights_only=True)
    found = {f"final {key}": value for key, value in load_file(output / SAFETENSORS).items()}
    found |= {f"checkpoint {key}": value for key, value in load_file(last / SAFETENSORS).items()}
    for index, moments in state["optimizer"]["state"].items():
        found |= {f"optimizer {index} {name}": value for name, value in moments.items()}
    found |= {"schedule": json.dumps(state["schedule"], default=str), "step": state["step"], "last": last.name}
    for line in (output / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in TIMED | {"step"}:
                key = f"{record['step']} {name}"
                assert key not in found, f"{key} is written twice"
                found[key] = value
    return found


def differences(a: dict[str, object], b: dict[str, object]) -> list[str]:
    """Names of what is not the same to the last bit."""
    missing = sorted(set(a) ^ set(b))
    same = {
        key: torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]
        for key in set(a) & set(b)
    }
    return missing + sorted(key for key, equal in same.items() if not equal)


def stress(case: str, world: Path, folder: Path, kills: int, chance: random.Random) -> tuple[int, int, int]:
    """Run a case whole and with `kills` kills; (kills, of these in saving a checkpoint, in building the cache).

    A run that ends is compared and, if kills are left, started again.
    """
    name = case.replace(" ", "-")
    whole, log = folder / f"{name}-whole", folder / f"{name}.log"
    began = time.monotonic()
    states = wait(fork_run(case, words_of(case, world, whole), log), 600)
    assert states == [0] * len(states), f"the uninterrupted run ended with {states}:\n{log.read_text()[-3000:]}"
    life, expected = time.monotonic() - began, outcome(whole)
    done, in_save, in_build, begun = 0, 0, 0, 0
    while done < kills:
        output, begun = folder / f"{name}-{begun}", begun + 1
        states = None
        while states is None:
            ids = fork_run(case, words_of(case, world, output), log)
            if done == kills:
                states = wait(ids, 600)
            else:
                states = kill_sometime(ids, output, life, chance, done)
                done += states is None
                in_save += states is None and is_saving(output)
                in_build += states is None and is_building(output)
        assert states == [0] * len(states), f"a resumed run ended with {states}:\n{log.read_text()[-3000:]}"
        wrong = differences(expected, outcome(output))
        assert not wrong, f"{case}: after kills these differ: {', '.join(wrong[:5])} ({len(wrong)} in all)"
    print(
        f"{case}: {done} kills, {in_save} while writing a checkpoint, {in_build} while building the cache; the "
        f"{begun} runs they hit equal the whole one to the last bit in {len(expected)} tensors and numbers",
        flush=True,
    )
    return done, in_save, in_build


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="in all, shared out among the cases (default: 30)")
    parser.add_argument("--case", choices=list(CASES), action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args(argv)
    cases, chance = args.case or list(CASES), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder, "world")
        make_world(world)
        totals = [
            stress(case, world, Path(folder), len(range(number, args.kills, len(cases))), chance)
            for number, case in enumerate(cases)
        ]
    kills, in_save, in_build = map(sum, zip(*totals))
    print(f"{kills} kills survived, {in_save} while writing a checkpoint, {in_build} while building the cache")


if __name__ == "__main__":
    main()
