"""The verdict and the table of `make interop`, from results made up here; the measurement itself is `make interop`."""

import pytest

from interop.page import families_table, table, write_page
from interop.run import ENVIRONMENTS, PROMISED, broken_promises


def results(**changed) -> dict[str, dict]:
    """All promises kept in every release, but for `changed`: release -> {call and format: status}."""
    measured = {}
    for name in ENVIRONMENTS:
        found = {key: {"status": "ok", "difference": 1e-7} for key, where in PROMISED.items() if name in where}
        found |= {key: {"status": status, "difference": 1.0} for key, status in changed.get(name, {}).items()}
        versions = {"diffusers": name, "transformers": "1", "torch": "2"}
        measured[name] = {"versions": versions, "effect": 1.0, "results": found}
    return measured


@pytest.mark.parametrize("status", ["no-op", "wrong", "error", "absent"])
def test_what_does_not_hold_breaks_a_promise(status):
    assert broken_promises(results()) == []
    broken = broken_promises(results(newest={"pipe diffusers": status}))
    assert len(broken) == 1 and broken[0].startswith("pipe diffusers on newest")
    assert broken_promises(results(newest={"attn_procs_dict diffusers": status})) == []  # diffusers dropped that call


@pytest.mark.parametrize("key", ["pipe all-peft", "adapter all-peft", "ours all-kohya", "augunet-all pipe"])
def test_a_lora_on_all_layers_that_loads_into_nothing_breaks_a_promise(key):
    broken = broken_promises(results(newest={key: "no-op"}))
    assert len(broken) == 1 and broken[0].startswith(f"{key} on newest")


def test_families_have_columns_of_the_releases_that_have_any_of_them():
    measured = results(newest={"sdxl all-kohya": "no-op", "flux2 all": "absent"})
    measured["0.20.2"]["results"]["sdxl all"] = {"status": "absent"}
    lines = families_table(measured).splitlines()
    assert lines[0] == "| pipeline | file's keys | 0.39.0 | newest |"
    assert "| SDXL, `StableDiffusionXLPipeline` | `kohya`, all layers | ok | **no-op** |" in lines
    assert "| FLUX.2-klein, `Flux2KleinPipeline` | `peft`, all layers | ok | – |" in lines
    assert not [line for line in lines if "FLUX" in line and "kohya" in line]
    assert broken_promises(measured) == [
        f"{key} on newest: {{'status': '{status}', 'difference': 1.0}}"
        for key, status in (("flux2 all", "absent"), ("sdxl all-kohya", "no-op"))
    ]


def test_what_was_not_measured_breaks_a_promise():
    measured = results()
    del measured["0.39.0"]["results"]["ours kohya"]
    assert len(broken_promises(measured)) == 1


def test_the_table_goes_between_the_markers_and_nowhere_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- interop:begin (x) -->\nold\n<!-- interop:end -->\nafter\n")
    text = table(results(newest={"pipe released": "no-op"}))
    assert '| `released` | `pipe.load_lora_weights("folder")` | – | – | – | **no-op** |' in text
    assert '| `peft`, all layers | `pipe.load_lora_weights("folder")` | – | ok | ok | ok |' in text
    assert "| AugUNet's folder: LoRA on all layers, `conv_in.safetensors` | conv_in set by hand" in text
    for _ in range(2):
        write_page({"interop": text}, readme)
    assert readme.read_text() == f"before\n<!-- interop:begin (x) -->\n{text}\n<!-- interop:end -->\nafter\n"
    (tmp_path / "none.md").write_text("no markers")
    with pytest.raises(SystemExit, match="no pair of marker"):
        write_page({"interop": text}, tmp_path / "none.md")
