"""Labels by tiny, randomly initialised teachers of the real classes, saved and loaded as folders."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from helpers import fork
from PIL import Image
from transformers import (
    BeitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
)

import pseudo_label
from dataloaders.check import main as check
from dataloaders.diode import Diode
from miniworld.pretraining.random_sd import build_text_encoder, build_tokenizer, build_vae
from utils.errors import InputError
from utils.image_io.colour_space import to_srgb
from utils.intrinsics import DEPTH, NORMAL
from utils.noise import noise_of


def marigold(folder, task, targets=None, seed=0, **options):
    """Save a Marigold pipeline with random weights."""
    torch.manual_seed(seed)
    tokenizer, channels = build_tokenizer(), 4 * len(targets or [task])
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4 + channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=64, attention_head_dim=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False,
        rescale_betas_zero_snr=True)  # fmt: skip
    kind = {"depth": diffusers.MarigoldDepthPipeline, "normal": diffusers.MarigoldNormalsPipeline}
    kind = kind.get(task, diffusers.MarigoldIntrinsicsPipeline)
    if task not in ("depth", "normal"):
        options["target_properties"] = {"target_names": list(targets), **targets}
    names = {"depth": "depth", "normal": "normals"}
    options = {"prediction_type": names.get(task, "intrinsics"), **options}
    parts = {"unet": unet, "vae": build_vae(), "scheduler": scheduler}
    parts |= {"tokenizer": tokenizer, "text_encoder": build_text_encoder(tokenizer)}
    kind(**parts, default_denoising_steps=1, default_processing_resolution=64, **options).save_pretrained(folder)


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """name -> folder with a teacher of the real class and random weights."""
    root = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    backbone = BeitConfig(
        image_size=64, patch_size=16, num_hidden_layers=4, hidden_size=32, intermediate_size=64, num_attention_heads=2,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        use_relative_position_bias=True,
    )  # fmt: skip
    zoe = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[16, 16, 16, 16], fusion_hidden_size=16, bottleneck_features=16,
        num_relative_features=8, bin_embedding_dim=16,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.1, "max_depth": 10.0, "name": "nyu"}],
    )  # fmt: skip
    ZoeDepthForDepthEstimation(zoe).save_pretrained(root / "zoe")
    ZoeDepthImageProcessor(size={"height": 64, "width": 64}).save_pretrained(root / "zoe")
    for name, kind in (("metric", {"depth_estimation_type": "metric", "max_depth": 20}), ("relative", {})):
        dino = Dinov2Config(
            image_size=56, patch_size=14, num_hidden_layers=4, hidden_size=32, num_attention_heads=2,
            out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        )  # fmt: skip
        config = DepthAnythingConfig(
            backbone_config=dino, reassemble_hidden_size=32, patch_size=14, neck_hidden_sizes=[16, 16, 16, 16],
            fusion_hidden_size=16, head_hidden_size=8, **kind,
        )  # fmt: skip
        DepthAnythingForDepthEstimation(config).save_pretrained(root / name)
        DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14).save_pretrained(root / name)
    marigold(root / "depth", "depth")
    marigold(root / "disparity", "depth", prediction_type="disparity")
    marigold(root / "normals", "normal")
    marigold(
        root / "appearance",
        "albedo",
        {"albedo": {"prediction_space": "srgb"}, "material": {"prediction_space": "stack"}},
    )
    linear = {"prediction_space": "linear", "up_to_scale": True}
    marigold(root / "lighting", "shading", {"albedo": linear, "shading": linear, "residual": linear})
    return root


@pytest.fixture
def pictures(diode, tmp_path):
    folder = tmp_path / "pictures"
    for i, path in enumerate(sorted((diode / "depths" / "val").rglob("*.png"))[:3]):
        target = folder / ("sub/" if i == 2 else "") / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def label(task, teacher, source, out, *more) -> dict:
    """Run the script here; return provenance.json."""
    words = ["--task", task, "--input_dir", source, "--output_dir", out, "--device", "cpu"]
    words += ["--teacher", teacher] if teacher else ["--from", "ground_truth"]
    pseudo_label.main([str(word) for word in (*words, *more)])
    return json.loads((out / "provenance.json").read_text())


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_zoedepth_labels_are_the_models_own_depth(teachers, pictures, tmp_path):
    made = label("depth", teachers / "zoe", pictures, tmp_path / "out", "--npy")
    assert (
        made["teacher"]["class"] == "ZoeDepthForDepthEstimation" and made["conventions"]["teacher"] == "depth, metres"
    )
    assert made["counts"] == {
        "pictures": 3,
        "labelled in the last run": 3,
        "there before": 0,
        "failed": 0,
        "complete": True,
    }
    values = np.load(tmp_path / "out" / "sub" / "2.npy")
    model = ZoeDepthForDepthEstimation.from_pretrained(teachers / "zoe").eval()
    processor = ZoeDepthImageProcessor.from_pretrained(teachers / "zoe")
    with torch.no_grad():
        inputs = processor(images=Image.open(pictures / "sub" / "2.png"), return_tensors="pt")
        drawn = model(**inputs).predicted_depth
    pad = int(np.sqrt(72 / 2) * 3), int(np.sqrt(96 / 2) * 3)  # ZoeDepth's border, 18 and 20 pixels
    whole = torch.nn.functional.interpolate(drawn[None], [72 + 2 * pad[0], 96 + 2 * pad[1]], mode="bicubic")[0, 0]
    np.testing.assert_allclose(values, whole[18:-18, 20:-20], rtol=1e-4)
    assert pad == (18, 20) and values.shape == (72, 96) and values.min() > 0
    picture = read(tmp_path / "out" / "sub" / "2.png")
    assert picture.shape == (72, 96, 3) and picture.dtype == np.uint8
    assert np.corrcoef(picture[..., 0].ravel(), values.ravel())[0, 1] < -0.95  # near = white


def test_depth_anything_is_taken_as_what_it_predicts(teachers, pictures, tmp_path):
    made = label("depth", teachers / "metric", pictures, tmp_path / "metric")
    assert "linear in depth" in made["conventions"]["labels"]
    with pytest.raises(InputError, match="predicts disparity of unknown shift"):
        label("depth", teachers / "relative", pictures, tmp_path / "relative")
    assert not (tmp_path / "relative").exists()
    more = ("--predicts", "disparity", "--npy", "--skip_self_check")
    made = label("depth", teachers / "relative", pictures, tmp_path / "relative", *more)
    assert "linear in disparity" in made["conventions"]["labels"] and made["self_check"] is None
    picture, values = read(tmp_path / "relative" / "0.png"), np.load(tmp_path / "relative" / "0.npy")
    assert np.corrcoef(picture[..., 0].ravel(), values.ravel())[0, 1] > 0.95  # near = large = white


def direct(folder, kind, picture, name, seed=1234) -> np.ndarray:
    """The output of the library's pipeline from the same noise."""
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe(Image.open(picture), generator=[noise_of(seed, name, 0)]).prediction


def test_marigold_normals_are_the_pipelines_own(teachers, pictures, tmp_path):
    made = label("normal", teachers / "normals", pictures, tmp_path / "out", "--npy")
    assert made["self_check"]["verdict"] == "unclear"  # random weights see nothing
    theirs = direct(teachers / "normals", diffusers.MarigoldNormalsPipeline, pictures / "0.png", "0")[0]
    ours = np.load(tmp_path / "out" / "0.npy")
    np.testing.assert_allclose(ours, theirs * (1, -1, -1), atol=1e-5)
    np.testing.assert_allclose(read(tmp_path / "out" / "0.png") / 127.5 - 1, ours, atol=0.005)
    other = label("normal", teachers / "normals", pictures, tmp_path / "cv", "--npy", "--frame", "opencv")
    assert "opencv" in other["conventions"]["teacher"]
    np.testing.assert_allclose(np.load(tmp_path / "cv" / "0.npy"), theirs, atol=1e-5)


def test_marigold_depth_is_the_pipelines_own(teachers, pictures, tmp_path):
    label("depth", teachers / "depth", pictures, tmp_path / "out", "--npy", "--skip_self_check")
    theirs = direct(teachers / "depth", diffusers.MarigoldDepthPipeline, pictures / "1.png", "1")[0, ..., 0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "1.npy"), theirs, atol=1e-5)
    picture = read(tmp_path / "out" / "1.png")[..., 0]
    assert (
        picture[theirs <= np.percentile(theirs, 1)].min() == 255
        and picture[theirs >= np.percentile(theirs, 99)].max() == 0
    )
    with pytest.raises(InputError, match="predicts disparity"):
        label("depth", teachers / "disparity", pictures, tmp_path / "disparity")


def test_marigold_intrinsics_are_the_pipelines_own(teachers, pictures, tmp_path):
    made = label("albedo", teachers / "appearance", pictures, tmp_path / "albedo", "--npy")
    assert made["conventions"]["teacher"] == "albedo, srgb"
    kind = diffusers.MarigoldIntrinsicsPipeline
    theirs = direct(teachers / "appearance", kind, pictures / "0.png", "0")[0]
    np.testing.assert_allclose(np.load(tmp_path / "albedo" / "0.npy"), theirs, atol=1e-5)
    made = label("shading", teachers / "lighting", pictures, tmp_path / "shading", "--npy")
    assert made["conventions"]["teacher"] == "shading, linear, up to scale"
    theirs = direct(teachers / "lighting", kind, pictures / "0.png", "0")[1]
    coded = np.clip(to_srgb(theirs / np.percentile(theirs, 99)), 0, 1)
    np.testing.assert_allclose(np.load(tmp_path / "shading" / "0.npy"), coded, atol=1e-4)
    np.testing.assert_allclose(read(tmp_path / "shading" / "0.png") / 255, coded, atol=0.003)
    with pytest.raises(InputError, match="predicts albedo, material, not shading"):
        label("shading", teachers / "appearance", pictures, tmp_path / "none")


@pytest.mark.parametrize(("task", "teacher", "message"), [
    ("depth", "normals", "a MarigoldNormalsPipeline; --task depth needs a MarigoldDepthPipeline"),
    ("normal", "zoe", "--task normal needs a MarigoldNormalsPipeline"),
    ("depth", "nowhere", "not owner/model; named for depth: zoedepth, depth-anything-v2, marigold"),
    ("depth", "empty", "cannot be loaded"),
    ("normal", "marigold", "prs-eth/marigold-normals-v1-1: no such folder here"),  # no network here
])  # fmt: skip
def test_wrong_teachers_are_named(teachers, pictures, tmp_path, task, teacher, message):
    (tmp_path / "empty").mkdir()
    source = {"empty": tmp_path / "empty", "marigold": "marigold"}.get(teacher, teachers / teacher)
    with pytest.raises(InputError, match=message):
        label(task, source, pictures, tmp_path / "out")


@pytest.mark.parametrize("teacher", ["zoe", "metric"])
@pytest.mark.parametrize(("units", "said"), [("AVX2", True), ("AVX512", False)])
def test_bfloat16_labels_with_a_note_if_emulated(
    units, said, teacher, teachers, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: units)
    made = label("depth", teachers / teacher, pictures, tmp_path / "out", "--skip_self_check", "--dtype", "bf16")
    assert made["counts"]["labelled in the last run"] == 3 and made["dtype"] == "bf16"
    assert ("this CPU emulates bfloat16" in "".join(capsys.readouterr())) == said


def test_a_pipeline_that_cannot_compute_in_bfloat16_is_named(teachers, pictures, tmp_path):
    with pytest.raises(InputError, match=r"cannot compute in torch.bfloat16 on cpu .*; --dtype fp32"):
        label("normal", teachers / "normals", pictures, tmp_path / "out", "--dtype", "bf16")


def test_runs_continue_and_processes_share(teachers, pictures, tmp_path, capsys):
    more = ("--ensemble_size", 3, "--skip_self_check")
    label("normal", teachers / "normals", pictures, tmp_path / "one", *more)
    words = ["--task", "normal", "--input_dir", pictures, "--output_dir", tmp_path / "two", "--device", "cpu", *more]
    fork("pseudo_label.py", *words, "--teacher", teachers / "normals", processes=2)
    names = ["0.png", "1.png", "sub/2.png"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    (tmp_path / "one" / "1.png").unlink()
    kept = (tmp_path / "one" / "0.png").stat().st_mtime_ns
    made = label("normal", teachers / "normals", pictures, tmp_path / "one", *more)
    assert made["counts"]["labelled in the last run"] == 1 and made["counts"]["there before"] == 2
    assert (tmp_path / "one" / "0.png").stat().st_mtime_ns == kept
    assert (tmp_path / "one" / "1.png").read_bytes() == (tmp_path / "two" / "1.png").read_bytes()
    with pytest.raises(InputError, match="made with other seed"):
        label("normal", teachers / "normals", pictures, tmp_path / "one", *more, "--seed", 2)
    label("normal", teachers / "normals", pictures, tmp_path / "one", *more, "--seed", 2, "--overwrite")
    assert (tmp_path / "one" / "0.png").read_bytes() != (tmp_path / "two" / "0.png").read_bytes()


def test_unreadable_images_are_listed(teachers, pictures, tmp_path, capsys):
    (pictures / "0.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        label("normal", teachers / "normals", pictures, tmp_path / "out", "--skip_self_check")
    made = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert made["counts"]["failed"] == 1 and not made["counts"]["complete"]
    assert "0.png: not a readable image" in capsys.readouterr().err and (tmp_path / "out" / "1.png").is_file()
    shutil.copy(pictures / "1.png", pictures / "1.jpg")
    with pytest.raises(InputError, match="would get one label"):
        label("normal", teachers / "normals", pictures, tmp_path / "other")


@pytest.mark.parametrize("task", ["normal", "depth"])
def test_ground_truth_becomes_labels_that_train(diode, tmp_path, task):
    """The mini world's own labels are the truth, so labels made of its measurements are nearly those."""
    made = label(task, None, diode, tmp_path / task, "--splits", "train")
    assert made["counts"]["pictures"] == 24 and "nearest valid pixel" in made["conventions"]["invalid pixels"]
    kind = NORMAL if task == "normal" else DEPTH
    ours = Diode(kind, diode / f"{task}s", tmp_path / task, "train", resolution=64)
    theirs = Diode(kind, diode / f"{task}s", diode / "pseudo" / task, "train", resolution=64)
    assert ours.stems == theirs.stems
    for i in range(0, 24, 5):
        mine, exact = ours[i], theirs[i]
        off = (mine["target"] - exact["target"]).abs().mean(0)
        # depth's range here is that of measured pixels, the rendered label's that of all but the sky
        assert off[exact["valid"][0]].mean() < (0.03 if task == "normal" else 0.06)
        assert off.mean() < 0.08, "holes or sky are filled wrongly"


def test_ground_truth_is_for_two_tasks(diode, tmp_path):
    with pytest.raises(InputError, match="DIODE measures no albedo"):
        label("albedo", None, diode, tmp_path)
    with pytest.raises(InputError, match="either --teacher NAME or --from ground_truth"):
        pseudo_label.parse(["--task", "depth", "--input_dir", "a", "--output_dir", "b"])


def test_labels_of_a_folder_train_as_ones_own_data(teachers, pictures, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures, data / "images")
    label("normal", teachers / "normals", data / "images", data / "labels", "--skip_self_check")
    assert check(["--dataset", "folder", "--train_data_dir", str(data)]) == 0
