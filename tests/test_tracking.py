"""Trackers: wandb never asks and never waits, and its run id outlives a restart."""

import json
import socket
import time

from utils import tracking


def test_wandb_goes_offline_without_login(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert tracking.wandb_mode({}) == ("offline", "not logged in: run `wandb login` or set WANDB_API_KEY")


def test_wandb_goes_offline_without_network():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, never listening: a connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        mode, reason = tracking.wandb_mode({"WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": url})
    assert mode == "offline" and "cannot be reached" in reason and time.monotonic() - started < 10


def test_wandb_goes_online_when_it_can():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert tracking.wandb_mode({"WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": url}) == ("online", "")


def test_the_users_mode_wins():
    assert tracking.wandb_mode({"WANDB_MODE": "disabled"}) == ("disabled", "")


def test_run_id_is_kept(tmp_path):
    made = tracking.wandb_id(tmp_path)
    assert len(made) == 8 and tracking.wandb_id(tmp_path) == made
    (tmp_path / "wandb_id.txt").write_text("abcd1234\n")  # as the released code left it
    assert tracking.wandb_id(tmp_path) == "abcd1234"


def test_metrics_past_the_checkpoint_are_dropped(tmp_path):
    file = tmp_path / tracking.METRICS
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(lines) + '{"step": 4, "tra')  # killed while writing
    tracking.forget_after(tmp_path, 2)
    assert file.read_text() == "".join(lines[:2])
