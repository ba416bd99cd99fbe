"""--push_to_hub against a local server that speaks the hub's API, up and down; a failed upload never costs the run."""

import base64
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers import ROOT, fork, records
from huggingface_hub import ModelCard
from packaging.version import Version

from utils.base_model.names import licence_of
from utils.intrinsics import DEPTH, NORMAL
from utils.kinds.base import against_label, score_of
from utils.lora import BIN, CONV_IN, SAFETENSORS
from utils.training.upload import model_card

SINGLE, AUGUNET = "sd_single_diode_pseudo_normal.py", "augunet_diode_pseudo_depth.py"


class Hub(BaseHTTPRequestHandler):
    """Creates repositories, wants every file inline, keeps and serves what is committed: `server.files`."""

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
            for item in map(json.loads, body.splitlines()):
                value = item["value"]
                if item["key"] == "header":
                    self.server.commits.append(value["summary"])
                elif item["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "deletedFile":
                    self.server.files.pop(value["path"])
            self.server.loras.append(self.server.files[SAFETENSORS])
            url = f"{self.server.url}/someone/x/commit/1"
            self.answer({"commitUrl": url, "commitOid": "1", "success": True})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self):
        name = self.path.partition("/resolve/")[2].partition("/")[2]
        if name in self.server.files:
            data = self.server.files[name]
            self.send_response(200)
            self.send_header("ETag", f'"{hash(data)}"')
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
        elif "/tree/" in self.path:
            files = self.server.files.items()
            self.answer([{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files])
        elif "/revision/" in self.path:
            files = [{"rfilename": path} for path in self.server.files]
            self.answer({"id": "someone/run", "sha": "1" * 40, "siblings": files, "tags": []})
        else:
            self.answer({"error": "nothing here"}, 404)

    do_HEAD = do_GET

    def answer(self, content: object, status: int = 200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory):
    """(server, output folder, what was printed) of a run that has uploaded at step 2 and at its end; made once."""
    servers = {}

    def build(script, flags):
        if script not in servers:
            server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
            server.url = f"http://127.0.0.1:{server.server_port}"
            server.files = {CONV_IN: b"old", "validation/old.png": b"old", "theirs.txt": b"kept"}
            server.tokens, server.commits, server.loras = set(), [], []
            threading.Thread(target=server.serve_forever, daemon=True).start()
            output = tmp_path_factory.mktemp("uploaded") / "run"
            words = ["--max_train_steps", 3 if script == SINGLE else 1, "--checkpointing_steps", 2]
            words += ["--learning_rate", 1e-2, "--push_to_hub", "--hub_token", "hf_secret"]
            words = flags(script, output, *words)
            servers[script] = server, output, fork(script, *words, env=online(server.url), whole=script == SINGLE)
        return servers[script]

    yield build
    for server, *_ in servers.values():
        server.shutdown()


def online(url: str) -> dict:
    return {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": None, "HF_HUB_DISABLE_XET": "1"}


def test_checkpoints_and_the_end_are_uploaded(flags, uploaded):
    hub, output, done = uploaded(SINGLE, flags)
    assert hub.commits == ["Step 2", "End of training, step 3"]
    assert hub.loras == [(folder / SAFETENSORS).read_bytes() for folder in (output / "checkpoint-2", output)]
    assert f"uploaded to {hub.url}/someone/run" in done.stdout and "failed" not in done.stdout
    panels = {f"validation/{split}.png" for split in ("train", "indoors", "outdoor")}
    assert set(hub.files) == {SAFETENSORS, BIN, "metrics.jsonl", "best.json", "README.md", "theirs.txt"} | panels
    assert hub.files["validation/indoors.png"] == (output / "validation" / "000003_indoors.png").read_bytes()


def test_the_token_goes_to_the_hub_alone(flags, uploaded):
    hub, output, done = uploaded(SINGLE, flags)
    assert hub.tokens == {"Bearer hf_secret"} and "hf_secret" not in done.stdout + done.stderr
    assert not [path for path in output.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_the_card_describes_the_run(flags, uploaded):
    hub, output, _ = uploaded(SINGLE, flags)
    text = hub.files["README.md"].decode()
    card = ModelCard(text)
    assert card.data.base_model is None, "the hub refuses a path there"
    assert str(output.parent) not in text and "| steps | 3 |" in text
    assert (
        "# someone/run\n" in text and 'Prompt: "surface normal". Frame: opencv (x right, y down, z forward).' in text
    )
    scores = next(r for r in records(output) if r["step"] == 3 and "val/indoors/mean" in r)
    cells = [f"{scores[name]:.4g}" for name in scores if name.startswith("val/indoors/")]
    assert len(cells) > 5 and f"| indoors | {' | '.join(cells)} |" in text and "below_11.25 ↑" in text
    assert "Protocol: Angles in degrees" in text and "4 fixed images per split" in text
    assert "Measured after step 3." in text and "![indoors](validation/indoors.png)" in text


def test_the_protocol_is_on_the_card():
    plain, normal = score_of(DEPTH, "plain"), score_of(NORMAL)
    normals = "Angles in degrees between the predicted normals and gt, both in the label's frame."
    assert normal.description == normals
    assert plain.description.startswith("Affine-invariant depth errors") and plain.description.endswith(
        "(protocol: plain)"
    )
    assert against_label(plain).description == f"Against the label, which is no measurement: {plain.description}"


def run_card(text: str, kept: str, hub, folder: Path, tmp_path: Path) -> list[str]:
    """Execute the card's Python as it stands, `kept` before it, in `folder` (which holds the base model)."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program = "\n".join([kept, *(f"exec({block!r})\nafter({i})" for i, block in enumerate(blocks))])
    fork("-c", program, env={**online(hub.url), "HF_HOME": str(tmp_path / "cache")}, cwd=folder)
    return blocks


def test_the_cards_lines_load_it_single_step(flags, uploaded, bases, tmp_path):
    hub, output, _ = uploaded(SINGLE, flags)
    kept = f"""
import torch
from utils.lora import load_attn_procs
from utils.base_model.stable_diffusion import load_base
from utils.objectives import SingleStep
rgb = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
base = load_base("sd15")
def sample():
    return SingleStep(base, base.encode_prompt("surface normal"), 999).predict(base.unet, rgb)
with torch.no_grad():
    bare = sample()
    load_attn_procs(base.unet, {str(output)!r})
    ours = sample()
assert (ours - bare).abs().max() > 1e-2
def after(i):
    global pipeline
    if i < last:
        loaded.append(pipeline)
        pipeline = StableDiffusionPipeline.from_pretrained("sd15")
        return
    assert len(loaded) == last
    for pipeline_ in loaded:
        scope = {{"pipeline": pipeline_, "rgb": rgb}}
        exec(blocks[last], scope)
        assert torch.allclose(scope["prediction"], ours, atol=1e-4), (scope["prediction"] - ours).abs().max()
loaded = []
"""
    text = hub.files["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3 and "load_lora_weights" in blocks[0] and "load_attn_procs" in blocks[1]
    if Version(version("diffusers")) >= Version("0.40"):  # which the card names as the one that removed it
        assert "needs diffusers before 0.40" in text
        text = text.replace(f"```python\n{blocks.pop(1)}```", "")
    kept += f"blocks, last = {blocks!r}, {len(blocks) - 1}"
    assert run_card(text, kept, hub, bases["sd15"].parent, tmp_path) == blocks


def test_the_cards_lines_load_it_augunet(flags, uploaded, bases, tmp_path):
    hub, output, _ = uploaded(AUGUNET, flags)
    assert hub.files[CONV_IN] == (output / CONV_IN).read_bytes()
    text = hub.files["README.md"].decode()
    assert "Polarity: near = white" in text and "inference_augunet.py --lora lora" in text
    kept = """
import torch
generator = torch.Generator().manual_seed(0)
z, words = torch.randn(1, 8, 4, 4, generator=generator), torch.randn(1, 77, 64, generator=generator)
outputs = []
def after(i):
    with torch.no_grad():
        outputs.append((unet if i == 0 else pipeline.unet)(z, 500, words).sample)
    if i == 1:
        assert torch.allclose(*outputs, atol=1e-4), (outputs[0] - outputs[1]).abs().max()
        pipeline.unload_lora_weights()
        assert (pipeline.unet(z, 500, words).sample - outputs[0]).abs().max() > 1e-3
"""
    assert len(run_card(text, kept, hub, bases["sd21"].parent, tmp_path)) == 2


def test_a_hub_that_is_down_is_reported_once_and_costs_nothing(flags, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        words = ["--max_train_steps", 4, "--checkpointing_steps", 1, "--push_to_hub", "--hub_token", "hf_secret"]
        words = flags(SINGLE, tmp_path / "run", *words)
        done = fork(SINGLE, *words, env=online(f"http://127.0.0.1:{unused.getsockname()[1]}"))
    assert done.stdout.count("training continues") <= 1 and done.stdout.count("the run is complete") == 1
    assert f"hf upload run {tmp_path / 'run' / 'hub'}" in done.stdout and "hf_secret" not in done.stdout + done.stderr
    assert (tmp_path / "run" / BIN).is_file() and (tmp_path / "run" / "hub" / "README.md").is_file()


def test_the_first_failure_is_reported_once(tmp_path, capsys, monkeypatch):
    from utils.training.upload import Uploads

    uploads = Uploads(tmp_path, "me/run", None, {}, "")
    for step in (1, 2, 3):
        uploads.checkpoint(tmp_path / f"checkpoint-{step}", step)  # nothing there to upload
    assert capsys.readouterr().out.count("training continues") == 1
    uploads.finish(4)
    assert capsys.readouterr().out.count("the run is complete") == 1


def test_a_hub_that_never_answers_does_not_hold_the_run(flags, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = ["--max_train_steps", 3, "--checkpointing_steps", 1, "--push_to_hub"]
        words = flags(SINGLE, tmp_path / "run", *words)
        program = (
            "import sys, sd_single_diode_pseudo_normal as script; import utils.training.upload as u; u.PATIENCE = 1; "
        )
        started = time.monotonic()
        env = {**online(f"http://127.0.0.1:{silent.getsockname()[1]}"), "PYTHONPATH": str(ROOT)}
        done = fork("-c", program + "script.main(sys.argv[1:])", *words, env=env)
        assert time.monotonic() - started < 120
    assert "no answer within 1 s" in done.stdout and (tmp_path / "run" / BIN).is_file()


@pytest.mark.parametrize(("base", "licence"), [
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m"),
    ("stabilityai/stable-diffusion-2-1", "openrail++"),
    ("nobody/knows", None),
    (str(ROOT / "miniworld" / "mini-sd"), "apache-2.0"),
])  # fmt: skip
def test_the_card_states_the_base_models_licence(base, licence):
    assert licence_of(base) == licence
    metadata = {"base_model": base, "task": "depth", "method": "single-step", "prompt": "depth map", "timestep": 999}
    text = model_card("me/lora", metadata, {}, "", [])
    data = ModelCard(text).data
    assert data.license == (licence or "other") and data.base_model == (None if base.startswith("/") else base)
    assert "## Scores" not in text and f"The base model's: {licence or 'not stated'}." in text


@pytest.mark.parametrize(("method", "says"), [("gan", "load_gan"), ("autoregressive", "TokenPrediction")])
def test_a_card_of_another_generator_describes_its_loading(method, says):
    metadata = {"base_model": "some/generator", "task": "depth", "method": method, "prompt": ""}
    metadata |= {"positions": "again", "decoding": "at_once"}
    text = model_card("me/lora", metadata, {}, "", [])
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(code, "card", "exec")
    assert says in code and "StableDiffusionPipeline" not in text and "library_name" not in text
    assert "Prompt" not in text
