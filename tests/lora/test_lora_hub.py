"""--lora owner/name: from the hub's local cache, and from a server that speaks the hub's API."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, fork, python
from PIL import Image

from utils.errors import InputError
from utils.inference.job import check_lora
from utils.lora import SAFETENSORS
from utils.lora.files import is_on_hub

SHIPPED, COMMIT = ROOT / "miniworld" / "mini-loras" / "depth", "c" * 40
INSPECT = ["-m", "utils.lora", "inspect", "someone/depth", "--json"]


@pytest.fixture
def cache(tmp_path) -> Path:
    """A local cache as huggingface_hub lays it out, with one LoRA."""
    repository = tmp_path / "cache" / "models--someone--depth"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    shutil.copy(SHIPPED / SAFETENSORS, repository / "snapshots" / COMMIT)
    return tmp_path / "cache"


@pytest.fixture
def server():
    """Knows one repository, and sends its LoRA."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            content = (SHIPPED / SAFETENSORS).read_bytes()
            if self.path.startswith("/api/models/someone/depth/tree/"):
                entry = {"type": "file", "size": 1, "oid": "0"}
                content = json.dumps([entry | {"path": name} for name in (SAFETENSORS, "model.ckpt")]).encode()
            elif self.path.startswith("/api/models/someone/depth"):
                content = json.dumps({"id": "someone/depth", "sha": COMMIT, "siblings": [{"rfilename": SAFETENSORS},
                                      {"rfilename": "model.ckpt"}]}).encode()  # fmt: skip
            elif self.path != f"/someone/depth/resolve/{COMMIT}/{SAFETENSORS}":
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{hub.server_port}"
    hub.shutdown()


def test_a_cached_repository_predicts_what_its_file_does(cache, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    words = ["--input_dir", tmp_path / "a.png", "--pretrained_model_name_or_path", ROOT / "miniworld" / "mini-sd"]
    env = {"HF_HUB_CACHE": str(cache)}
    fork("inference_sd_single.py", "--lora", "someone/depth", *words, "--output_dir", tmp_path / "hub", env=env)
    fork("inference_sd_single.py", "--lora", SHIPPED, *words, "--output_dir", tmp_path / "file")
    hub, file = (Image.open(tmp_path / name / "depth/predicted/a_depth.png") for name in ("hub", "file"))
    assert np.array_equal(np.asarray(hub), np.asarray(file))
    assert hub.text["lora"] == "someone/depth" and hub.text["lora_sha256"] == file.text["lora_sha256"]


@pytest.mark.parametrize("words", [["predict.py", str(ROOT / "examples"), "--lora", "someone/nothing"],
                                   ["inference_augunet.py", "--lora", "someone/nothing"]])  # fmt: skip
def test_a_repository_that_is_not_here_is_one_line(words, cache):
    done = python(*words, env={"HF_HUB_CACHE": str(cache)}, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "someone/nothing: no such folder here, not in the hub's local cache, and HF_HUB_OFFLINE" in done.stderr


def test_the_lora_alone_is_downloaded_and_what_the_hub_does_not_have_is_one_line(server, tmp_path):
    env = {"HF_ENDPOINT": server, "HF_HUB_OFFLINE": None, "HF_HUB_DISABLE_XET": "1", "HF_HUB_CACHE": str(tmp_path)}
    assert json.loads(python(*INSPECT, env=env).stdout)["metadata"]["task"] == "depth"
    assert [path.name for path in tmp_path.glob("*/snapshots/*/*")] == [SAFETENSORS]
    done = python("-m", "utils.lora", "inspect", "someone/else", env=env, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "someone/else: not available from the hub" in done.stderr


def test_a_mistyped_file_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "normal").mkdir(parents=True)
    for name in ("runs/nromal", "loras/x.safetensors", "nromal", "./a", "a/b/c", str(tmp_path / "x")):
        assert not is_on_hub(name)
    assert is_on_hub("someone/normal")
    with pytest.raises(InputError, match=r"did you mean runs/normal\?"):
        check_lora("runs/nromal")
