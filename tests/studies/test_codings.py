"""Codings of depth, measured: the whole command in little, two of its settings."""

import shutil

import pytest
from helpers import ROOT

from studies import codings


@pytest.mark.slow
def test_the_command_trains_scores_and_writes_its_table(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(codings, "LABELS", {name: codings.LABELS[name] for name in ("linear", "log")})
    shutil.copy(ROOT / "studies" / "results" / "codings.md", tmp_path)
    words = ["--work", str(tmp_path / "work"), "--docs", str(tmp_path), "--seeds", "1", "--steps", "1"]
    codings.main([*words, "--train", "8", "--val", "2"])
    text = (tmp_path / "codings.md").read_text()
    assert "| `linear` |" in text and "| 1.00 [1.00, 1.00] |" in text and "| `log` |" in text
    assert "# Codings of depth: results" in text
    assert "sd_single_diode_pseudo_depth.py" in capfd.readouterr().out
    codings.main([*words, "--train", "8", "--val", "2"])  # all of it is there
    assert "sd_single_diode" not in capfd.readouterr().out
