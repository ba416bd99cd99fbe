"""A folder of images: threads, memory, order and errors; and files with the numbers of the plain formulas."""

import threading

import numpy as np
import pytest
import torch
from accelerate import PartialState
from helpers import ROOT
from PIL import Image

from utils.errors import InputError
from utils.image_io.files import read_raw, save_png
from utils.image_io.panels import to_uint8
from utils.inference import predictor as engine
from utils.inference import run
from utils.inference.output import Output
from utils.inference.predictor import Predictor
from utils.intrinsics import DEPTH
from utils.kinds.normals import unit_normals

NAMES = [f"{i}.png" for i in range(6)]


@pytest.fixture(scope="module")
def predictor():
    return Predictor(ROOT / "miniworld" / "mini-loras" / "normal", device="cpu")


@pytest.fixture
def images(tmp_path):
    """File -> name of six images."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / name)
    return {tmp_path / name: name for name in NAMES}


@pytest.fixture
def written(monkeypatch):
    """(images written at the same time, at most; names in the order in which they were finished)."""
    plain, lock, at_work, finished = run.write_maps, threading.Lock(), [0, 0], []
    second = threading.Event()

    def counted(maps, places, output, image, kept):
        name = next(iter(places.values()))[1]
        with lock:
            at_work[0] += 1
            at_work[1] = max(at_work)
        if name == NAMES[0].replace(".png", "_normal.png") and run.IN_WORK > 1:
            assert second.wait(60)  # the first is not the first to be finished
        found = plain(maps, places, output, image, kept)
        with lock:
            at_work[0] -= 1
            finished.append(name)
        second.set()
        return found

    monkeypatch.setattr(run, "write_maps", counted)
    monkeypatch.setattr(run, "io_threads", lambda most: 4)
    return at_work, finished


def predict(images, engine, out, also=None):
    return run.predict_all(images, PartialState(cpu=True), engine, out, Output(), also)


def test_several_images_are_written_at_a_time_and_handed_on_in_order(images, predictor, written, tmp_path):
    seen = []
    predict(
        images, predictor, tmp_path / "out", also=lambda path, maps: seen.append((path.name, maps["normal"].shape))
    )
    (_, most), finished = written
    assert 1 < most <= 4 and finished[0] != "0_normal.png"
    assert seen == [(name, (40, 50)) for name in NAMES]


def test_large_images_are_brought_back_one_at_a_time(images, predictor, written, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "IN_WORK", 1)
    predict(images, predictor, tmp_path / "out")
    (_, most), finished = written
    assert most == 1 and len(finished) == 6


def test_until_it_is_brought_back_a_map_has_the_networks_size(predictor):
    prepared = predictor.prepare(Image.new("RGB", (300, 200)))
    (maps,) = predictor.begin([prepared], ["a"])
    assert maps["normal"].args[2].shape == (3, 64, 96) and maps["normal"]().shape == (200, 300)
    assert prepared.bytes_back == 200 * 300 * engine.MAP_BYTES


def test_ctrl_c_ends_the_threads_and_leaves_no_half_written_file(images, predictor, written, tmp_path, monkeypatch):
    begin, calls = predictor.begin, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return begin(*args)

    monkeypatch.setattr(predictor, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(images, predictor, tmp_path / "out")
    assert not [one for one in threading.enumerate() if one.name.startswith("ThreadPoolExecutor")]
    files = list((tmp_path / "out").rglob("*.*"))
    assert all(file.suffix == ".png" and not file.name.startswith(".") for file in files)
    for file in files:
        Image.open(file).load()


def test_what_cannot_be_read_is_listed_in_order_and_the_rest_is_written(images, predictor, tmp_path):
    for name in ("4.png", "1.png"):
        (tmp_path / name).write_bytes(b"no image")
    failed = predict(images, predictor, tmp_path / "out")
    assert [line.split(":")[0] for line in failed] == [str(tmp_path / name) for name in ("1.png", "4.png")]
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4


def test_a_map_that_cannot_be_written_names_its_file(images, predictor, tmp_path):
    (tmp_path / "out" / "normal" / "predicted" / "3_normal.png").mkdir(parents=True)
    with pytest.raises(InputError, match=r"3_normal\.png: cannot be written"):
        predict(images, predictor, tmp_path / "out")


# The numbers of the plain formulas, computed in blocks of rows -------------------------------------------------------

SHAPES = [(3, 1, 1), (3, 33, 4001), (3, 700, 101)]


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_have_pytorchs_numbers(shape):
    vectors = torch.randn(shape, generator=torch.manual_seed(0))
    vectors[:, 0, 0] = 0
    for layout in (vectors, vectors.movedim(0, -1).contiguous().movedim(-1, 0), vectors.flip(-1)[..., :-1]):
        if layout.numel():
            expected = torch.nn.functional.normalize(layout, dim=0, eps=1e-12)
            before = layout.clone()
            assert torch.equal(unit_normals(layout), expected) and torch.equal(layout, before)
            assert torch.equal(unit_normals(layout, in_place=True), expected)
            layout.copy_(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_have_the_released_codes_numbers(shape):
    picture = 0.8 * torch.randn(shape, generator=torch.manual_seed(1))
    pixels = picture.clamp(-1, 1).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(to_uint8(picture), (255 * (pixels * 0.5 + 0.5)).astype(np.uint8))
    low, high = picture.min(), picture.max()
    share = (picture - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    expected = (share.mean(0).numpy() * 255.0).astype(np.uint8)
    np.testing.assert_array_equal(DEPTH.map_kind.image8(picture), expected)
    assert not DEPTH.map_kind.image8(torch.full(shape, 0.3)).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (7, 5, 3)])
def test_a_png_has_its_pixels_and_text(shape, dtype, tmp_path):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    about = {"prompt": "Umlaut ä, \N{SNOWMAN}", "task": "normal"}
    save_png(tmp_path / "a.png", pixels, about)
    raw = read_raw(tmp_path / "a.png")
    assert raw.about == about and raw.array.dtype == dtype
    np.testing.assert_array_equal(raw.array, pixels)
    if dtype is np.uint8:
        with Image.open(tmp_path / "a.png") as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)
