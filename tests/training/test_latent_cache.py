"""The latent cache: the same training as without it, whoever builds it, however often it is cut off."""

import copy
import os
import threading

import numpy as np
import pytest
import torch
from helpers import PATIENCE, fork, losses, run_here, start_fork, wait_for

from dataloaders.diode import Diode
from dataloaders.open_data import open_data
from utils.base_model.stable_diffusion import load_base
from utils.errors import InputError
from utils.intrinsics import ALBEDO, DEPTH, NORMAL
from utils.kinds import normals as kinds_normals
from utils.latents import NAMES, moments
from utils.system import processes
from utils.training import cache as latent_cache
from utils.training.cache import arithmetic, cached_latents, cached_or_not

BUILD = """
import sys, torch
from dataloaders.diode import Diode
from utils.intrinsics import NORMAL
from utils.training import cache as latent_cache
from utils.base_model.stable_diffusion import load_base
latent_cache.CHUNK = 2
torch.set_num_threads(1)
data, base, folder, rank, world, pause, most = sys.argv[1:]
import signal, time
moments, chunks = latent_cache.moments, []
def encode(*args):
    if len(chunks) == int(most):
        signal.pause()  # until it is killed
    time.sleep(float(pause))
    chunks.append(1)
    return moments(*args)
latent_cache.moments = encode
train_set = Diode(NORMAL, f"{data}/normals", f"{data}/pseudo/normal", "train", resolution=32)
latent_cache.cached_latents(train_set, load_base(base).vae, latent_cache.Path(folder), 0, int(rank), int(world))
print(len(chunks))
"""


@pytest.fixture(scope="module")
def vae(bases):
    return load_base(str(bases["sd15"])).vae


@pytest.fixture
def train_set(diode):
    return Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train", resolution=32)


@pytest.mark.parametrize("script", ["sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_depth.py"])
def test_cached_and_uncached_training_are_the_same(script, flags, tmp_path, capsys):
    more = ("--max_train_steps", 4, "--learning_rate", 1e-2, "--dataloader_num_workers", 1)
    run_here(script, flags(script, tmp_path / "cached", *more))
    assert (tmp_path / "cached" / "latent_cache").is_dir()
    run_here(script, flags(script, tmp_path / "not", *more, "--no_cache_latents"))
    assert not (tmp_path / "not" / "latent_cache").exists()
    first, second = losses(tmp_path / "cached"), losses(tmp_path / "not")
    assert len(first) == 4 and first.keys() == second.keys()
    assert max(abs(first[step] - second[step]) for step in first) < 1e-5
    assert "encoding latents" in capsys.readouterr().err


def test_a_chunk_is_encoded_in_pieces(train_set, vae, tmp_path, monkeypatch):
    """So that building the cache takes no more memory than training does."""
    monkeypatch.setattr(latent_cache, "PIXELS", 3 * train_set.resolution**2)
    sizes = []
    monkeypatch.setattr(latent_cache, "moments", lambda v, b: (sizes.append(len(b["rgb"])), moments(v, b))[1])
    pieces = cached_latents(train_set, vae, tmp_path / "pieces")
    monkeypatch.undo()
    assert max(sizes) == 3 and sum(sizes) == len(train_set)
    whole = cached_latents(train_set, vae, tmp_path / "whole")
    for index in range(len(train_set)):
        for name in NAMES:
            torch.testing.assert_close(pieces[index][name], whole[index][name], rtol=1e-4, atol=1e-5)


def test_a_pass_that_does_not_fit_into_memory_is_halved(train_set, vae, tmp_path, monkeypatch, capsys):
    """As on a GPU: the encoder raises what PyTorch raises there for more than three images at a time."""
    cached_latents(train_set, vae, tmp_path / "all")
    encode = vae.encode

    def small(images):
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(images)

    monkeypatch.setattr(vae, "encode", small)
    found = cached_latents(train_set, vae, tmp_path / "halved")
    notes = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert [line.split("; ")[1] for line in notes] == [f"{size} images at a time now" for size in (12, 6, 3)]
    whole = cached_latents(train_set, vae, tmp_path / "all")
    for index in range(len(found)):
        for name in NAMES:
            torch.testing.assert_close(found[index][name], whole[index][name], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(vae, "encode", lambda images: small(torch.cat([images] * 4)))
    with pytest.raises(torch.OutOfMemoryError):
        cached_latents(train_set, vae, tmp_path / "never")


def test_a_cache_made_with_tf32_is_another(monkeypatch):
    assert arithmetic("cpu", torch.float32) == arithmetic("cuda", torch.bfloat16) == {}
    plain = arithmetic("cuda", torch.float32)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    never = arithmetic("cuda", torch.float32)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert len({str(one) for one in (plain, never, arithmetic("cuda", torch.float32))}) == 3
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_the_cache_contains_the_vaes_output(train_set, vae, tmp_path):
    cache = cached_latents(train_set, vae, tmp_path)
    for index in (0, 23):
        sample = train_set[index]
        expected = moments(vae, {name: sample[name][None] for name in ("rgb", "target")})
        item = cache[(index, 5)]
        assert item["stem"] == sample["stem"]
        for name in NAMES:
            torch.testing.assert_close(item[name], expected[name][0], rtol=1e-4, atol=1e-5)


def test_the_target_is_still_sampled_in_every_step(train_set, vae, tmp_path):
    """Over many draws, cached latents have the posterior's mean and deviation."""
    from utils.latents import training_latents
    from utils.noise import generators

    cache = cached_latents(train_set, vae, tmp_path)
    item = {name: cache[3][name][None] for name in NAMES}
    draws = torch.cat([training_latents(vae, item, generators(0, number, 1))[1] for number in range(500)])
    torch.testing.assert_close(draws.mean(0), item["target_mean"][0], rtol=0, atol=0.2 * item["target_std"].max())
    torch.testing.assert_close((draws.std(0) / item["target_std"][0]).mean(), torch.tensor(1.0), rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_as_it_is(dtype, train_set, vae, tmp_path):
    half = copy.deepcopy(vae).to(dtype)
    cache = cached_latents(train_set, half, tmp_path)
    assert cache[0]["rgb_mode"].dtype == dtype
    expected = moments(half, {name: train_set[0][name][None] for name in ("rgb", "target")})["target_mean"][0]
    torch.testing.assert_close(cache[0]["target_mean"], expected, rtol=0.05, atol=0.02)


def test_whatever_changes_a_latent_makes_another_cache(train_set, vae, diode, bases, tmp_path):
    def key(train_set=train_set, vae=vae):
        before = set(tmp_path.iterdir())
        cached_latents(train_set, vae, tmp_path)
        return len(set(tmp_path.iterdir()) - before)

    assert key() == 1 and key() == 0
    options = {"resolution": 40}
    assert key(Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train", **options)) == 1
    assert key(Diode(NORMAL, diode / "normals", diode / "pseudo" / "depth", "train", resolution=32)) == 1
    assert key(Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train", resolution=32, first=9)) == 1
    assert key(vae=load_base(str(bases["sd21"])).vae) == 1
    path = train_set.label_path(train_set.stems[4])
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the label was written again
    try:
        assert key() == 1
    finally:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key() == 0


def test_a_files_place_is_recorded_without_links_and_folders_are_resolved_once(train_set, vae, tmp_path, monkeypatch):
    real = train_set.label_path(train_set.stems[0]).resolve()
    (tmp_path / "folder").symlink_to(real.parent)
    (tmp_path / "file.png").symlink_to(real)
    paths = [real, tmp_path / "folder" / real.name, tmp_path / "file.png"]
    assert len({tuple(latent_cache.signature(path, {})) for path in paths}) == 1
    assert latent_cache.signature(real, {})[0] == str(real)

    resolved, realpath = [], os.path.realpath
    monkeypatch.setattr(latent_cache.os.path, "realpath", lambda path: resolved.append(str(path)) or realpath(path))
    latent_cache.cache_key(train_set, train_set.stems, (32, 32), vae)
    assert len(resolved) == len(set(resolved)) < len(train_set)


def test_latents_of_images_read_by_other_rules_are_not_reused(train_set, vae, tmp_path, monkeypatch):
    cached_latents(train_set, vae, tmp_path)
    monkeypatch.setattr(latent_cache, "READING", latent_cache.READING - 1)
    cached_latents(train_set, vae, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_decoder_does_not_matter(train_set, vae, tmp_path):
    cached_latents(train_set, vae, tmp_path)
    weight = vae.decoder.conv_out.weight
    weight.data += 1
    cached_latents(train_set, vae, tmp_path)
    weight.data -= 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_build_continues_where_it_stopped(
    train_set, vae, diode, bases, tmp_path, tmp_path_factory, monkeypatch
):
    words = ("-c", BUILD, diode, bases["sd15"], tmp_path, 0, 1, 0, 3)
    process = start_fork(words, tmp_path_factory.mktemp("output"))
    wait_for(
        lambda: sum(np.fromfile(path, np.uint8).sum() for path in tmp_path.glob("*/done.bin")) >= 4, process.is_alive
    )
    process.kill()
    process.join()
    (done,) = tmp_path.glob("*/done.bin")
    before = int(np.fromfile(done, np.uint8).sum())
    assert 4 <= before <= 6
    encoded = []
    monkeypatch.setattr(latent_cache, "CHUNK", 2)
    monkeypatch.setattr(
        latent_cache, "moments", lambda vae, batch: encoded.append(len(batch["rgb"])) or moments(vae, batch)
    )
    cache = cached_latents(train_set, vae, tmp_path)
    assert sum(encoded) == 24 - before
    monkeypatch.setattr(latent_cache, "moments", moments)
    whole = cached_latents(train_set, vae, tmp_path / "whole")
    assert all(torch.equal(cache[i][name], whole[i][name]) for i in range(24) for name in NAMES)


def test_two_processes_build_one_cache(train_set, vae, diode, bases, tmp_path, monkeypatch):
    words = ("-c", BUILD, diode, bases["sd15"], tmp_path / "both")
    both = [start_fork((*words, rank, 2, 0.05, 24), tmp_path) for rank in range(2)]
    for process in both:
        process.join(PATIENCE)
        assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    monkeypatch.setattr(latent_cache, "CHUNK", 2)
    alone = cached_latents(train_set, vae, tmp_path / "alone")
    together = cached_latents(train_set, vae, tmp_path / "both")
    assert len(list((tmp_path / "both").iterdir())) == 1
    assert all(torch.equal(alone[i][name], together[i][name]) for i in range(24) for name in NAMES)
    assert not list(tmp_path.glob("both/*/*.*[0-9]"))  # no drafts are left


def test_two_runs_that_begin_at_once_share_the_work(diode, bases, tmp_path, tmp_path_factory):
    """Of 12 chunks: had they the same order, each would encode nearly all of them."""
    words = ("-c", BUILD, diode, bases["sd15"], tmp_path, 0, 1, 0.5, 24)
    outputs = [tmp_path_factory.mktemp("output") for _ in range(2)]
    runs = [start_fork(words, output) for output in outputs]
    for run in runs:
        run.join(PATIENCE)
    encoded = [int((output / "stdout").read_text()) for output in outputs]
    assert 12 <= sum(encoded) <= 20, encoded


def test_random_crops_are_not_cached(diode, vae, tmp_path, capsys):
    roots = (diode / "normals", diode / "pseudo" / "normal")
    crops = Diode(NORMAL, *roots, "train", resolution=32, center_crop=False)
    assert cached_or_not(crops, vae, tmp_path) is crops and "random crops" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_the_cache_not_the_training(diode, bases, flags, tmp_path):
    """A limit on the size of files is what a full disk is to the cache: the space cannot be reserved."""
    script = "sd_single_diode_pseudo_normal.py"
    code = (
        "import resource, sys; from utils.training import cache as latent_cache, loop; import runpy\n"
        "def limited(path, size, reserve=latent_cache.reserve):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "    try: reserve(path, size)\n"
        "    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        f"latent_cache.reserve = limited; sys.argv = sys.argv[1:]; runpy.run_path({script!r}, run_name='__main__')"
    )
    done = fork("-c", code, script, *flags(script, tmp_path / "out", "--max_train_steps", 2))
    assert "no latent cache" in done.stdout and "File too large" in done.stdout
    assert len(losses(tmp_path / "out")) == 2
    assert not list((tmp_path / "out" / "latent_cache").glob("*/*.bin*"))


@pytest.mark.parametrize("caching", [(), ("--no_cache_latents",), ("--no_cache_latents", "--no-center_crop")])
def test_no_ground_truth_is_read_after_the_start(caching, flags, diode, tmp_path, monkeypatch):
    """Neither by the cache nor by the loader: 9 MB for each of DIODE's images."""
    read = []

    def opened(args, intrinsic):
        train_set, samples = open_data(args, intrinsic)
        monkeypatch.setattr(kinds_normals, "read_npy", read.append)
        return train_set, samples

    monkeypatch.setattr("dataloaders.open_data.open_data", opened)
    script = "sd_single_diode_pseudo_normal.py"
    run_here(script, flags(script, tmp_path / "out", "--max_train_steps", 2, "--train_batch_size", 4, *caching))
    assert read == [] and len(losses(tmp_path / "out")) == 2


@pytest.mark.parametrize("options", [{}, {"masked": True}, {"masked": True, "center_crop": False}, {"whole": True}])
@pytest.mark.parametrize("intrinsic", [NORMAL, DEPTH, ALBEDO])
def test_training_items_are_those_with_truth_without_it(intrinsic, options, diode):
    root = diode / ("normals" if intrinsic is NORMAL else "depths")
    train_set = Diode(intrinsic, root, diode / "pseudo" / intrinsic.name, "train", resolution=32, **options)
    scored = train_set[5, 2]
    train_set.with_truth = False
    item = train_set[5, 2]
    assert item.keys() == {"rgb", "target", "stem"} | ({"mask"} if "masked" in options else set())
    assert scored.keys() == item.keys() | {"gt", "valid"}
    assert all(np.array_equal(item[name], scored[name]) for name in item)
    if "masked" in options and train_set.measured:
        assert torch.equal(item["mask"] & scored["valid"], item["mask"]) and item["mask"].any()


@pytest.mark.parametrize("masked", [False, True])
def test_the_number_of_readers_changes_nothing(masked, diode, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "CHUNK", 5)
    roots = (diode / "normals", diode / "pseudo" / "normal")
    train_set = Diode(NORMAL, *roots, "train", resolution=32, masked=masked)
    threads = set()
    whole = Diode.__getitem__
    monkeypatch.setattr(
        Diode, "__getitem__", lambda self, key: threads.add(threading.current_thread().name) or whole(self, key)
    )
    alone, ahead = (cached_latents(train_set, vae, tmp_path / str(count), count) for count in (0, 3))
    assert threads > {"MainThread"} and all(name.startswith(("Main", "reader")) for name in threads)
    for i in range(24):
        assert all(torch.equal(alone[i][name], ahead[i][name]) for name in alone[i] if name != "stem")


def test_an_image_that_a_reader_cannot_read_is_named_and_ends_the_build(train_set, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_cache, "CHUNK", 2)
    broken, rgb_path = tmp_path / "broken.png", train_set.rgb_path
    broken.write_bytes(b"no image")
    train_set.rgb_path = lambda stem: broken if stem == train_set.stems[13] else rgb_path(stem)
    with pytest.raises(InputError, match=rf"{broken}: not a readable image"):
        cached_latents(train_set, vae, tmp_path / "cache", 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize(("typed", "expected"), [((), 3), (("--dataloader_num_workers", 0), 0),
                                                 (("--dataloader_num_workers", 2), 2)])  # fmt: skip
def test_readers_of_the_cache_fit_the_machine_unless_their_number_is_typed(
    typed, expected, flags, tmp_path, monkeypatch
):
    counts = []

    def counted(images, chunks, workers):
        counts.append(workers)
        return read_ahead(images, chunks, 0)

    read_ahead = latent_cache.read_ahead
    monkeypatch.setattr(latent_cache, "read_ahead", counted)
    monkeypatch.setattr("utils.system.processes.available_cores", lambda: 3)
    script = "sd_single_diode_pseudo_normal.py"
    run_here(script, flags(script, tmp_path / "out", "--max_train_steps", 1, *typed))
    assert counts == [expected]


@pytest.mark.parametrize(("cores", "here", "expected"), [(2, 1, 2), (64, 1, 8), (64, 16, 4), (4, 8, 1)])
def test_threads_for_files_share_the_cores(cores, here, expected, monkeypatch):
    monkeypatch.setattr(processes, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert processes.io_threads(8) == expected
