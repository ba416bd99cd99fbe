"""`python -m utils.lora` and what is imported for it."""

import json
import resource

import numpy as np
import pytest
import torch
from helpers import python, random_lora
from safetensors.torch import save_file

import utils.lora
from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError
from utils.lora.files import read_arrays, read_lora

HEAVY = ("torch", "peft", "diffusers", "transformers", "accelerate")


def imported(code: str) -> list[str]:
    """Which of HEAVY a new Python has imported after `code`."""
    done = python("-c", f"{code}\nimport json, sys\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "x.safetensors"
    save_file({key: value.bfloat16() for key, value in random_lora(build_unet()).items()}, path, {"task": "depth"})
    return path


@pytest.mark.parametrize(
    "words", [["inspect", "FILE"], ["inspect", "FILE", "--json"], ["--help"], ["inspect", "--help"]]
)
def test_inspect_and_help_import_nothing_heavy(words, file):
    words = [str(file) if word == "FILE" else word for word in words]
    code = f"from utils.lora.__main__ import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
    assert imported(code) == []


def test_inspect_takes_less_than_a_cpu_second(file):
    def spent() -> float:  # by ended processes, without the time that a busy machine lets them wait
        return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

    start = spent()
    assert "fits" in python("-m", "utils.lora", "inspect", file).stdout
    assert spent() - start < 1


def test_the_package_still_offers_everything_by_name():
    light = "from utils.lora import SAFETENSORS, LoraFile, parse_targets, read_lora\nimport utils.lora.targets"
    assert imported(light) == []
    from utils.lora import __all__, load_attn_procs

    assert load_attn_procs.__module__ == "utils.lora.layers"
    assert all(getattr(utils.lora, name) is not None for name in __all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        utils.lora.nothing  # noqa: B018


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_arrays_are_the_tensors(dtype, suffix, tmp_path):
    state = {
        "a": (3 * torch.randn(3, 4)).to(dtype),
        "b": torch.zeros(0, 2, 1, 1, dtype=dtype),
        "c": torch.ones((), dtype=dtype),
    }
    path = tmp_path / f"x.{suffix}"
    save_file(state, path, {"k": "v"}) if suffix == "safetensors" else torch.save(state, path)
    (arrays, metadata, name), types = read_arrays(path)
    assert (metadata, name) == (read_lora(path).metadata, str(path))
    assert set(types.values()) == {str(dtype).removeprefix("torch.")} and types.keys() == arrays.keys() == state.keys()
    for key, tensor in state.items():
        assert arrays[key].shape == tuple(tensor.shape)
        assert np.array_equal(arrays[key].astype(np.float64), tensor.double().numpy())


@pytest.mark.parametrize("content", [b"", b"text" * 9, b"\xff" * 64, (9).to_bytes(8, "little") + b'{"a": 1}'])
def test_what_is_no_safetensors_file_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    for read in (read_arrays, read_lora):
        with pytest.raises(InputError, match=r"x.safetensors: not a readable LoRA file"):
            read(tmp_path / "x.safetensors")
