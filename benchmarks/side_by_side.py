"""Two ways to compute the same thing, timed in turn in one process, so that a busy machine slows both.

A benchmark passes its two makers to `compare`: (args, device) -> a function that does the work once. Times are medians
with their spread over --rounds. FLOP are PyTorch's count of matrix products, convolutions and fused attention. The
ceiling is a product of two 4096 x 4096 matrices in the same dtype, timed in every round. Peak memory is measured in a
fresh process for each (on a GPU by its allocator).
"""

import argparse
import json
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.models import is_family
from utils.cli import Parser, path_flag

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def same_products(operation: Any) -> Callable[..., int]:
    """PyTorch's count for `operation`, for another operation with the same products."""

    def count(*args: Any, **options: Any) -> int:
        return flop_registry[operation](*args, **options)

    count._get_raw = True  # type: ignore[attr-defined]  # it reads the shapes itself
    return count


ON_CPU = {  # a CPU's fused attention, which PyTorch doesn't count; the GPU's has the same products
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: same_products(
        torch.ops.aten._scaled_dot_product_flash_attention
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: same_products(
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}
SIDE = 4096  # rows and columns of the ceiling's matrices
VARIANTS = ("released", "ours")

Make = Callable[[argparse.Namespace, str], Callable[[], object]]


def parser_of(module: str, description: str) -> argparse.ArgumentParser:
    """The flags that every comparison has."""
    parser = Parser(prog=f"python -m {module}", description=description)
    add = parser.add_argument
    add(
        "--base",
        help="Stable Diffusion folder; left out: Stable Diffusion 1.5's architecture with random weights; with "
        "--peak ours also sdxl, sd3, flux2 (klein 4B), z_image or qwen_image, with random weights",
    )
    add("--resolution", type=int, default=512, help="pixels (512)")
    add("--batch", type=int, default=1, help="images at a time (1)")
    add("--rank", type=int, default=8, help="rank of the LoRA (8)")
    add("--dtype", choices=DTYPES, default="fp32", help="dtype of our frozen weights (fp32); the released are fp32")
    add("--compile", choices=("off", "regional", "whole"), nargs="?", const="whole", default="off",
        help="torch.compile our UNet, or only its transformer blocks (whole, if nothing follows)")  # fmt: skip
    add("--rounds", type=int, default=5, help="pairs that are timed, after one that is not (5)")
    add("--profile", action="store_true", help="time nothing: print where the time of one call goes, for each")
    add("--output", type=path_flag, help="write the numbers as JSON")
    add("--peak", choices=VARIANTS, help="time nothing: print one side's peak memory in GB after two calls")
    parser.only("output", lambda a: not a.profile, "with --profile, which times nothing")
    return parser


def compare(parser: argparse.ArgumentParser, module: str, makers: dict[str, Make], argv: list[str]) -> None:
    """Run the comparison and print it. `makers`: one per variant. A call handles --images images, or --batch."""
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if is_family(args.base) and (args.peak != "ours" or args.method != "single"):
        parser.error(f"--base={args.base}: only our single step can train it; pass --peak ours")
    if args.peak:
        print(peak_of(makers[args.peak](args, device), device))
        return
    if args.profile:
        for variant in VARIANTS:
            print(variant, where_time_goes(makers[variant](args, device)), sep="\n")
        return
    kept = [word for word in argv if word not in ("--output", str(args.output))]
    result = {"command": shlex.join(["python", "-m", module, *kept]), **measure(args, argv, module, makers, device)}
    print(table(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


def measure(args: argparse.Namespace, argv: list[str], module: str, makers: dict[str, Make], device: str) -> dict:
    """All numbers of one configuration."""
    memory = {variant: peak(module, argv, variant) for variant in VARIANTS}
    calls = {variant: makers[variant](args, device) for variant in VARIANTS}
    work = {variant: flop(call) for variant, call in calls.items()}
    for call in calls.values():  # the round that is not timed, in which a compiler may work
        call()
    square = {"released": torch.randn(SIDE, SIDE, device=device)}
    square["ours"] = square["released"].to(DTYPES[args.dtype])
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    ceilings: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.rounds):
        for variant in VARIANTS:
            matrix = square[variant]
            seconds(lambda m=matrix: m @ m, device)
            ceilings[variant].append(2 * SIDE**3 / seconds(lambda m=matrix: m @ m, device))
            times[variant].append(seconds(calls[variant], device))
    rows = {}
    for variant in VARIANTS:
        middle = statistics.median(times[variant])
        rows[variant] = {
            "seconds": spread(times[variant]),
            "images_per_second": getattr(args, "images", args.batch) / middle,
            "peak_gb": memory[variant],
            "flop": work[variant],
            "of_ceiling": work[variant] / middle / statistics.median(ceilings[variant]),
            "ceiling_flop_per_second": statistics.median(ceilings[variant]),
        }
    ratios = [a / b for a, b in zip(times["released"], times["ours"])]
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **rows,
        "speedup": spread(ratios),
        "memory_ratio": memory["ours"] / memory["released"],
    }


def set_compile(unet: nn.Module, what: str) -> None:
    """Compile nothing ("off"), the repeated transformer blocks ("regional") or the "whole" UNet, in the first pass."""
    if what == "regional":
        unet.compile_repeated_blocks(dynamic=False)
    elif what == "whole":
        unet.compile(dynamic=False)


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall time of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def flop(call: Callable[[], object]) -> int:
    """Multiplications and additions of products, convolutions and attentions in one call, compiled or not."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        call()
    return counter.get_total_flops()


def peak(module: str, argv: list[str], variant: str) -> float:
    """Peak memory in GB of a fresh process that does the work twice."""
    command = [sys.executable, "-m", module, *argv, "--peak", variant]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def peak_of(call: Callable[[], object], device: str) -> float:
    """Peak memory in GB of this process after two calls; of a GPU, during the two."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    call()
    call()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def where_time_goes(call: Callable[[], object], rows: int = 12) -> str:
    """PyTorch's profile of one call, the longest operators first."""
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as found:
        call()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return found.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=40)


def processor() -> str:
    """The processor by name, as Linux gives it, with what it computes bfloat16 products with."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} CPU"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if unit in facts.get("flags", "")]
    return ", ".join([facts.get("model name", platform.machine()), *units])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def format_spread(values: dict[str, float], scale: float = 1) -> str:
    """A `spread` as text, times `scale`."""
    return f"{scale * values['median']:.3g} [{scale * values['min']:.3g}, {scale * values['max']:.3g}]"


def table(result: dict) -> str:
    """Markdown."""
    lines = [
        "| | seconds (median, spread) | images/s | peak GB | TFLOP | of the matrix ceiling |",
        "|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        row = result[variant]
        lines.append(
            f"| {variant} | {format_spread(row['seconds'])} "
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
