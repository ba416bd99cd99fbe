"""--push_to_hub against a local server that speaks the hub's API; a failed upload never costs the run."""

import base64
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import python

from utils.hub import model_card

SCRIPT = "sd_single_diode_pseudo_normal.py"


class Hub(BaseHTTPRequestHandler):
    """Creates repositories, wants every file inline, and keeps what is committed in `server.files`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self.answer({"url": f"{self.server.url}/someone/{name}", "name": f"someone/{name}"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            url = f"{self.server.url}/someone/x/commit/1"
            self.answer({"commitUrl": url, "commitOid": "1", "success": True})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self):
        self.answer({"error": "nothing here"}, 404)

    def answer(self, content: dict, status: int = 200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.files, server.tokens = f"http://127.0.0.1:{server.server_port}", {}, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_upload(hub, flags, tmp_path):
    words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, "--push_to_hub", "--hub_token", "hf_secret")
    done = python(SCRIPT, *words, env={"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": None, "HF_HUB_DISABLE_XET": "1"})
    assert f"uploaded to {hub.url}/someone/run" in done.stdout
    assert {"pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "metrics.jsonl", "README.md"} <= set(
        hub.files
    )
    assert "validation/000001_indoors.png" in hub.files and not any("training_state" in name for name in hub.files)
    local = (tmp_path / "run" / "pytorch_lora_weights.safetensors").read_bytes()
    assert hub.files["pytorch_lora_weights.safetensors"] == local
    assert b"base_model: " not in hub.files["README.md"], "the hub refuses a path there"
    assert hub.tokens == {"Bearer hf_secret"}
    assert "hf_secret" not in done.stdout + done.stderr
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_a_failed_upload_keeps_the_run(flags, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{unused.getsockname()[1]}", "HF_HUB_OFFLINE": None}
        words = flags(SCRIPT, tmp_path / "run", "--max_train_steps", 1, "--push_to_hub", "--hub_token", "hf_secret")
        done = python(SCRIPT, *words, env=env)
    assert "--push_to_hub failed" in done.stdout and (tmp_path / "run" / "pytorch_lora_weights.bin").is_file()


def test_model_card_names_base_and_loading():
    metadata = {"base_model": "a/b", "task": "normal", "method": "single-step", "rank": 8}
    card = model_card("me/lora", metadata)
    assert card.startswith("---\nbase_model: a/b\n") and "| rank | 8 |" in card and "load_attn_procs" in card
