"""The app's command line and server: permitted requests, served files, and cleaning up."""

import socket
from pathlib import Path
from urllib.parse import urlparse

import httpx
import psutil
import pytest
from helpers import ROOT, python
from serving import start

from app import __main__ as app
from utils.errors import InputError

API = "/gradio_api"


def test_without_gradio_one_line_names_the_package_and_the_command(monkeypatch):
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'the package gradio is not installed: pip install "gradio>=6,<7"'):
        app.main([])


def test_mistakes_are_told_before_torch_and_gradio_are_imported(tmp_path):
    program = (
        "import sys, app.__main__ as app\n"
        "for words in (['--lora', 'nromal'], ['--port', '0'], ['--steps', '0'], ['--lroa', 'x'], ['x']):\n"
        "    try: app.main(words)\n"
        "    except ValueError as error: assert type(error).__name__ == 'InputError', error\n"
        "    else: raise SystemExit('accepted')\n"
        "assert not {'torch', 'diffusers', 'gradio'} & set(sys.modules)\n"
    )
    python("-c", program)


def test_a_public_address_is_given_only_if_it_is_wanted():
    assert not app.parse([]).share and app.parse(["--share"]).share


def test_a_port_that_is_taken_is_refused_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port={port}: .*; name another, or leave it out"):
            app.main(["--port", str(port)])


def test_it_listens_on_this_computer_alone(served):
    listening = [one for one in psutil.Process(served.process.pid).net_connections() if one.status == "LISTEN"]
    assert {one.laddr.ip for one in listening} == {"127.0.0.1"}
    assert urlparse(served.address).port in {one.laddr.port for one in listening}


def test_a_foreign_name_that_points_here_is_refused(served):
    assert httpx.get(served.address).status_code == 200
    assert httpx.get(served.address, headers={"Host": "evil.example"}).status_code == 400


def test_the_browser_is_told_to_load_nothing_from_elsewhere(served):
    policy = httpx.get(served.address).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy and "*" not in policy


@pytest.mark.parametrize(
    "path", ["/etc/passwd", f"{ROOT}/README.md", "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", f"{ROOT}/.git"]
)
def test_no_file_but_its_own_is_served(served, path):
    assert httpx.get(f"{served.address}{API}/file={path}").status_code in (403, 404)


def send(served, name: str, data: bytes) -> httpx.Response:
    return httpx.post(f"{served.address}{API}/upload", files={"files": (name, data, "image/png")}, timeout=240)


def test_an_upload_stays_in_the_temporary_folder_whatever_its_name(served):
    [path] = send(served, "../../../../evil.png", b"hello").json()
    assert path.startswith(f"{served.temporary}/intrinsic-app-") and ".." not in path


def test_an_upload_of_too_many_bytes_is_refused(served):
    assert send(served, "large.png", bytes(65 << 20)).status_code == 413


@pytest.mark.slow
def test_a_stopped_app_leaves_no_file_behind(tmp_path):
    alone = start(tmp_path, "--lora", ROOT / "miniworld" / "mini-loras" / "depth")
    [path] = send(alone, "a.png", b"hello").json()
    assert Path(path).read_bytes() == b"hello"
    assert alone.stop() == 0
    assert list(alone.temporary.iterdir()) == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["temporary"]
