"""Nothing reaches the network unless a hub name was given."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

PROGRAM = """
import importlib, socket, sys
from pathlib import Path

tried = []
NETWORK = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}

def note(event, args):
    local = event == "socket.connect" and args[0].family == socket.AF_UNIX
    if event in NETWORK and not local:
        tried.append(f"{event} {args[1:]}")

sys.addaudithook(note)
for folder in ("utils", "dataloaders", "generators", "app"):
    for path in sorted(Path(folder).rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            importlib.import_module(name)
for path in sorted(Path().glob("*.py")):
    importlib.import_module(path.stem)

import evaluate, predict
from utils.base_model.stable_diffusion import load_base, load_donor
from utils.base_model.names import check_base

for base in ("mini-sd", "mini-sd-2"):
    check_base(f"miniworld/{base}")
    load_base(f"miniworld/{base}")
load_donor("miniworld/mini-ip2p")
predict.main(["examples/room.jpg", "--output_dir", sys.argv[1]])
if tried:
    sys.exit(f"reached for the network: {tried}")
try:
    load_base("someone/model")
except ValueError:
    pass
print("with a hub name:", bool(tried))
"""


@pytest.mark.slow
def test_importing_everything_loading_and_predicting_reach_for_no_network(tmp_path):
    """In a network namespace without a route where one can be made; a hook of Python's sees what is tried."""
    apart = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        apart = []
    env = {name: value for name, value in os.environ.items() if "OFFLINE" not in name and name != "WANDB_MODE"}
    done = subprocess.run(
        [*apart, sys.executable, "-c", PROGRAM, tmp_path / "out"],
        cwd=ROOT,
        env=env | {"HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("with a hub name: True\n"), "the hook sees nothing, so this test shows nothing"
