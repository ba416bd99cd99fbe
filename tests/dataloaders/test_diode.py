"""The DIODE tree: names, decoding, frames, masks, and what happens when files are missing."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dataloaders.check import diode_files
from dataloaders.check import main as check_main
from dataloaders.diode import Diode, validation_sets
from utils.errors import InputError
from utils.image_io.diode_names import KNOWN_GAP
from utils.intrinsics import DEPTH, NORMAL


@pytest.fixture
def tree(diode, tmp_path):
    """A copy of the rendered tree that a test may damage."""
    return shutil.copytree(diode, tmp_path / "DIODE")


def normals(root, split="train", **options) -> Diode:
    return Diode(NORMAL, root / "normals", root / "pseudo" / "normal", split, resolution=64, **options)


def depths(root, split="train", **options) -> Diode:
    return Diode(DEPTH, root / "depths", root / "pseudo" / "depth", split, resolution=64, **options)


def agreement(item: dict) -> float:
    """Share of valid pixels whose label, decoded, is within 5 degrees of the ground truth."""
    label = torch.nn.functional.normalize(item["target"], dim=0)
    angles = torch.rad2deg(torch.acos((label * item["gt"]).sum(0).clamp(-1, 1)))
    return (angles[item["valid"][0]] < 5).float().mean().item()


@pytest.mark.parametrize(("make", "channels"), [(normals, 3), (depths, 1)])
def test_items_have_the_documented_shapes_types_and_ranges(diode, make, channels):
    dataset = make(diode)
    assert len(dataset) == 24
    for item in (dataset[0], dataset[23]):
        for name in ("rgb", "target"):
            assert item[name].shape == (3, 64, 64) and item[name].dtype == torch.float32
            assert item[name].min() >= -1 and item[name].max() <= 1 and item[name].std() > 0.05
        assert item["gt"].shape == (channels, 64, 64) and item["gt"].dtype == torch.float32
        assert item["valid"].shape == (1, 64, 64) and item["valid"].dtype == torch.bool
        assert 0.2 < item["valid"].float().mean() < 1


def test_diodes_images_are_named_as_its_and_rendered_ones_are_not(diode, tmp_path):
    for name in ("depths", "normals", "diode_meta.json"):
        (tmp_path / name).symlink_to(diode / name)
    roots = (tmp_path / "normals", diode / "normals")
    sets = [Diode(NORMAL, root, diode / "pseudo" / "normal", "train", num_images=2) for root in roots]
    assert [one.trained_on for one in sets] == ["diode train", "miniworld train"]


def test_ground_truth_normals_are_in_the_labels_frame(diode):
    """The label, decoded, is the ground truth: same frame, same pixels."""
    for item in (normals(diode)[i] for i in range(0, 24, 5)):
        valid = item["valid"][0]
        gt = item["gt"][:, valid]
        torch.testing.assert_close(gt.norm(dim=0), torch.ones(gt.shape[1]), atol=1e-5, rtol=0)
        assert agreement(item) > 0.92, "Y or Z is flipped, or the maps are not aligned"


def test_normals_decoding(tree):
    dataset = normals(tree)
    stem = dataset.stems[0]
    raw = np.zeros((72, 96, 3), np.float32)
    raw[..., 2] = 2.5  # toward the viewer, not of unit length
    raw[0, 0] = (0, 0, 0)
    raw[0, 1] = (np.nan, 0, 1)
    raw[0, 2] = (1, 0, -1)  # the components sum to zero, and it is a normal all the same
    raw[0, 3] = (0, 3, 0)
    np.save(tree / "normals" / f"{stem}_normal.npy", raw)
    gt, valid = dataset.ground_truth(stem)
    assert not valid[0, 0] and not valid[0, 1] and valid[0, 2] and valid.sum() == 72 * 96 - 2
    np.testing.assert_allclose(gt[1, 1], (0, 0, -1))  # raw z toward the viewer is -forward
    np.testing.assert_allclose(gt[0, 2], (0.5**0.5, 0, 0.5**0.5))
    np.testing.assert_allclose(gt[0, 3], (0, -1, 0))  # raw up is -down
    assert np.isfinite(gt).all()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.float64])
def test_depth_decoding(tree, dtype):
    dataset = depths(tree)
    stem = dataset.stems[0]
    depth = np.full((72, 96, 1), 3.0, np.float32)
    mask = np.ones((72, 96), dtype)
    depth[0, 0], depth[0, 1], depth[0, 2], mask[0, 3] = 0, np.nan, np.inf, 0
    np.save(tree / "depths" / f"{stem}_depth.npy", depth)
    np.save(tree / "depths" / f"{stem}_depth_mask.npy", mask)
    gt, valid = dataset.ground_truth(stem)
    assert gt.shape == (72, 96, 1)
    assert not valid[0, :4].any() and valid.sum() == 72 * 96 - 4


def test_all_invalid_is_read(tree):
    dataset = depths(tree)
    np.save(tree / "depths" / f"{dataset.stems[0]}_depth_mask.npy", np.zeros((72, 96)))
    assert not dataset[0]["valid"].any()


@pytest.mark.parametrize(("suffix", "array", "message"), [
    ("_normal.npy", np.zeros((72, 96), np.float32), "expected float"),
    ("_normal.npy", np.zeros((72, 96, 3), np.int32), "expected float"),
    ("_normal.npy", np.zeros((36, 48, 3), np.float32), "48x36 ground truth"),
])  # fmt: skip
def test_wrong_shapes_name_the_file(tree, suffix, array, message):
    dataset = normals(tree)
    np.save(tree / "normals" / f"{dataset.stems[0]}{suffix}", array)
    with pytest.raises(InputError, match=rf"{suffix}: .*{message}"):
        dataset[0]


def test_labels_must_cover_the_image(tree):
    dataset = normals(tree)
    path = tree / "pseudo" / "normal" / f"{dataset.stems[0]}.png"
    Image.new("RGB", (96, 50)).save(path)
    with pytest.raises(InputError, match="does not cover"):
        dataset[0]
    Image.new("RGB", (48, 48)).save(path)  # the centre square, as Omnidata writes it
    assert dataset[0]["target"].shape == (3, 64, 64)
    with pytest.raises(InputError, match="--center_crop"):
        normals(tree, center_crop=False)[0]


def test_centre_square_labels_line_up(tree):
    """A label of the centre square trains the same target as the label of the whole image."""
    dataset = normals(tree)
    path = tree / "pseudo" / "normal" / f"{dataset.stems[0]}.png"
    whole = dataset[0]["target"]
    Image.open(path).crop((12, 0, 84, 72)).save(path)
    assert (dataset[0]["target"] - whole).abs().mean() < 0.03


def test_missing_files_fail_early(tree):
    stems = normals(tree).stems
    for stem in stems[:3]:
        (tree / "pseudo" / "normal" / f"{stem}.png").unlink()
    (tree / "normals" / f"{stems[5]}_normal.npy").unlink()
    with pytest.raises(InputError, match="4 of 24 samples lack a file") as failure:
        normals(tree)
    assert all(stem in str(failure.value) for stem in (*stems[:3], stems[5]))
    dataset = normals(tree, skip_missing=True)
    assert len(dataset) == 20 and "left out 4 of 24" in dataset.notes[0]


def test_wrong_folder_is_named(diode):
    with pytest.raises(InputError, match=r"_normal\.npy.*is --train_data_dir DIODE's normals/ folder"):
        Diode(NORMAL, diode / "depths", diode / "pseudo" / "normal", "train")
    with pytest.raises(InputError, match=r"--pseudo_root.*; pass .*pseudo/normal$"):
        Diode(NORMAL, diode / "normals", diode / "pseudo", "train")
    with pytest.raises(InputError, match=r"--pseudo_root.*; pass .*pseudo/normal"):
        list(diode_files(diode, diode / "pseudo", []))
    with pytest.raises(InputError, match="--pseudo_root"):
        Diode(NORMAL, diode / "normals", diode, "train")
    with pytest.raises(InputError, match="--scene_types"):
        normals(diode, scene_types=("indoor",))


def test_images_missing_from_meta(tree):
    meta = json.loads((tree / "diode_meta.json").read_text())
    scan = next(iter(next(iter(meta["val"]["indoors"].values())).values()))
    dropped = len(scan)
    scan.clear()
    (tree / "diode_meta.json").write_text(json.dumps(meta))
    listed = normals(tree, "val")
    assert len(listed) == 10 - dropped and f"{dropped} images on disk" in listed.notes[-1]
    assert len(normals(tree, "val", list_from="disk")) == 10


def test_subsets_depend_on_the_seed_alone(diode):
    first, again, other = (normals(diode, num_images=9, seed=seed).stems for seed in (1, 1, 2))
    assert first == again != other and len(first) == 9
    assert normals(diode, num_images=9, seed=1, first=3).stems == first[:3]


def test_random_crops_are_joint_and_change_by_epoch(diode):
    dataset = normals(diode, center_crop=False, seed=3)
    zero, one = dataset[4, 0], dataset[4, 1]
    assert not torch.equal(zero["rgb"], one["rgb"])
    assert torch.equal(dataset[4, 1]["rgb"], one["rgb"])
    items = [dataset[index, 1] for index in range(24)]
    assert min(map(agreement, items)) > 0.92, "label and ground truth did not move together"


def test_validation_samples_are_fixed(diode, tree):
    picked = [
        {split: [item["stem"] for item in items] for split, items in sets.items()}
        for sets in (validation_sets(normals(diode, seed=5)) for _ in range(2))
    ]
    assert picked[0] == picked[1]
    assert {split: len(stems) for split, stems in picked[0].items()} == {"train": 4, "indoors": 4, "outdoor": 4}
    assert all(stem.startswith("val/outdoor/") for stem in picked[0]["outdoor"])
    shutil.rmtree(tree / "depths" / "val" / "outdoor")
    train = normals(tree)
    assert set(validation_sets(train)) == {"train", "indoors"} and "no outdoor images" in train.notes[-1]


# The scan for which the real DIODE has no normals


@pytest.fixture
def gap(tree):
    """The tree with a scan of the name of DIODE's gap, and without its normals: as the real one is."""
    meta = json.loads((tree / "diode_meta.json").read_text())
    scenes = meta["train"]["indoors"]
    scene, scans = next(iter(scenes.items()))
    scan, stems = next(iter(scans.items()))
    for folder in ("depths", "normals", "pseudo/normal"):
        (tree / folder / KNOWN_GAP).parent.mkdir(exist_ok=True)
        shutil.move(tree / folder / "train/indoors" / scene / scan, tree / folder / KNOWN_GAP)
    del scans[scan]
    scenes.setdefault("scene_00000", {})["scan_00007"] = stems
    (tree / "diode_meta.json").write_text(json.dumps(meta))
    shutil.move(tree / "normals" / KNOWN_GAP, tree / "away")
    return tree, len(stems)


def test_the_known_gap_is_left_out_and_counted(gap, capsys):
    tree, count = gap
    dataset = normals(tree)
    assert len(dataset) == 24 - count and not any(stem.startswith(KNOWN_GAP) for stem in dataset.stems)
    assert f"left out {count} images of {KNOWN_GAP}: DIODE has no normals for that scan" in dataset.notes
    assert check_main(["--root", str(tree), "--pseudo_root", str(tree / "pseudo/normal")]) == 0
    assert f"not checked: {count} normals of {KNOWN_GAP}" in capsys.readouterr().out


def test_depth_has_no_gap(gap):
    tree, _ = gap
    shutil.copytree(tree / "pseudo/normal" / KNOWN_GAP, tree / "pseudo/depth" / KNOWN_GAP, dirs_exist_ok=True)
    assert len(depths(tree)) == 24


@pytest.mark.parametrize("kept", [0, 1])
def test_another_gap_is_an_error(gap, kept):
    """Another scan without normals; or the known one with one file of several, which is not DIODE's gap."""
    tree, _ = gap
    if kept:
        (tree / "normals" / KNOWN_GAP).mkdir()
        shutil.copy(min((tree / "away").iterdir()), tree / "normals" / KNOWN_GAP)
    else:
        other = next(stem for stem in depths(tree, list_from="disk", skip_missing=True).stems if KNOWN_GAP not in stem)
        shutil.rmtree((tree / "normals" / other).parent)
    with pytest.raises(InputError, match=r"samples lack a file: .*_normal\.npy.*--skip_missing"):
        normals(tree)
