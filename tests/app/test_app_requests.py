"""Requests that the page never makes: the app fetches and reads nothing that they name, and does not fill the disk."""

import asyncio
import json
import os
import shutil
import subprocess
import sys

import httpx
import pytest
from helpers import ROOT

from app import server
from app.server import Guard

APART = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
OUTSIDE = "http://5.6.7.8/x"


@pytest.fixture
def answer(tmp_path):
    """(method, path, keywords of the request) -> the answer of an application behind the guard, which echoes."""

    async def echo(scope, receive, send):
        body = (await receive()).get("body", b"")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    transport = httpx.ASGITransport(Guard(echo, tmp_path, own_origin=True))

    async def ask(method: str, path: str, **keywords) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            return await client.request(method, path, **keywords)

    return lambda *words, **keywords: asyncio.run(ask(*words, **keywords))


EVENTS = {
    "a path": {"data": [{"path": OUTSIDE, "meta": {}}]},
    "text": {"data": [OUTSIDE]},
    "capitals and a space": {"data": [" HTTPS://a.example"]},
    "in a list under url": {"data": [{"url": [{"path": OUTSIDE}]}]},
    "a name": {"orig_name": OUTSIDE},
}


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_with_a_web_address_is_refused(name, answer):
    assert answer("POST", "/gradio_api/queue/join", json=EVENTS[name]).status_code == 403


def test_the_first_of_two_values_of_one_name_counts_too(answer):
    body = f'{{"path": "{OUTSIDE}", "path": "/tmp/a.png"}}'
    assert answer("POST", "/gradio_api/queue/join", content=body).status_code == 403


@pytest.mark.parametrize("body", ["", "{}", '{"data": [{"path": "/a.png", "url": "http://127.0.0.1:7860/a.png"}]}'])
def test_the_page_s_own_events_pass_unchanged(body, answer):
    assert answer("POST", "/gradio_api/queue/join", content=body).text == body


@pytest.mark.parametrize("body", [b"data=http", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_refused(body, answer):
    assert answer("POST", "/gradio_api/run/predict", content=body).status_code == 403


@pytest.mark.parametrize("path", [f"file={OUTSIDE}", f"file/{OUTSIDE}", "file=%68ttps://a.example", "file=HTTP://a"])
def test_a_file_at_a_web_address_is_refused(path, answer):
    assert answer("GET", f"/gradio_api/{path}").status_code == 403
    assert answer("GET", "/gradio_api/file=/tmp/a.png").status_code == 200


@pytest.mark.parametrize(("origin", "status"), [
    ("http://127.0.0.1:7860", 200), ("http://127.0.0.1:80", 403), ("https://elsewhere.example", 403), ("null", 403),
])  # fmt: skip
def test_another_site_in_the_same_browser_cannot_send_anything(origin, status, answer):
    assert answer("POST", "/gradio_api/upload", headers={"Origin": origin}).status_code == status


def test_uploads_are_refused_when_too_many_bytes_are_held(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "MAX_HELD", 1000)
    (tmp_path / "held").write_bytes(bytes(600))
    assert answer("POST", "/gradio_api/upload", content=bytes(300)).status_code == 200
    assert answer("POST", "/gradio_api/upload", content=bytes(500)).status_code == 507


def test_uploads_that_are_still_arriving_count(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "MAX_HELD", 1000)
    statuses = []

    async def slow(scope, receive, send):
        await asyncio.sleep(0.05)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {}

    async def send(message):
        statuses.append(message.get("status"))

    async def both():
        guard = Guard(slow, tmp_path, own_origin=True)
        scope = {"type": "http", "method": "POST", "path": "/upload", "headers": [(b"content-length", b"600")]}
        await asyncio.gather(guard(scope, receive, send), guard(scope, receive, send))
        await guard(scope, receive, send)

    asyncio.run(both())
    assert [status for status in statuses if status] == [507, 200, 200]


def apart() -> bool:
    """True if a network namespace can be made here."""
    tools = shutil.which("unshare") and shutil.which("ip")
    return bool(tools) and subprocess.run([*APART, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not apart(), reason="no network namespaces here: needs Linux, iproute2 and the right to make one")
def test_strange_requests_to_the_real_app(tmp_path):
    """All at one app, because it takes ten seconds to start. See hostile.py."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "app")))
    done = subprocess.run(
        [*APART, sys.executable, ROOT / "tests/app/hostile.py", tmp_path, "40"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["visits"] == [], "the app has fetched an address"
    assert '"success":true' in found.pop("good"), "a real upload must work, or the others show nothing"
    for name, answer in found.items():
        if name.startswith(("data: ", "file: ")):
            assert '"success":true' not in answer, name
        if name.startswith("address: "):
            assert "canary" not in answer, name
    assert found["link"] == 403 and found["long body"] == 413
    assert found["origins"] == {"own": 200, "other": 403, "none": 403}
    uploads = found["uploads"]
    assert uploads["statuses"] == [200 if number % 5 else 413 for number in range(50)]
    assert uploads["answered"] >= 8 and uploads["busy"]
    assert uploads["bytes"] < 40 * (ROOT / "examples" / "room.jpg").stat().st_size * 3
    half, whole = found["memory"]
    assert whole - half < 60, "MB more after 20 more predictions"
    assert found["left"] == []
