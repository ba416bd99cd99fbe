"""The measurement of the convention check, small: no false alarm on any correct set, each wrong one named."""

import pytest

from studies import conventions


@pytest.mark.parametrize("task", ["normal", "depth"])
def test_no_right_map_is_reported_and_each_wrong_label_is(task, tmp_path):
    scenes = conventions.shots(task, 18, (0, 1, 2))
    made = dict(conventions.correct_sets(task, scenes, tmp_path))
    assert {"mini-lora's predictions", "an untrained LoRA's predictions", "noise alone"} < set(made)
    for name, maps in made.items():
        cells = conventions.rates(task, conventions.evidence_of(task, maps), draws=20)
        assert cells == ["0 (0)"] * 3, name
    for name, right, maps in conventions.wrong_sets(task, scenes, "labels"):
        one, four, sixteen = conventions.rates(task, conventions.evidence_of(task, maps), right, draws=20)
        assert sixteen == "100 (100)", (name, one, four, sixteen)


def test_the_tables_hold_every_set_and_size():
    alarms = [["normal", "noise", "0 (0)", "1 (0)", "2 (1)"], ["depth", "noise", "3 (0)", "4 (0)", "5 (0)"]]
    assert conventions.false_alarms(alarms).splitlines()[-1] == (
        "| noise | 0 (0) / 1 (0) / 2 (1) | 3 (0) / 4 (0) / 5 (0) |"
    )
    found = [["depth", f"far, {kind}", "9 (0)", "9 (0)", "9 (9)"] for kind in ("labels", "predictions")]
    assert conventions.detected(found).splitlines()[-1] == (
        "| depth | far | 9 (0) / 9 (0) / 9 (9) | 9 (0) / 9 (0) / 9 (9) |"
    )
