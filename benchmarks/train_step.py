"""One training step: the released computation beside ours, interleaved in one process.

    python -m benchmarks.train_step                                   # Stable Diffusion 1.5's size, random weights
    python -m benchmarks.train_step --base miniworld/mini-sd --resolution 64 --batch 16
    python -m benchmarks.train_step --batch 4 --dtype bf16            # on a GPU

released  what the paper's code computes (read from its source): fp32, the picture and the label through the VAE in
          every step, the prompt through the text encoder once per sample, attention as matrix products and a softmax
ours      latents from the cache, the prompt's states computed once, fused attention, frozen weights in --dtype

Both train the same LoRA with AdamW on the same pictures. Rounds alternate, so that a busy machine slows both. FLOP are
counted by PyTorch on one step; the ceiling is a matrix product of 4096 x 4096 in the same dtype, timed in every round.
Peak memory is measured in a process of its own for each (a GPU: by its allocator).
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from utils.latents import moments
from utils.lora import add_lora
from utils.models import load_base
from utils.noise import generators
from utils.objectives import SingleStep

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDE = 4096  # of the ceiling's matrices
VARIANTS = ("released", "ours")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", help="Stable Diffusion folder; left out: Stable Diffusion 1.5's architecture with random weights")
    add("--resolution", type=int, default=512, help="pixels (512)")
    add("--batch", type=int, default=1, help="pictures a step (1)")
    add("--rank", type=int, default=8, help="of the LoRA (8)")
    add("--dtype", choices=DTYPES, default="fp32", help="of our frozen weights (fp32); the released are fp32")
    add("--rounds", type=int, default=5, help="pairs of steps that are timed, after one that is not (5)")
    add("--gradient_checkpointing", action="store_true", help="in ours")
    add("--compile", action="store_true", help="torch.compile our UNet")
    add("--output", type=Path, help="write the numbers as JSON")
    add("--peak", choices=VARIANTS, help=argparse.SUPPRESS)  # the process of its own that measures memory
    return parser.parse_args(argv)


def sd15() -> tuple[CLIPTextModel, AutoencoderKL, UNet2DConditionModel]:
    """Stable Diffusion 1.5's text encoder, VAE and UNet with random weights: 123, 84 and 860 million parameters."""
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        scaling_factor=0.18215,
    )
    return CLIPTextModel(text), vae, UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def models(args: argparse.Namespace) -> tuple[CLIPTextModel, AutoencoderKL, UNet2DConditionModel]:
    torch.manual_seed(0)
    if args.base:
        base = load_base(args.base)
        return base.text_encoder, base.vae, base.unet
    return tuple(part.requires_grad_(False).eval() for part in sd15())


def released_step(args: argparse.Namespace, device: str) -> Callable[[], None]:
    """The released computation, restated from a description of its code: a function that makes one step."""
    text_encoder, vae, unet = (part.to(device) for part in models(args))
    unet.set_attn_processor(AttnProcessor())
    parameters = add_lora(unet, args.rank)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    rgb, target = pictures(args, device)
    length = text_encoder.config.max_position_embeddings
    tokens = torch.ones(args.batch, length, dtype=torch.long, device=device)
    scale = vae.config.scaling_factor

    def step() -> None:
        with torch.no_grad():
            z = scale * vae.encode(rgb).latent_dist.mode()
            wanted = scale * vae.encode(target).latent_dist.sample()
            text = text_encoder(tokens)[0]
        t = torch.full((args.batch,), 999, device=device)
        descend(nn.functional.mse_loss(unet(z, t, text).sample, wanted), parameters, optimizer)

    return step


def our_step(args: argparse.Namespace, device: str) -> Callable[[], None]:
    """What utils/training.py computes in a step with the latent cache: a function that makes one step."""
    text_encoder, vae, unet = models(args)
    dtype = DTYPES[args.dtype]
    rgb, target = pictures(args, device)
    vae.to(device)
    latents = {name: value.to(dtype) for name, value in moments(vae, {"rgb": rgb, "target": target}).items()}
    length = text_encoder.config.max_position_embeddings
    with torch.no_grad():
        text = text_encoder(torch.ones(1, length, dtype=torch.long))[0].to(device, dtype)
    vae.to("cpu")
    unet.to(device, dtype)
    parameters = add_lora(unet, args.rank)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    compiled = torch.compile(unet) if args.compile else unet
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=device == "cuda")
    objective = SingleStep(vae, text, 999)
    del text_encoder
    vae.encoder = vae.decoder = None  # on a CPU, too, training needs neither

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = objective.loss(compiled, latents, generators(0, 0, args.batch))
        descend(loss, parameters, optimizer)

    return step


STEPS = {"released": released_step, "ours": our_step}


def pictures(args: argparse.Namespace, device: str) -> Tensor:
    """rgb and target in [-1,1], (2,B,3,R,R)."""
    rng = torch.Generator().manual_seed(1)
    return (torch.rand(2, args.batch, 3, args.resolution, args.resolution, generator=rng) * 2 - 1).to(device)


def descend(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall time of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def flop(step: Callable[[], None]) -> int:
    """Multiplications and additions of the matrix products and convolutions of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak(variant: str, argv: list[str], device: str) -> float:
    """Peak memory in GB of a fresh process that makes two steps."""
    command = [sys.executable, "-m", "benchmarks.train_step", *argv, "--peak", variant]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(args: argparse.Namespace, argv: list[str], device: str) -> dict:
    """All numbers of one configuration."""
    memory = {variant: peak(variant, argv, device) for variant in VARIANTS}
    steps = {variant: make(args, device) for variant, make in STEPS.items()}
    work = {variant: flop(step) for variant, step in steps.items()}  # also the round that is not timed
    if args.compile:
        steps["ours"]()
    square = {"released": torch.randn(SIDE, SIDE, device=device)}
    square["ours"] = square["released"].to(DTYPES[args.dtype])
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    ceilings: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.rounds):
        for variant in VARIANTS:
            matrix = square[variant]
            seconds(lambda m=matrix: m @ m, device)
            ceilings[variant].append(2 * SIDE**3 / seconds(lambda m=matrix: m @ m, device))
            times[variant].append(seconds(steps[variant], device))
    rows = {}
    for variant in VARIANTS:
        middle = statistics.median(times[variant])
        rows[variant] = {
            "seconds": {"median": middle, "min": min(times[variant]), "max": max(times[variant])},
            "images_per_second": args.batch / middle,
            "peak_gb": memory[variant],
            "flop": work[variant],
            "of_ceiling": work[variant] / middle / statistics.median(ceilings[variant]),
            "ceiling_flop_per_second": statistics.median(ceilings[variant]),
        }
    ratios = sorted(a / b for a, b in zip(times["released"], times["ours"]))
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "command": ["python", "-m", "benchmarks.train_step", *argv],
        **rows,
        "speedup": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
        "memory_ratio": memory["ours"] / memory["released"],
    }


def table(result: dict) -> str:
    """Markdown."""
    lines = [
        "| | step, s (median, spread) | images/s | peak GB | TFLOP | of the matrix ceiling |",
        "|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        row = result[variant]
        time_ = row["seconds"]
        lines.append(
            f"| {variant} | {time_['median']:.3g} [{time_['min']:.3g}, {time_['max']:.3g}] "
            f"| {row['images_per_second']:.3g} | {row['peak_gb']:.2f} | {row['flop'] / 1e12:.3g} "
            f"| {100 * row['of_ceiling']:.0f} % |"
        )
    ratio = result["speedup"]
    lines.append("")
    lines.append(
        f"released / ours: {ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] times the time; ours takes "
        f"{result['memory_ratio']:.2f} times the memory. {result['machine']}, {result['threads']} threads."
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.peak:
        step = STEPS[args.peak](args, device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step()
        step()
        used = (
            torch.cuda.max_memory_allocated()
            if device == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        print(used / 1e9)
        return
    result = measure(args, argv, device)
    print(table(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
