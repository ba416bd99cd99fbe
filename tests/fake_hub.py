"""A model hub on this machine: an HTTP server that speaks what huggingface_hub asks, and serves folders."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """server.folders: repository -> folder; server.sent: the files that were downloaded, as repository/file."""

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        repository, _, rest = path.removeprefix("api/models/").partition("/")
        name, _, rest = rest.partition("/")
        repository += f"/{name}"
        folder = self.server.folders.get(repository)
        if folder is None:
            return self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        if path.startswith("api/models/"):
            if rest.startswith(("tree", "revision")) or not rest:
                tree = [{"type": "file", "path": file, "size": (folder / file).stat().st_size, "oid": "0"}
                        for file in files]  # fmt: skip
                info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                return self.answer(json.dumps(tree if rest.startswith("tree") else info).encode())
            return self.answer(b"", 404)
        file = rest.partition("/")[2].partition("/")[2]  # resolve/<revision>/<file>
        if file not in files:
            return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = (folder / file).read_bytes()
        if self.command == "GET":
            self.server.sent.append(f"{repository}/{file}")
        tag = hashlib.sha256(content).hexdigest()
        return self.answer(content, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})

    do_HEAD = do_GET

    def answer(self, content: bytes, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(folders: Mapping[str, Path]) -> Iterator[ThreadingHTTPServer]:
    """A running hub with these repositories. Its `env` holds the variables that lead huggingface_hub to it."""
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    hub.folders, hub.sent = dict(folders), []
    url = f"http://127.0.0.1:{hub.server_port}"
    hub.env = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": None, "HF_HUB_DISABLE_XET": "1"}
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
