"""`make bench-gpu`: its cells run on a CPU with a tiny base, and without a GPU it prints what it would run."""

import json
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers import ROOT

from benchmarks import cells, counted, gpu, inference, memory, train_step
from benchmarks.cells import Cell
from utils.errors import InputError

KINDS = {  # one of each kind; the last three take turns with the released computation
    "training single batch 1 bf16 checkpointing": 1,
    "training single batch 1 bf16 all layers": 1,
    "training single batch 1 tf32": 1,
    "training single batch 1 fp16": 1,
    "training augunet batch 1 bf16": 2,
    "inference batch 1 bf16": 2,
}
SINGLE = "training single batch 1 fp32"


@pytest.fixture
def bench(tmp_path, capsys, monkeypatch):
    """`bench(*words)`: the command on the CPU with a tiny base -> what it prints; it writes tmp_path/results.jsonl."""
    monkeypatch.setattr(gpu.provenance, "git_state", dict)  # a commit while a test runs would be another machine

    def run(*words: object) -> str:
        common = ["--device", "cpu", "--base", "tiny", "--resolution", 32, "--matrix", 64, "--rounds", 2]
        assert gpu.main([str(word) for word in (*common, "--output", tmp_path / "results.jsonl", *words)]) == 0
        return capsys.readouterr().out

    yield run
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def rows(text: str) -> dict[str, dict[str, str]]:
    """First cell -> column -> text, of a Markdown table."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


@pytest.mark.slow
def test_every_kind_of_cell_runs_and_is_not_run_again(bench, tmp_path):
    found = rows(bench("--cells", *KINDS))
    assert len(found) == sum(KINDS.values()) and set(KINDS) <= set(found)
    for row in found.values():
        assert float(row["images/s"]) > 0 and float(row["counted GB"]) > 0 and float(row["TFLOP/s"]) > 0
        assert row["peak GB"] == "" and row["the paper's steps, s"] == ""  # only on a GPU; only for batch 4
    assert found["training augunet batch 1 bf16"]["released / ours"]
    assert {"released, training augunet batch 1 fp32", "released, inference batch 1 fp32"} <= set(found)
    before = (tmp_path / "results.jsonl").read_text()
    again = bench("--cells", *KINDS)
    assert "6 of 6 cells are finished" in again and rows(again) == found
    assert (tmp_path / "results.jsonl").read_text() == before


def test_only_ours_leaves_the_released_computation_out(bench):
    found = rows(bench("--only", "ours", "--cells", "training augunet batch 1 bf16"))
    assert list(found) == ["training augunet batch 1 bf16"]


def test_the_papers_steps_are_extrapolated_from_a_step_of_four_images(bench):
    text = bench("--only", "ours", "--cells", "training single batch 4 fp32")
    (row,) = rows(text).values()
    seconds = float(row["seconds"].split()[0])
    assert float(row["the paper's steps, s"].rstrip("*").replace(",", "")) == pytest.approx(20_000 * seconds, rel=0.01)
    assert "extrapolated" in text


@pytest.mark.parametrize("variant", ["ours", "released"])
def test_running_out_of_memory_is_a_result(variant, bench, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(train_step.MAKERS, variant, full)
    monkeypatch.setattr(cells, "count_now", lambda *_: None)
    name = "training augunet batch 1 bf16"
    found = rows(bench("--cells", name))
    assert found["released, training augunet batch 1 fp32"]["images/s"] == "out of memory"
    assert (found[name]["images/s"] == "out of memory") is (variant == "ours")
    assert "1 of 1 cells are finished" in bench("--cells", name)


def test_a_cell_over_its_time_does_not_stop_the_others(bench, monkeypatch):
    monkeypatch.setitem(inference.MAKERS, "ours", lambda *_: lambda: time.sleep(30))
    monkeypatch.setattr(cells, "count_now", lambda *_: None)
    words = ("--only", "ours", "--cells", "inference batch 1 bf16", SINGLE, "--cell_seconds")
    found = rows(bench(*words, 2))
    assert found["inference batch 1 bf16"]["images/s"] == "over its time"
    # SINGLE too may take 2 seconds, on a busy machine; a cell that is cut off by the end of the run is run again
    assert found[SINGLE]["images/s"] != ""


def test_the_run_ends_in_its_time_and_the_same_command_continues(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RESERVE", 60)
    words = ("--only", "ours", "--cells", SINGLE)
    assert "1 of 1 cells are left; the same command continues" in bench(*words, "--minutes", 0.5)
    assert SINGLE in rows(bench(*words))


def test_a_cell_that_ended_the_process_goes_last(bench, tmp_path):
    names = ["training single batch 1 fp32", "training augunet batch 1 bf16"]
    words = ("--only", "ours", "--cells", *names)
    bench(*words)
    record = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0]) | {"state": "begun"}
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    first = Cell(**record["cell"]).name
    text = bench(*words)
    assert text.index(f"{first}: done") > max(text.index(f"{name}: done") for name in names if name != first)


def test_results_of_another_machine_do_not_count(bench, tmp_path):
    words = ("--only", "ours", "--cells", SINGLE)
    bench(*words)
    file = tmp_path / "results.jsonl"
    record = json.loads(file.read_text().splitlines()[-1])
    file.write_text(json.dumps(record | {"where": record["where"] | {"device": "another"}}) + "\n")
    assert "finished" not in bench(*words) and len(file.read_text().splitlines()) == 3
    file.write_text("images/s\n")
    with pytest.raises(InputError, match=r"--output: .*results.jsonl: line 1 is not a result"):
        bench(*words)


def test_a_name_of_no_cell_is_refused(bench):
    with pytest.raises(InputError, match="--cells=batch 5: in the name of no cell, such as training single"):
        bench("--cells", "batch 5")


def test_without_a_gpu_it_prints_the_cells_and_their_counted_memory(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it would fail
    monkeypatch.chdir(tmp_path)
    assert gpu.main([]) == 0
    text = capsys.readouterr().out
    found = rows(text)
    assert set(found) >= {cell.name for cell in cells.cells()} and "not counted" not in text
    assert text.splitlines()[-1].startswith("note: no GPU here, so nothing was measured")
    four, checkpointed = (found[f"training single batch 4 bf16{more}"] for more in ("", " checkpointing"))
    assert float(checkpointed["GB at peak, counted"]) < float(four["GB at peak, counted"]) < 8
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="--device=cuda: this PyTorch has no GPU"):
        gpu.main(["--device", "cuda"])


def test_a_step_needs_no_more_than_was_counted():
    """If the step has changed for the better: `python -m benchmarks.memory --recount`, and the tables in the docs."""
    cell = Cell()
    now, stored = cells.count_now(cell, "ours"), cells.stored_counts()[cell.name]
    assert now["host_waits"] == 0
    assert now["kernels"] <= stored["kernels"] and now["peak_gb"] <= 1.001 * stored["peak_gb"]
    assert now["saved_gb"] <= 1.001 * stored["saved_gb"] and now["tflop"] == pytest.approx(stored["tflop"])


def test_the_docs_have_the_counted_tables(capsys):
    memory.main([])
    page = (ROOT / "docs" / "hardware.md").read_text()
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in page


def test_storages_are_counted_until_they_end():
    with counted.on_meta() as counts:
        first = torch.empty(1000, device="meta")  # 4,000 bytes: 8 blocks
        view = first[:10]
        second = first + 1
        assert counts.allocated == counts.peak == 2 * 4096
        del first, second
        assert counts.allocated == 4096
        del view
        assert counts.allocated == 0 and counts.peak == 2 * 4096
        assert counts.kernels == {"add": 1}
        torch.ones(1, device="meta").item()
        assert counts.waits.total() == 1
