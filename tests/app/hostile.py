"""Requests that a stranger might send to the app. Run in a network namespace of its own, prints what each led to.

argv: a temporary folder. The namespace has only the loopback device, to which CANARY is added: an address that looks
public, at which a server counts its visitors. Gradio refuses to fetch from private addresses, not from public ones.
"""

import json
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
from helpers import ROOT
from serving import Served, start

CANARY = "5.6.7.8"
API, META = "/gradio_api", {"_type": "gradio.FileData"}
FILES = ("/etc/hostname", f"{ROOT}/README.md", "../../../etc/hostname", "file:///etc/hostname")
ADDRESSES = ("file=http://{}/x", "file/http://{}/x", "file=%68ttp://{}/x", "file=HTTP://{}/x", "proxy=http://{}/x")
FILE_DATA = {
    "path": lambda at: {"path": f"http://{at}/a.png", "meta": META},
    "path twice": lambda at: {"path": "/x", "meta": META, "orig_name": {"path": f"http://{at}/b.png", "meta": META}},
    "url": lambda at: {"path": "", "url": f"http://{at}/c.png", "meta": META},
    "url with path": lambda at: {"path": f"{ROOT}/docs/app.jpg", "url": f"http://{at}/d.png", "meta": META},
    "text": lambda at: f"http://{at}/e.png",
}
visits: list[str] = []


class Canary(BaseHTTPRequestHandler):
    def do_GET(self):
        visits.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"canary")

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


class Page:
    """The app as a program sees it."""

    def __init__(self, app: Served):
        self.app, self.client = app, httpx.Client(base_url=app.address, timeout=120)
        events = self.client.get("/config").json()["dependencies"]
        self.shown, self.predicted = (
            next(one for one in events if one["api_name"] == name) for name in ("show", "predict")
        )

    def send(self, fn: dict, data: list) -> str:
        """An event's answer, or the status with which it is refused."""
        session = uuid.uuid4().hex
        message = {"data": data, "fn_index": fn["id"], "session_hash": session}
        asked = self.client.post(f"{API}/queue/join", json=message)
        if asked.status_code != 200:
            return str(asked.status_code)
        with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as answer:
            return next((line for line in answer.iter_lines() if "process_completed" in line), "")

    def upload(self, content: bytes, **headers: str) -> httpx.Response:
        return self.client.post(f"{API}/upload", files={"files": ("a.png", content)}, headers=headers)

    def used(self) -> int:
        return sum(path.stat().st_size for path in self.app.temporary.rglob("*") if path.is_file())


def many_uploads(page: Page, image: bytes) -> dict:
    """50 at the same time, every fifth one too large, each followed by its event."""

    def one(number: int) -> tuple[int, str]:
        answer = page.upload(image if number % 5 else bytes(65 << 20))
        if answer.status_code != 200:
            return answer.status_code, ""
        return 200, page.send(page.shown, [{"path": answer.json()[0], "meta": META}, None])

    before = page.used()
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(one, range(50)))
    failed = [text for status, text in found if status == 200 and '"success":true' not in text]
    return {
        "statuses": [status for status, _ in found],
        "answered": sum('"success":true' in text for _, text in found),
        "busy": all(text == "503" or "queue" in text.lower() for text in failed),
        "bytes": page.used() - before,
    }


def memory(page: Page, path: str, number: int) -> list[int]:
    """MB in use after half of the predictions and after all."""
    server, used = psutil.Process(page.app.process.pid), []
    boxes = next(one for one in page.client.get("/config").json()["components"] if one["type"] == "checkboxgroup")
    labels = [choice[1] for choice in boxes["props"]["choices"]]
    for turn in range(number):
        answer = page.send(page.predicted, [{"path": path, "meta": META}, labels, 1, 1, 4, 60, None])
        assert '"success":true' in answer, answer[:500]
        if turn + 1 in (number // 2, number):
            used.append(server.memory_info().rss >> 20)
    return used


def main(folder: Path, predictions: int) -> None:
    for command in ("ip link set lo up", f"ip addr add {CANARY}/32 dev lo"):
        subprocess.run(command.split(), check=True)
    server = ThreadingHTTPServer((CANARY, 0), Canary)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at, found = f"{CANARY}:{server.server_port}", {}
    assert httpx.get(f"http://{at}/").text == "canary"
    visits.clear()
    page = Page(start(folder, "--lora", ROOT / "miniworld" / "mini-loras" / "depth"))
    try:
        image = (ROOT / "examples" / "room.jpg").read_bytes()
        path = page.upload(image).json()[0]
        found["good"] = page.send(page.shown, [{"path": path, "url": f"{page.app.address}{path}", "meta": META}, None])
        for name, make in FILE_DATA.items():
            found[f"data: {name}"] = page.send(page.shown, [make(at), None])
        for words in ADDRESSES:
            found[f"address: {words}"] = page.client.get(f"{API}/{words.format(at)}").text
        for name in FILES:
            found[f"file: {name}"] = page.send(page.shown, [{"path": name, "meta": META}, None])
        Path(path).with_name("link.png").symlink_to("/etc/hostname")
        found["link"] = page.client.get(f"{API}/file={Path(path).with_name('link.png')}").status_code
        found["long body"] = page.client.post(f"{API}/queue/join", content=bytes(2 << 20)).status_code
        origins = {"own": page.app.address, "other": "https://elsewhere.example", "none": "null"}
        found["origins"] = {name: page.upload(b"x", Origin=value).status_code for name, value in origins.items()}
        found["uploads"] = many_uploads(page, image)
        found["memory"] = memory(page, path, predictions)
    finally:
        page.app.stop()
    print(json.dumps({**found, "visits": visits, "left": [path.name for path in page.app.temporary.iterdir()]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
