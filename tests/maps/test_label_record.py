"""Records that travel with maps are compared with their use: in training, in evaluate.py, and as plain facts."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import run_here

import evaluate
import pseudo_label
from utils.errors import InputError
from utils.image_io.files import save_png
from utils.inference.output import Output
from utils.inference.prediction import Prediction
from utils.inference.write import metadata, write
from utils.intrinsics import ALBEDO, DEPTH, INTRINSICS, NORMAL, SHADING, depth_coded
from utils.kinds.axes import to_frame
from utils.kinds.frames import AXES
from utils.kinds.label_record import Use, check_facts, check_record, training_use


@pytest.fixture(scope="module")
def labels(diode, tmp_path_factory):
    """name -> labels of DIODE's truth, made by pseudo_label.py, with their record."""
    root = tmp_path_factory.mktemp("labels")
    for task in ("normal", "depth"):
        words = ["--task", task, "--from", "ground_truth", "--input_dir", str(diode), "--splits", "val"]
        pseudo_label.main([*words, "--output_dir", str(root / task)])
    return root


def rewritten(labels, tmp_path, made: str, /, **changes):
    """A copy of the labels whose record has other entries."""
    folder = tmp_path / f"other_{made}"
    shutil.copytree(labels / made, folder)
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(record | changes))
    return folder


def deepest(folder):
    return {path.parent: None for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("task", ["normal", "depth"])
def test_labels_as_they_are_made_pass_in_silence(labels, task):
    assert check_record(deepest(labels / task), training_use(INTRINSICS[task])) == []


@pytest.mark.parametrize(("made", "intrinsic"), [("normal", DEPTH), ("depth", NORMAL), ("depth", ALBEDO),
                                                 ("normal", SHADING)])  # fmt: skip
def test_labels_of_another_task_are_refused(labels, made, intrinsic):
    message = f"provenance.json: maps of {made}, not of {intrinsic.name}: pass labels of {intrinsic.name}"
    with pytest.raises(InputError, match=message):
        check_record(deepest(labels / made), training_use(intrinsic))


@pytest.mark.parametrize(("task", "changes", "message"), [
    ("normal", {"conventions": {"labels": "normals, x right, y up, z toward the viewer (opengl)"}},
     "normal in opengl, not opencv: make the labels again"),
    ("depth", {"conventions": {"labels": "near = black, linear in depth"}}, "near = black, not white"),
    ("depth", {"depth_coding": "log"}, "these labels have log depth, not linear: pass --depth_coding"),
    ("depth", {"depth_coding": "cubic"}, "these labels have cubic depth, not linear"),
    ("normal", {"task": "albedo"}, "maps of albedo, not of normal"),
    ("normal", {"conventions": [1]}, "provenance.json: cannot be read"),
])  # fmt: skip
def test_other_conventions_of_labels_are_refused(labels, tmp_path, task, changes, message):
    with pytest.raises(InputError, match=message):
        check_record(deepest(rewritten(labels, tmp_path, task, **changes)), training_use(INTRINSICS[task]))


@pytest.mark.parametrize(("task", "changes", "message"), [
    ("normal", {"counts": {"complete": False, "failed": 3}}, "labelling is not finished (3 images failed"),
    ("normal", {"conventions": {"labels": "upside down"}}, "'upside down' is not known here"),
    ("normal", {"task": None}, "taken at your word"),
    ("depth", {"conventions": {"labels": "near = white, linear in disparity"}}, "evaluate.py --align disparity"),
])  # fmt: skip
def test_what_a_record_leaves_open_is_a_note_once(labels, tmp_path, task, changes, message):
    notes = check_record(deepest(rewritten(labels, tmp_path, task, **changes)), training_use(INTRINSICS[task]))
    assert len(notes) == 1 and message in notes[0]


def test_the_colour_space_of_labels(tmp_path):
    (tmp_path / "provenance.json").write_text(
        json.dumps({"task": "albedo", "conventions": {"labels": "linear light"}})
    )
    with pytest.raises(InputError, match="albedo in linear, not srgb"):
        check_record([tmp_path], training_use(ALBEDO))
    (tmp_path / "provenance.json").write_text(json.dumps({"task": "albedo", "conventions": {"labels": "sRGB-coded"}}))
    assert check_record([tmp_path], training_use(ALBEDO)) == []


def test_training_compares_before_it_loads_anything(labels, flags, tmp_path):
    script = "sd_single_diode_pseudo_normal.py"
    words = flags(script, tmp_path / "run")
    shutil.copytree(words[words.index("--pseudo_root") + 1], tmp_path / "labels")
    shutil.copy(labels / "depth" / "provenance.json", tmp_path / "labels")
    words[words.index("--pseudo_root") + 1] = str(tmp_path / "labels")
    with pytest.raises(InputError, match="maps of depth, not of normal"):
        run_here(script, words)


ABOUT = {"software": "intrinsic-lora 1"}


def predictions(folder, gt, output: Output):
    """The truth of normals as inference would write it: an .npy and a .png with its header."""
    folder.mkdir(parents=True)
    for path in sorted(gt.rglob("*_normal.npy")):
        values = to_frame(np.load(path).astype(float) * (1, -1, -1), output.frame)
        stem = path.stem.removesuffix("_normal")
        about = metadata(Prediction(NORMAL, None, None, {}), output)
        save_png(folder / f"{stem}_normal.png", np.round(127.5 * (values + 1)).clip(0, 255).astype(np.uint8), about)
    return folder


@pytest.mark.parametrize("frame", sorted(set(AXES) - {"opencv"}))
def test_the_frame_of_predictions_is_compared_with_the_flag(diode, tmp_path, frame):
    gt = diode / "normals" / "val"
    folder = predictions(tmp_path / "pred", gt, Output(frame=frame))
    words = ["--task", "normal", "--pred_dir", folder, "--gt_dir", gt, "--by_stem", "--bootstrap", 0]
    words = [str(word) for word in (*words, "--output", tmp_path / "metrics.json")]
    with pytest.raises(InputError, match=f"normal in {frame}, not opencv: pass --pred_frame {frame}"):
        evaluate.main(words)
    evaluate.main([*words, "--pred_frame", frame])
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["mean"] < 1
    with pytest.raises(InputError, match="maps of normal, not of albedo: pass --task normal"):
        evaluate.main(["--task", "albedo", *words[2:-1], str(tmp_path / "albedo.json")])


def test_scored_labels_are_named_and_compared(diode, labels, tmp_path):
    words = ["--task", "normal", "--pred_dir", labels / "normal" / "val", "--gt_dir", diode / "normals" / "val"]
    words = [str(word) for word in (*words, "--bootstrap", 0, "--output", tmp_path / "metrics.json")]
    evaluate.main(words)
    notes = json.loads((tmp_path / "metrics.json").read_text())["notes"]
    assert any("these are pseudo labels, of DIODE's ground truth" in note for note in notes)
    with pytest.raises(InputError, match="normal in opencv, not opengl: pass --pred_frame opencv"):
        evaluate.main([*words[:-1], str(tmp_path / "opengl.json"), "--pred_frame", "opengl"])
    swapped = ["--task", "normal", "--pred_dir", words[5], "--gt_dir", words[3]]
    with pytest.raises(InputError, match="normal in opencv, not opengl: pass --gt_frame opencv"):
        evaluate.main([*swapped, "--gt_frame", "opengl"])


@pytest.mark.parametrize(("intrinsic", "output"), [(one, Output(frame=frame, invert_depth=inverted))
    for one in INTRINSICS.values() for frame in AXES for inverted in (False, True)])  # fmt: skip
def test_facts_that_inference_writes_are_understood(intrinsic, output):
    """Every header is either what the defaults take it for, or refused."""
    facts = metadata(Prediction(intrinsic, None, None, {}), output)
    use = Use(intrinsic, {"frame": "pass {}", "polarity": "no"}, align="depth")
    turned = intrinsic is NORMAL and output.frame != "opencv"
    if turned or (intrinsic is DEPTH and output.invert_depth):
        with pytest.raises(InputError, match=r"^there: "):
            check_facts(facts, use, "there")
    else:
        assert check_facts(facts, use, "there") == []


def test_labels_of_another_coding_and_disparity_in_evaluate(labels, tmp_path, diode):
    words = ["--task", "depth", "--gt_dir", str(diode / "depths" / "val"), "--pred_dir"]
    with pytest.raises(InputError, match=r"sqrt depth, not linear: evaluate.py scores predictions"):
        evaluate.main([*words, str(rewritten(labels, tmp_path, "depth", depth_coding="sqrt"))])
    shutil.rmtree(tmp_path / "other_depth")
    changed = rewritten(labels, tmp_path, "depth", conventions={"labels": "near = white, linear in disparity"})
    with pytest.raises(InputError, match="affine in disparity, not in depth: pass --align disparity"):
        evaluate.main([*words, str(changed)])
    assert check_record([changed], training_use(depth_coded("linear")))


def test_maps_of_other_programs_have_no_say(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    save_png(tmp_path / "a.png", pixels, {"task": "segmentation", "software": "another"})
    assert check_record([tmp_path], training_use(NORMAL)) == []
    save_png(tmp_path / "a.png", pixels, {"task": "depth", **ABOUT})
    with pytest.raises(InputError, match=r"a.png: maps of depth, not of normal"):
        check_record([tmp_path], training_use(NORMAL))


def written(folder, name, intrinsic, output):
    """Maps as inference writes them: <folder>/<name>.png and so on."""
    write(Prediction(intrinsic, torch.rand(3, 8, 8), None, {}), folder / f"{name}.png", output)


@pytest.mark.parametrize("formats", [("exr",), ("png16",), ("npy", "exr"), ("npy", "png16"), ("exr", "png16")])
def test_every_format_with_a_header_is_compared(formats, tmp_path):
    written(tmp_path / "n", "a_normal", NORMAL, Output(formats=formats, frame="opengl"))
    written(tmp_path / "d", "a_depth", DEPTH, Output(formats=formats, invert_depth=True))
    written(tmp_path / "c", "a_albedo", ALBEDO, Output(formats=formats))
    with pytest.raises(InputError, match="normal in opengl, not opencv"):
        check_record([tmp_path / "n"], training_use(NORMAL))
    with pytest.raises(InputError, match="near = black, not white"):
        check_record([tmp_path / "d"], training_use(DEPTH))
    with pytest.raises(InputError, match="maps of albedo, not of shading"):
        check_record([tmp_path / "c"], training_use(SHADING))
    assert check_record([tmp_path / "c"], training_use(ALBEDO)) == []  # an EXR is linear, and is read as that


def test_maps_of_several_intrinsics_below_one_folder_are_told_apart(tmp_path):
    for intrinsic in INTRINSICS.values():
        written(tmp_path / intrinsic.name / "predicted", f"a_{intrinsic.name}", intrinsic, Output(formats=("png16",)))
        assert check_record([tmp_path], training_use(intrinsic)) == []


def test_a_photograph_next_to_a_map_does_not_hide_its_header(tmp_path):
    written(tmp_path, "a_normal", NORMAL, Output(formats=("exr",), frame="opengl"))
    save_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"a_normal.exr: normal in opengl, not opencv"):
        check_record([tmp_path], training_use(NORMAL))
