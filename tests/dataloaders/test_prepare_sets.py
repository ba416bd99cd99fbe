"""Hypersim, Virtual KITTI 2 and InteriorVerse in their published layouts, from exact scenes, prepared for training."""

import json
import os
import shlex
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import distance, run_here, start_fork, wait_for
from layouts import (
    Shot,
    camera_csv,
    hdf5,
    hypersim_image,
    hypersim_shot,
    interiorverse_shot,
    marigold_shot,
    of_scene,
    rays_of,
    room,
    split_csv,
    vkitti2,
    zipped,
)
from PIL import Image

from dataloaders.__main__ import main
from dataloaders.prepare.geometry import (
    facing_normals,
    image_axes,
    image_rays,
    is_camera_of,
    normals_of_depth,
    planar,
)
from dataloaders.prepare.hypersim import TANGENT
from miniworld.render.diode_tree import encode_labels
from miniworld.render.raycast import trace
from utils.errors import InputError
from utils.image_io.files import read_array
from utils.lora import read_lora
from utils.training.args import SINGLE_STEP_REFUSES, training_parser

TASKS = ("normal", "depth", "albedo", "shading")
TILTED = np.array([[0.58, 0, 0], [0, 0.452, 0.05], [0.16, -0.12, -1.03]])  # a lens tilted both ways, and shifted
LISTED = [("ai_001_001", 0, "train"), ("ai_001_001", 1, "train"), ("ai_001_002", 2, "train"), ("ai_001_003", 3, "val"),
          ("ai_001_004", 4, "test"), ("ai_001_005", 5, "")]  # fmt: skip


@pytest.fixture(scope="module")
def shots() -> list[Shot]:
    """Rooms seen by Hypersim's ordinary camera."""
    return [of_scene(room(seed, TANGENT)) for seed in range(len(LISTED))]


@pytest.fixture(scope="module")
def source(shots, tmp_path_factory) -> Path:
    """HYPERSIM/ with scenes unpacked and zipped, and split.csv next to it."""
    root = tmp_path_factory.mktemp("hypersim")
    for (scene, frame, _), shot in zip(LISTED, shots, strict=True):
        hypersim_shot(root / "HYPERSIM", scene, frame, shot)
    zipped(root / "HYPERSIM" / "ai_001_002")
    split_csv(root / "split.csv", LISTED)
    return root


def words(source: Path, root: Path, *more: object) -> list[str]:
    named = ["--source", source / "HYPERSIM", "--split_csv", source / "split.csv", "--root", root, "--workers", 1]
    return [str(word) for word in ("prepare", "hypersim", *named, *more)]


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    assert main(words(source, root)) == 0
    return root


def one(tmp_path: Path, shot: Shot, change=None) -> Path:
    """A source of one image, frame 0 of ai_001_001, in train; change: of its scene's folder."""
    folder = hypersim_shot(tmp_path / "HYPERSIM", "ai_001_001", 0, shot)
    split_csv(tmp_path / "split.csv", [("ai_001_001", 0, "train")])
    if change:
        change(folder / "images")
    return tmp_path


def record(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "images.jsonl").read_text().splitlines()]


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# Round trip ----------------------------------------------------------------------------------------------------------


def test_rooms_as_hypersim_come_back(shots, prepared):
    names = ["train/ai_001_001/cam_00_fr0000", "train/ai_001_001/cam_00_fr0001", "train/ai_001_002/cam_00_fr0002",
             "val/ai_001_003/cam_00_fr0003"]  # fmt: skip
    for task in TASKS:
        listed = sorted(
            path.relative_to(prepared / task / "images") for path in (prepared / task / "images").rglob("*.png")
        )
        assert [str(path.with_suffix("")) for path in listed] == names  # no test, none unreleased
    for number, name in enumerate(names):
        shot = shots[number]
        labels = encode_labels(trace(room(number, TANGENT), 48, 64))
        for task in TASKS:
            found = np.asarray(Image.open(prepared / task / "labels" / f"{name}.png")).astype(int)
            assert np.abs(found - labels[task]).max() <= 1, task
            assert (np.asarray(Image.open(prepared / task / "masks" / f"{name}.png")) == 255).all()
            image = prepared / task / "images" / f"{name}.png"
            assert image.samefile(prepared / "normal" / "images" / f"{name}.png")
            assert (np.asarray(Image.open(image)) == hypersim_image(shot)).all()
        exact = {task: np.load(prepared / task / "gt" / f"{name}.npy") for task in TASKS}
        assert np.abs(exact["normal"] - shot.normal * [1, -1, -1]).max() < 1e-3
        assert np.abs(exact["depth"] / shot.depth - 1).max() < 1e-4
        assert (
            np.abs(exact["albedo"] - shot.albedo).max() < 1e-3 and np.abs(exact["shading"] - shot.shading).max() < 1e-3
        )


def test_the_scale_of_shading_does_not_matter_and_is_recorded(shots, tmp_path):
    bright = replace(shots[0], shading=13.5 * shots[0].shading)
    assert main(words(one(tmp_path, bright), tmp_path / "out")) == 0
    label = np.asarray(Image.open(tmp_path / "out/shading/labels/train/ai_001_001/cam_00_fr0000.png")).astype(int)
    assert np.abs(label - encode_labels(trace(room(0, TANGENT), 48, 64))["shading"]).max() <= 1
    (line,) = record(tmp_path / "out")
    assert line["shading_percentile"] == pytest.approx(13.5, rel=1e-3) and line["diffuse_psnr"] == 99


def test_every_folder_passes_the_check_and_names_its_training(prepared, source, capsys):
    assert main(words(source, prepared)) == 0
    out = capsys.readouterr().out
    assert "0 images done, 4 before" in out and "normal: 4 of 4 images kept" in out
    command = shlex.split(out.rstrip().splitlines()[-1].removeprefix("next: "))
    assert command[:2] == ["python", "sd_single_diode_pseudo_normal.py"]
    args = training_parser("", SINGLE_STEP_REFUSES).parse_args(command[2:])
    assert (args.dataset, args.train_data_dir) == ("folder", str(prepared / "normal"))
    for task in TASKS:
        assert main(["check", "--dataset", "folder", "--train_data_dir", str(prepared / task)]) == 0
        text = capsys.readouterr().out
        assert "4 samples, 16 files" in text and f"labels taken for {task}: 4 compared" in text and "all good" in text


def test_training_on_it_is_training_on_a_folder(prepared, bases, tmp_path):
    """The labels of the folder made by hand are miniworld's own."""
    for path in sorted((prepared / "albedo" / "images").rglob("*.png")):
        name = path.relative_to(prepared / "albedo" / "images")
        number = int(path.stem[-4:])
        for folder in ("images", "labels", "gt"):
            (tmp_path / "own" / folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / "own" / "images" / name)
        label = encode_labels(trace(room(number, TANGENT), 48, 64))["albedo"]
        Image.fromarray(label).save(tmp_path / "own" / "labels" / name)
        exact = prepared / "albedo" / "gt" / name.with_suffix(".npy")
        shutil.copyfile(exact, tmp_path / "own" / "gt" / name.with_suffix(".npy"))
    for root, run in ((prepared / "albedo", "a"), (tmp_path / "own", "b")):
        run_here("sd_single_diode_pseudo_albedo.py", [
            "--pretrained_model_name_or_path", "miniworld/mini-sd", "--dataset", "folder",
            "--train_data_dir", str(root), "--output_dir", str(tmp_path / run), "--resolution", "32",
            "--train_batch_size", "2", "--max_train_steps", "3", "--report_to", "none", "--validation_steps", "3",
        ])  # fmt: skip
    assert distance(tmp_path / "a", tmp_path / "b") == 0
    stated = [read_lora(tmp_path / run).metadata.get("trained_on") for run in "ab"]
    assert stated == ["hypersim train", None]
    metrics = [(tmp_path / run / "metrics.jsonl").read_text() for run in "ab"]
    assert all("val/val/rmse" in text for text in metrics)


# Cameras -------------------------------------------------------------------------------------------------------------


def wall(camera: np.ndarray, normal: tuple[float, float, float], away: float = 3.0) -> Shot:
    """A wall seen at an angle, textured; normal: toward the camera, in its axes; away: its distance."""
    n = np.array(normal) / np.linalg.norm(normal)
    rays = rays_of(camera, 48, 64)
    along = -away / (rays @ n)
    assert (along > 0).all()
    texture = np.random.default_rng(0).uniform(0.2, 0.9, (48, 64, 3))
    flat = np.ones_like(texture)
    depth = along * -rays[..., 2]
    return Shot(camera, flat * n, depth, texture, 0.5 * flat, np.ones((48, 64), int), 0 * flat)


@pytest.mark.parametrize("camera", [np.diag([TANGENT, 0.75 * TANGENT, -1]), np.diag([0.4, 0.3, -1]), TILTED],
                         ids=["ordinary", "narrow", "tilt-shift"])  # fmt: skip
def test_a_wall_at_an_angle_comes_out_flat(camera, tmp_path):
    """The inverse of planar depth is affine in the pixel, that of distance is not; the normals are those of the wall
    in the image's axes.
    """
    shot = wall(camera, (0.5, -0.2, 0.8))
    cameras = camera_csv(tmp_path / "cameras.csv", {"ai_001_001": camera})
    assert main(words(one(tmp_path, shot), tmp_path / "out", "--camera_csv", cameras)) == 0
    stem = "train/ai_001_001/cam_00_fr0000.npy"
    depth, normal = (np.load(tmp_path / "out" / task / "gt" / stem).astype(float) for task in ("depth", "normal"))
    rows, columns = np.indices(depth.shape)
    design = np.stack([columns, rows, np.ones_like(rows)], axis=2).reshape(-1, 3)
    fit = design @ np.linalg.lstsq(design, 1 / depth.ravel(), rcond=None)[0]
    assert np.abs(fit * depth.ravel() - 1).max() < 1e-5
    inverse = 1 / shot.distance.ravel()
    assert (
        np.abs(design @ np.linalg.lstsq(design, inverse, rcond=None)[0] / inverse - 1).max() > 0.02
    )  # distance is not
    points = depth[..., None] * image_rays(camera, 48, 64) * [1, -1, -1]
    towards = np.einsum("hwc,hwc->hw", points, normal)
    assert np.ptp(towards) < 5e-3 and towards.mean() == pytest.approx(-3.0, abs=5e-3)


def test_cameras_that_are_shifted_and_turned_by_hand():
    shifted = np.array([[0.5, 0, 0], [0, 0.5, 0.5], [0, 0, -1]])
    assert np.allclose(image_axes(shifted), np.eye(3))
    assert planar(np.full((1, 1), np.sqrt(1.25)), image_rays(shifted, 1, 1))[0, 0] == pytest.approx(1)
    turn = np.array([[1, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]])
    assert np.allclose(image_axes(turn @ shifted), turn.T)
    assert np.allclose(image_rays(turn @ shifted, 4, 6), image_rays(shifted, 4, 6))


def test_short_normals_have_no_direction_and_those_that_face_away_are_turned():
    """Away: from a cosine of 0.001 to the viewing ray, Marigold's (2312.02145) preprocessing of Hypersim."""
    rays = np.tile((0.0, 0, -1), (1, 6, 1))
    normals = np.array([[(0, 0, 2), (0, 0, 0.5), (0, 0.49, 0), (0, 0, -1), (1, 0, -0.0015), (1, 0, -0.0005)]])
    found, known, turned = facing_normals(normals, rays)
    assert known.tolist() == [[True, True, False, True, True, True]] and turned == pytest.approx(2 / 6)
    expected = [(0, 0, -1), (0, 0, -1), (0, 0, 0), (0, 0, -1), (-1, 0, -0.0015), (1, 0, 0.0005)]
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_surfaces_of_depth_have_their_normals_and_end_at_a_step_of_3_percent():
    """A wall that faces the camera; the step between two columns counts half in each of them."""
    rays = np.stack(np.broadcast_arrays(np.zeros((5, 5)), -np.arange(5.0)[:, None] / 5, -1.0), axis=2)
    rays[..., 0] = np.arange(5) / 5
    depth = np.full((5, 5), 2.0)
    normals, smooth = normals_of_depth(depth, rays)
    np.testing.assert_allclose(normals, np.broadcast_to((0, 0, -1), (5, 5, 3)), atol=1e-12)
    assert smooth.all()
    for step, kept in ((1.055, True), (1.065, False)):
        for axis in (0, 1):
            stepped = np.where(np.arange(5) < 3, depth, step * depth)
            stepped = stepped if axis else stepped.T
            assert normals_of_depth(stepped, rays)[1].all() == kept


def test_without_their_file_tilt_shift_cameras_are_noticed_and_left_out(tmp_path, capsys):
    source = one(tmp_path, wall(TILTED, (0.5, -0.2, 0.8)))
    assert main(words(source, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    reason = "100.0% another camera, such as tilt-shift (--camera_csv has them)"
    assert f"depth: 0 of 1 images kept; left out: {reason}" in out and "normal: 0 of 1" in out
    assert "albedo: 1 of 1" in out and out.rstrip().endswith("--output_dir=runs/albedo")
    shutil.rmtree(source / "HYPERSIM")
    with pytest.raises(InputError, match=r"no geometry\.position files.*pass --camera_csv"):
        source = one(tmp_path, wall(TILTED, (0.5, -0.2, 0.8)),
                     lambda images: next(images.rglob("*position*")).unlink())  # fmt: skip
        main(words(source, tmp_path / "out"))


@pytest.mark.parametrize(("dtype", "scale", "noticed"), [(np.float32, 1, 0.03), (np.float16, 40, 0.1)])
def test_cameras_are_compared_through_any_rotation_and_rounding(dtype, scale, noticed, shots):
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    centre = np.array([200.0, 10.0, -90.0])
    rays = image_rays(shots[0].camera, 48, 64)
    points = (centre + scale * shots[0].depth[..., None] * rays @ turn.T).astype(dtype)
    points[0, 0] = -np.inf  # as in ai_051_004
    assert is_camera_of(rays, points, centre)
    far = 100 * centre - centre  # where float16 counts in steps of 16
    assert is_camera_of(rays, (points.astype(float) + far).astype(dtype), centre + far)
    tilted = shots[0].camera @ np.array([[1, 0, 0], [0, 1, 0], [0, noticed, 1]])
    assert not is_camera_of(image_rays(tilted, 48, 64), points, centre)


# Conventions ---------------------------------------------------------------------------------------------------------


def changed(shots: list[Shot], tmp_path: Path, **maps) -> Path:
    """A source of four images whose HDF5 files of these names are rewritten by functions of their shots."""
    for frame, shot in enumerate(shots[:4]):
        folder = hypersim_shot(tmp_path / "HYPERSIM", "ai_001_001", frame, shot)
        for name, change in maps.items():
            hdf5(folder / "images" / "scene_cam_00_geometry_hdf5" / f"frame.{frame:04d}.{name}.hdf5", change(shot))
    split_csv(tmp_path / "split.csv", [("ai_001_001", frame, "train") for frame in range(4)])
    return tmp_path


@pytest.mark.parametrize(("maps", "message"), [
    ({"normal_cam": lambda s: s.normal * [1, -1, -1]}, "flipping y and z of the normals would cut the mean error"),
    ({"normal_cam": lambda s: s.normal * [1, -1, 1]}, "flipping y of the normals would cut the mean error"),
    ({"normal_cam": lambda s: s.normal[..., ::-1]}, "swapping the axes x and z"),
    ({"normal_cam": lambda s: s.normal / 2 + 0.5}, r"are in \[0,1\] and were never shifted"),
    ({"depth_meters": lambda s: s.depth}, "the files hold planar depth instead of distance"),
    ({"depth_meters": lambda s: 1000 * s.distance}, r"the median depth is .* m, so the files hold another unit"),
], ids=["opencv", "directx", "bgr", "encoded", "planar", "millimetres"])  # fmt: skip
def test_files_in_another_convention_are_refused_before_anything_is_written(maps, message, shots, tmp_path):
    with pytest.raises(InputError, match=message):
        main(words(changed(shots, tmp_path, **maps), tmp_path / "out"))
    assert not files(tmp_path / "out").keys() - {".lock"}


def test_normals_that_face_away_are_turned_and_brought_to_unit_length(shots, tmp_path, capsys):
    def away(shot: Shot) -> np.ndarray:
        normals = 0.9 * shot.normal
        normals[:, :16] *= -1
        return normals

    assert main(words(changed(shots, tmp_path, normal_cam=away), tmp_path / "out")) == 0
    assert "turned: 25.00% of the pixels" in capsys.readouterr().out
    exact = np.load(tmp_path / "out/normal/gt/train/ai_001_001/cam_00_fr0001.npy")
    assert np.abs(exact - shots[1].normal * [1, -1, -1]).max() < 1e-3


def nan_in(kind: str, value: float = np.nan):
    def change(images: Path) -> None:
        path = next(images.rglob(f"*.{kind}.hdf5"))
        import h5py

        with h5py.File(path, "r+") as file:
            file["dataset"][5, 7] = value

    return change


@pytest.mark.parametrize(("change", "dropped"), [
    (nan_in("render_entity_id", -1), dict.fromkeys(TASKS, "render_entity_id -1 (pixels without a surface)")),
    (nan_in("color"), dict.fromkeys(TASKS, "color: NaN or inf")),
    (nan_in("normal_cam"), {"normal": "normal: NaN or inf"}),
    (nan_in("depth_meters", np.inf), {"depth": "depth: NaN or inf"}),
    (nan_in("diffuse_illumination"), dict.fromkeys(TASKS[2:], "shading: NaN or inf")),
    (nan_in("diffuse_illumination", -0.2), dict.fromkeys(TASKS[2:], "shading outside [0, inf)")),
    (nan_in("diffuse_reflectance", 1.2), dict.fromkeys(TASKS[2:], "albedo outside [0, 1]")),
    (nan_in("position", -np.inf), {}),
    (nan_in("normal_cam", 0), {}),
])  # fmt: skip
def test_what_is_left_out_of_which_intrinsic(change, dropped, shots, tmp_path, capsys):
    source = one(tmp_path, shots[0], change)
    if len(dropped) == len(TASKS):
        with pytest.raises(InputError, match="every image was left out"):
            main(words(source, tmp_path / "out"))
    else:
        assert main(words(source, tmp_path / "out")) == 0
    (line,) = record(tmp_path / "out")
    assert line["dropped"] == dropped
    out = capsys.readouterr().out
    assert all(f"{task}: 0 of 1 images kept; left out: 100.0% {why}" in out for task, why in dropped.items())
    for task in set(TASKS) - dropped.keys():
        assert main(["check", "--dataset", "folder", "--train_data_dir", str(tmp_path / "out" / task)]) == 0
    if not dropped:
        mask = np.asarray(Image.open(tmp_path / "out/normal/masks/train/ai_001_001/cam_00_fr0000.png"))
        assert (mask == 0).sum() == (change.__closure__[0].cell_contents == "normal_cam")


def test_the_residual_is_measured_and_filters(shots, tmp_path, capsys):
    shot = replace(shots[0], residual=np.full_like(shots[0].albedo, 0.05))
    source = one(tmp_path, shot)
    assert main(words(source, tmp_path / "a")) == 0
    scale = 0.8**2.2 / np.percentile(shot.color @ np.array([0.3, 0.59, 0.11]), 90)
    full, diffuse = (np.clip(scale * v, 0, 1) ** (1 / 2.2) for v in (shot.color, shot.albedo * shot.shading))
    psnr = -10 * np.log10(np.mean((full - diffuse) ** 2))
    (line,) = record(tmp_path / "a")
    assert line["diffuse_psnr"] == pytest.approx(psnr, abs=0.01) and 10 < psnr < 40
    assert main(words(source, tmp_path / "b", "--min_diffuse_psnr", f"{psnr + 1:.1f}")) == 0
    out = capsys.readouterr().out
    assert f"albedo: 0 of 1 images kept; left out: 100.0% albedo x shading below {psnr + 1:.1f} dB" in out
    assert not (tmp_path / "b" / "shading" / "images").exists() and (tmp_path / "b" / "normal" / "images").is_dir()
    with pytest.raises(InputError, match=r"holds labels made with other settings .*choose another --root"):
        main(words(source, tmp_path / "b", "--min_diffuse_psnr", "1"))


# Running -------------------------------------------------------------------------------------------------------------


def test_a_killed_run_continues_and_ends_with_the_same_files(source, prepared, tmp_path):
    for name in ("stdout", "stderr"):
        (tmp_path / name).touch()
    slow = "\n".join([
        "import signal, sys", "sys.path.insert(0, 'tests')",
        "from dataloaders.prepare import writer", "write, written = writer.write_item, []",
        "def two(*args):", "    if len(written) == 2: signal.pause()  # until it is killed",
        "    written.append(write(*args))", "    return written[-1]", "writer.write_item = two",
        "from dataloaders.__main__ import main", f"main({words(source, tmp_path / 'out')!r})",
    ])  # fmt: skip
    process = start_fork(("-c", slow), tmp_path)
    listed = tmp_path / "out/images.jsonl"
    wait_for(lambda: listed.is_file() and len(record(tmp_path / "out")) >= 2, process.is_alive, tmp_path / "stderr")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*fr0000.*")}
    assert len(done) == 16 and not (tmp_path / "out/albedo/images/val").exists()
    with (tmp_path / "out/images.jsonl").open("a") as file:
        file.write('{"split": "train", "na')
    assert json.loads((tmp_path / "out/albedo/provenance.json").read_text())["counts"] == {"complete": False}
    assert main(words(source, tmp_path / "out")) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    found = {name: content for name, content in files(tmp_path / "out").items() if not name.startswith(".")}
    assert found == {name: content for name, content in files(prepared).items() if not name.startswith(".")}


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same(source, prepared, tmp_path):
    assert main([*words(source, tmp_path), "--workers", "2"]) == 0
    assert files(tmp_path) == files(prepared)


def test_a_file_that_cannot_be_read_is_named_and_tried_again(shots, tmp_path, capsys):
    source = changed(shots, tmp_path)
    broken = next((source / "HYPERSIM").rglob("frame.0002.color.hdf5"))
    content = broken.read_bytes()
    broken.write_bytes(content[:200])
    assert main(words(source, tmp_path / "out")) == 1
    found = capsys.readouterr()
    assert "error: 1 images are not prepared" in found.err and "frame.0002.color.hdf5: cannot be read" in found.err
    assert "normal: 3 of 3 images kept" in found.out and not (tmp_path / "out/.lock").exists()
    broken.write_bytes(content)
    assert main(words(source, tmp_path / "out")) == 0
    assert "1 images done, 3 before" in capsys.readouterr().out


def test_zip_files_that_are_cut_off_are_named(source, tmp_path):
    shutil.copytree(source, tmp_path / "copy")
    archive = tmp_path / "copy" / "HYPERSIM" / "ai_001_002.zip"
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"ai_001_002\.zip: broken or cut off .*; download it again"):
        main(words(tmp_path / "copy", tmp_path / "out"))


def test_a_first_look(source, tmp_path, capsys):
    assert main(words(source, tmp_path, "--limit", 2, "--gt", "val", "--depth_coding", "log")) == 0
    out = capsys.readouterr().out
    assert "2 images take about" in out and "are free" in out and "depth: 2 of 2" in out
    assert sorted(path.name for path in (tmp_path / "depth/images").rglob("*.png")) == [
        "cam_00_fr0000.png", "cam_00_fr0003.png"]  # fmt: skip
    assert [path.name for path in (tmp_path / "depth/gt").rglob("*.npy")] == ["cam_00_fr0003.npy"]
    about = json.loads((tmp_path / "depth/provenance.json").read_text())
    assert about["depth_coding"] == "log" and "1 - log10" in about["conventions"]["labels"]
    assert main(words(source, tmp_path, "--scenes", "ai_001_002", "--depth_coding", "log")) == 0
    assert "1 images done, 0 before" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--scenes: ai_009_009 is not among the 3 of train and val"):
        main(words(source, tmp_path, "--scenes", "ai_009_009"))


def test_a_disk_that_is_too_small_is_an_error_at_the_start(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"4 images take about 0\.\d MB, .* pass --gt val, --limit, --scenes or"):
        main(words(source, tmp_path))
    assert not (tmp_path / "normal").exists()


@pytest.mark.parametrize(("more", "message"), [
    (["prepare", "hypersim", "--root", "x"], "^--source is missing"),
    (["prepare", "hypersim", "--root", "x", "--source", "nowhere"], "^--source nowhere: no such folder"),
    (["prepare", "hypersim", "--root", "x", "--source", "."], "^--split_csv is missing: metadata_images_split"),
    (["prepare", "vkitti2", "--root", "x", "--source", "."], r"^--source \.: no rgb/SceneNN"),
    (["prepare", "interiorverse", "--root", "x", "--source", "."], r"^--source \.: pass the one folder scenes_85"),
    (["prepare", "vkitti2", "--root", "x", "--source", ".", "--split_csv", "a"], "--split_csv means nothing"),
    (["prepare", "--root", "x", "--source", "."], "--source means nothing for diode"),
    (["prepare", "hypersim", "--root", "x", "--skip_md5"], "--skip_md5 means nothing for a set other than diode"),
    (["prepare", "hypersim", "--root", "x", "--source", ".", "--limit", "0"], "--limit=0: must be at least 1"),
])  # fmt: skip
def test_flags_that_cannot_be_used(more, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(more)


def test_a_source_without_the_listed_images_and_a_missing_package(source, tmp_path, monkeypatch):
    (tmp_path / "HYPERSIM").mkdir()
    shutil.copy(source / "split.csv", tmp_path)
    with pytest.raises(InputError, match=r"none of the images of --split_csv \(4\) is there"):
        main(words(tmp_path, tmp_path / "out"))
    (tmp_path / "split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"split\.csv: no column scene_name"):
        main(words(tmp_path, tmp_path / "out"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"need the package h5py, which is not installed: pip install h5py"):
        main(words(source, tmp_path / "out"))


# The others ----------------------------------------------------------------------------------------------------------


def test_marigolds_tree_of_hypersim(shots, tmp_path, capsys):
    for frame, split in enumerate(("train", "train", "val", "test")):
        marigold_shot(tmp_path / "in", split, f"ai_001_{frame:03d}", frame, shots[frame])
    flags = ["prepare", "hypersim", "--source", tmp_path / "in", "--root", tmp_path / "out", "--workers", 1]
    assert main([str(word) for word in flags]) == 0
    for task in TASKS:
        names = sorted(path.stem for path in (tmp_path / "out" / task / "images").rglob("*.png"))
        assert names == ["cam_00_fr0000", "cam_00_fr0001", "cam_00_fr0002"]
        label = np.asarray(Image.open(tmp_path / "out" / task / "labels/train/ai_001_001/cam_00_fr0001.png")).astype(
            int
        )
        assert np.abs(label - encode_labels(trace(room(1, TANGENT), 48, 64))[task]).max() <= 1
    with pytest.raises(InputError, match=r"--camera_csv means nothing for .*a preprocessed tree"):
        main([str(word) for word in (*flags, "--camera_csv", "x")])
    for path in (tmp_path / "in").rglob("depth_plane*"):  # distance, as if it had never been converted
        planes = read_array(path) * np.linalg.norm(image_rays(shots[0].camera, 48, 64), axis=2)
        Image.fromarray(planes.round().astype(np.uint16)).save(path)
    with pytest.raises(InputError, match="the files hold distance instead of planar depth"):
        main([str(tmp_path / "again") if word == tmp_path / "out" else str(word) for word in flags])


def test_virtual_kitti(shots, tmp_path, capsys):
    rgb = hypersim_image(shots[0])
    depth = np.linspace(2, 160, 48)[::-1, None] * np.ones((1, 64))
    depth[:10] = np.inf
    vkitti2(tmp_path / "in", [("Scene01", rgb, depth), ("Scene02", rgb, depth), ("Scene18", rgb, depth)])
    flags = ["prepare", "vkitti2", "--source", tmp_path / "in", "--root", tmp_path / "out", "--workers", 1]
    assert main([str(word) for word in flags]) == 0
    root = tmp_path / "out" / "depth"
    names = sorted(path.relative_to(root / "images").as_posix() for path in (root / "images").rglob("*.jpg"))
    assert names == ["train/Scene02/clone_Camera_0_00001.jpg", "train/Scene18/clone_Camera_0_00002.jpg",
                     "val/Scene01/clone_Camera_0_00000.jpg"]  # fmt: skip
    stem = names[0].removesuffix(".jpg")
    exact, mask = np.load(root / "gt" / f"{stem}.npy"), np.asarray(Image.open(root / "masks" / f"{stem}.png")) > 0
    record = json.loads((root / "provenance.json").read_text())
    assert (record["set"], record["splits"]) == ("vkitti", "own")
    assert (mask == (depth <= 80)).all() and np.abs(exact - depth)[mask].max() <= 0.005 + 1e-6
    label = np.asarray(Image.open(root / "labels" / f"{stem}.png"))[..., 0]
    near, far = np.percentile(depth[depth <= 80], [2, 98])
    expected = np.where(depth <= 80, np.clip(255 * (far - np.minimum(depth, 80)) / (far - near), 0, 255).round(), 0)
    assert np.abs(label - expected).max() <= 1 and (label[~mask] == 0).all()
    assert main(["check", "--dataset", "folder", "--train_data_dir", str(root)]) == 0
    Image.fromarray(np.full((48, 64), 90, np.uint8)).save(next((tmp_path / "in").rglob("depth_00001.png")))
    with pytest.raises(InputError, match=r"depth_00001\.png: uint8 .*, not uint16 \(H, W\) centimetres"):
        main([str(word) for word in (*flags[:-3], tmp_path / "b", "--scenes", "Scene02")])


def test_interiorverse(tmp_path, capsys):
    pytest.importorskip("OpenEXR")
    tangent = np.tan(np.radians(42.5))
    shots = [of_scene(room(seed, tangent)) for seed in range(3)]
    valid = np.ones((48, 64), bool)
    valid[10:20, 30:50] = False
    folder = tmp_path / "in" / "scenes_85"
    for number, shot in enumerate(shots):
        interiorverse_shot(folder, f"L3D{number}", number, shot, valid)
    flags = ["prepare", "interiorverse", "--source", tmp_path / "in", "--root", tmp_path / "out", "--workers", 1]
    flags = [str(word) for word in flags]
    with pytest.raises(InputError, match=r"no train\.txt and val\.txt"):
        main(flags)
    (folder / "train.txt").write_text("L3D0\n")
    (folder / "val.txt").write_text("scenes_85/L3D1/001_im.exr scenes_85/L3D1/001_albedo.exr\n")
    (folder / "test.txt").write_text("L3D2\n")
    assert main(flags) == 0
    assert not (tmp_path / "out" / "shading").exists()
    for number, split in enumerate(("train", "val")):
        stem = f"{split}/L3D{number}/{number:03d}"
        labels = encode_labels(trace(room(number, tangent), 48, 64))
        exact = {task: np.load(tmp_path / "out" / task / "gt" / f"{stem}.npy") for task in TASKS[:3]}
        for task in TASKS[:3]:
            mask = np.asarray(Image.open(tmp_path / "out" / task / "masks" / f"{stem}.png")) > 0
            assert (mask == valid).all()
            label = np.asarray(Image.open(tmp_path / "out" / task / "labels" / f"{stem}.png")).astype(int)
            if task == "depth":  # between percentiles of the known pixels
                near, far = np.percentile(shots[number].depth[valid], [2, 98])
                expected = np.clip(255 * (far - shots[number].depth) / (far - near), 0, 255)[..., None]
            else:
                expected = labels[task]
            assert np.abs(label - expected)[valid].max() <= 1
            assert {*map(tuple, label[~valid])} <= {*map(tuple, label[valid])}  # the nearest known value
            assert main(["check", "--dataset", "folder", "--train_data_dir", str(tmp_path / "out" / task)]) == 0
        assert np.abs(exact["normal"] - shots[number].normal * [1, -1, -1])[valid].max() < 1e-3
        assert np.abs(exact["depth"] / shots[number].depth - 1)[valid].max() < 1e-4
    (folder / "val.txt").write_text("L3D0\n")
    with pytest.raises(InputError, match=r"L3D0 is listed for train too"):
        main(flags)
    (folder / "val.txt").write_text("L3D1\n")
    (tmp_path / "in" / "dataset_120").mkdir()
    with pytest.raises(
        InputError, match=r"pass the one folder scenes_85 or dataset_85 \(there: dataset_120, scenes_85"
    ):
        main(flags)
