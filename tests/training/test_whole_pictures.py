"""--crop none: whole pictures in batches of one shape, each step a function of seed and step alone."""

import itertools
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import distance, fork, lora, losses, records, run_here
from PIL import Image, PngImagePlugin
from safetensors import safe_open

from dataloaders.diode import Diode
from dataloaders.folder import open_folder
from dataloaders.listing import folder_samples
from utils.errors import InputError
from utils.image_io.images import Crop, size_of, whole_size
from utils.intrinsics import NORMAL
from utils.latents import NAMES, moments
from utils.lora import SAFETENSORS
from utils.models import load_base
from utils.training.batches import BucketBatches, buckets_of, described
from utils.training.latent_cache import cached_or_not

SINGLE, AUG = "sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_normal.py"


@pytest.fixture(scope="module")
def own(diode, tmp_path_factory) -> Path:
    """12 images as a folder of one's own, every third of them cut to portrait, with masks and truth alike."""
    root = tmp_path_factory.mktemp("own")
    world = Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train")
    for folder in ("images", "labels", "gt"):
        (root / folder).mkdir()
    for i, stem in enumerate(world.stems[:12]):
        width = 48 if i % 3 == 0 else 96
        for folder, path in (("images", world.rgb_path(stem)), ("labels", world.label_path(stem))):
            Image.open(path).crop((0, 0, width, 72)).save(root / folder / f"{i:02d}.png")
        np.save(root / "gt" / f"{i:02d}.npy", np.load(world.truth_name(stem))[:, :width])
    return root


@pytest.fixture
def words(own, bases):
    def build(output: Path, *more: object, script: str = SINGLE) -> list[str]:
        aug = script.startswith("augunet")
        words = ["--pretrained_model_name_or_path", bases["sd21" if aug else "sd15"], "--dataset", "folder"]
        words += ["--augment_from", bases["ip2p"]] if aug else []
        words += ["--train_data_dir", own, "--output_dir", output, "--resolution", 32, "--report_to", "none"]
        words += ["--train_batch_size", 2, "--validation_steps", 1000, "--checkpointing_steps", 1000]
        words += ["--learning_rate", 1e-2, "--adam_epsilon", 1e-2, "--crop", "none", "--gt_frame", "opengl"]
        return [str(word) for word in (*words, *more)]

    return build


@pytest.mark.parametrize(("size", "side", "expected"), [
    ((1024, 768), 512, (512, 704)),  # 682.67
    ((768, 1024), 512, (704, 512)),
    ((512, 512), 512, (512, 512)),
    ((530, 512), 512, (512, 512)),
    ((1920, 1080), 256, (256, 448)),  # 455.1
    ((96, 72), 32, (32, 40)),  # 42.7, below 256: a multiple of 8
    ((128, 96), 64, (64, 88)),
])  # fmt: skip
def test_whole_sizes_keep_the_aspect_in_steps_that_the_vae_takes(size, side, expected):
    assert whole_size(*size, side) == expected
    crop = Crop.whole(*size, side)
    assert crop.window == expected
    image = Image.new("RGB", size, "white")
    image.putpixel((size[0] - 1, size[1] - 1), (0, 0, 0))
    assert tuple(crop.picture(image).shape) == (3, *expected) and crop.picture(image)[:, -1, -1].max() < 1
    values = np.arange(size[0] * size[1]).reshape(size[1], size[0])
    assert crop.array(values).shape == expected


def test_the_header_tells_the_size_upright(tmp_path, monkeypatch):
    image, exif = Image.new("RGB", (40, 30)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.png")
    assert size_of(tmp_path / "turned.jpg") == (30, 40) and size_of(tmp_path / "plain.png") == (40, 30)
    image.save(tmp_path / "turned.png", exif=exif)
    assert size_of(tmp_path / "turned.png") == (30, 40)
    with monkeypatch.context() as patch:  # a PNG that cannot be turned is not decoded
        patch.setattr(PngImagePlugin.PngImageFile, "load", None)
        assert size_of(tmp_path / "plain.png") == (40, 30)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no.png: not a readable image"):
        size_of(tmp_path / "no.png")


def test_items_are_whole_and_all_their_maps_fit(own):
    train, validation = open_folder(folder_samples(own), NORMAL, 0.2, 0, frame="opengl", resolution=32, whole=True)
    assert set(train.shapes) == {(32, 40), (48, 32)} and len(train.shapes) == len(train)
    for index, shape in enumerate(train.shapes):
        item = train[index]
        assert all(tuple(item[key].shape[-2:]) == shape for key in ("rgb", "target", "gt", "valid"))
    assert {tuple(item["rgb"].shape[-2:]) for items in validation.values() for item in items} <= set(train.shapes)
    square = open_folder(folder_samples(own), NORMAL, 0.2, 0, frame="opengl", resolution=32)[0]
    assert set(square.shapes) == {(32, 32)} and square.fingerprint != train.fingerprint


def test_labels_of_centre_squares_are_refused(diode, tmp_path):
    labels = shutil.copytree(diode / "pseudo" / "normal", tmp_path / "squares")
    for path in labels.rglob("*.png"):
        Image.open(path).crop((12, 0, 84, 72)).save(path)
    train = Diode(NORMAL, diode / "normals", labels, "train", resolution=32, whole=True)
    with pytest.raises(InputError, match=r"72x72 label does not cover a 96x72 image; .*--crop square"):
        train[0]


SHAPES = [(32, 40)] * 13 + [(48, 32)] * 6 + [(32, 32)] * 1  # 20 samples


def steps(count, group=4, **options):
    """The samples of each step, of one process with one micro-step."""
    return list(itertools.islice(BucketBatches(SHAPES, group, group, 7, **options), count))


def test_every_batch_has_one_shape_and_a_full_group():
    for batch in steps(200):
        assert len(batch) == 4 and len({SHAPES[index] for index, _ in batch}) == 1


def test_nothing_is_dropped_for_ever_and_nothing_is_seen_too_often():
    """Over 40 passes, 200 steps of 4, every sample is seen 40 times, up to one group of its bucket."""
    seen = Counter(index for batch in steps(200) for index, _ in batch)
    for samples in buckets_of(SHAPES).values():
        for index in samples:
            assert abs(seen[index] - 40) <= max(1, 4 / len(samples)), (index, seen[index])
    early = Counter(index for batch in steps(30) for index, _ in batch)
    assert set(early) == set(range(20))  # the lonely picture too: it has a group in every fourth pass


def test_each_bucket_is_reshuffled_and_so_is_the_order_of_shapes():
    whole = steps(400)
    orders = {}
    for batch in whole:
        for index, epoch in batch:
            orders.setdefault((SHAPES[index], epoch), []).append(index)
    first, second = orders[(32, 40), 0], orders[(32, 40), 1]
    assert sorted(first) == sorted(second) == list(range(13)) and first != second
    order = [SHAPES[batch[0][0]] for batch in whole[:40]]
    assert order != sorted(order) and len(set(order)) == 3
    other = list(itertools.islice(BucketBatches(SHAPES, 4, 4, 8), 40))
    assert other != whole[:40]


def test_a_step_is_a_function_of_seed_and_number_however_it_is_cut():
    whole = steps(60)
    assert steps(50, start=40) == whole[10:]  # resumed after 10 steps
    for world, micro in ((2, 1), (1, 2), (2, 2), (4, 1)):
        size = 4 // (world * micro)
        parts = [
            list(itertools.islice(BucketBatches(SHAPES, 4, size, 7, rank=rank, world=world), 60 * micro))
            for rank in range(world)
        ]
        joined = [[one for m in range(micro) for rank in range(world) for one in parts[rank][s * micro + m]]
                  for s in range(60)]  # fmt: skip
        assert joined == whole


def test_the_line_that_names_the_buckets():
    assert described(SHAPES, 4) == (
        "whole pictures, every step of one shape; height x width: images: 32x40: 13, 48x32: 6, 32x32: 1; 1 of them "
        "have less than a step's 4 images and repeat some within it"
    )
    assert described([(8, 8 * width) for width in range(1, 13)], 1).endswith("8x40: 1 and 4 more")


def test_two_processes_train_what_one_trains(words, tmp_path):
    fork(SINGLE, *words(tmp_path / "two", "--max_train_steps", 3, "--train_batch_size", 1), processes=2)
    run_here(SINGLE, words(tmp_path / "one", "--max_train_steps", 3))
    moved = max(value.abs().max().item() for key, value in lora(tmp_path / "one").items() if ".up." in key)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert distance(tmp_path / "two", tmp_path / "one") < 1e-3 * moved


def test_a_resumed_run_is_the_unbroken_one(words, tmp_path, capsys):
    run_here(SINGLE, words(tmp_path / "unbroken", "--max_train_steps", 4))
    assert re.search(r"height x width: images: 32x40: \d, 48x32: \d$", capsys.readouterr().out, re.MULTILINE)
    stop = ("--checkpointing_steps", 2, "--resume_from_checkpoint", "latest", "--max_train_steps")
    run_here(SINGLE, words(tmp_path / "broken", *stop, 3))
    shutil.rmtree(tmp_path / "broken" / "checkpoint-3")  # as if killed in the fourth step: checkpoint-2 is the last
    run_here(SINGLE, words(tmp_path / "broken", *stop, 4))
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")
    assert distance(tmp_path / "broken", tmp_path / "unbroken") == 0
    with safe_open(tmp_path / "broken" / SAFETENSORS, "pt") as file:
        assert file.metadata()["crop"] == "none"
    square = words(tmp_path / "broken", *stop, 5)
    square[square.index("--crop") + 1] = "square"
    with pytest.raises(InputError, match="crop was 'none', now 'square'"):
        run_here(SINGLE, square)


def test_cached_and_uncached_training_are_the_same_and_validation_works(words, tmp_path):
    more = ("--max_train_steps", 3, "--masked_loss")
    run_here(SINGLE, words(tmp_path / "cached", *more))
    run_here(SINGLE, words(tmp_path / "not", *more, "--no_cache_latents"))
    assert len(list((tmp_path / "cached" / "latent_cache").iterdir())) == 2  # one for each shape
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "not"), abs=1e-5)
    assert "val/val/mean" in records(tmp_path / "cached")[-1]
    assert (tmp_path / "cached" / "validation" / "000003_train.png").is_file()


def test_the_diffusing_unet_takes_them_too(words, tmp_path):
    run_here(AUG, words(tmp_path, "--max_train_steps", 1, script=AUG))
    assert len(losses(tmp_path)) == 1 and "val/val/mean" in records(tmp_path)[-1]


def test_the_cache_holds_what_the_vae_says(own, bases, tmp_path):
    vae = load_base(str(bases["sd15"])).vae
    train, _ = open_folder(folder_samples(own), NORMAL, 0.2, 0, resolution=32, whole=True)
    cache = cached_or_not(train, vae, tmp_path)
    assert len(cache) == len(train)
    for index in range(len(train)):
        sample = train[index]
        expected = moments(vae, {name: sample[name][None] for name in ("rgb", "target")})
        assert cache[(index, 3)]["stem"] == sample["stem"]
        for name in NAMES:
            torch.testing.assert_close(cache[(index, 3)][name], expected[name][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("more", "message"), [
    (["--no-center_crop"], "--no-center_crop means nothing for --crop none"),
    (["--center_crop"], "--center_crop means nothing for --crop none"),
    (["--resolution", "264"], "--resolution=264: from 256 on, --crop none needs a multiple of 64"),
])  # fmt: skip
def test_flags_that_do_not_go_together(more, message, words, tmp_path):
    with pytest.raises(InputError, match=message):
        run_here(SINGLE, words(tmp_path, *more))
