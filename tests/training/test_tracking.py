"""Trackers: what a run leaves in wandb (as its own uploader tells a server) and in TensorBoard; one curve per run."""

import gzip
import json
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from helpers import ROOT, fork, lora, python, records, run_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.errors import InputError
from utils.system.provenance import git_state
from utils.training import checkpoint, tracking, wandb_run
from utils.training.args import training_parser

SCRIPT = "sd_single_diode_pseudo_depth.py"


class Wandb(BaseHTTPRequestHandler):
    """The part of wandb's server that `wandb sync` talks to, for one run; what it was told is in `server.run`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        run, answer = self.server.run, {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.graphql(asked["operationName"], asked.get("variables") or {}, run)}
        elif self.path.endswith("/file_stream"):
            for name, part in (json.loads(body).get("files") or {}).items():
                lines = run["streams"].setdefault(name, [])
                lines[part["offset"] :] = part["content"]
        elif self.path.startswith("/upload/"):
            run["files"][unquote(self.path).removeprefix("/upload/")] = body
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_POST

    def graphql(self, operation: str, given: dict, run: dict) -> dict:
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "somebody"}}
        lines = {name: run["streams"].get(f"wandb-{name}.jsonl", []) for name in ("history", "events")}
        bucket = {"id": "x", "name": given.get("name"), "displayName": run["given"].get("displayName")}
        bucket |= {"config": json.dumps(run["config"]), "historyLineCount": len(lines["history"])}
        if operation == "RunResumeStatus":
            bucket |= {"summaryMetrics": run["streams"].get("wandb-summary.json", ["{}"])[-1], "logLineCount": 0}
            bucket |= {"historyTail": json.dumps(lines["history"][-1:]), "eventsLineCount": len(lines["events"])}
            bucket |= {"eventsTail": json.dumps(lines["events"][-1:]), "tags": run["given"].get("tags"), "notes": ""}
            return {"model": {**project, "bucket": {**bucket, "wandbConfig": "{}"} if run["given"] else None}}
        if operation == "UpsertBucket":
            inserted = not run["given"]
            run["given"] |= {key: value for key, value in given.items() if value is not None}
            run["config"] |= json.loads(given.get("config") or "{}")
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": inserted}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{quote(name)}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        return {}

    def log_message(self, *args):
        pass


def upload(output) -> dict:
    """A run on the server after `wandb sync`: given, config, streams (lists of JSON lines), files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Wandb)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.run = {"given": {}, "config": {}, "streams": {}, "files": {}}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "x" * 40, "WANDB_MODE": None, "WANDB_SILENT": None}
    done = python("-m", "wandb", "sync", *sorted(output.glob("wandb/offline-run-*")), env=env)
    server.shutdown()
    assert "rror" not in done.stderr, done.stderr
    return server.run


KILLED = """
import os, signal, sys, time
from utils.training import tracking
log = tracking.log_scalars
def log_and_die(accelerator, output_dir, values, step, complete):
    log(accelerator, output_dir, values, step, complete)
    if step == 3 and "train_loss" in values:
        [file] = output_dir.glob("wandb/offline-run-*/*.wandb")
        while file.read_bytes().count(repr(values["train_loss"]).encode()) < 2:  # in the history and in the summary
            time.sleep(0.02)  # what wandb has not written to disk dies too
        os.kill(os.getpid(), signal.SIGKILL)
tracking.log_scalars = log_and_die
import sd_single_diode_pseudo_depth as script
script.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Output folder of a run of 4 steps that was killed after its third and went on from its second; made once."""
    made = []

    def build(flags):
        if not made:
            output = tmp_path_factory.mktemp("killed") / "run"
            words = ["--report_to", "tensorboard,wandb", "--checkpointing_steps", 2, "--validation_steps", 2]
            words += ["--max_train_steps", 4, "--tracker_project", "shapes", "--run_name", "a name"]
            words += ["--tracker_tags", "mini, test", "--hub_token", "hf_secret", "--resume_from_checkpoint", "latest"]
            words = flags(SCRIPT, output, *words, "--rank", 4)
            env = {"WANDB_MODE": None, "WANDB_API_KEY": None, "NETRC": str(output / "none"), "PYTHONPATH": str(ROOT)}
            first = fork("-c", KILLED, *words, env=env, check=False, whole=True)
            assert first.returncode == -9 and "wandb is offline (not logged in" in first.stdout, first.stderr
            time.sleep(1)  # wandb's folders are named for the second
            second = fork(SCRIPT, *words, env=env, whole=True)
            assert "at step 2" in second.stdout and "wandb sync" in second.stdout
            made.append((output, upload(output)))
        return made[0]

    return build


def test_a_killed_and_resumed_run_is_one_curve_in_wandb(flags, killed):
    output, run = killed(flags)
    assert len(list(output.glob("wandb/offline-run-*"))) == 2
    assert run["given"]["name"] == (output / "wandb_id.txt").read_text()
    history = [json.loads(line) for line in run["streams"]["wandb-history.jsonl"]]
    assert [line["_step"] for line in history] == [0, 1, 2, 3, 4]
    for record in records(output):
        line = history[record.pop("step")]
        record.pop("samples_per_second", None)  # step 3 was timed twice
        assert {name: line[name] for name in record} == record
    assert {"val/train/abs_rel", "val/indoors/abs_rel", "val/outdoor/delta1"} <= set(history[4])


@pytest.mark.parametrize(("name", "split"), [
    ("training images", "train/"), ("test images 1", "val/indoors/"), ("test images 2", "val/out"),
])  # fmt: skip
def test_wandb_panels_have_the_stems_as_captions(name, split, flags, killed):
    _, run = killed(flags)
    history = [json.loads(line) for line in run["streams"]["wandb-history.jsonl"]]
    assert [line["_step"] for line in history if f"validation: {name}" in line] == [0, 2, 4]
    panel = history[4][f"validation: {name}"]
    assert len(panel["captions"]) == 4 and all(stem.startswith(split) for stem in panel["captions"])
    assert all(run["files"][file][:4] == b"\x89PNG" for file in panel["filenames"])


def test_wandb_config_describes_the_run(flags, killed):
    output, run = killed(flags)
    config = {key: entry["value"] for key, entry in run["config"].items()}
    assert run["given"]["displayName"] == "a name" and run["given"]["project"] == "shapes"
    assert sorted(run["given"]["tags"]) == ["mini", "test"]
    wanted = {action.dest for action in training_parser("", {})._actions} - {"help", "hub_token"}
    assert wanted <= set(config) and "hub_token" not in config
    assert config["learning_rate"] == 1e-4 and config["task"] == "depth" and config["total_steps"] == 4
    assert config["training_images"] == 24 and config["validation_images"] == {"train": 4, "indoors": 4, "outdoor": 4}
    assert config["lora_parameters"] == sum(value.numel() for value in lora(output).values())
    assert {"torch", "diffusers", "peft", "python"} <= set(config["versions"])
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert config["git_commit"] == (head or None)


def test_no_token_reaches_a_tracker(flags, killed):
    output, run = killed(flags)
    metadata = json.loads(run["files"]["wandb-metadata.json"])
    assert "--hub_token" in metadata["args"], "wandb writes the command line down"
    assert b"hf_secret" not in b"".join([*run["files"].values(), json.dumps(run["streams"]).encode()])
    assert not [path for path in output.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_the_best_checkpoint_is_marked(flags, killed):
    output, run = killed(flags)
    scores = {r["step"]: r["val/indoors/abs_rel"] for r in records(output) if "val/indoors/abs_rel" in r}
    step = min((2, 4), key=scores.get)
    found = {"metric": "val/indoors/abs_rel", "value": scores[step], "step": step, "checkpoint": f"checkpoint-{step}"}
    assert json.loads((output / tracking.BEST).read_text()) == found
    summary = json.loads(run["streams"]["wandb-summary.json"][-1])
    assert {key: summary[f"best/{key}"] for key in found} == found


def test_tensorboard_shows_the_same(flags, killed):
    output, _ = killed(flags)
    board = EventAccumulator(str(output / "logs" / "shapes"), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    assert len(list((output / "logs" / "shapes").iterdir())) == 2, "a file per start, and no other runs"
    shown = {name: {event.step: event.value for event in board.Scalars(name)} for name in board.Tags()["scalars"]}
    for record in records(output):
        step = record.pop("step")
        assert {name: shown[name][step] for name in record} == pytest.approx(record, rel=1e-6)
    assert [event.step for event in board.Scalars("train_loss")] == [1, 2, 3, 4]
    stems = [name.split("/", 1) for name in board.Tags()["images"]]
    assert len(stems) == 12 and ["validation: test images 1", "val/indoors"] in [[a, b[:11]] for a, b in stems]
    assert [event.step for event in board.Images("/".join(stems[0]))] == [0, 2, 4]
    config = board.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| learning_rate | 0.0001 |" in config and "| versions.torch |" in config and "git_commit" in config
    assert "| checkpoint | checkpoint-" in board.Tensors("best/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_a_clock_that_is_set_back_does_not_show_steps_twice_in_tensorboard(flags, tmp_path, monkeypatch):
    """Its files' names begin with the time, and it reads them in that order."""
    words = ["--checkpointing_steps", 2, "--validation_steps", 0, "--resume_from_checkpoint", "latest", "--rank", 4]
    words = flags(SCRIPT, tmp_path, *words, "--max_train_steps", 4, "--tracker_project", "shapes")
    words[words.index("--report_to") + 1] = "tensorboard"
    now = time.time
    for hours in range(3):
        monkeypatch.setattr(time, "time", lambda hours=hours: now() - 3600 * hours)
        run_here(SCRIPT, words)
        shutil.rmtree(tmp_path / "checkpoint-4")  # as a kill after step 4 leaves it
    board = EventAccumulator(str(tmp_path / "logs" / "shapes"))
    board.Reload()
    assert [event.step for event in board.Scalars("train_loss")] == [1, 2, 3, 4]


def test_a_run_with_parts_not_uploaded_stays_offline(flags, killed, tmp_path, monkeypatch, capsys):
    """Otherwise the later part would come before the earlier one in wandb."""
    output, _ = killed(flags)
    assert wandb_run.not_uploaded(output) == []  # `wandb sync` has left its mark
    copy = shutil.copytree(output, tmp_path / "run", symlinks=True)
    for mark in copy.glob("wandb/offline-run-*/*.synced"):
        mark.unlink()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(tracking, "wandb_mode", lambda: ("online", ""))
    words = flags(SCRIPT, copy, "--max_train_steps", 5, "--resume_from_checkpoint", "latest", "--rank", 4)
    words[words.index("--report_to") + 1] = "wandb"
    run_here(SCRIPT, words)
    assert "wandb is offline (2 earlier part(s) of this run are not uploaded yet)" in capsys.readouterr().out


def test_what_a_kill_took_from_wandbs_file_is_sent_on_resuming(flags, tmp_path, capfd):
    """The file is cut after step 0, as a machine that goes down leaves it; the checkpoint is of step 2."""
    words = ["--checkpointing_steps", 2, "--validation_steps", 2, "--resume_from_checkpoint", "latest"]
    words = flags(SCRIPT, tmp_path, *words, "--rank", 4)
    words[words.index("--report_to") + 1] = "wandb"
    run_here(SCRIPT, [*words, "--max_train_steps", "2"])
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    whole, steps = file.read_bytes(), set()
    for size in range(len(whole), 7, -40):  # wherever it is cut, what is left is read
        file.write_bytes(whole[:size])
        steps = {step for step, _ in wandb_run.kept_locally(tmp_path)}
        assert steps == set(range(len(steps)))
        if steps == {0}:
            break
    run_here(SCRIPT, [*words, "--max_train_steps", "4"])
    first, second = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    held = [list(wandb_run._history(file)) for file in (first, second)]
    numbers = [pair for pairs in held for pair in pairs if not pair[1].startswith(("_", "validation"))]
    logged = [(line["step"], name) for line in records(tmp_path) for name in line if name != "step"]
    assert sorted(numbers) == sorted(logged), "every number once"
    assert list(dict.fromkeys(step for step, _ in held[1])) == [1, 2, 3, 4], "in order, or wandb drops them"
    assert "monotonic" not in "".join(capfd.readouterr())


def test_files_removed_after_their_upload_are_not_sent_again(flags, tmp_path):
    words = flags(SCRIPT, tmp_path, "--resume_from_checkpoint", "latest", "--rank", 4, "--validation_steps", 0)
    words[words.index("--report_to") + 1] = "wandb"
    run_here(SCRIPT, [*words, "--max_train_steps", "2"])
    shutil.rmtree(tmp_path / "wandb")
    run_here(SCRIPT, [*words, "--max_train_steps", "3"])
    assert {step for step, _ in wandb_run.kept_locally(tmp_path)} == {3}


def test_another_runs_id_from_outside_is_an_error(flags, tmp_path, monkeypatch):
    """A sweep's agent gives runs its own ids."""
    import wandb

    words = flags(SCRIPT, tmp_path, "--max_train_steps", 1, "--validation_steps", 0)
    words[words.index("--report_to") + 1] = "wandb"
    original = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **given: original(**{**given, "id": "another1"}))
    with pytest.raises(InputError, match="wandb continues run another1"):
        run_here(SCRIPT, words)
    wandb.teardown()  # else the next test's run would continue this one


def test_pruning_spares_the_best_checkpoint(flags, tmp_path):
    words = ["--max_train_steps", 4, "--checkpointing_steps", 1, "--validation_steps", 1, "--learning_rate", 1e-30]
    words += ["--checkpoints_total_limit", 1, "--best_metric", "val/outdoor/delta1"]
    run_here(SCRIPT, flags(SCRIPT, tmp_path, *words, "--max_grad_norm", 1e-30, "--adam_weight_decay", 0))
    assert checkpoint.best_folder(tmp_path) == "checkpoint-1"  # nothing moves, so the first of equals stays the best
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]


def test_an_unknown_best_metric_ends_the_run_with_the_names(flags, tmp_path):
    with pytest.raises(InputError, match=r"--best_metric=val/indoors/angle: .*val/indoors/abs_rel"):
        run_here(SCRIPT, flags(SCRIPT, tmp_path, "--max_train_steps", 1, "--best_metric", "val/indoors/angle"))


def fake_run(folder, metric: str, values: dict[int, float], checkpoints: tuple[int, ...]):
    for step in checkpoints:
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "training_state.pt").touch()
    lines = [{"step": step, metric: value} for step, value in values.items()]
    (folder / tracking.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("metric", "values", "checkpoints", "step"), [
    ("val/indoors/mean", {0: 1.0, 2: 9.0, 4: 5.0, 6: 7.0}, (2, 4, 6), 4),  # no checkpoint at 0
    ("val/indoors/mean", {2: 9.0, 4: 5.0, 6: 7.0}, (2, 6), 6),
    ("val/indoors/below_11.25", {2: 9.0, 4: 5.0, 6: 7.0}, (2, 4, 6), 2),
    ("val/outdoor/delta1", {2: 0.1, 4: float("nan"), 6: 0.2}, (2, 4, 6), 6),
    ("val/indoors/mean", {2: 5.0, 4: 5.0}, (2, 4), 2),
])  # fmt: skip
def test_the_best_step_follows_the_metrics_direction(tmp_path, metric, values, checkpoints, step):
    fake_run(tmp_path, metric, values, checkpoints)
    assert checkpoint.mark_best(tmp_path, None)["step"] == step
    assert checkpoint.best_folder(tmp_path) == f"checkpoint-{step}"


def test_nothing_is_best_without_a_checkpoint(tmp_path):
    fake_run(tmp_path, "val/indoors/mean", {2: 1.0}, (2,))
    checkpoint.mark_best(tmp_path, None)
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert checkpoint.mark_best(tmp_path, None) is None and checkpoint.best_folder(tmp_path) is None


def test_git_state_of_this_project():
    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True).stdout.strip()

    if Path(git("rev-parse", "--show-toplevel") or "/") != ROOT:
        pytest.skip("not a git checkout")
    dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    assert git_state() == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": dirty}


def test_git_state_is_of_the_projects_own_repository(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e@e"]
        return subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)

    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None}
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-q", "-m", "a")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": True}
    (tmp_path / "copy").mkdir()
    assert git_state(tmp_path / "copy")["git_commit"] is None, "another project's repository around this one"


def test_wandb_goes_offline_without_login(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert wandb_run.wandb_mode({}) == ("offline", "not logged in: run `wandb login` or set WANDB_API_KEY")


def test_wandb_goes_offline_without_network():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, never listening: a connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        mode, reason = wandb_run.wandb_mode({"WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": url})
    assert mode == "offline" and "cannot be reached" in reason and time.monotonic() - started < 60


def test_wandb_is_online_when_possible():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert wandb_run.wandb_mode({"WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": url}) == ("online", "")


def test_the_users_mode_wins():
    assert wandb_run.wandb_mode({"WANDB_MODE": "disabled"}) == ("disabled", "")


def test_run_id_is_kept(tmp_path):
    made = wandb_run.wandb_id(tmp_path)
    assert len(made) == 8 and wandb_run.wandb_id(tmp_path) == made
    (tmp_path / "wandb_id.txt").write_text("abcd1234\n")  # as the released code left it
    assert wandb_run.wandb_id(tmp_path) == "abcd1234"


def test_metrics_past_the_checkpoint_are_dropped(tmp_path):
    file = tmp_path / tracking.METRICS
    lines = [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(lines) + '{"step": 4, "tra')  # killed while writing
    assert tracking.forget_after(tmp_path, 2, validation_steps=5) == {(3, "loss")}
    assert file.read_text() == "".join(lines[:2])


@pytest.mark.parametrize(("last", "dropped"), [
    ({"step": 4, "val/train/mean": 1.0}, {(3, "loss"), (4, "loss"), (4, "val/train/mean")}),
    ({"step": 4, "grad_norm": 1.0}, {(3, "loss")}),  # killed while validating: wandb never got the step
])  # fmt: skip
def test_nothing_is_logged_to_wandb_twice(tmp_path, last, dropped):
    lines = [*({"step": step, "loss": 0.5} for step in (1, 2, 3, 4)), last]
    (tmp_path / tracking.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tracking.forget_after(tmp_path, 2, validation_steps=4) == dropped
