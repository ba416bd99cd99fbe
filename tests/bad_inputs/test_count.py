"""docs/reliability.md states how many bad inputs the tests try: pytest's own count of them."""

import re
from pathlib import Path

import pytest
from helpers import ROOT


def test_the_docs_state_the_number_of_bad_inputs(request):
    tried = [item for item in request.session.items if item.get_closest_marker("bad_input")]
    if {item.path for item in tried} != set(Path(__file__).parent.glob("test_bad_*.py")):
        pytest.skip("only a part of the bad inputs was collected")
    stated = int(re.search(r"(\d+) kinds of bad input", (ROOT / "docs" / "reliability.md").read_text())[1])
    assert stated <= len(tried) < stated + 25
