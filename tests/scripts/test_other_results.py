"""No command overwrites the results of another run without a word."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

import evaluate
import inference_sd_single
import predict
from utils.errors import InputError
from utils.lora import SAFETENSORS, read_lora
from utils.lora.__main__ import main as lora_main

NORMAL = ROOT / "miniworld" / "mini-loras" / "normal"


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """score(*flags): evaluate.py in tmp_path, on maps in pred/, other/ and gt/."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("gt", "pred", "other"):
        values = rng.normal(size=(2, 12, 16, 3)).astype(np.float32)
        (tmp_path / folder).mkdir()
        for number, one in enumerate(values / np.linalg.norm(values, axis=-1, keepdims=True)):
            np.save(tmp_path / folder / f"{number}_normal.npy", one)

    def score(*flags: str) -> None:
        evaluate.main(["--task", "normal", "--pred_dir", "pred", "--gt_dir", "gt", "--bootstrap", "0", *flags])

    return score


def test_a_mistyped_folder_is_named_before_the_other_result(scored):
    scored()
    with pytest.raises(InputError, match="predictd") as failure:
        scored("--pred_dir", "predictd")
    assert "another run" not in str(failure.value)


@pytest.mark.parametrize("flags", [
    ["--pred_dir", "other"], ["--gt_dir", "other"], ["--protocol", "per_image"], ["--erode", "1"],
    ["--center_crop"], ["--gt_frame", "opengl"], ["--by_stem"], ["--seed", "1", "--bootstrap", "9"],
])  # fmt: skip
def test_a_result_of_other_flags_is_kept(flags, scored, tmp_path):
    scored("--report", "report")
    before = [(tmp_path / name).read_bytes() for name in ("metrics.json", "report/index.html")]
    name = flags[0].removeprefix("--")
    with pytest.raises(InputError, match=rf"^--output metrics.json: holds the result of another run \(.*{name} .*now"):
        scored(*flags)
    with pytest.raises(InputError, match=rf"^--report report/index.html: holds the result of .*\({name}|; {name}"):
        scored(*flags, "--output", "another.json", "--report", "report")
    assert before == [(tmp_path / name).read_bytes() for name in ("metrics.json", "report/index.html")]
    assert not (tmp_path / "another.json").exists()
    scored(*flags, "--output", "another.json")


def test_the_same_run_repeated_replaces_its_result_with_a_note(scored, capsys):
    scored("--report", "report")
    assert "replaces" not in capsys.readouterr().out
    scored("--gt_frame", "opencv", "--report", "report", "--baseline", "mean", "--workers", "1")  # the default, typed
    said = capsys.readouterr().out
    for path in ("metrics.json", "report/index.html"):
        assert re.search(rf"note: {path}: replaces the result of an earlier run .*, whose mean was \d+\.\d", said)
    assert said.rstrip().endswith("next: open report/index.html")


def test_a_result_of_an_older_version_is_compared_by_its_settings(scored, tmp_path):
    scored()
    result = json.loads((tmp_path / "metrics.json").read_text())
    del result["flags"]
    (tmp_path / "metrics.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="pred_dir pred, now other"):
        scored("--pred_dir", "other")
    scored()


@pytest.mark.parametrize("content", ['{"accuracy": 1}', "no JSON", "[1]"])
def test_another_programs_file_is_kept(content, scored, tmp_path):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match=r"--output metrics.json: is there and is no result of evaluate.py"):
        scored()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text(content)
    with pytest.raises(InputError, match=r"--report site/index.html: is there and is no result"):
        scored("--output", "new.json", "--report", "site")


def test_maps_of_another_lora_are_named_before_they_are_replaced_or_mixed(tmp_path, capsys):
    changed = tmp_path / "changed"
    shutil.copytree(NORMAL, changed)
    state = load_file(changed / SAFETENSORS)
    half = {key: value * 0.5 for key, value in state.items()}
    save_file(half, changed / SAFETENSORS, read_lora(NORMAL).metadata)
    rng = np.random.default_rng(0)
    for name in ("in/a.png", "in/b.png", "more/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / name)

    def run(lora, folder: str) -> tuple[str, str]:
        words = ["--lora", lora, "--input_dir", tmp_path / folder, "--output_dir", tmp_path / "out", "--npy"]
        inference_sd_single.main([*map(str, words), "--device", "cpu"])
        return capsys.readouterr()

    assert "maps by" not in "".join(run(NORMAL, "in")) and "maps by" not in "".join(run(NORMAL, "in"))
    said = run(changed, "more")
    folder = tmp_path / "out/normal/predicted"
    stay = f"warning: {folder}: 2 maps by mini-loras/normal stay among those by {tmp_path.name}/changed; remove them"
    assert stay in said.err and "replaced" not in said.out

    (tmp_path / "gt").mkdir()
    for stem in "abc":
        np.save(tmp_path / f"gt/{stem}_normal.npy", np.load(folder / f"{stem}_normal.npy"))
    words = ["--task", "normal", "--pred_dir", folder, "--gt_dir", tmp_path / "gt", "--output", tmp_path / "m.json"]
    evaluate.main([str(word) for word in words])
    (line,) = json.loads((tmp_path / "m.json").read_text())["warnings"]
    assert line.startswith("the predictions were made with 2 LoRAs (2 of mini-loras/normal, 1 of ")

    said = run(changed, "in")
    assert (
        f"note: {folder}: 2 maps by mini-loras/normal are replaced by those of" in said.out and "stay" not in said.err
    )


def test_the_page_replaces_only_a_page_of_its_own(tmp_path, capsys):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    words = [str(tmp_path / "a.png"), "--lora", str(NORMAL), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/index.html").write_text("<title>My site</title>")
    with pytest.raises(InputError, match=r"index\.html is another page, which would be overwritten"):
        predict.main(words)
    assert (tmp_path / "out/index.html").read_text() == "<title>My site</title>"
    (tmp_path / "out/index.html").unlink()
    predict.main(words)
    assert "of an earlier run is replaced" not in capsys.readouterr().out
    predict.main(words)
    assert "index.html: the page of an earlier run is replaced; its maps stay" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_convert_replaces_only_the_same_weights(suffix, tmp_path, capsys):
    out = tmp_path / f"x{suffix}"
    words = ["convert", str(NORMAL), str(out), "--format", "peft"]
    lora_main(words)
    before = out.read_bytes()
    with pytest.raises(InputError, match="is there and holds something else"):
        lora_main([*words[:-1], "kohya"])
    assert out.read_bytes() == before
    lora_main(words)
    assert "replaces the same weights" in capsys.readouterr().out
    out.write_text("not a LoRA")
    with pytest.raises(InputError, match="is there and holds something else"):
        lora_main(words)
