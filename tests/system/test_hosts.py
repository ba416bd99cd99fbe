"""Several hosts: network namespaces of this machine, joined by a cable that only the test uses."""

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from helpers import PATIENCE, ROOT, distance, fork, losses, run_here, start_fork, wait_for
from PIL import Image

from utils.errors import InputError
from utils.system import environment, processes
from utils.training.data import EndlessBatches

SCRIPT = "sd_single_diode_pseudo_normal.py"
ADDRESS = "10.77.{}.{}"  # filled with numbers from the test's process id and the host
ON_HOST = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
with open(os.environ["NAMESPACE"]) as namespace:
    assert libc.setns(namespace.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())
from utils.errors import run
"""
RUN_SCRIPT = ON_HOST + "import {0} as script; run(lambda: script.main(sys.argv[1:]))"
OWN_DISK = """
import socket
assert libc.unshare(0x04000000) == 0  # a host's own name
socket.sethostname("host" + os.environ["HOST"])
assert libc.unshare(0x00020000) == 0 and libc.mount(None, b"/", None, 1 << 14 | 1 << 18, None) == 0
if os.environ["HOST"] == "1":
    os.makedirs(os.environ["FOLDER"], exist_ok=True)
    assert libc.mount(b"tmpfs", os.environ["FOLDER"].encode(), b"tmpfs", 0, b"") == 0
"""
ELASTIC = (
    ON_HOST
    + """
import signal
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from utils.training import loop
import sd_single_diode_pseudo_normal as script
config = LaunchConfig(  # what `torchrun --nnodes 2 --nproc_per_node 1 --max_restarts 3 --rdzv_backend c10d` makes
    min_nodes=2, max_nodes=2, nproc_per_node=1, max_restarts=3, rdzv_backend="c10d", run_id="test",
    rdzv_endpoint=os.environ["MASTER_ADDR"] + ":" + os.environ["MASTER_PORT"], local_addr=os.environ["OWN_ADDR"],
    start_method="fork", monitor_interval=0.1,
    rdzv_configs={"is_host": os.environ["HOST"] == "0"},  # it goes by names, and both have this machine's
)
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    del os.environ[name]
log = loop.tracking.log_scalars
def dying(accelerator, output_dir, values, step, complete):
    log(accelerator, output_dir, values, step, complete)
    if step == 6 and os.environ["HOST"] == "1" and not os.path.exists(os.environ["DIED"]):
        open(os.environ["DIED"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
def worker(words):
    print("worker", os.getpid(), flush=True)
    loop.tracking.log_scalars = dying
    run(lambda: script.main(words))
elastic_launch(config, worker)(sys.argv[1:])
"""
)


class Hosts:
    """Two hosts and the cable between them. Names, addresses and ports are theirs: nobody else can take them."""

    def __init__(self, folder: Path):
        self.folder, number = folder, os.getpid() % 250
        self.names = [f"host{i}-{os.getpid()}" for i in (0, 1)]
        self.cable = [f"veth{i}-{os.getpid()}"[:15] for i in (0, 1)]
        self.addresses = [ADDRESS.format(number, i + 1) for i in (0, 1)]
        self.running: list[BaseProcess] = []

    def begin(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cable[0], "type", "veth", "peer", "name", self.cable[1])
        for name, end, address in zip(self.names, self.cable, self.addresses):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def end(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def start(self, program: str, *words: object, **more: object) -> None:
        """A process on each host, which is a rank of a training."""
        for host in (0, 1):
            where = {"NAMESPACE": f"/run/netns/{self.names[host]}", "HOST": host, "OWN_ADDR": self.addresses[host]}
            where |= {"RANK": host, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, **more}
            where |= {"MASTER_ADDR": self.addresses[0], "MASTER_PORT": 29511}
            env = os.environ | {key: str(value) for key, value in where.items()}
            (self.folder / f"{host}").mkdir()
            self.running.append(start_fork(("-c", program, *words), self.folder / f"{host}", env))

    def alive(self) -> bool:
        return all(one.is_alive() for one in self.running)

    def wait(self) -> list[int | None]:
        """The exit statuses once both processes have ended."""
        wait_for(lambda: not any(one.is_alive() for one in self.running))
        return [one.exitcode for one in self.running]

    def output(self, host: int, name: str = "stderr") -> str:
        file = self.folder / f"{host}" / name
        return file.read_text() if file.exists() else ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path):
    made = Hosts(tmp_path)
    try:
        made.begin()
    except (OSError, subprocess.CalledProcessError) as error:
        made.end() if isinstance(error, subprocess.CalledProcessError) else None
        pytest.skip(f"SEVERAL HOSTS ARE NOT TESTED HERE: they take the superuser and iproute2's `ip` ({error})")
    yield made
    for one in made.running:
        one.kill()
        one.join()
    made.end()


@pytest.mark.slow
def test_accelerate_launch_on_two_hosts_trains_as_one_process_does(hosts, flags, tmp_path):
    """Its ordinary rendezvous; each line as in docs/training.md."""
    words = ["--max_train_steps", 6, "--learning_rate", 1e-2, "--adam_epsilon", 1e-2, "--checkpointing_steps", 3]
    both = flags(SCRIPT, tmp_path / "both", *words)
    both[both.index("--train_batch_size") + 1] = "1"
    launched = []
    for host in (0, 1):  # real ones: a process finds its launcher's command line
        launcher = ["-m", "accelerate.commands.launch", "--num_machines", 2, "--num_processes", 2]
        launcher += ["--machine_rank", host, "--main_process_ip", hosts.addresses[0], "--main_process_port", 29500]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", ROOT / SCRIPT, *both]
        command = ["ip", "netns", "exec", hosts.names[host], sys.executable, *map(str, launcher)]
        with (tmp_path / f"log{host}").open("w") as log:
            launched.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    try:
        states = [process.wait(PATIENCE) for process in launched]
    finally:
        for process in launched:
            process.kill()
    assert states == [0, 0], (tmp_path / "log0").read_text() + (tmp_path / "log1").read_text()
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "one", *words))
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert distance(tmp_path / "both", tmp_path / "one") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_host_that_is_lost_ends_the_other_within_a_minute_and_is_named(how, hosts, flags, tmp_path):
    hosts.start(RUN_SCRIPT.format(SCRIPT[:-3]), *flags(SCRIPT, tmp_path / "run", "--max_train_steps", 100_000))
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, hosts.alive, hosts.folder / "0/stderr")
    began = time.monotonic()
    if how == "killed":
        hosts.running[1].kill()
    else:
        ip("-n", hosts.names[1], "link", "set", hosts.cable[1], "down")
    states = hosts.wait()
    assert time.monotonic() - began < 60 and states == [2, -signal.SIGKILL if how == "killed" else 2], states
    for host in (0, 1)[: 1 if how == "killed" else 2]:
        last = hosts.output(host).strip().splitlines()[-1]
        assert last.startswith(f"[rank {host}] error: the process at {hosts.addresses[1 - host]} ") and "lost" in last


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint_and_ends_with_the_same_bits(hosts, flags, tmp_path):
    words = ["--max_train_steps", 16, "--checkpointing_steps", 4, "--resume_from_checkpoint", "latest"]
    words += ["--validation_steps", 0]
    hosts.start(ELASTIC, *flags(SCRIPT, tmp_path / "run", *words), DIED=tmp_path / "died")
    assert hosts.wait() == [0, 0], hosts.output(0) + hosts.output(1)
    assert (tmp_path / "died").exists()
    # more than one restart where a new worker looks for the other host's old one
    assert "resuming from" in hosts.output(0, "stdout") and hosts.output(1, "stdout").count("worker") >= 2
    fork(SCRIPT, *flags(SCRIPT, tmp_path / "whole", *words), processes=2)
    assert distance(tmp_path / "run", tmp_path / "whole") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("script", [SCRIPT, "inference_sd_single.py"])
def test_a_folder_that_the_hosts_do_not_share_is_refused_at_the_start(script, hosts, flags, tmp_path):
    own = tmp_path / "own"
    words = ["--lora", "miniworld/mini-loras/normal", "--input_dir", "examples", "--output_dir", own]
    program = (ON_HOST + OWN_DISK + RUN_SCRIPT.removeprefix(ON_HOST)).format(script[:-3])
    hosts.start(program, *(flags(script, own) if script == SCRIPT else words), FOLDER=own)
    assert hosts.wait() == [2, 2]
    expected = (
        f"error: --output_dir: {own} is not one folder for all hosts (what host0 writes does not appear on host1)"
    )
    assert expected in hosts.output(0) and expected in hosts.output(1)
    assert not list(own.rglob("*.png")) and not list(own.glob(".shared-*"))


@pytest.mark.slow
def test_predictions_and_labels_over_two_hosts_are_those_of_one(hosts, diode, tmp_path):
    predict = ["--lora", "miniworld/mini-loras/normal", "--input_dir", diode / "depths/val", "--device", "cpu"]
    label = ["--task", "depth", "--from", "ground_truth", "--input_dir", diode, "--device", "cpu"]
    both = "import inference_sd_single, pseudo_label; n = {0}\nrun(lambda: inference_sd_single.main(sys.argv[1:n]))\n"
    both += "run(lambda: pseudo_label.main(sys.argv[n:]))"
    for name in ("one", "two"):
        words = [
            *predict,
            "--output_dir",
            tmp_path / name / "maps",
            *label,
            "--output_dir",
            tmp_path / name / "labels",
        ]
        program = both.format(len(predict) + 3)
        if name == "two":
            hosts.start(ON_HOST + program, *words)
            assert hosts.wait() == [0, 0], hosts.output(0) + hosts.output(1)
        else:
            fork("-c", "import sys; from utils.errors import run\n" + program, *words)
    first, second = ({path.relative_to(tmp_path / name): np.asarray(Image.open(path)) for path in
                      (tmp_path / name).rglob("*.png")} for name in ("one", "two"))  # fmt: skip
    assert len(first) == 10 + 34 and first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


# Without namespaces


def test_an_address_that_other_hosts_cannot_reach_is_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.1.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(InputError, match=r"127\.0\.1\.1: the first host, which other hosts cannot reach at 127"):
        processes.check_hosts()
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(InputError, match=r"no-such-host\.invalid: no way to this host, the first one"):
        processes.check_hosts()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # one host
    processes.check_hosts()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_processes_that_cannot_be_shared_out_among_the_hosts_are_refused(monkeypatch):
    words = "accelerate launch --num_machines 2 --num_processes 3".split()
    monkeypatch.setattr(environment, "launcher", lambda: environment.Launcher(words, None, {}))
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="--num_processes=3: not a multiple of --num_machines=2"):
        processes.start_missing()


@pytest.mark.slow
def test_a_million_images_are_divided_among_64_processes():
    """An epoch's positions: each image once, whichever process reads it, in a time that is linear in the share."""
    images, world, batch = 1_000_000, 64, 8
    seen, seconds = np.zeros(images, np.uint8), []
    for rank in range(world):
        began = time.process_time()
        for position, indices in zip(range(rank * batch, images, world * batch), EndlessBatches(
            images, batch, 0, rank, world
        )):  # fmt: skip
            for index, epoch in indices[: images - position]:
                seen[index] += epoch == 0
        seconds.append(time.process_time() - began)
    assert (seen == 1).all()
    half = []
    for _ in range(5):
        began = time.process_time()
        for _ in zip(range(images // world // batch // 2), EndlessBatches(images, batch, 0, 0, world)):
            pass
        half.append(time.process_time() - began)
    assert min(half) < min(seconds) < 4 * min(half), "twice the share, twice the time"
    assert socket.gethostname()
