"""A LoRA's header: values that inference acts on are checked; text from the file never acts on the terminal."""

import json
import re

import pytest
import torch
from helpers import ROOT, random_lora
from refusals import refused
from safetensors.torch import load_file, save_file

import inference_sd_single
from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError, note, one_line, print_list, warn
from utils.evaluation.report import as_text
from utils.inference import Predictor
from utils.inference.job import describe
from utils.lora import load_attn_procs
from utils.lora.__main__ import main
from utils.training.upload import model_card

SHIPPED = ROOT / "miniworld" / "mini-loras" / "normal" / "pytorch_lora_weights.safetensors"
GOOD = {"task": "normal", "method": "single-step", "base_model": "miniworld/mini-sd", "prompt": "surface normal"}
HOSTILE = "x\x1b[2J\x1b]0;owned\x07\nerror: fake line\r\x9b2J\u202egnp.exe\u2066\u200b\ufeff"


def lora_with(folder, **header):
    file = folder / "x.safetensors"
    save_file(load_file(SHIPPED), file, {**GOOD, **header})
    return file


def is_harmless(text: str) -> bool:
    return not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]|^error: fake", text, re.M
    )


@pytest.mark.parametrize(("header", "message"), [
    ({"timestep": "abc"}, "timestep='abc'.*whole number"),
    ({"timestep": "-1"}, "timestep='-1'"),
    ({"timestep": "4e2"}, "timestep='4e2'"),
    ({"timestep": "٤٠٠"}, "timestep="),
    ({"timestep": "9" * 5000}, "timestep='9"),
    ({"resolution": "-3"}, "resolution='-3'"),
    ({"resolution": "0"}, "resolution='0'"),
    ({"resolution": ""}, "resolution=''"),
    ({"task": "segmentation"}, "task='segmentation'.*--task"),
    ({"method": "telepathy"}, "made for telepathy"),
    ({"task": "depth", "depth_coding": "cubic"}, "'cubic' coding"),
])  # fmt: skip
def test_a_value_of_the_header_that_means_nothing_is_one_line_that_names_file_and_key(header, message, tmp_path):
    file = lora_with(tmp_path, **header)
    line = refused(lambda: describe(file), r"x\.safetensors", message)
    assert len(line) < 500


def test_a_task_that_is_unknown_here_gives_way_to_the_flag(tmp_path):
    assert describe(lora_with(tmp_path, task="segmentation"), task="normal").intrinsic.name == "normal"


@pytest.mark.parametrize(("header", "message"), [
    ({"rank": "4"}, "rank 16 by its tensors, but 4 by the header's rank"),
    ({"lora_targets": "attention"}, "its metadata says lora_targets=attention"),
    ({"timestep": "5000"}, "its header has timestep=5000, but .* has 0 to"),
])  # fmt: skip
def test_a_header_that_contradicts_tensors_or_base_is_refused_in_inference(header, message, tmp_path):
    file = lora_with(tmp_path, **header)
    words = ["--lora", str(file), "--input_dir", str(ROOT / "examples" / "coffee.jpg"), "--device", "cpu"]
    words += ["--output_dir", str(tmp_path / "out"), "--resolution", "64"]
    refused(lambda: inference_sd_single.main(words), r"x\.safetensors", message)


def test_nothing_of_a_hostile_header_reaches_the_terminal_raw(tmp_path, capsys):
    file = lora_with(tmp_path, **{"base_model": HOSTILE, f"key{HOSTILE}": HOSTILE, "lora_adapter_metadata": "{}"})
    main(["inspect", str(file)])
    text = capsys.readouterr().out
    assert is_harmless(text) and r"\x1b[2J" in text
    main(["inspect", str(file), "--json"])
    text = capsys.readouterr().out
    assert is_harmless(text) and json.loads(text)["metadata"]["base_model"] == HOSTILE
    for change in ({"task": HOSTILE}, {"method": HOSTILE}, {"timestep": HOSTILE}, {"lora_targets": HOSTILE},
                   {"lora_adapter_metadata": HOSTILE}, {"ss_network_alpha": HOSTILE}):  # fmt: skip
        with pytest.raises(InputError) as caught:
            file = lora_with(tmp_path, **change)
            load_attn_procs(build_unet(channels=(32, 64, 64)), describe(file).lora)
        assert is_harmless(str(caught.value)) and "\n" not in str(caught.value)


def test_nothing_of_hostile_keys_reaches_the_terminal_raw(tmp_path, capsys):
    state = random_lora(build_unet(channels=(32, 64, 64)))
    torch.save(state | {HOSTILE: torch.zeros(2, 2)}, tmp_path / "x.bin")
    refused(lambda: main(["inspect", str(tmp_path / "x.bin")]), "of no LoRA layer")
    with pytest.raises(InputError) as caught:
        load_attn_procs(build_unet(channels=(32, 64, 64)), tmp_path / "x.bin")
    assert is_harmless(str(caught.value))


def test_every_way_of_printing_escapes_and_no_text_begins_a_line_of_its_own(capsys):
    note(HOSTILE)
    warn(HOSTILE)
    print_list("2 files:", [HOSTILE, "fine ünïcode \u200d 漢字"])
    assert "fine ünïcode \u200d 漢字" in (out := capsys.readouterr()).out
    assert is_harmless(out.out) and is_harmless(out.err)
    assert is_harmless(str(InputError(HOSTILE, [HOSTILE]))) and is_harmless(InputError("", [HOSTILE]).details[0])
    result = {"task": "normal", "protocol": HOSTILE, "settings": {"version": HOSTILE, "pred": HOSTILE}}
    assert is_harmless(as_text(result | {"notes": [HOSTILE], "warnings": [HOSTILE], "rows": []}))
    card = model_card("a/b", GOOD | {"note": HOSTILE, "timestep": "400"}, {}, "", [])
    assert "fake line" in card and not re.search("^error: fake", card, re.M) and "\x1b" not in card
    assert one_line(one_line(HOSTILE)) == one_line(HOSTILE)


def test_another_prompt_or_timestep_than_the_headers_is_noted(tmp_path, capsys):
    path = lora_with(tmp_path)
    assert describe(path, prompt="surface normal").closing == describe(path).closing == ()
    assert "was trained with the prompt 'surface normal', predicting with 'a'" in describe(path, prompt="a").closing[0]
    lora = SHIPPED.parents[1] / "depth"
    stated = describe(lora).timestep
    assert stated is not None
    Predictor(lora, device="cpu", timestep=stated)
    assert "was trained at timestep" not in capsys.readouterr().out
    Predictor(lora, device="cpu", timestep=0)
    assert f"was trained at timestep {stated}, predicting at 0" in capsys.readouterr().out
