"""JSON files that strangers, other programs or an interrupted copy have left: every reader refuses every kind."""

import json
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bad_files import encoded, malicious_pickle
from refusals import NEEDED, SCRIPT, main_refused, refused

from dataloaders.prepare.archives import STATE, _read_state
from utils.base_model.single_file import check_file
from utils.errors import InputError
from utils.evaluation.scoring import _score_judgements
from utils.image_io.diode_names import read_meta
from utils.inference.video import SETTINGS, _claim
from utils.intrinsics import NORMAL
from utils.kinds.label_record import PROVENANCE, check_record, record_above, training_use
from utils.labels.encoding import record
from utils.training.args import RECOMMENDED
from utils.training.checkpoint import best_folder
from utils.training.tracking import BEST, METRICS, read_metrics

pytestmark = pytest.mark.bad_input
CONTENTS = {
    "empty": b"",
    "blank": b" \n",
    "cut": b'{"a": [1, {"b',
    "text": b"not JSON",
    "a number": b"3",
    "a large number": b"1e999",
    "null": b"null",
    "true": b"true",
    "a string": b'"unet"',
    "a list": b"[]",
    "a list of numbers": b"[1, 2]",
    "a list of nothing": b"[null]",
    "a list of lists": b'[["a"]]',
    "two objects": b"{}{}",
    "a comment": b"// {}\n{}",
    "single quotes": b"{'a': 1}",
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
    "utf-16": "{}".encode("utf-16"),
    "no unicode": b'{"a": "\xff"}',
    "an image": encoded("PNG"),
    "a pickle": malicious_pickle(),
    "zeros": bytes(100),
    "a page": b"<!doctype html><title>404</title>",
}


def checkpoint(folder: Path, content: bytes) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(64))
    check_file(path)


def judgements(folder: Path, content: bytes) -> None:
    path = folder / "x.json"
    path.write_bytes(content)
    pair, rules = SimpleNamespace(prediction=None, name="x"), SimpleNamespace(gt_space="srgb")
    try:
        _score_judgements(pair, np.ones((4, 4)), path, path.read_bytes, rules)
    except ValueError as error:  # the evaluation adds which images are concerned
        raise InputError(str(error)) from None


def labels(folder: Path, content: bytes) -> None:
    (folder / PROVENANCE).write_bytes(content)
    record(folder, {"task": "normal"}, overwrite=False)


def provenance(folder: Path, content: bytes) -> None:
    (folder / PROVENANCE).write_bytes(content)
    check_record([folder], training_use(NORMAL))


def names(folder: Path, content: bytes) -> None:
    (folder / "diode_meta.json").write_bytes(content)
    read_meta(folder)


def film(folder: Path, content: bytes) -> None:
    (folder / SETTINGS).write_bytes(content)
    _claim(folder, {"view": {}})


def best(folder: Path, content: bytes) -> None:
    (folder / BEST).write_bytes(content)
    best_folder(folder)


READERS = {
    "x.safetensors": checkpoint,
    "x.json": judgements,
    f"{PROVENANCE}: cannot be read": provenance,
    f"{PROVENANCE}: not readable": labels,
    "diode_meta.json": names,
    SETTINGS: film,
    BEST: best,
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_json_that_is_not_what_it_should_be(reader, content, tmp_path):
    refused(lambda: READERS[reader](tmp_path, CONTENTS[content]), re.escape(reader))


@pytest.mark.parametrize("content", CONTENTS)
def test_a_base_with_settings_that_cannot_be_read(content, tmp_path):
    (tmp_path / RECOMMENDED).write_bytes(CONTENTS[content])
    words = [str(tmp_path) if word == NEEDED[1] else word for word in NEEDED]
    main_refused(SCRIPT, [*words, tmp_path / "run"], re.escape(RECOMMENDED))
    assert not (tmp_path / "run").exists()


WRONG_SETTINGS = ['{"resolution": Infinity}', '{"timestep": NaN}', '{"learning_rate": []}', '{"timestep": "x"}',
                  '{"batch": 3}', '{"resolution": null}', '{"resolution": 100}', '{"learning_rate": -1}',
                  '{"learning_rate": NaN}']  # fmt: skip


@pytest.mark.parametrize("content", WRONG_SETTINGS)
def test_a_base_with_settings_that_cannot_be(content, tmp_path):
    (tmp_path / RECOMMENDED).write_text(content)
    words = [str(tmp_path) if word == NEEDED[1] else word for word in NEEDED]
    main_refused(SCRIPT, [*words, tmp_path / "run"], f"{RECOMMENDED}|{next(iter(json.loads(content)))}|not a Stable")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", CONTENTS)
def test_records_that_only_save_time_are_begun_again(content, tmp_path):
    """The archives that were unpacked, the record of a folder above, and a run's numbers: unreadable is unknown."""
    for name in (STATE, PROVENANCE, METRICS):
        (tmp_path / name).write_bytes(CONTENTS[content])
    assert _read_state(tmp_path) == {} and record_above(tmp_path) == {} and read_metrics(tmp_path) == []


POINT = {"id": 1, "x": 0.5, "y": 0.5, "opaque": True}
PAIR = {"point1": 1, "point2": 1, "darker": "1", "darker_score": 1.0}
JUDGED = {
    "no points": {"intrinsic_comparisons": [PAIR]},
    "no comparisons": {"intrinsic_points": [POINT]},
    "none": {"intrinsic_points": [], "intrinsic_comparisons": []},
    "a point that is not there": {"intrinsic_points": [POINT], "intrinsic_comparisons": [PAIR | {"point2": 7}]},
    **{
        f"a point at {key} {value}": {
            "intrinsic_points": [POINT | {key: value}], "intrinsic_comparisons": [PAIR],
        }
        for key in "xy" for value in (-0.5, 1.0, 7, "a", None, float("nan"), float("inf"))
    },
    **{
        f"a score of {value}": {"intrinsic_points": [POINT], "intrinsic_comparisons": [PAIR | {"darker_score": value}]}
        for value in ("1", [1], -1.0, 0, None)
    },
    "another verdict": {"intrinsic_points": [POINT], "intrinsic_comparisons": [PAIR | {"darker": "3"}]},
    "a point that is a list": {"intrinsic_points": [[1, 2]], "intrinsic_comparisons": [PAIR]},
    "points by name": {"intrinsic_points": {"1": POINT}, "intrinsic_comparisons": [PAIR]},
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGED)
def test_judgements_that_are_none(name, tmp_path):
    content = json.dumps(JUDGED[name]).encode()
    refused(lambda: judgements(tmp_path, content), re.escape("x.json"), "not judgements|no comparison|NaN|integer")
