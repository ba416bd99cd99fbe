"""The rendered world: its maps agree with each other, and its files with DIODE's layout."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from miniworld import scenes
from miniworld.render.diode_tree import (
    WORLD_VERSION,
    Settings,
    depth_range,
    encode_labels,
    list_samples,
    render_sample,
    sample_paths,
)
from miniworld.render.materials import Material
from miniworld.render.raycast import ENCLOSURE, SKY, hidden, trace
from miniworld.render.shapes import Sphere
from miniworld.render.world import NUMBERS
from utils.errors import InputError
from utils.image_io.colour_space import to_linear, to_srgb

CASES = [(kind, seed) for kind in ("room", "yard") for seed in range(6)]
SETTINGS = Settings(train=10, val=6, width=40, height=30, seed=3)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}{case[1]}")
def rendering(request):
    kind, seed = request.param
    return scenes.render(seed, kind, height=72, width=96)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("a world") / "data"
    assert scenes.write_tree(root, SETTINGS, workers=1)
    return root


def back_project(rendering):
    """Points (H, W, 3) in the raw camera frame from z-depth."""
    height, width = rendering.depth.shape
    pixel = 2 * np.tan(rendering.scene.camera.fov / 2) / min(height, width)
    x = (np.arange(width) + 0.5 - width / 2) * pixel
    y = (height / 2 - np.arange(height) - 0.5) * pixel
    x, y = np.meshgrid(x, y)
    return rendering.depth[..., None].astype(np.float64) * np.stack([x, y, -np.ones_like(x)], axis=-1)


def one_surface(rendering):
    """Inner pixels (H-2, W-2) bool whose 3x3 neighbourhood is one surface: same segment, similar normals."""
    same = np.ones(np.subtract(rendering.depth.shape, 2), bool)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            window = slice(dy, dy + same.shape[0]), slice(dx, dx + same.shape[1])
            same &= rendering.segment[window] == rendering.segment[1:-1, 1:-1]
            same &= (rendering.normal[window] * rendering.normal[1:-1, 1:-1]).sum(-1) > 0.8
            same &= rendering.valid[window]
    return same


def degrees_between(first, second):
    first, second = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (first, second))
    return np.degrees(np.arccos(np.clip((first * second).sum(-1), -1, 1)))


def test_rgb_is_albedo_times_shading(rendering):
    assert np.array_equal(
        rendering.rgb, np.round(255 * to_srgb(rendering.albedo * rendering.shading)).astype(np.uint8)
    )
    for values in (rendering.albedo, rendering.shading):
        assert values.min() > 0 and values.max() <= 1
    assert rendering.shading.std() > 0.01


def test_normals_are_the_derivative_of_depth(rendering):
    points = back_project(rendering)
    across = points[1:-1, 2:] - points[1:-1, :-2]
    up = points[:-2, 1:-1] - points[2:, 1:-1]
    inner = one_surface(rendering)
    error = degrees_between(np.cross(across, up)[inner], rendering.normal[1:-1, 1:-1][inner].astype(np.float64))
    assert inner.sum() > 500
    assert np.median(error) < 0.1 and np.percentile(error, 95) < 3


def test_curved_normals_are_the_derivative_of_depth():
    """The median above is a plane's: so here spheres, cylinders and crowns alone."""
    errors = []
    for kind, seed in CASES:
        rendering = scenes.render(seed, kind, height=240, width=320)
        points = back_project(rendering)
        across, up = points[1:-1, 2:] - points[1:-1, :-2], points[:-2, 1:-1] - points[2:, 1:-1]
        normal = rendering.normal[1:-1, 1:-1].astype(np.float64)
        curved = one_surface(rendering) & (degrees_between(normal, rendering.normal[1:-1, 2:]) > 0.1)
        errors.append(degrees_between(np.cross(across, up)[curved], normal[curved]))
    errors = np.concatenate(errors)
    assert errors.size > 2000
    assert np.median(errors) < 1


def test_normals_are_unit_and_face_the_viewer(rendering):
    assert np.allclose(np.linalg.norm(rendering.normal, axis=-1), 1, atol=1e-5)
    maps = (rendering.depth, rendering.normal, rendering.albedo, rendering.shading)
    assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in maps)
    seen = rendering.segment != SKY
    rays = back_project(rendering)[seen]
    assert ((rays * rendering.normal[seen]).sum(-1) < 1e-4 * np.linalg.norm(rays, axis=-1)).all()


def test_floor_points_up_in_the_raw_frame(rendering):
    """x right, y up, z toward the viewer: a camera that looks down sees the floor's normal lean toward itself."""
    pitch = rendering.scene.camera.pitch
    expected = np.array([0, np.cos(pitch), -np.sin(pitch)])
    lowest = rendering.depth.shape[0] - 1
    floor = (rendering.segment == ENCLOSURE) & (degrees_between(rendering.normal, expected) < 0.05)
    assert floor.sum() > 100
    assert floor.nonzero()[0].max() == lowest
    assert len(np.unique(rendering.normal[floor].round(4), axis=0)) == 1


def test_points_to_the_right_are_right(rendering):
    """The wall or fence at the far left faces right, and the far right one faces left."""
    side = (rendering.segment == ENCLOSURE) & (np.abs(rendering.normal[..., 1]) < 0.5)
    x = back_project(rendering)[..., 0]
    facing_in = rendering.normal[side][:, 0] * x[side]
    steep = np.abs(rendering.normal[side][:, 0]) > 0.75
    assert (facing_in[steep & (np.abs(x[side]) > 2)] < 0).all()


def test_floor_depth_in_closed_form():
    """At height y of the image plane, z-depth is camera height / (sin(-pitch) - y cos(pitch))."""
    checked = 0
    for kind, seed in CASES:
        rendering = scenes.render(seed, kind, height=72, width=96)
        camera = rendering.scene.camera
        y = (36 - np.arange(72) - 0.5) * camera.pixel(72, 96)
        expected = camera.position[1] / -(np.sin(camera.pitch) + y * np.cos(camera.pitch))
        up = np.array([0, np.cos(camera.pitch), -np.sin(camera.pitch)])
        floor = (rendering.segment == ENCLOSURE) & (degrees_between(rendering.normal, up) < 0.05)
        assert np.allclose(rendering.depth[floor], np.broadcast_to(expected[:, None], (72, 96))[floor], rtol=1e-4)
        checked += floor.sum()
    assert checked > 1000


def test_sky_is_masked_and_dense(rendering):
    sky = rendering.segment == SKY
    assert sky.any() == (rendering.scene.kind == "yard")
    assert not rendering.valid[sky].any()
    assert np.array_equal(rendering.depth == 0, sky)
    assert (rendering.normal[sky] == [0, 0, 1]).all() and (rendering.shading[sky] == 1).all()


def test_mask_has_a_band_at_every_jump_and_little_else(rendering):
    valid, depth = rendering.valid, rendering.depth
    pair = valid[:, 1:] & valid[:, :-1] & (np.diff(rendering.segment, axis=1) != 0)
    step = np.abs(np.diff(depth, axis=1))
    assert (step[pair] <= 0.05 + 0.03 * np.minimum(depth[:, 1:], depth[:, :-1])[pair] + 1e-5).all()
    assert (~valid & (rendering.segment != SKY)).any()
    assert valid[rendering.segment != SKY].mean() > 0.6


def relit(scene, **changes):
    return trace(replace(scene, light=replace(scene.light, **changes)), 48, 64)


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_shadows_take_light_only_where_something_hides_the_lamp(kind):
    """With shadows over without: one ratio (that of the exposures), and less of it in the shadows."""
    shadowed = 0
    for seed in range(8):
        scene = scenes.render(seed, kind, 16, 16).scene
        dark, bright = relit(scene, shadows=True).shading[..., 1], relit(scene, shadows=False).shading[..., 1]
        unclipped = (dark < 1) & (bright < 1)
        ratio = (dark / bright)[unclipped]
        lit = ratio > 0.99 * ratio.max()
        assert lit.mean() > 0.3
        shadowed += (ratio < 0.8 * ratio.max()).sum()
        bare = relit(replace(scene, things=()), shadows=True).shading
        assert np.array_equal(bare, relit(replace(scene, things=()), shadows=False).shading)
    assert shadowed > 300


@pytest.mark.parametrize(("length", "expected"), [(2.0, True), (0.7, False), (-2.0, False)])
def test_only_what_stands_before_the_lamp_hides_it(length, expected):
    scene = scenes.render(0, "room", 16, 16).scene
    material = scene.wall
    ball = replace(scene.things[0], parts=((Sphere((0.0, 1.0, 0.0), 0.2), material),))
    start, toward = np.float32([[0], [0], [0]]), np.float32([[0], [1], [0]])
    assert hidden(replace(scene, things=(ball,)), start, toward * np.float32(length)) == [expected]


def test_lamp_falls_off_as_documented():
    """On the bare floor, in closed form: cosine / (1 + (distance / reach)^2), the brightest 7 % clipped."""
    room = scenes.render(2, "room", 16, 16).scene
    room = replace(room, things=(), light=replace(room.light, ambient=(0, 0, 0), sky=(0, 0, 0), colour=(1, 1, 1)))
    rendering = trace(room, 48, 64)
    rays = room.camera.rays(48, 64)
    points = (np.array(room.camera.position)[:, None] + rendering.depth.ravel() * rays).reshape(3, 48, 64)
    floor = np.abs(points[1]) < 1e-3
    away = np.array(room.light.position)[:, None] - points[:, floor]
    distance = np.linalg.norm(away, axis=0)
    expected = away[1] / distance / (1 + (distance / room.light.reach) ** 2)
    shading = rendering.shading[floor][:, 0]
    ratio = (shading / expected)[shading < 1]
    assert ratio.size > 200 and np.ptp(ratio) < 0.02 * ratio.mean()


@pytest.mark.parametrize("footprint", [0.2, 0.7, 3.0])
@pytest.mark.parametrize("pattern", ["striped", "checked"])
def test_patterns_are_averaged_over_the_pixel(pattern, footprint):
    material = Material((0.8, 0.8, 0.8), (0.2, 0.2, 0.2), pattern, band=0.5)
    assert material.albedo(np.float32([[0.25, 0.75], [0.25, 0.25]]), np.float32([0, 0]))[0] == pytest.approx(
        [0.8, 0.2], abs=1e-3
    )
    u, v = np.random.default_rng(0).uniform(-3, 3, (2, 50)).astype(np.float32)
    offsets = (np.arange(40) + 0.5) / 40 - 0.5
    across, along = np.meshgrid(offsets, offsets)
    uv = np.stack([u[:, None] + footprint * across.ravel(), v[:, None] + footprint * along.ravel()])
    points = material.albedo(uv.reshape(2, -1).astype(np.float32), np.zeros(uv[0].size, np.float32))[0]
    mean = points.reshape(50, -1).mean(axis=1)
    assert material.albedo(np.stack([u, v]), np.full(50, footprint, np.float32))[0] == pytest.approx(mean, abs=0.02)


def test_this_world_is_version_1():
    """Another look for the same seed needs another WORLD_VERSION: only so are folders of the old world refused."""
    means = [scenes.render(seed, kind, 32, 32).rgb.mean() for kind in scenes.KINDS for seed in (0, 1)]
    assert (WORLD_VERSION, np.round(means, 1).tolist()) == (1, pytest.approx([73.7, 118.9, 163.4, 170.0], abs=0.5))


def test_caption_names_what_is_visible(rendering):
    share = [(rendering.segment == index).mean() for index in range(len(rendering.scene.things))]
    things = [thing for thing, seen in zip(rendering.scene.things, share) if seen >= 0.006]
    for noun, plural in {"box": "boxes"}.items() | {
        (n, n + "s") for n in ("sphere", "cylinder", "tree", "block", "ball")
    }:
        several = re.search(rf"\b(\w+) {plural}\b", rendering.caption)
        single = re.search(rf"\ban? (\w+) {noun}\b", rendering.caption)
        colours = [thing.colour for thing in things if thing.noun == noun]
        assert (NUMBERS.index(several[1]) if several else 0) == (len(colours) if len(colours) > 1 else 0)
        assert ([single[1]] if single else []) == (colours if len(colours) == 1 else [])
    assert rendering.caption.startswith(f"a {rendering.scene.kind} with ")
    assert re.search(
        r"\w+ walls" if rendering.scene.kind == "room" else r"ground.* under an? \w+ sky$", rendering.caption
    )


def test_scenes_vary():
    captions = {scenes.render(seed, kind, 16, 16).caption for seed in range(20) for kind in scenes.KINDS}
    assert len(captions) > 35


def test_the_stream_has_images_and_captions_and_resumes():
    stream, later = scenes.stream(5, size=32), scenes.stream(5, size=32, start=3)
    items = [next(stream) for _ in range(5)]
    for rgb, caption in items:
        assert rgb.shape == (32, 32, 3) and rgb.dtype == np.uint8 and isinstance(caption, str)
    assert [caption.split()[1] for _, caption in items] == ["room", "yard", "room", "yard", "room"]
    for rgb, caption in items[3:]:
        other, other_caption = next(later)
        assert np.array_equal(rgb, other) and caption == other_caption


def test_same_scene_at_any_size():
    """Depth at the centre of a pixel that two sizes share."""
    small, large = (scenes.render(4, "room", size, size).depth for size in (20, 60))
    assert np.allclose(small, large[1::3, 1::3], rtol=1e-5)


def test_a_rendered_tree_has_diodes_layout(tree):
    stems = {path.relative_to(tree / "depths").with_suffix("").as_posix() for path in tree.glob("depths/**/*.png")}
    pattern = r"(train|val)/(indoors|outdoor)/scene_(\d{5})/scan_(\d{5})/\3_\4_\2_\d{3}_\d{3}"
    assert len(stems) == len({stem.split("/")[-1] for stem in stems}) == 16
    assert all(re.fullmatch(pattern, stem) for stem in stems), stems
    expected = {"diode_meta.json", "miniworld.json"}
    for stem in stems:
        expected |= {f"depths/{stem}{suffix}" for suffix in (".png", "_depth.npy", "_depth_mask.npy")}
        expected |= {f"normals/{stem}_normal.npy"}
        expected |= {f"pseudo/{task}/{stem}.png" for task in ("normal", "depth", "albedo", "shading")}
    assert {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()} == expected


def test_meta_json_lists_every_stem(tree):
    meta = json.loads((tree / "diode_meta.json").read_text())
    listed = {
        (split, scene_type, scene, scan, stem)
        for split, types in meta.items()
        for scene_type, all_scenes in types.items()
        for scene, scans in all_scenes.items()
        for scan, stems in scans.items()
        for stem in stems
    }
    on_disk = {(*path.relative_to(tree / "depths").parts[:-1], path.stem) for path in tree.glob("depths/**/*.png")}
    assert listed == on_disk and len(listed) == 16
    assert {entry[1] for entry in listed} == {"indoors", "outdoor"}
    assert not {entry[2] for entry in listed if entry[0] == "train"} & {
        entry[2] for entry in listed if entry[0] == "val"
    }


def test_arrays_on_disk(tree):
    dtypes, off_unit = set(), 0
    for sample in list_samples(SETTINGS):
        paths = {role: tree / name for role, name in sample_paths(SETTINGS, sample).items()}
        truth = render_sample(SETTINGS, sample)
        depth, mask, normal = (np.load(paths[role]) for role in ("depth", "mask", "normal"))
        assert depth.shape == (30, 40, 1) and depth.dtype == np.float32
        assert normal.shape == (30, 40, 3) and normal.dtype == np.float32
        assert mask.shape == (30, 40) and set(np.unique(mask)) <= {0, 1}
        seen = mask.astype(bool)
        dtypes.add(mask.dtype.name)
        assert not seen.all() and np.array_equal(seen, truth.valid)
        assert np.array_equal(depth[..., 0], np.where(seen, truth.depth, 0))
        assert not normal[~seen].any()
        length = np.linalg.norm(normal[seen], axis=-1)
        assert np.abs(length - 1).max() < 0.031
        off_unit += np.abs(length - 1).max() > 0.01
        assert degrees_between(normal[seen].astype(float), truth.normal[seen].astype(float)).max() < 0.1
        assert np.array_equal(np.asarray(Image.open(paths["rgb"])), truth.rgb)
    assert dtypes == {"float32", "bool", "uint8", "float64"}
    assert 0 < off_unit < 16


def test_labels_decode_to_the_truth(tree):
    for sample in list_samples(SETTINGS):
        paths, truth = sample_paths(SETTINGS, sample), render_sample(SETTINGS, sample)
        images = {task: Image.open(tree / paths[f"label_{task}"]) for task in ("normal", "depth", "albedo", "shading")}
        assert {(image.mode, image.size) for image in images.values()} == {("RGB", (40, 30))}
        label = {task: np.asarray(image) / 255 for task, image in images.items()}
        decoded = (2 * label["normal"] - 1) * [1, -1, -1]
        assert degrees_between(decoded, truth.normal.astype(float)).max() < 0.5
        assert np.abs(label["albedo"] - to_srgb(truth.albedo)).max() <= 0.5 / 255 + 1e-6
        assert np.abs(label["shading"] - to_srgb(truth.shading)).max() <= 0.5 / 255 + 1e-6
        product = to_srgb(to_linear(label["albedo"]) * to_linear(label["shading"]))
        assert np.abs(255 * product - truth.rgb).max() < 3.5
        assert (label["depth"] == label["depth"][..., :1]).all()


def test_depth_label_is_linear_inverted_and_clipped(rendering):
    label = encode_labels(rendering)["depth"][..., 0].astype(float)
    near, far = depth_range(rendering)
    depth, sky = rendering.depth, rendering.segment == SKY
    inside = (depth >= near) & (depth <= far)
    assert inside.mean() > 0.3
    assert np.abs(far - label[inside] / 255 * (far - near) - depth[inside]).max() <= (far - near) / 255 * 0.51
    assert (label[(depth < near) & ~sky] == 255).all()
    assert (label[depth > far] == 0).all() and (label[sky] == 0).all()


def digests(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def test_workers_do_not_change_a_byte(tree, tmp_path):
    scenes.write_tree(tmp_path, SETTINGS, workers=2)
    assert digests(tmp_path) == digests(tree)


def test_samples_do_not_depend_on_the_size_of_the_set(tree, tmp_path):
    scenes.write_tree(tmp_path, Settings(train=4, val=0, width=40, height=30, seed=3))
    few, many = digests(tmp_path), digests(tree)
    shared = [name for name in few if name.endswith((".png", ".npy"))]
    pictures = {many[name] for name in many}
    assert len(shared) == 32 and all(few[name] in pictures for name in shared)


def test_another_seed_is_another_world(tree, tmp_path):
    scenes.write_tree(tmp_path, Settings(train=2, val=2, width=40, height=30, seed=4))
    pictures = [{p.read_bytes() for p in root.glob("depths/**/*.png")} for root in (tmp_path, tree)]
    assert not pictures[0] & pictures[1] and len(pictures[0]) == 4


COMMAND = ["--train", "2", "--val", "1", "--size", "24x16", "--workers", "1"]


def test_command_writes_width_by_height_then_leaves_it_alone(tmp_path, capsys):
    root = tmp_path / "data"
    scenes.main(["--root", str(root), *COMMAND])
    assert "written" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert Image.open(next(root.glob("depths/**/*.png"))).size == (24, 16)
    scenes.main(["--root", str(root), *COMMAND])
    assert "already complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_missing_file_is_written_again(tmp_path):
    scenes.main(["--root", str(tmp_path), *COMMAND])
    before = digests(tmp_path)
    next(tmp_path.glob("normals/**/*.npy")).unlink()
    scenes.main(["--root", str(tmp_path), *COMMAND])
    assert digests(tmp_path) == before


def test_other_settings_are_refused_until_overwritten(tmp_path, capsys):
    scenes.main(["--root", str(tmp_path), *COMMAND])
    before = digests(tmp_path)
    with pytest.raises(InputError) as refused:
        scenes.main(["--root", str(tmp_path), *COMMAND, "--seed", "1"])
    message = str(refused.value)
    assert "--overwrite" in message.splitlines()[-1] and digests(tmp_path) == before
    scenes.main(["--root", str(tmp_path), *COMMAND, "--seed", "1", "--train", "1", "--overwrite"])
    assert len(list(tmp_path.glob("depths/**/*.png"))) == 2
    assert json.loads((tmp_path / "miniworld.json").read_text())["settings"]["seed"] == 1


def test_an_interrupted_render_of_other_settings_is_refused(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scenes, "write_sample", broken)
        scenes.write_tree(tmp_path, SETTINGS)
    with pytest.raises(InputError, match="other settings"):
        scenes.write_tree(tmp_path, Settings(1, 1, 24, 16))
    assert scenes.write_tree(tmp_path, SETTINGS)


def test_two_processes_do_not_render_into_one_folder(tmp_path):
    hold = "import sys; from pathlib import Path; from utils.system.atomic import lock; lock(Path(sys.argv[1])); "
    hold += "print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is rendering into it"):
            scenes.write_tree(tmp_path, SETTINGS)
        other.stdin.close()
    assert scenes.write_tree(tmp_path, SETTINGS) and not scenes.write_tree(tmp_path, SETTINGS)


def test_foreign_data_are_never_touched(tmp_path, capsys):
    precious = tmp_path / "depths" / "real.npy"
    precious.parent.mkdir()
    precious.write_bytes(b"DIODE")
    with pytest.raises(InputError, match="not written by miniworld"):
        scenes.main(["--root", str(tmp_path), *COMMAND, "--overwrite"])
    assert precious.read_bytes() == b"DIODE"


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_file_in_the_folders_place_is_named(root, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"--root: .*file.* cannot be written"):
        scenes.main(["--root", str(tmp_path / root), *COMMAND])
    assert (tmp_path / "file").read_text() == "mine"


def test_truth_on_request(tmp_path):
    scenes.main(["--root", str(tmp_path), *COMMAND, "--truth"])
    settings = Settings(2, 1, 24, 16, truth=True)
    for sample in list_samples(settings):
        paths, rendering = sample_paths(settings, sample), render_sample(settings, sample)
        assert np.array_equal(np.load(tmp_path / paths["truth_albedo"]), rendering.albedo)
        assert np.array_equal(np.load(tmp_path / paths["truth_shading"]), rendering.shading)


@pytest.mark.parametrize("size", ["128", "128x", "axb", "8x8", "-5x40"])
def test_bad_sizes_are_refused(size, tmp_path, capsys):
    with pytest.raises(InputError, match="128x96"):
        scenes.parse_args(["--root", str(tmp_path), f"--size={size}"])
