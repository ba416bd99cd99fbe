"""Each target of tests/fuzz.py reads the good files that its fuzzing starts from."""

import fuzz
import pytest


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_target_reads_its_good_files_or_refuses_them(name, tmp_path):
    target = fuzz.TARGETS[name]
    for content in target.seeds():
        path = tmp_path / f"a{target.suffix}"
        path.write_bytes(content)
        try:
            target.read(path)
        except target.refusal as error:
            assert str(error)
