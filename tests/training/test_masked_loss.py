"""--masked_loss: invalid pixels do not count, whoever computes the loss, and nobody is left to believe it in vain."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SCRIPTS, distance, fork, lora, losses, run_here
from safetensors import safe_open
from torch import nn

from dataloaders.diode import Diode
from dataloaders.folder import open_folder
from dataloaders.listing import folder_samples
from utils.base_model.stable_diffusion import load_base, load_donor, widen_conv_in
from utils.errors import InputError
from utils.intrinsics import ALBEDO, DEPTH, NORMAL
from utils.latents import cells, moments
from utils.lora import SAFETENSORS
from utils.noise import generators
from utils.objectives import AugUNet, SingleStep, masked_mse, zero_snr_scheduler
from utils.training.cache import cached_latents
from utils.training.data import masked_share

SINGLE, AUG = "sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_depth.py"


def half_masked(diode: Path, root: Path, mask: np.ndarray | None = None, gt: bool = False) -> Path:
    """8 of the mini world's images as a folder of one's own, with one mask for all: the upper half is invalid."""
    world = Diode(NORMAL, diode / "normals", diode / "pseudo" / "normal", "train")
    if mask is None:
        mask = np.ones((72, 96), np.uint8)
        mask[:36] = 0
    for folder in ("images", "labels", "masks", "gt"):
        (root / folder).mkdir(parents=True)
    for i, stem in enumerate(world.stems[:8]):
        shutil.copy(world.rgb_path(stem), root / "images" / f"{i}.png")
        shutil.copy(world.label_path(stem), root / "labels" / f"{i}.png")
        np.save(root / "masks" / f"{i}.npy", mask)
        if gt:
            shutil.copy(world.truth_name(stem), root / "gt" / f"{i}.npy")
    return root


@pytest.fixture
def own_flags(bases):
    def build(root: Path, output: Path, *more: object) -> list[str]:
        words = ["--pretrained_model_name_or_path", bases["sd15"], "--dataset", "folder", "--train_data_dir", root]
        words += ["--output_dir", output, "--resolution", 32, "--train_batch_size", 2, "--report_to", "none"]
        words += ["--validation_steps", 1000, "--checkpointing_steps", 1000, "--learning_rate", 1e-2]
        return [str(word) for word in (*words, *more)]

    return build


def objective_of(method: str, bases):
    """(objective, UNet) of a random base."""
    base = load_base(str(bases["sd15" if method == "single" else "sd21"]))
    if method == "single":
        return SingleStep(base, base.encode_prompt("x"), 999), base.unet
    widen_conv_in(base.unet, load_donor(str(bases["ip2p"])))
    prompts = base.encode_prompt("x"), base.encode_prompt("")
    return AugUNet(base.vae, *prompts, zero_snr_scheduler(base.scheduler)), base.unet


def batch_of(vae: nn.Module, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    picture = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return moments(vae, {"rgb": picture[0], "target": picture[1]}) | {"mask": mask}


def test_a_cell_counts_if_all_of_its_pixels_are_valid():
    mask = torch.ones(1, 1, 16, 24, dtype=torch.bool)
    mask[0, 0, 7, 8] = False
    assert cells(mask, (2, 3)).int().tolist() == [[[[1, 0, 1], [1, 1, 1]]]]
    kept = cells(mask, (2, 3))
    assert torch.equal(cells(kept, (2, 3)), kept)  # the cache's cells stay as they are
    with pytest.raises(ValueError, match="does not fit"):
        cells(mask, (2, 2))


def test_the_value_is_the_mean_of_the_images_means_over_their_cells():
    prediction, target = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 1] = True
    mask[1] = True
    errors = (prediction - target).square()
    expected = (errors[0, :, 0, 1].mean() + errors[1].mean() + 0) / 3  # the third image has no cell
    torch.testing.assert_close(masked_mse(prediction, target, mask), expected)
    parts = [masked_mse(prediction[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.stack(parts).mean(), expected)  # however the batch is cut
    everything = torch.ones(3, 1, 16, 16, dtype=torch.bool)
    plain = nn.functional.mse_loss(prediction, target)
    torch.testing.assert_close(masked_mse(prediction, target, everything), plain)
    assert torch.equal(masked_mse(prediction, target), plain)


@pytest.mark.parametrize("method", ["single", "augunet"])
def test_masked_pixels_do_not_count(method, bases):
    """The label's latents under the mask change nothing, and get no gradient; those of a valid cell do both."""
    objective, unet = objective_of(method, bases)
    side = 32 // 2 ** (len(objective.vae.config.block_out_channels) - 1)
    mask = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    mask[:, :, :9, :] = False  # one row of cells whole, and one pixel of each cell of the next
    batch = batch_of(objective.vae, mask)
    batch["target_mean"].requires_grad_()
    invalid = (~cells(mask, (side, side))).expand(-1, 4, -1, -1)
    assert 0 < invalid.float().mean() < 1

    predicted = []

    def keep(module, inputs, output):
        predicted.append(output.sample if output.sample.requires_grad else output.sample.requires_grad_())

    unet.register_forward_hook(keep)
    loss = objective.loss(unet, batch, generators(0, 0, 2))
    to_prediction, to_label = torch.autograd.grad(loss, [predicted[0], batch["target_mean"]])
    assert not to_prediction[invalid].any() and to_prediction[~invalid].all()
    assert to_label[~invalid].any()
    if method == "single":  # the diffusing UNet also reads the noisy label
        assert not to_label[invalid].any()
        for where, changes in ((invalid, False), (~invalid, True)):
            changed = batch | {"target_mean": batch["target_mean"].detach() + 3 * where}
            other = objective.loss(unet, changed, generators(0, 0, 2))
            assert (other.item() != loss.item()) == changes


@pytest.mark.parametrize("script", [SINGLE, AUG])
def test_cached_and_uncached_masked_training_are_the_same(script, flags, tmp_path, capsys):
    more = ("--max_train_steps", 2, "--learning_rate", 1e-2, "--max_train_samples", 6)
    run_here(script, flags(script, tmp_path / "cached", *more, "--masked_loss"))
    said = capsys.readouterr().out
    assert "of the latent cells count" in said and "% of the pixels are valid (6 training images" in said
    run_here(script, flags(script, tmp_path / "not", *more, "--masked_loss", "--no_cache_latents"))
    run_here(script, flags(script, tmp_path / "plain", *more))
    first, second = losses(tmp_path / "cached"), losses(tmp_path / "not")
    assert len(first) == 2 and first == pytest.approx(second, abs=1e-5)
    assert first != pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert "masked loss" not in capsys.readouterr().out.rpartition("plain")[2]
    for name, expected in (("cached", "True"), ("plain", None)):
        with safe_open(tmp_path / name / SAFETENSORS, "pt") as file:
            assert file.metadata().get("masked_loss") == expected


def test_two_processes_train_what_one_trains(flags, tmp_path):
    words = ["--max_train_steps", 3, "--learning_rate", 1e-2, "--adam_epsilon", 1e-2, "--masked_loss"]
    fork(SINGLE, *flags(SINGLE, tmp_path / "two", *words, "--train_batch_size", 2), processes=2)
    run_here(SINGLE, flags(SINGLE, tmp_path / "one", *words, "--train_batch_size", 4))
    accumulated = [*words, "--train_batch_size", 1, "--gradient_accumulation_steps", 4]
    run_here(SINGLE, flags(SINGLE, tmp_path / "micro", *accumulated))
    moved = max(value.abs().max().item() for key, value in lora(tmp_path / "one").items() if ".up." in key)
    for other in ("two", "micro"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert distance(tmp_path / other, tmp_path / "one") < 1e-3 * moved


def test_with_all_pixels_valid_the_flag_does_nothing_and_reports_it(diode, own_flags, tmp_path, capsys):
    root = half_masked(diode, tmp_path / "own", np.ones((72, 96), np.uint8))
    run_here(SINGLE, own_flags(root, tmp_path / "plain", "--max_train_steps", 3))
    run_here(SINGLE, own_flags(root, tmp_path / "masked", "--max_train_steps", 3, "--masked_loss"))
    assert losses(tmp_path / "masked") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert "are valid, so --masked_loss has no effect on them" in capsys.readouterr().out


def test_own_masks_need_no_truth(diode, own_flags, tmp_path, capsys):
    root = half_masked(diode, tmp_path / "own")
    train, _ = open_folder(folder_samples(root), NORMAL, 0.2, 0, resolution=32, masked=True)
    assert not train.measured and not train[0]["mask"][0, :16].any() and train[0]["mask"][0, 16:].all()
    assert train[0]["valid"].all()  # the label is scored everywhere, as without the flag
    assert "50.0% of the latent cells count, 50.0% of the pixels are valid" in masked_share(train, 8, 0)
    run_here(SINGLE, own_flags(root, tmp_path / "run", "--max_train_steps", 1, "--masked_loss"))
    assert "50.0% of the latent cells count" in capsys.readouterr().out


def test_masks_and_truth_both_take_pixels_out(diode, tmp_path):
    root = half_masked(diode, tmp_path / "own", gt=True)
    truth = np.load(root / "gt" / "0.npy")
    truth[:, :48] = 0
    for path in (root / "gt").iterdir():
        np.save(path, truth)
    train, _ = open_folder(folder_samples(root), NORMAL, 0.2, 0, frame="opengl", resolution=32, masked=True)
    mask = train[0]["mask"]
    assert torch.equal(mask, train[0]["valid"]) and not mask[0, :16].any() and not mask[0, :, :16].any()
    assert mask[0, 16:, 16:].float().mean() > 0.5


@pytest.mark.parametrize(("intrinsic", "truth", "files"), [
    (NORMAL, "normals", ["normal.npy"]),
    (DEPTH, "depths", ["depth.npy", "depth_mask.npy"]),
    (ALBEDO, "truth/albedo", ["albedo.npy"]),
    (ALBEDO, "depths", ["depth_mask.npy"]),
])  # fmt: skip
def test_diodes_masks_come_from_the_truths_own_files(intrinsic, truth, files, diode):
    train = Diode(intrinsic, diode / truth, diode / "pseudo" / intrinsic.name, "train", resolution=32, masked=True)
    paths = train.mask_paths(train.stems[0])
    assert [path.name.split("_", 3)[-1].endswith(name) for path, name in zip(paths, files, strict=True)]
    assert all(path.is_file() for path in paths)
    item = train[0]
    assert item["mask"].dtype == torch.bool and item["mask"].shape == (1, 32, 32)
    if train.measured:
        assert torch.equal(item["mask"], item["valid"])
    else:
        depth = Diode(DEPTH, diode / "depths", diode / "pseudo" / "depth", "train", resolution=32)
        assert torch.equal(item["mask"], depth[0]["valid"])


def test_masks_belong_to_the_fingerprint_and_to_the_caches_key(diode, bases, tmp_path):
    root = half_masked(diode, tmp_path / "own")
    vae = load_base(str(bases["sd15"])).vae

    def opened(masked):
        return open_folder(folder_samples(root), NORMAL, 0.2, 0, resolution=32, masked=masked)[0]

    def keys(masked):
        cached_latents(opened(masked), vae, tmp_path / "cache")
        return len(list((tmp_path / "cache").iterdir()))

    before, plain = opened(True).fingerprint, opened(False).fingerprint
    assert (keys(False), keys(True), keys(True)) == (1, 2, 2)
    for path in (root / "masks").iterdir():
        np.save(path, np.ones((72, 96), np.uint8))
    assert opened(True).fingerprint != before and opened(False).fingerprint == plain
    assert (keys(False), keys(True)) == (2, 3)


def test_a_resumed_run_shares_it(flags, tmp_path):
    words = ["--checkpointing_steps", 1, "--resume_from_checkpoint", "latest"]
    run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 1, *words))
    with pytest.raises(InputError, match="masked_loss was False, now True"):
        run_here(SINGLE, flags(SINGLE, tmp_path / "run", "--max_train_steps", 2, *words, "--masked_loss"))


def refused(words, message):
    with pytest.raises(InputError, match=message) as caught:
        run_here(SINGLE, words)
    assert "\n" not in str(caught.value)


def test_own_data_without_mask_and_truth_is_refused(diode, own_flags, tmp_path):
    root = half_masked(diode, tmp_path / "own")
    words = own_flags(root, tmp_path / "run", "--max_train_steps", 1, "--masked_loss")
    words[words.index("--pretrained_model_name_or_path") + 1] = str(tmp_path)  # no base: nothing has been loaded
    (root / "masks" / "3.npy").unlink()
    refused(words, r"--masked_loss: 1 of 8 samples have neither mask nor ground truth, e.g. .*3.png; .*--skip_missing")
    train, _ = open_folder(folder_samples(root), NORMAL, 0.2, 0, True, resolution=32, masked=True)
    assert any("left out 1 of 8 samples with neither mask nor truth" in text for text in train.notes)
    shutil.rmtree(root / "masks")
    refused(words, "--masked_loss: no sample has a mask .* or ground truth; leave the flag out")


def test_diode_without_masks_is_refused(diode, tmp_path):
    tree = shutil.copytree(diode, tmp_path / "DIODE")
    for path in tree.rglob("*_depth_mask.npy"):
        path.unlink()
    with pytest.raises(InputError, match=r"no .*_depth_mask.npy for any of 24 samples .*--masked_loss needs masks"):
        Diode(ALBEDO, tree / "depths", tree / "pseudo" / "albedo", "train", masked=True)
    assert len(Diode(ALBEDO, tree / "depths", tree / "pseudo" / "albedo", "train")) == 24


def test_a_mask_of_another_size_is_refused(diode, tmp_path):
    root = half_masked(diode, tmp_path / "own", np.ones((96, 72), np.uint8))
    with pytest.raises(InputError, match=r"masks/\d.npy: a 72x96 mask for a 96x72 image"):
        open_folder(folder_samples(root), NORMAL, 0.2, 0, resolution=32, masked=True)


def test_masks_that_let_nothing_through_are_refused(diode, own_flags, tmp_path):
    root = half_masked(diode, tmp_path / "own", np.zeros((72, 96), np.uint8))
    refused(own_flags(root, tmp_path / "run", "--max_train_steps", 1, "--masked_loss"), "no latent cell .* check the")


def test_albedo_that_nobody_measured_takes_diodes_own_mask(flags, diode, tmp_path, capsys):
    script = "sd_single_diode_pseudo_albedo.py"
    words = flags(script, tmp_path / "run", "--max_train_steps", 1, "--masked_loss", "--max_train_samples", 4)
    words[words.index("--train_data_dir") + 1] = str(diode / "depths")
    run_here(script, words)
    assert "of the latent cells count" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_hands_the_flag_to_its_data(script, flags, tmp_path, monkeypatch):
    class OpenedError(Exception):
        pass

    def opened(args, intrinsic):
        assert args.masked_loss
        raise OpenedError

    monkeypatch.setattr("dataloaders.open_data.open_data", opened)
    with pytest.raises(OpenedError):
        run_here(script, flags(script, tmp_path, "--masked_loss"))
