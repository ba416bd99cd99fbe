"""Finding, pruning and resuming checkpoints; which samples a step sees."""

import itertools

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError
from utils.lora import SAFETENSORS, add_lora, lora_state
from utils.system.atomic import seal
from utils.training import checkpoint
from utils.training.data import EndlessBatches
from utils.training.settings import BEFORE, NEVER, NOTED, ON_RESUME


def run_of(unet) -> dict:
    return {"optimizer": torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad])}


@pytest.fixture(scope="module")
def unet():
    made = build_unet()
    add_lora(made, rank=2)
    return made


def test_pruning_is_by_number_and_keeps_the_newest(unet, tmp_path):
    for step in (8, 9, 10, 100):
        checkpoint.save(tmp_path, step, 2 * step, unet, run_of(unet), {}, {}, limit=3)
    assert [path.name for path in checkpoint.find(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100", "checkpoint-9"]


def test_unfinished_checkpoints_are_not_found(unet, tmp_path):
    checkpoint.save(tmp_path, 1, 2, unet, run_of(unet), {}, {})
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / ".checkpoint-3.part").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoint.choose(tmp_path, "latest").name == "checkpoint-1"


def test_the_checkpoint_asked_for_is_chosen_and_others_are_refused(unet, tmp_path):
    assert checkpoint.choose(tmp_path / "new", "latest") is None
    assert checkpoint.choose(tmp_path / "new", None) is None
    path = checkpoint.save(tmp_path, 5, 10, unet, run_of(unet), {}, {})
    assert checkpoint.choose(tmp_path, str(path)) == path
    assert checkpoint.choose(tmp_path, "checkpoint-5") == path
    with pytest.raises(InputError, match="already holds checkpoint-5"):
        checkpoint.choose(tmp_path, None)
    with pytest.raises(InputError, match="holds: checkpoint-5"):
        checkpoint.choose(tmp_path, "checkpoint-6")


def test_resuming_another_experiment_is_refused(unet, tmp_path):
    path = checkpoint.save(tmp_path, 5, 10, unet, run_of(unet), {"rank": 2, "seed": 1}, {})
    assert checkpoint.load(path, unet, run_of(unet), {"rank": 2, "seed": 1}) == (5, 10)
    with pytest.raises(InputError, match="seed was 1, now 2"):
        checkpoint.load(path, unet, run_of(unet), {"rank": 2, "seed": 2})


@pytest.fixture(scope="module")
def saved(unet, tmp_path_factory):
    """A checkpoint with every setting of the table."""
    folder = tmp_path_factory.mktemp("saved")
    return checkpoint.save(folder, 5, 10, unet, run_of(unet), dict.fromkeys(ON_RESUME, 1), {})


@pytest.mark.parametrize("name", ON_RESUME)
def test_a_changed_setting_is_refused_or_noted_as_the_table_has_it(name, saved, unet, capsys):
    changed = dict.fromkeys(ON_RESUME, 1) | {name: 2}
    if ON_RESUME[name] != NOTED:
        with pytest.raises(InputError, match=f"{name} was 1, now 2"):
            checkpoint.load(saved, unet, run_of(unet), changed)
    if ON_RESUME[name] == NEVER:
        with pytest.raises(InputError, match=f"{name} was 1, now 2; use another --output_dir$"):
            checkpoint.load(saved, unet, run_of(unet), changed, force=True)
        return
    assert checkpoint.load(saved, unet, run_of(unet), changed, force=ON_RESUME[name] != NOTED) == (5, 10)
    assert f"continues with changes: {name} was 1, now 2" in capsys.readouterr().out


def test_a_checkpoint_that_is_older_than_a_setting_is_resumed_at_its_former_value(unet, tmp_path, capsys):
    old = checkpoint.save(tmp_path, 5, 10, unet, run_of(unet), {"rank": 2}, {})
    noted = {name: "new" for name, behaviour in ON_RESUME.items() if behaviour == NOTED}
    assert checkpoint.load(old, unet, run_of(unet), {"rank": 2} | BEFORE | noted) == (5, 10)
    assert "changes" not in capsys.readouterr().out
    for name in BEFORE:
        with pytest.raises(InputError, match=f"{name} was .*, now 'new'"):
            checkpoint.load(old, unet, run_of(unet), {"rank": 2} | BEFORE | {name: "new"})


def test_round_trip_restores_lora_and_optimiser(unet, tmp_path):
    state = run_of(unet)
    for parameter in unet.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    state["optimizer"].step()
    saved, moments = lora_state(unet), state["optimizer"].state_dict()["state"]
    path = checkpoint.save(tmp_path, 1, 2, unet, state, {}, {})
    fresh = build_unet()
    add_lora(fresh, rank=2, seed=9)
    other = run_of(fresh)
    checkpoint.load(path, fresh, other, {})
    assert all(torch.equal(saved[key], value) for key, value in lora_state(fresh).items())
    restored = other["optimizer"].state_dict()["state"]
    assert all(torch.equal(moments[i]["exp_avg"], restored[i]["exp_avg"]) for i in moments)


def first(count: int, **options) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(EndlessBatches(**options), count))


def test_every_epoch_sees_every_sample_once_in_another_order():
    pairs = list(itertools.chain(*first(30, samples=10, batch_size=3, seed=1)))
    epochs = [[index for index, epoch in pairs if epoch == number] for number in range(9)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 9


def test_a_resumed_stream_continues_where_it_stopped():
    whole = first(12, samples=7, batch_size=2, seed=3)
    assert first(5, samples=7, batch_size=2, seed=3, start=14) == whole[7:]


def test_a_global_batch_is_the_same_however_it_is_cut():
    joint = first(4, samples=9, batch_size=4, seed=3)
    ranks = [first(4, samples=9, batch_size=2, seed=3, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks)] == joint
    micro = first(8, samples=9, batch_size=2, seed=3)
    assert [a + b for a, b in zip(micro[::2], micro[1::2])] == joint


def test_a_batch_may_be_larger_than_the_data_set():
    assert len(first(1, samples=2, batch_size=5, seed=0)[0]) == 5


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_a_checkpoint_that_was_written_through_a_wrapper_is_resumed_with_a_note(wrapper, unet, tmp_path, capsys):
    path = checkpoint.save(tmp_path, 5, 10, unet, run_of(unet), {}, {"rank": 2})
    with safe_open(path / SAFETENSORS, "pt") as file:
        state, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({key.replace("unet.", f"unet.{wrapper}"): state[key] for key in state}, path / SAFETENSORS, header)
    seal(path)
    fresh = build_unet()
    add_lora(fresh, rank=2, seed=9)
    assert checkpoint.load(path, fresh, run_of(fresh), {}) == (5, 10)
    assert all(torch.equal(value, lora_state(fresh)[key]) for key, value in lora_state(unet).items())
    assert "names of wrappers" in capsys.readouterr().out
