"""Full-size Stable Diffusions with random weights, written as one file and read back: every weight must be the same.

    python -m interop.full_size                            # SD 1.x and 2.x, .safetensors and .ckpt
    python -m interop.full_size --keep sd15.safetensors    # SD 1.x alone; the file stays

Needs 12 GB of memory and, temporarily, 6 GB of disk. `make interop` and `make comfyui` use it.
"""

import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from interop.ldm import to_ldm
from utils.base_model.single_file_parts import CONFIGS
from utils.base_model.stable_diffusion import load_base
from utils.cli import Parser, path_flag
from utils.errors import run


def random_parts(kind: str, seed: int = 0) -> dict[str, torch.nn.Module]:
    """UNet, VAE and text encoder of the kind ("sd1", "sd2") in their real sizes; the same seed, the same weights."""
    folder = CONFIGS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
        }


def compare(kind: str, file: Path) -> None:
    """Write `file`, load it, and print the largest difference of any weight, part by part. Exits where one differs."""
    parts = random_parts(kind)
    state = to_ldm(**parts, open_clip=kind == "sd2")
    save_file(state, file) if file.suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    del state
    started = time.monotonic()
    base, worst = load_base(str(file)), {}
    seconds = time.monotonic() - started
    for name, part in parts.items():
        found, wanted = getattr(base, name).state_dict(), part.state_dict()
        if found.keys() != wanted.keys():
            raise SystemExit(f"{file}: {name} has other weights: {sorted(found.keys() ^ wanted.keys())[:3]}")
        worst[name] = max((found[key].float() - wanted[key].float()).abs().max().item() for key in wanted)
    print(f"{kind} {file.suffix}: loaded in {seconds:.1f} s; largest differences {worst}", flush=True)
    if any(worst.values()):
        raise SystemExit(f"{file}: differs from what was written")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--keep", type=path_flag, help="write SD 1.x there, check it, and keep it")
    args = parser.parse_args(argv)
    if args.keep:
        args.keep.parent.mkdir(parents=True, exist_ok=True)
        compare("sd1", args.keep)
        return
    for kind in CONFIGS:
        for suffix in (".safetensors", ".ckpt"):
            with tempfile.TemporaryDirectory() as folder:
                compare(kind, Path(folder) / f"model{suffix}")


if __name__ == "__main__":
    run(main)
