"""Images that become tokens once: the same losses, the same set, and no pixel decoded in a step."""

import pickle

import pytest
import torch
from helpers import fork

from dataloaders.diode import Diode
from generators.token_prediction import BATCH, Tokenised, TokenPrediction, tokenised
from generators.transformer import load_autoregressive
from utils.intrinsics import INTRINSICS


@pytest.fixture(scope="module")
def base(ar_folder):
    return load_autoregressive(str(ar_folder))


def pictures(diode, **settings) -> Diode:
    return Diode(
        INTRINSICS["normal"], diode / "normals", diode / "pseudo" / "normal", "train", resolution=32, **settings
    )


def test_tokens_are_those_of_the_pictures_and_losses_too(diode, base):
    train_set = pictures(diode)
    ready = tokenised(train_set, base.tokens, torch.device("cpu"), quiet=True)
    assert isinstance(ready, Tokenised) and len(ready) == len(train_set) > BATCH
    objective = TokenPrediction(base.tokens)
    for index in (0, BATCH, len(train_set) - 1):
        item = train_set[index]
        batch = {name: item[name][None] for name in ("rgb", "target")}
        kept = {name: value[None] for name, value in ready[index, 5].items() if name != "stem"}
        assert torch.equal(kept["rgb_tokens"], base.tokens.encode(batch["rgb"]))
        assert torch.equal(kept["target_tokens"], base.tokens.encode(batch["target"]))
        assert torch.equal(*(objective.loss(base.network, one, []) for one in (batch, kept)))
        assert ready[index]["stem"] == item["stem"]


def test_all_else_is_the_sets_own_also_in_a_worker(diode, base):
    train_set = pictures(diode)
    ready = pickle.loads(pickle.dumps(tokenised(train_set, base.tokens, torch.device("cpu"), quiet=True)))
    assert (ready.fingerprint, ready.stems, ready.resolution) == (train_set.fingerprint, train_set.stems, 32)
    with pytest.raises(AttributeError):
        ready.nothing  # noqa: B018


def test_random_crops_are_encoded_in_every_step(diode, base, capsys):
    train_set = pictures(diode, center_crop=False)
    assert tokenised(train_set, base.tokens, torch.device("cpu")) is train_set
    assert "random crops" in capsys.readouterr().out


SHARES = """
import sys, torch
from dataloaders.diode import Diode
from generators.token_prediction import tokenised
from generators.transformer import load_autoregressive
from utils.intrinsics import INTRINSICS
from utils.system.processes import join

diode, model, out = sys.argv[1:]
state, base, images = join("cpu"), load_autoregressive(model), []
encode = base.tokens.encode
base.tokens.encode = lambda pixels: images.append(len(pixels)) or encode(pixels)
train_set = Diode(INTRINSICS["normal"], f"{diode}/normals", f"{diode}/pseudo/normal", "train", resolution=32)
ready = tokenised(train_set, base.tokens, state.device)
torch.save([sum(images), ready.images, ready.labels], f"{out}/{state.process_index}.pt")
"""


def test_two_processes_encode_half_of_the_images_each(diode, ar_folder, base, tmp_path):
    fork("-c", SHARES, diode, ar_folder, tmp_path, processes=2)
    (one, *mine), (other, *theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    train_set = pictures(diode)
    assert one + other == 2 * len(train_set) and max(one, other) <= len(train_set) + 2 * BATCH
    alone = tokenised(train_set, base.tokens, torch.device("cpu"), quiet=True)
    for part, again, expected in zip(mine, theirs, (alone.images, alone.labels)):
        assert torch.equal(part, again) and torch.equal(part, expected)
