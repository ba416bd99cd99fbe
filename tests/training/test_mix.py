"""--mix: several folders with fixed shares, each step's samples a function of seed and step alone."""

import itertools
import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import distance, fork, lora, losses, records, run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from dataloaders.diode import Diode
from dataloaders.open_data import open_data
from generators.token_prediction import Tokenised
from utils.errors import InputError
from utils.intrinsics import NORMAL
from utils.lora import SAFETENSORS
from utils.training.args import parse, shares_of, short_names, training_parser
from utils.training.data import BucketBatches, EndlessBatches, MixedBatches, batches_of, quotas
from utils.training.upload import model_card

SINGLE = "sd_single_diode_pseudo_normal.py"
SIZES = (7, 5, 3)
SHARES = shares_of("0.7,0.2,0.1")


@pytest.fixture(scope="module")
def places(diode, tmp_path_factory) -> list[Path]:
    """Two folders: 8 images, of which every third is portrait, and 4 others; with truth."""
    top = tmp_path_factory.mktemp("places")
    world = Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train")
    roots = [top / "near" / "normal", top / "far" / "normal"]
    for i, stem in enumerate(world.stems[:12]):
        root, width = roots[i >= 8], 48 if i % 3 == 0 else 96
        for folder, path in (("images", world.rgb_path(stem)), ("labels", world.label_path(stem))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.open(path).crop((0, 0, width, 72)).save(root / folder / f"{i % 8}.png")
        (root / "gt").mkdir(exist_ok=True)
        np.save(root / "gt" / f"{i % 8}.npy", np.load(world.truth_name(stem))[:, :width])
    return roots


@pytest.fixture
def words(places, bases):
    def build(output: Path, *more: object, roots: list[Path] = places, mix: str | None = "0.75,0.25") -> list[str]:
        words = ["--pretrained_model_name_or_path", bases["sd15"], "--dataset", "folder", "--gt_frame", "opengl"]
        words += ["--train_data_dir", ",".join(map(str, roots)), *(("--mix", mix) if mix else ())]
        words += ["--output_dir", output, "--resolution", 32, "--report_to", "none", "--train_batch_size", 2]
        words += ["--validation_steps", 1000, "--checkpointing_steps", 1000, "--learning_rate", 1e-2]
        return [str(word) for word in (*words, "--adam_epsilon", 1e-2, "--no_first_validation", *more)]

    return build


def mixed(group: int, size: int, seed: int = 3, whole: bool = False, **place: int) -> MixedBatches:
    shapes = [[(32, 40)] * (n - 1) + [(40, 32)] for n in SIZES]
    streams = [
        BucketBatches(one, group, size, seed + i) if whole else EndlessBatches(len(one), size, seed + i)
        for i, one in enumerate(shapes)
    ]
    return MixedBatches(streams, SHARES, group, whole, size, **place)


def drawn(batches: MixedBatches, number: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(batches, number))


def owner(index: int) -> int:
    return sum(index >= end for end in itertools.accumulate(SIZES))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=2, max_size=5), st.integers(1, 40))
def test_every_step_has_the_share_rounded_and_every_window_has_it_exactly(weights, size):
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    table = quotas(shares, size)
    exact = [share * size for share in shares]
    assert (table.sum(axis=1) == size).all()
    for column, value in zip(table.T, exact):
        assert {int(count) for count in column} <= {int(value), -int(-value // 1)}
        assert int(column.sum()) == value * len(table)


def test_the_shares_of_a_step_in_numbers():
    assert quotas(shares_of("0.9,0.1"), 4).tolist() == [[4, 0], [3, 1], [4, 0], [3, 1], [4, 0]]
    assert quotas(shares_of("0.5,.5"), 8).tolist() == [[4, 4]]
    assert np.argwhere(quotas(shares_of("0.9,0.1"), 1)[:, 1]).tolist() == [[7]]  # a step of one shape: 1 of 10


def test_each_set_has_its_share_and_is_seen_in_whole_passes():
    steps = drawn(mixed(4, 4), 50)
    for step, quota in zip(steps, itertools.cycle(quotas(SHARES, 4).tolist())):
        assert [sum(owner(index) == k for index, _ in step) for k in range(3)] == quota
    stream = [sample for step in steps for sample in step]
    for k, (first, size) in enumerate(zip((0, 7, 12), SIZES)):
        own = [sample for sample in stream if owner(sample[0]) == k]
        assert len(own) == 200 * SHARES[k]
        for number in range(len(own) // size):
            epoch = own[number * size : (number + 1) * size]
            assert sorted(epoch) == [(index, number) for index in range(first, first + size)]


@pytest.mark.parametrize("whole", [False, True])
def test_only_the_joint_batch_counts_and_a_resumed_stream_continues(whole):
    steps = drawn(mixed(8, 8, whole=whole), 40)
    for world, size, micro in ((2, 4, 1), (1, 2, 4), (2, 2, 2)):
        parts = [drawn(mixed(8, size, whole=whole, rank=rank, world=world), 40 * micro) for rank in range(world)]
        joined = [
            [one for m in range(micro) for rank in range(world) for one in parts[rank][step * micro + m]]
            for step in range(40)
        ]
        assert joined == steps
    assert drawn(mixed(8, 8, whole=whole, start=8 * 13), 27) == steps[13:]
    assert drawn(mixed(8, 8, whole=whole, start=8 * 13 - 3), 27) == steps[13:]  # another step size before
    assert drawn(mixed(8, 8, seed=4, whole=whole), 40) != steps


def test_whole_images_come_from_one_set_and_have_one_shape():
    steps = drawn(mixed(4, 4, whole=True), 20)
    last = (6, 11, 14)  # the samples of the other shape
    for step in steps:
        assert len({owner(index) for index, _ in step}) == 1
        assert len({index in last for index, _ in step}) == 1
    assert [sum(owner(step[0][0]) == k for step in steps) for k in range(3)] == [14, 4, 2]


def test_names_are_what_tells_the_folders_apart():
    def names(*roots: str) -> list[str]:
        return short_names([Path(root) for root in roots])

    assert names("/d/hypersim/albedo", "/d/vkitti2/albedo") == ["hypersim", "vkitti2"]
    assert names("/d/a", "/d/b/c", "/e") == ["d_a", "d_b_c", "e"]
    assert names("/d/a", "/d/a/b") == ["a", "b"] and names("/d/b", "/d/a/b") == ["b", "a"]
    assert names("x y", "x:y") == ["1_x_y", "2_x_y"]  # one name in files


@pytest.mark.slow
def test_two_processes_train_what_one_trains(words, tmp_path):
    run_here(SINGLE, words(tmp_path / "one", "--max_train_steps", 4))
    fork(SINGLE, *words(tmp_path / "two", "--max_train_steps", 4, "--train_batch_size", 1), processes=2)
    moved = max(value.abs().max().item() for key, value in lora(tmp_path / "one").items() if ".up." in key)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert distance(tmp_path / "two", tmp_path / "one") < 1e-3 * moved


def test_a_resumed_run_is_the_unbroken_one(words, tmp_path, capsys):
    run_here(SINGLE, words(tmp_path / "one", "--max_train_steps", 4))
    assert "10 training images (75 % near (7 images), 25 % far (3 images)), 2 a step" in capsys.readouterr().out
    stop = ("--checkpointing_steps", 2, "--resume_from_checkpoint", "latest", "--max_train_steps")
    run_here(SINGLE, words(tmp_path / "broken", *stop, 3))
    shutil.rmtree(tmp_path / "broken" / "checkpoint-3")  # as if killed in the fourth step: checkpoint-2 is the last
    run_here(SINGLE, words(tmp_path / "broken", *stop, 4))
    assert losses(tmp_path / "broken") == losses(tmp_path / "one")
    assert distance(tmp_path / "broken", tmp_path / "one") == 0
    with pytest.raises(InputError, match=r"training data was '0\.75 of 7 images .* now '0\.5 of 7"):
        run_here(SINGLE, words(tmp_path / "broken", *stop, 5, mix="0.5,0.5"))


def test_the_cache_is_that_of_each_folder_alone_and_changes_nothing(words, places, tmp_path):
    shared = ("--cache_dir", tmp_path / "cache", "--max_train_steps", 3)
    for number, root in enumerate(places):
        run_here(SINGLE, words(tmp_path / str(number), *shared, roots=[root], mix=None))
    caches = sorted((tmp_path / "cache").iterdir())
    run_here(SINGLE, words(tmp_path / "cached", *shared))
    assert sorted((tmp_path / "cache").iterdir()) == caches and len(caches) == 2
    run_here(SINGLE, words(tmp_path / "not", "--no_cache_latents", "--max_train_steps", 3))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "not"), abs=1e-5)


def test_whole_images_masks_and_validation_of_each_folder(words, tmp_path, capsys):
    more = ("--crop", "none", "--masked_loss", "--max_train_steps", 2)
    run_here(SINGLE, words(tmp_path / "cached", *more))
    out = capsys.readouterr().out
    assert "note: near: masked loss" in out and "note: far: whole images, every step of one shape" in out
    assert "note: far: 3 samples to train on, 1 held out" in out
    splits = {name.split("/")[1] for name in records(tmp_path / "cached")[-1] if name.startswith("val/")}
    assert splits == {"train-near", "val-near", "train-far", "val-far"}
    best = json.loads((tmp_path / "cached" / "best.json").read_text())
    assert best["metric"] == "val/val-near/mean"
    assert (tmp_path / "cached" / "validation" / "000002_val-far.png").is_file()
    with safe_open(tmp_path / "cached" / SAFETENSORS, "pt") as file:
        header = file.metadata()
    assert "trained_on" not in header  # no record names a set
    assert header["training_mix"].startswith("75 % near (") and ", 25 % far (" in header["training_mix"]
    assert f"| training_mix | {header['training_mix']} |" in model_card("me/lora", header, {}, "", [])
    recipe = (tmp_path / "cached" / "recipe.txt").read_text()
    assert "--mix=0.75,0.25\n" in recipe and "near/normal," in recipe
    run_here(SINGLE, words(tmp_path / "not", *more, "--no_cache_latents"))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "not"), abs=1e-5)


def test_a_comma_in_a_folders_name_is_no_mix(words, places, tmp_path):
    (tmp_path / "a,b").symlink_to(places[1])
    run_here(SINGLE, words(tmp_path / "out", "--max_train_steps", 1, roots=[tmp_path / "a,b"], mix=None))
    with safe_open(tmp_path / "out" / SAFETENSORS, "pt") as file:
        assert "training_mix" not in file.metadata()


@pytest.mark.parametrize(("mix", "message"), [
    (None, "2 folders; pass --mix with the share of each, as in --mix=0.9,0.1"),
    ("0.9,half", "--mix=0.9,half: 'half' is not a share"),
    ("0.9,-0.1", "'-0.1' is not a share"),
    ("1.0,0.0", "'1.0' is not a share"),
    ("0.99999,0.00001", "at most 4 places"),
    ("nan,0.5", "'nan' is not a share"),
    ("0.9,0.2", "--mix=0.9,0.2: the shares add up to 1.1; they must add up to 1"),
    ("0.5,0.3,0.2", "2 folders for the 3 shares of --mix=0.5,0.3,0.2"),
    ("1", "--mix=1: '1' is not a share"),
])  # fmt: skip
def test_wrong_shares_are_refused_in_one_line(mix, message, words, tmp_path):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        run_here(SINGLE, words(tmp_path, mix=mix))
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_mixed_are_named(words, places, diode, tmp_path):
    near, far = places
    with pytest.raises(InputError, match=r"near/normal is there twice"):
        run_here(SINGLE, words(tmp_path / "x", roots=[near, near / ".." / "normal"]))
    with pytest.raises(InputError, match=r"nowhere/images: no such folder"):
        run_here(SINGLE, words(tmp_path / "x", roots=[near, tmp_path / "nowhere"]))
    with pytest.raises(InputError, match=r"--pseudo_root=.*: 1 folders for the 2 shares"):
        run_here(SINGLE, words(tmp_path / "x", "--pseudo_root", near / "labels"))
    shutil.copytree(far, tmp_path / "bare", ignore=lambda *_: ["gt"])
    with pytest.raises(InputError, match=r"has ground truth and .*bare.* has none"):
        run_here(SINGLE, words(tmp_path / "x", roots=[near, tmp_path / "bare"]))
    shutil.rmtree(tmp_path / "bare" / "images")
    (tmp_path / "bare" / "images").mkdir()
    with pytest.raises(InputError, match="bare/images: no images"):
        run_here(SINGLE, words(tmp_path / "x", roots=[near, tmp_path / "bare"]))
    with pytest.raises(InputError, match=r"holds images/, so it is not a DIODE tree; pass --dataset folder"):
        given = words(tmp_path / "x", roots=[diode / "normals", near])
        run_here(SINGLE, [*given, "--dataset", "diode"])


def test_trees_of_diode_mix_too_and_tokens_keep_the_shares(flags, diode, tmp_path):
    for folder in ("normals", "pseudo"):
        shutil.copytree(diode / folder, tmp_path / "other" / folder)
    (tmp_path / "other" / "depths").symlink_to(diode / "depths")
    shutil.copy(diode / "diode_meta.json", tmp_path / "other")
    given = flags(SINGLE, tmp_path / "out", "--mix", "0.75,0.25", "--num_train_imgs", 6)
    for name in ("--train_data_dir", "--pseudo_root"):
        place = given.index(name) + 1
        given[place] += "," + given[place].replace(str(diode), str(tmp_path / "other"))
    parser = training_parser("", {})
    parser.set_defaults(max_train_steps=1, unified_prompt="")
    train, samples = open_data(parse(parser, given), NORMAL)
    first, second = (part.name for part in train.parts)
    assert list(samples)[:2] == [f"indoors-{first}", f"outdoor-{first}"] and len(train) == 12
    assert train[(7, 1)]["stem"] == train.stems[7] and train.stems[7].startswith(f"{second}/train/")
    assert train.label_path(train.stems[7]).is_relative_to(tmp_path / "other" / "pseudo")
    assert "gt" not in train[7] and train.shapes == [(32, 32)] * 12
    tokens = Tokenised(train, torch.zeros(12, 4), torch.zeros(12, 4))
    step = next(iter(batches_of(tokens, 8, 8, 0)))
    assert [index < 6 for index, _ in step] == [True] * 6 + [False] * 2
