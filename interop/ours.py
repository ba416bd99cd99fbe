"""Loads every file by this project's own loader, under whatever diffusers this Python has; like probe.py otherwise.

    PYTHONPATH=. python interop/ours.py CASES TRAINED OUT.json

TRAINED: what diffusers 0.20 trained and saved; the expected output there is the one that diffusers 0.20 computed.
"""

import json
import sys
from functools import partial
from pathlib import Path

from probe import TOLERANCE, augunet_outputs, expected_of, forward, judge, load_unet, merged_outputs
from safetensors.torch import load_file

from utils.lora import load_attn_procs


def main(cases: Path, trained: Path, out: Path) -> None:
    base, outputs, results = forward(load_unet(cases), cases), merged_outputs(cases), {}
    run = partial(forward, cases=cases)
    for folder in sorted((cases / "files").iterdir()):
        expected = expected_of(outputs, folder)
        results[f"ours {folder.name}"] = judge(load_unet(cases), load_attn_procs, folder, run, base, expected)
    for name in ("augunet", "augunet-all"):
        expected = augunet_outputs(cases, name)
        results[f"{name} ours"] = judge(load_unet(cases), load_attn_procs, cases / name, run, *expected)
    old = load_file(trained / "output.safetensors")
    if not (old["output"] - old["base"]).abs().max() > 1000 * TOLERANCE * old["base"].abs().max():
        raise SystemExit(f"{trained}: this training changed too little to prove anything")
    for name in ("accelerate", "safetensors", "bin"):
        results[f"reverse {name}"] = judge(load_unet(cases), load_attn_procs, trained / name, run, base, old["output"])
    out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
