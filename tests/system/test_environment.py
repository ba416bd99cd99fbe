"""Settings outside the flags, in variables or accelerate's file: refused, overruled with a note, or reported."""

import importlib
import re
import shutil

import pytest
import torch
from accelerate import Accelerator
from helpers import ROOT, SCRIPTS, distance, fork, launch, lora, losses, python, run_here
from safetensors.torch import load_file, save_file

import utils.training.loop as loop
from utils.errors import InputError
from utils.lora import SAFETENSORS
from utils.system import atomic, environment
from utils.training.settings import Settings

SCRIPT = "sd_single_diode_pseudo_normal.py"
RESUME = ["--resume_from_checkpoint", "latest"]
UNSUPPORTED = [*environment.WRAPPERS, "ACCELERATE_USE_SAGEMAKER"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Output folder of a run of 4 steps in a plain environment; made on first use."""
    made = []

    def build(flags):
        if not made:
            made.append(tmp_path_factory.mktemp("whole") / "run")
            run_here(SCRIPT, flags(SCRIPT, made[0], "--max_train_steps", 4))
        return made[0]

    return build


@pytest.mark.parametrize("variable", UNSUPPORTED)
def test_ways_to_train_that_do_not_work_here_are_refused(variable, flags, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(InputError, match=variable):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["inference_sd_single.py", "predict.py", "pseudo_label.py"])
def test_the_other_scripts_refuse_them_too(script, tmp_path):
    words = {
        "inference_sd_single.py": ["--lora", "miniworld/mini-loras/normal", "--input_dir", "examples/coffee.jpg"],
        "predict.py": ["examples/coffee.jpg"],
        "pseudo_label.py": ["--task", "normal", "--input_dir", "examples", "--teacher", "miniworld/mini-teacher"],
    }[script]
    env = {"ACCELERATE_USE_FSDP": "true"}
    done = fork(script, *words, "--output_dir", tmp_path / "out", env=env, check=False)
    assert done.returncode == 2 and "ACCELERATE_USE_FSDP" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("variable", "value", "allow_tf32"), [
    ("NVIDIA_TF32_OVERRIDE", "1", False),
    ("NVIDIA_TF32_OVERRIDE", "0", True),
    ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16", False),
    ("DNNL_DEFAULT_FPMATH_MODE", "any", False),
])  # fmt: skip
def test_fewer_bits_than_flagged_are_refused(variable, value, allow_tf32, monkeypatch):
    environment.refuse_unsupported(allow_tf32)
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=f"{variable}={value}"):
        environment.refuse_unsupported(allow_tf32)


@pytest.mark.parametrize(("variable", "value", "allow_tf32"), [
    ("NVIDIA_TF32_OVERRIDE", "0", False), ("NVIDIA_TF32_OVERRIDE", "1", True),
    ("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT", False), ("ACCELERATE_USE_FSDP", "false", False),
])  # fmt: skip
def test_what_agrees_with_the_flags_is_not_refused(variable, value, allow_tf32, monkeypatch):
    monkeypatch.setenv(variable, value)
    environment.refuse_unsupported(allow_tf32)


@pytest.mark.parametrize(("values", "message"), [
    ({"ACCELERATE_TORCH_DEVICE": "meta"}, "ACCELERATE_TORCH_DEVICE is 'meta', not a device that computes; unset it"),
    ({"ACCELERATE_TORCH_DEVICE": "gpu"}, "ACCELERATE_TORCH_DEVICE is 'gpu', not a device"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 states 2 processes, but RANK and MASTER_ADDR are not set; start with acc"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "but MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "but RANK is not set"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: not a number of processes"),
])  # fmt: skip
def test_a_device_and_processes_that_are_not_there_are_one_line(values, message, monkeypatch, flags, tmp_path):
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(message)):
        environment.settle_inference()
    if values.get("WORLD_SIZE") in (None, "2"):  # training calls the same, before anything is made
        with pytest.raises(InputError, match=re.escape(message)):
            importlib.import_module(SCRIPT.removesuffix(".py")).main(flags(SCRIPT, tmp_path / "run"))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("values", [
    {"WORLD_SIZE": "1"}, {"ACCELERATE_TORCH_DEVICE": "cuda:1"}, {"ACCELERATE_TORCH_DEVICE": "mps"},
    {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "x"},
    {"WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "MASTER_ADDR": "x"},
])  # fmt: skip
def test_a_usual_launch_is_not_refused(values, monkeypatch):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    environment.refuse_unsupported()


def test_the_flag_alone_decides_about_tf32(tmp_path):
    ask = "import torch; from utils.system.environment import set_tf32; before = torch.backends.cuda.matmul.allow_tf32"
    ask += "; set_tf32({}); print('TF32', before, torch.backends.cuda.matmul.allow_tf32)"
    done = python("-c", ask.format(False), env={"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"})
    assert "TF32 True False" in done.stdout and "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is not followed" in done.stdout
    assert "TF32 False True" in fork("-c", ask.format(True)).stdout


def test_accumulation_from_outside_is_an_error_and_never_wins(flags, tmp_path, monkeypatch, whole, capsys):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(InputError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS asks for 4"):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1))
    words = ["--max_train_steps", 4, "--gradient_accumulation_steps", 1]
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", *words))
    out = capsys.readouterr().out
    assert "note: --gradient_accumulation_steps 1 is used" in out and "1 micro-step(s) a step" in out
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    assert distance(tmp_path / "run", whole(flags)) == 0 and losses(tmp_path / "run") == losses(whole(flags))


def test_dynamo_from_outside_leaves_plain_keys_and_resumes_to_the_same_bits(
    flags, tmp_path, monkeypatch, whole, capsys
):
    expected = whole(flags)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 2, *RESUME))
    assert "asks for dynamo (EAGER), which is not used" in capsys.readouterr().out
    assert set(lora(tmp_path / "run")) == set(lora(expected))
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND")
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 4, *RESUME))
    assert distance(tmp_path / "run", expected) == 0 and losses(tmp_path / "run") == losses(expected)


def test_a_checkpoint_with_keys_of_wrappers_resumes(flags, tmp_path, whole, capsys):
    expected = whole(flags)
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 2))
    folder = tmp_path / "run" / "checkpoint-2"
    state = {key.replace("unet.", "unet._orig_mod."): value for key, value in load_file(folder / SAFETENSORS).items()}
    save_file(state, folder / SAFETENSORS)
    (folder / atomic.MANIFEST).unlink()
    atomic.seal(folder)
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 4, *RESUME))
    assert "names of wrappers" in capsys.readouterr().out
    assert distance(tmp_path / "run", expected) == 0 and set(lora(tmp_path / "run")) == set(lora(expected))


def test_accelerates_precision_is_followed_and_reported_and_cannot_change_unnoticed(
    flags, tmp_path, monkeypatch, whole, capsys
):
    run = tmp_path / "run"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run_here(SCRIPT, flags(SCRIPT, run, "--max_train_steps", 2))
    assert "mixed precision bf16 (set by the environment's ACCELERATE_MIXED_PRECISION)" in capsys.readouterr().out
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    with pytest.raises(InputError, match=r"mixed_precision was 'bf16', now 'no' \(.*pass --mixed_precision"):
        run_here(SCRIPT, flags(SCRIPT, run, "--max_train_steps", 3, *RESUME))
    run_here(SCRIPT, flags(SCRIPT, run, "--max_train_steps", 3, *RESUME, "--mixed_precision", "no"))
    assert "continues with changes: max_train_steps was 2, now 3; mixed_precision was 'bf16', now 'no'" in (
        capsys.readouterr().out
    )


def test_a_typed_precision_wins_with_a_note(flags, tmp_path, monkeypatch, whole, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    words = ["--max_train_steps", 4, "--mixed_precision", "no"]
    run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", *words))
    out = capsys.readouterr().out
    assert out.count("note: --mixed_precision no is used, not the bf16 of") == 1 and "mixed precision no," in out
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert distance(tmp_path / "run", whole(flags)) == 0


def test_fp8_is_refused_by_the_name_of_where_it_was_set(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(InputError, match="ACCELERATE_MIXED_PRECISION asks for mixed precision 'fp8'"):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1))


@pytest.mark.parametrize("name", ["compile", "TF32", "threads", "device"])
def test_other_circumstances_are_noted_on_resuming(name, flags, tmp_path, whole, capsys):
    run = shutil.copytree(whole(flags), tmp_path / "run")
    file = run / "checkpoint-4" / "training_state.pt"
    state = torch.load(file, weights_only=True)
    state["settings"][name] = "something else"
    torch.save(state, file)
    (run / "checkpoint-4" / atomic.MANIFEST).unlink()
    atomic.seal(run / "checkpoint-4")
    run_here(SCRIPT, flags(SCRIPT, run, "--max_train_steps", 4, *RESUME))
    assert f"continues with changes: {name} was 'something else', now" in capsys.readouterr().out


def test_an_accelerator_that_differs_from_the_flags_is_an_error(flags):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    run = dict.fromkeys(Settings.__dataclass_fields__) | {"gradient_accumulation_steps": 2}
    loop.check_accelerator(accelerator, Settings(**run), "no")
    for steps, precision, text in ((1, "no", "accumulation steps is 2"), (2, "bf16", "precision is no")):
        with pytest.raises(InputError, match=text):
            loop.check_accelerator(accelerator, Settings(**run | {"gradient_accumulation_steps": steps}), precision)


def test_compile_is_not_silently_switched_off(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    with pytest.raises(InputError, match="TORCH_COMPILE_DISABLE=1"):
        run_here(SCRIPT, flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, "--compile"))


def test_accelerates_file_is_named_and_its_processes_are_started(flags, tmp_path):
    """Two processes in the file, which the launcher does not start on a CPU, and dynamo."""
    file = tmp_path / "accelerate.yaml"
    text = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_machines: 1\nnum_processes: 2\n"
    file.write_text(text + "mixed_precision: 'no'\nuse_cpu: true\ndynamo_config:\n  dynamo_backend: EAGER\n")
    words = ["-m", "accelerate.commands.launch", "--config_file", file, ROOT / SCRIPT]
    done = python(*words, *flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, "--validation_steps", 0))
    assert "2 process(es)" in done.stdout, done.stdout
    assert done.stdout.count(f"note: accelerate's file {file} asks for dynamo (EAGER)") == 1
    assert all(re.match(r"unet\.(down|mid|up)_", key) for key in lora(tmp_path / "run"))


def test_the_launchers_flags_are_named(flags, tmp_path):
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, "--validation_steps", 0)
    done = launch(SCRIPT, *words, more=("--cpu", "--mixed_precision", "bf16"))
    assert "mixed precision bf16 (set by accelerate launch --mixed_precision)" in done.stdout


STARTING = """
import runpy, sys
from utils.system import environment, processes
environment.launcher = lambda: environment.Launcher(["accelerate", "launch", "--num_processes=2"], None, {})
slow = lambda: [name for name in ("torch", "diffusers") if name in sys.modules]
processes.supervise = lambda command, count, first, total: print("STARTS", count, slow()) or 7
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", [SCRIPT, "augunet_diode_pseudo_depth.py", "inference_sd_single.py"])
def test_missing_processes_are_started_before_torch_is_imported(script, flags, tmp_path):
    words = ["--lora", "miniworld/mini-loras/normal", "--input_dir", "examples", "--output_dir", tmp_path / "out"]
    words = flags(script, tmp_path / "run") if script in SCRIPTS else words
    env = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": None}
    done = python("-c", STARTING, script, *words, env=env, check=False)
    assert done.returncode == 7 and "STARTS 2 []" in done.stdout, done.stdout + done.stderr
