"""notebooks/load_checkpoint.ipynb, executed by a real kernel on mini-sd and four short runs; kept stripped."""

import shutil

import nbformat
import numpy as np
import pytest
from helpers import ROOT, run_here
from nbclient import NotebookClient
from PIL import Image

import inference_sd_single

NOTEBOOK = ROOT / "notebooks" / "load_checkpoint.ipynb"
SCRIPTS = {
    "normal": "sd_single_diode_pseudo_normal.py",
    "depth": "augunet_diode_pseudo_depth.py",
    "albedo": "sd_single_diode_pseudo_albedo.py",
    "shading": "sd_single_diode_pseudo_shading.py",
}


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 8 and all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells), "a run leaves times and folds there"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"} and str(ROOT) not in NOTEBOOK.read_text()


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(folder with a LoRA per task, the image and the arrays, outputs by cell id); made once."""
    made = []

    def build(flags, diode):
        if not made:
            folder = tmp_path_factory.mktemp("notebook")
            world = shutil.copytree(diode, folder / "world", ignore=shutil.ignore_patterns("val"))  # 4 panels, not 12
            for task, script in SCRIPTS.items():
                words = flags(script, folder / task, "--max_train_steps", 2, "--learning_rate", 1e-2, "--rank", 4)
                words = [word.replace(str(diode), str(world)) for word in words]
                words[words.index("--pretrained_model_name_or_path") + 1] = str(ROOT / "miniworld" / "mini-sd")
                if "--augment_from" in words:
                    words[words.index("--augment_from") + 1] = str(ROOT / "miniworld" / "mini-ip2p")
                run_here(script, words)
            picture = next((diode / "depths" / "val" / "indoors").rglob("*.png"))
            made.append((folder, picture, execute(folder, [str(folder / task) for task in SCRIPTS], picture)))
        return made[0]

    return build


@pytest.mark.slow
def test_it_runs_as_shipped():
    """On a fresh clone, with nothing trained: the LoRAs that come along, on a rendered scene."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = {cell.get("id"): cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert text(outputs["draw"]).count("float32") == 4 and pictures(outputs["show"]) == 1
    assert text(outputs["show"]).count("(384, 512") == 4 and outputs["first"] == []
    assert not loud(outputs)
    assert float(text(outputs["product"]).split(": ")[1]) > 0.5  # albedo times shading looks like the image


def execute(folder, loras: list[str], picture) -> dict[str, list]:
    """Run the notebook with these parameters; return its outputs by cell id. Its arrays go to <folder>/<task>.npy."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = f"LORAS = {loras!r}\nBASE = None\nIMAGE = {str(picture)!r}"
    kept = f"for task, array in by_hand.items():\n    np.save(f'{folder}/{{task}}.npy', array)"
    notebook.cells.append(nbformat.v4.new_code_cell(kept))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()
    return {cell.get("id"): cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text(outputs: list) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


def loud(outputs: dict[str, list]) -> list[str]:
    """Cells that write to stderr: warnings and bars."""
    return [name for name, each in outputs.items() if any(output.get("name") == "stderr" for output in each)]


def pictures(outputs: list) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_both_ways_of_loading_load_the_same(flags, diode, executed):
    _, _, outputs = executed(flags, diode)
    changed = float(text(outputs["paper"]).split("changes by ")[1])
    assert changed > 0.01 and "diffusers 0." in text(outputs["paper"])
    assert float(text(outputs["ours"]).split("loading: ")[1]) < 1e-4


@pytest.mark.slow
def test_float_arrays_come_out(flags, diode, executed):
    folder, picture, outputs = executed(flags, diode)
    maps = {task: np.load(folder / f"{task}.npy") for task in SCRIPTS}
    shapes = {task: (32, 32) if task == "depth" else (32, 32, 3) for task in SCRIPTS}
    assert {task: values.shape for task, values in maps.items()} == shapes
    assert all(values.dtype == np.float32 and values.std() > 0.01 for values in maps.values())
    np.testing.assert_allclose(np.linalg.norm(maps["normal"], axis=2), 1, atol=1e-5)
    assert text(outputs["draw"]).count("float32") == 4
    (folder / "in").mkdir()
    Image.open(picture).save(folder / "in" / "p.png")
    for task in ("normal", "albedo"):
        words = [
            "--lora",
            folder / task,
            "--input_dir",
            folder / "in",
            "--output_dir",
            folder / "out",
            "--npy",
            "--center_crop",
        ]
        inference_sd_single.main([str(word) for word in words])
        np.testing.assert_allclose(
            np.load(folder / "out" / task / "predicted" / f"p_{task}.npy"), maps[task], atol=1e-4
        )


@pytest.mark.slow
def test_every_task_is_shown(flags, diode, executed):
    _, _, outputs = executed(flags, diode)
    assert {name: pictures(outputs[name]) for name in ("show", "relit", "points", "product")} == {
        "show": 1, "relit": 1, "points": 1, "product": 1,
    }  # fmt: skip
    assert "correlation of product and image" in text(outputs["product"])
    assert not loud(outputs), "warnings and bars in a page that teaches"
