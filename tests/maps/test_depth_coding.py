"""Codings of depth: exact in both directions, recorded with the labels, and undone in all output."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_lora, records, run_here
from PIL import Image
from safetensors import safe_open

import pseudo_label
from dataloaders.diode import Diode
from evaluate import main as evaluate
from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError
from utils.inference.job import describe
from utils.inference.predictor import Predictor
from utils.intrinsics import DEPTH, DEPTH_CODINGS, depth_coded
from utils.kinds.alignment import decode_far, depth_metrics, encode_far, linear_map
from utils.labels.encoding import encode
from utils.lora import BIN, SAFETENSORS, load_attn_procs, save_lora
from utils.lora.__main__ import main as lora_main
from utils.training.upload import stage

CODED = ("log", "sqrt")
SCRIPT = "sd_single_diode_pseudo_depth.py"


@pytest.fixture(scope="module")
def labels(diode, tmp_path_factory) -> dict[str, Path]:
    """coding -> folder of labels from the mini world's true depth."""
    root = tmp_path_factory.mktemp("labels")
    words = ["--task", "depth", "--from", "ground_truth", "--input_dir", str(diode)]
    for coding in CODED:
        pseudo_label.main([*words, "--output_dir", str(root / coding), "--depth_coding", coding])
    pseudo_label.main([*words, "--output_dir", str(root / "linear")])
    return {coding: root / coding for coding in DEPTH_CODINGS}


@pytest.mark.parametrize("coding", DEPTH_CODINGS)
def test_there_and_back_is_exact(coding):
    u = np.linspace(0, 1, 1001)
    coded = encode_far(u, coding)
    assert coded[0] == 0 and coded[-1] == pytest.approx(1, abs=1e-15) and (np.diff(coded) > 0).all()
    np.testing.assert_allclose(decode_far(coded, coding), u, rtol=0, atol=1e-14)
    torch.testing.assert_close(decode_far(torch.from_numpy(coded), coding), torch.from_numpy(u))
    strayed = np.linspace(-0.5, 1.5, 1001)
    assert (np.diff(decode_far(strayed, coding)) > 0).all()  # no fold outside [0,1], where predictions stray
    with pytest.raises(ValueError, match="one of linear, log, sqrt"):
        encode_far(u, "cubic")
    with pytest.raises(ValueError, match="one of linear, log, sqrt"):
        decode_far(u, "cubic")


def test_log_coding_is_the_logarithm_of_depth_where_far_is_ten_times_near():
    depth = np.linspace(2.0, 20.0, 100)
    logarithm = (np.log(depth) - np.log(2)) / np.log(10)
    np.testing.assert_allclose(encode_far((depth - 2) / 18, "log"), logarithm, atol=1e-14)


@pytest.mark.parametrize("coding", DEPTH_CODINGS)
@pytest.mark.parametrize("quantity", ["depth", "disparity"])
def test_an_undone_label_is_the_linear_one(quantity, coding):
    """To half a grey level, which the coding's slope makes larger at the far end; ends stay ends."""
    rng = np.random.default_rng(0)
    values = rng.uniform(3, 40, (60, 80))
    linear = encode(quantity, values)[..., 0] / 255.0
    coded = encode(quantity, values, depth_coding=coding)
    assert coded.dtype == np.uint8 and (coded[..., 0] == coded[..., 1]).all()
    label = torch.from_numpy(coded / 255.0 * 2 - 1).permute(2, 0, 1)
    undone = linear_map(label, coding)[0].double().numpy() / 2 + 0.5
    slope = {"linear": 1, "sqrt": 2, "log": 10 * np.log(10) / 9}[coding]  # largest of decode_far, at u = 1
    assert np.abs(undone - linear).max() <= (slope + 1) * 0.5 / 255 + 1e-6
    order = np.corrcoef(undone.ravel(), values.ravel())[0, 1]
    assert order < -0.99 if quantity == "depth" else order > 0.99


@pytest.mark.parametrize("coding", CODED)
def test_scale_and_shift_absorb_what_is_unknown_of_an_undone_label_and_not_of_a_coded_one(coding):
    """Within near and far, depth comes back exactly; without undoing, the best scale and shift leave an error."""
    depth = np.linspace(1, 15, 4000).reshape(50, 80)
    grey = 1 - encode_far((depth - 1) / 14, coding)
    undone = 1 - decode_far(1 - grey, coding)
    valid = np.ones(depth.shape, bool)
    assert depth_metrics(undone, depth, valid)["abs_rel"] < 1e-12
    assert depth_metrics(grey, depth, valid)["abs_rel"] > 0.05


def test_a_linear_map_is_returned_as_it_is():
    picture = torch.rand(3, 4, 4)
    assert linear_map(picture, "linear") is picture
    picture[1] += 0.1
    coded = linear_map(picture, "sqrt")
    assert torch.equal(coded[0], coded[2]) and coded.shape == picture.shape
    batch = linear_map(picture[None].repeat(2, 1, 1, 1), "sqrt")
    torch.testing.assert_close(batch[1], coded)


def test_the_record_has_the_coding_and_labels_are_not_mixed(labels, diode):
    for coding, folder in labels.items():
        record = json.loads((folder / "provenance.json").read_text())
        assert record["depth_coding"] == coding
        assert ("linear in depth" in record["conventions"]["labels"]) == (coding == "linear")
    words = ["--task", "depth", "--from", "ground_truth", "--input_dir", str(diode), "--output_dir"]
    with pytest.raises(InputError, match=r"labels made with other .*depth_coding"):
        pseudo_label.main([*words, str(labels["log"])])
    path = labels["linear"] / "provenance.json"
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "depth_coding"}
    path.write_text(json.dumps(older))  # as it was written before there were codings
    pseudo_label.main([*words, str(labels["linear"])])
    with pytest.raises(InputError, match=r"labels made with other .*depth_coding"):
        pseudo_label.main([*words, str(labels["linear"]), "--depth_coding", "sqrt"])


@pytest.mark.parametrize("task", ["normal", "albedo"])
def test_other_labels_have_no_depth_coding(task, tmp_path):
    words = ["--task", task, "--teacher", "x", "--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match=f"--depth_coding means nothing for --task {task}"):
        pseudo_label.parse([*words, "--depth_coding", "linear"])


@pytest.mark.parametrize(("made", "declared"), [("log", None), ("log", "sqrt"), ("linear", "log")])
def test_training_refuses_labels_of_another_coding(made, declared, labels, flags, tmp_path):
    words = flags(SCRIPT, tmp_path / "run", *(["--depth_coding", declared] if declared else []))
    words[words.index("--pseudo_root") + 1] = str(labels[made])
    with pytest.raises(InputError, match=rf"provenance.json: these labels have {made} depth.*pass --depth_coding"):
        run_here(SCRIPT, words)


def test_normals_have_no_depth_coding(flags, tmp_path):
    script = "sd_single_diode_pseudo_normal.py"
    with pytest.raises(InputError, match="unrecognized arguments: --depth_coding"):
        run_here(script, flags(script, tmp_path, "--depth_coding", "log"))


@pytest.fixture(scope="module")
def trained(labels, diode, bases, tmp_path_factory) -> Path:
    """A run on log labels."""
    output = tmp_path_factory.mktemp("trained") / "log"
    words = ["--pretrained_model_name_or_path", bases["sd15"], "--train_data_dir", diode / "depths"]
    words += ["--pseudo_root", labels["log"], "--output_dir", output, "--resolution", 32, "--report_to", "none"]
    words += ["--train_batch_size", 2, "--max_train_steps", 1, "--learning_rate", 1e-2, "--depth_coding", "log"]
    run_here(SCRIPT, [str(word) for word in words], whole=True)
    return output


def test_the_lora_records_its_coding_and_no_file_lacks_it(trained):
    with safe_open(trained / SAFETENSORS, "pt") as file:
        metadata = file.metadata()
    assert metadata["depth_coding"] == "log" and "log10(1 + 9 u)" in metadata["polarity"]
    assert not (trained / BIN).exists()


def test_inference_undoes_the_coding(trained, diode):
    predictor = Predictor(trained, device="cpu", output_size="network")
    image = Image.open(next((diode / "depths" / "val").rglob("*.png"))).convert("RGB")
    undone = predictor(image)["depth"]
    predictor.adapters[0].depth_coding = "linear"
    coded = predictor(image)["depth"]
    torch.testing.assert_close(undone.map, linear_map(coded.map, "log"), rtol=0, atol=1e-5)
    assert (undone.values - coded.values).max() > 1e-3
    assert undone.polarity == DEPTH.convention[1]


def test_validation_undoes_the_coding(trained, diode, bases, labels):
    """The last validation's score is that of the undone prediction."""
    objective = Predictor(trained, device="cpu", resolution=32, center_crop=True)
    truth = Diode(DEPTH, diode / "depths", labels["log"], "val", ("indoors",), resolution=32)
    scored = [one for one in records(trained) if "val/indoors/abs_rel" in one][-1]
    from dataloaders.base import fixed_samples

    found = []
    for item in fixed_samples(truth, 1234):
        picture = objective.adapters[0].method.predict(objective.network, item["rgb"][None])[0].float()
        found.append(truth.score(linear_map(picture, "log"), item["gt"], item["valid"])["abs_rel"])
    assert scored["val/indoors/abs_rel"] == pytest.approx(np.mean(found), rel=1e-3)


def test_the_metadata_wins_and_contradictions_are_refused(trained):
    assert describe(trained).depth_coding == "log" and describe(trained, depth_coding="log").depth_coding == "log"
    with pytest.raises(InputError, match=r"--depth_coding=sqrt: .* was trained on log labels"):
        describe(trained, depth_coding="sqrt")
    with pytest.raises(InputError, match="--depth_coding: means nothing for normal"):
        describe(trained, task="normal", depth_coding="log")


def test_a_silent_file_takes_the_flag_and_an_unknown_coding_is_refused(trained, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(trained / SAFETENSORS)
    torch.save(state, tmp_path / BIN)
    assert describe(tmp_path / BIN).depth_coding == "linear"
    assert describe(tmp_path / BIN, depth_coding="sqrt").depth_coding == "sqrt"
    save_file(state, tmp_path / "new.safetensors", {"task": "depth", "depth_coding": "cubic"})
    with pytest.raises(InputError, match="its depth has 'cubic' coding, which this version does not know"):
        describe(tmp_path / "new.safetensors")


def test_coded_labels_are_not_scored_as_if_they_were_linear(labels, diode, tmp_path):
    words = ["--task", "depth", "--gt_dir", str(diode / "depths" / "val"), "--output", str(tmp_path / "out.json")]
    with pytest.raises(InputError, match=r"these labels have log depth, not linear: evaluate.py scores predictions"):
        evaluate([*words, "--pred_dir", str(labels["log"] / "val")])
    evaluate([*words, "--pred_dir", str(labels["linear"] / "val")])


def test_default_records_are_unchanged():
    assert depth_coded("linear") == DEPTH and replace(DEPTH, depth_coding="log") != DEPTH


def test_no_bin_loses_the_coding(tmp_path):
    """On the hub and by convert, because a file without metadata would be read as linear."""
    unet = build_unet(channels=(32, 64, 64))
    load_attn_procs(unet, random_lora(unet))
    for coding in ("linear", "log"):
        said = {} if coding == "linear" else {"depth_coding": coding}
        save_lora(unet, tmp_path / coding, {"task": "depth", "method": "single-step", **said})
        stage(tmp_path / coding, tmp_path / coding)
        assert (tmp_path / coding / "hub" / BIN).exists() == (coding == "linear")
    convert = ["convert", str(tmp_path / "log"), str(tmp_path / "x.bin"), "--format", "released"]
    with pytest.raises(InputError, match=r"x.bin: a .bin has no metadata, .* predicts log depth"):
        lora_main(convert)
