"""Lays out a Stable Diffusion folder's UNet so that any diffusers can build it: options, weights, inputs.

python -m interop.unet BASE CASES
"""

import inspect
import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

# the options that miniworld/pretraining/random_sd.py sets; a newer version's other options are unknown to older ones
OPTIONS = (
    *("sample_size", "in_channels", "out_channels", "layers_per_block", "block_out_channels", "down_block_types"),
    *("up_block_types", "cross_attention_dim", "attention_head_dim"),
)


def main(base: Path, cases: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    defaults = inspect.signature(UNet2DConditionModel).parameters
    changed = {
        key
        for key, parameter in defaults.items()
        if json.dumps(unet.config[key]) != json.dumps(parameter.default) and key not in OPTIONS
    }
    if changed:
        raise SystemExit(f"the UNet sets more than the probes know: {sorted(changed)}")
    (cases / "unet.json").write_text(json.dumps({key: unet.config[key] for key in OPTIONS}))
    save_file(unet.state_dict(), cases / "unet.safetensors")
    generator = torch.Generator().manual_seed(0)
    shapes = {"z": (2, 4, 16, 16), "text": (2, 77, unet.config.cross_attention_dim), "target": (2, 4, 16, 16)}
    save_file(
        {k: torch.randn(shape, generator=generator) for k, shape in shapes.items()}, cases / "inputs.safetensors"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
