"""Loads every file by this project's own loader, under whatever diffusers this Python has; like probe.py otherwise.

    PYTHONPATH=. python interop/ours.py CASES TRAINED OUT.json

TRAINED: what diffusers 0.20 trained and saved; the expected output there is the one that diffusers 0.20 computed.
"""

import json
import sys
from pathlib import Path

from probe import TOLERANCE, augunet_outputs, forward, judge, load_unet, merge_by_hand
from safetensors.torch import load_file

from utils.lora import SAFETENSORS, load_attn_procs


def main(cases: Path, trained: Path, out: Path) -> None:
    base, merged = forward(load_unet(cases), cases), load_unet(cases)
    merge_by_hand(merged, load_file(cases / "files" / "diffusers" / SAFETENSORS))
    expected = forward(merged, cases)
    results = {}
    for folder in sorted((cases / "files").iterdir()):
        results[f"ours {folder.name}"] = judge(load_unet(cases), load_attn_procs, folder, cases, base, expected)
    outputs = augunet_outputs(cases)
    results["augunet ours"] = judge(load_unet(cases), load_attn_procs, cases / "augunet", cases, *outputs)
    old = load_file(trained / "output.safetensors")
    if not (old["output"] - old["base"]).abs().max() > 1000 * TOLERANCE * old["base"].abs().max():
        raise SystemExit(f"{trained}: this training changed too little to prove anything")
    for name in ("accelerate", "safetensors", "bin"):
        results[f"reverse {name}"] = judge(
            load_unet(cases), load_attn_procs, trained / name, cases, base, old["output"]
        )
    out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
