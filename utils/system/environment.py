"""Settings from outside the command line (environment variables, accelerate's file) that would change results.

`accelerate launch` turns its configuration file into environment variables, and the libraries read these and others
without a message. Here each of them is refused, replaced by the script's flag, or followed and reported. Nothing slow
is imported, so that it can run before PyTorch is.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from utils.errors import InputError, note

WRAPPERS = {  # accelerate's variable -> the kind of training that it turns on
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
FPMATH = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")  # fp32 products in bf16 or fp16 on the CPU
PRECISION, PRECISIONS = "ACCELERATE_MIXED_PRECISION", ("no", "fp16", "bf16")
DEVICE = "ACCELERATE_TORCH_DEVICE"
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # as accelerate reads them
LAUNCHER = re.compile(r"(^|/)accelerate(-launch)?$|accelerate[./]commands")
FLAGS = {PRECISION: "--mixed_precision", "ACCELERATE_DYNAMO_BACKEND": "--dynamo_backend"}


class Launcher(NamedTuple):
    """The `accelerate launch` above this process: its arguments (without the script's), its file, its environment."""

    words: list[str]
    file: Path | None
    environment: Mapping[str, str]


def launcher() -> Launcher | None:
    """The launcher that started this process, or None."""
    script = Path(sys.argv[0]).name
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
            end = next((i for i, word in enumerate(words) if i and Path(word).name == script), len(words))
            if any(LAUNCHER.search(word) for word in words[:end]):
                return Launcher(words[:end], configuration(words[:end]), parent.environ())
        except psutil.Error:
            continue
    return None


def option(words: list[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value` among these words."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == name and (equals or i + 1 < len(words)):
            return value if equals else words[i + 1]
    return None


def configuration(words: list[str]) -> Path | None:
    """The file that the launcher reads: --config_file, or the one that `accelerate config` wrote."""
    if named := option(words, "--config_file"):
        return Path(named)
    if "--cpu" in words:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    file = Path(os.environ.get("HF_HOME", cache)).expanduser() / "accelerate" / "default_config.yaml"
    return file if file.is_file() else None


def origin(variable: str) -> str:
    """The source of a variable, for messages: a flag or the file of `accelerate launch`, or the environment."""
    above = launcher()
    if above and above.environment.get(variable) != os.environ.get(variable):
        flag = FLAGS.get(variable)
        if flag and option(above.words, flag) is not None:
            return f"accelerate launch {flag}"
        if above.file:
            return f"accelerate's file {above.file}"
        return "accelerate launch"
    return f"the environment's {variable}"


def is_on(variable: str) -> bool:
    """True where accelerate takes the variable as true."""
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "y", "t", "on")


def refuse_unsupported(allow_tf32: bool = False) -> None:
    """InputError for what cannot be followed and would not be noticed: every script's first check.

    allow_tf32: whether TF32 was asked for by a flag.
    """
    for variable, way in WRAPPERS.items():
        if is_on(variable):
            raise InputError(
                f"{origin(variable)} asks for {way}, which this project does not support: every GPU holds the whole "
                f"frozen network; set distributed_type to NO or MULTI_GPU in accelerate's file, or unset {variable}"
            )
    if is_on("ACCELERATE_USE_SAGEMAKER") and os.environ.get("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE") != "NO":
        raise InputError("ACCELERATE_USE_SAGEMAKER: SageMaker's data parallelism is not supported; unset it")
    for variable in FPMATH:
        if os.environ.get(variable, "STRICT").upper() not in ("", "STRICT"):
            raise InputError(
                f"{variable}={os.environ[variable]}: oneDNN would compute fp32 products in fewer bits; unset it"
            )
    check_device()
    check_processes()
    override = os.environ.get("NVIDIA_TF32_OVERRIDE")
    if override == "1" and not allow_tf32:
        raise InputError(
            "NVIDIA_TF32_OVERRIDE=1 turns TF32 on for all fp32 products on a GPU; unset it (to train with TF32, pass "
            "--allow_tf32 too)"
        )
    if override == "0" and allow_tf32:
        raise InputError("NVIDIA_TF32_OVERRIDE=0 turns off the TF32 that --allow_tf32 asks for; leave one of them out")


def check_device() -> None:
    """InputError where accelerate's variable names a device that computes nothing, such as meta, or none at all."""
    device = os.environ.get(DEVICE, "")
    if device and not re.fullmatch(r"(cpu|cuda|mps|xpu|npu|mlu|hpu|musa|sdaa)(:\d+)?", device):
        raise InputError(f"{origin(DEVICE)} is {device!r}, not a device that computes; unset it, or set it to cpu")


def check_processes() -> None:
    """InputError where WORLD_SIZE states several processes and nothing states which one this is, or how they meet."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise InputError(f"WORLD_SIZE={size}: not a number of processes; unset it")
    missing = [] if any(name in os.environ for name in RANKS) else ["RANK"]
    missing += [] if os.environ.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if int(size) > 1 and missing:
        raise InputError(
            f"WORLD_SIZE={size} states {size} processes, but {' and '.join(missing)} {'are' if missing[1:] else 'is'} "
            "not set; start with accelerate launch or torchrun, or unset WORLD_SIZE"
        )


def tf32_variable() -> str:
    """NVIDIA_TF32_OVERRIDE, which a resumed run is compared with: it also affects the convolutions."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE", "")


def set_tf32(allow_tf32: bool) -> None:
    """TF32 matrix products by the flag, whatever TORCH_ALLOW_TF32_CUBLAS_OVERRIDE contains. Convolutions keep
    PyTorch's default, which is on.
    """
    import torch

    if os.environ.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE") == "1" and not allow_tf32:
        note("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is not followed: TF32 matrix products only with --allow_tf32")
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    if torch.backends.cuda.matmul.allow_tf32 != allow_tf32:
        raise InputError("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE cannot be overruled in this PyTorch; unset it")
    torch.backends.cudnn.allow_tf32 = True


def mixed_precision(flag: str | None) -> str:
    """The mixed precision: "no", "fp16" or "bf16". flag: --mixed_precision; None: accelerate's setting.

    Raises InputError for another setting of accelerate, such as fp8.
    """
    outside = os.environ.get(PRECISION, "").strip().lower() or "no"
    if flag is not None:
        if outside not in ("no", flag):
            note(f"--mixed_precision {flag} is used, not the {outside} of {origin(PRECISION)}")
        return flag
    if outside not in PRECISIONS:
        raise InputError(
            f"{origin(PRECISION)} asks for mixed precision {outside!r}, which is not one of {', '.join(PRECISIONS)}; "
            "pass --mixed_precision, or change it there"
        )
    return outside


def check_accumulation(steps: int, typed: bool) -> None:
    """--gradient_accumulation_steps against accelerate's variable, which would silently win. A typed flag wins, with
    a note; else InputError.
    """
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    outside = os.environ.get(variable, "").strip()
    if outside in ("", str(steps)):
        return
    text = f"{origin(variable)} asks for {outside} gradient accumulation steps"
    if not typed:
        raise InputError(f"{text}, the flag's default is {steps}; pass --gradient_accumulation_steps, or unset it")
    note(f"--gradient_accumulation_steps {steps} is used: {text}")


def note_dynamo(compile_flag: bool) -> None:
    """A note where accelerate is asked to compile: --compile alone decides, which keeps the names of the weights."""
    variable = "ACCELERATE_DYNAMO_BACKEND"
    outside = os.environ.get(variable, "no").strip()
    if outside.lower() not in ("", "no"):
        decided = "--compile compiles the network instead" if compile_flag else "pass --compile to compile the network"
        note(f"{origin(variable)} asks for dynamo ({outside}), which is not used: {decided}")


def settle_inference() -> None:
    """For inference and labels: refuse settings that would change maps, turn TF32 off, and note accelerate's mixed
    precision, which only training reads.
    """
    refuse_unsupported()
    set_tf32(False)
    outside = os.environ.get(PRECISION, "no").strip().lower()
    if outside not in ("", "no"):
        note(f"mixed precision {outside} of {origin(PRECISION)} is not used: --dtype decides")
