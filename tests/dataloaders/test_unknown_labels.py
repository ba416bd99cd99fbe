"""Labels and own ground truth with pixels that have no value."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataloaders.base import unknown_labels
from dataloaders.folder import FolderMaps, open_folder
from dataloaders.listing import Sample, folder_samples, manifest_samples
from utils.errors import InputError
from utils.intrinsics import ALBEDO, DEPTH, NORMAL

SHAPE = (48, 64)


@pytest.fixture
def own(tmp_path):
    """6 samples whose labels are one direction, with the given code in their left quarter, and no truth."""

    def build(code, masks=True):
        label = np.full((*SHAPE, 3), (180, 128, 10), np.uint8)
        label[:, :16] = code
        for folder in ("images", "labels", "masks", "gt"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for i in range(6):
            Image.fromarray(np.full((*SHAPE, 3), 40 * i, np.uint8)).save(tmp_path / f"images/{i}.png")
            Image.fromarray(label).save(tmp_path / f"labels/{i}.png")
            if masks:
                np.save(tmp_path / f"masks/{i}.npy", np.ones(SHAPE, bool))
        return tmp_path

    return build


@pytest.mark.parametrize("code", [0, 127, 128])
def test_unknown_label_pixels_leave_the_masked_loss_and_the_label_scores(code, own):
    train, _ = open_folder(folder_samples(own(code)), NORMAL, 0.2, 0, resolution=24, masked=True, whole=True)
    item = train[0]
    width = item["mask"].shape[2]
    assert not item["mask"][..., : width // 4].any() and item["mask"][..., width // 4 + 1 :].all()
    assert torch.equal(item["mask"], item["valid"])  # the label is the truth here
    mixed = (item["target"] - torch.tensor([180.0, 128, 10])[:, None, None] / 127.5 + 1).abs().amax(0) > 0.01
    assert mixed.any() and not (mixed & item["mask"][0]).any()  # nothing that the resize has mixed with the code
    name = "black" if code == 0 else "mid-grey"
    assert f"25.0 % of the pixels of 5 labels are unknown: 25.0 % {name}; --masked_loss leaves" in unknown_labels(
        train
    )
    plain, _ = open_folder(folder_samples(own(code)), NORMAL, 0.2, 0, resolution=24)
    assert "mask" not in plain[0] and "the loss takes them for directions" in unknown_labels(plain)


def test_labels_without_a_code_are_used_everywhere(own):
    train, _ = open_folder(folder_samples(own((10, 200, 90))), NORMAL, 0.2, 0, resolution=24, masked=True)
    assert train[0]["mask"].all() and train[0]["valid"].all() and unknown_labels(train) is None
    depth, _ = open_folder(folder_samples(own(0)), DEPTH, 0.2, 0, resolution=24, masked=True)
    assert depth[0]["mask"].all() and unknown_labels(depth) is None  # black is far, not unknown


def sample(path, mask=None):
    image = path.with_name("image.png")
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(image)
    return Sample("s", str(image), str(image), str(path), mask and str(mask))


@pytest.mark.parametrize("grey", [127, 128])
def test_grey_in_own_truth_is_unknown(grey, tmp_path):
    truth = np.full((*SHAPE, 3), (180, 128, 10), np.uint8)
    truth[:, :16] = grey
    for path in (tmp_path / "a.png", tmp_path / "a.npy"):
        np.save(path, truth) if path.suffix == ".npy" else Image.fromarray(truth).save(path)
        _, valid = FolderMaps([sample(path)], NORMAL, True).ground_truth("s")
        assert not valid[:, :16].any() and valid[:, 16:].all()


def test_own_depth_in_whole_numbers_is_refused_and_millimetres_are_a_warning(own, capsys):
    root = own(0)
    for i in range(6):
        np.save(root / f"gt/{i}.npy", np.full(SHAPE, 2500, np.uint16))
    with pytest.raises(InputError, match=r"gt/\d\.npy: holds uint16.*divide by 1000"):
        open_folder(folder_samples(root), DEPTH, 0.2, 0, resolution=24)
    for i in range(6):
        np.save(root / f"gt/{i}.npy", np.full(SHAPE, 2500.0))
    open_folder(folder_samples(root), DEPTH, 0.2, 0, resolution=24)
    assert (
        "warning: gt/: the median of the true depth is 2500 m; divide millimetres by 1000" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["0_mask.png", "0_depth_mask.npy", "0_valid.png", "masks/0.npy"])
def test_a_mask_next_to_own_truth_is_used(name, own):
    root = own(0, masks=False)
    mask = np.ones(SHAPE, np.uint8)
    mask[:10] = 0
    np.save(root / "gt/0.npy", np.full(SHAPE, 2.0))
    path = root / "gt" / name
    path.parent.mkdir(exist_ok=True)
    np.save(path, mask) if path.suffix == ".npy" else Image.fromarray(255 * mask).save(path)
    found = next(one for one in folder_samples(root) if one.stem == "0")
    assert found.mask == str(path) and found.gt == str(root / "gt/0.npy")
    (root / "m.jsonl").write_text('{"image": "images/0.png", "label": "labels/0.png", "gt": "gt/0.npy"}')
    assert manifest_samples(root / "m.jsonl")[0].mask == str(path)
    _, valid = FolderMaps([found], DEPTH, True).ground_truth("0")
    assert not valid[:10].any() and valid[10:].all()
    np.save(root / "masks/0.npy", np.ones(SHAPE))
    with pytest.raises(InputError, match="two different masks of one image"):
        folder_samples(root)


def test_maps_whose_names_begin_like_an_image_are_read_or_named(own, capsys):
    root = own(0, masks=False)
    for ending in ("normal", "16bit"):
        Image.fromarray(np.full((*SHAPE, 3), 90, np.uint8)).save(root / f"gt/0_{ending}.png")
    found = next(one for one in folder_samples(root) if one.stem == "0")
    assert found.gt == str(root / "gt/0_16bit.png")
    assert "gt: 1 files belong to no image and are not read, e.g. 0_normal.png" in capsys.readouterr().err


def test_8_bit_colours_are_coded_and_floats_linear_whatever_the_format(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    png, npy = (
        FolderMaps([sample(tmp_path / name)], ALBEDO, True).ground_truth("s")[0] for name in ("a.png", "a.npy")
    )
    np.testing.assert_array_equal(png, npy)
    np.save(tmp_path / "b.npy", png)
    np.testing.assert_array_equal(FolderMaps([sample(tmp_path / "b.npy")], ALBEDO, True).ground_truth("s")[0], png)
