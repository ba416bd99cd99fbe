"""Nothing that is read may run code, nothing is written elsewhere, and tokens stay where they are."""

import ast
import os

import pytest
import torch
from bad_files import MARK, malicious_npy, malicious_pickle, malicious_zip
from helpers import ROOT, python, records

from utils.base_model.stable_diffusion import load_base
from utils.errors import InputError
from utils.image_io.files import read_array, read_npy
from utils.image_io.images import read_rgb
from utils.lora import read_lora
from utils.system import atomic
from utils.training import checkpoint

TOKEN = "hf_" + "NeverToBeSeenAnywhere" + "x" * 13
KEY = "0123456789abcdef" * 2 + "01234567"  # with the length of a wandb key
SOURCES = [path for path in ROOT.rglob("*.py") if not {".venv", ".interop"} & set(path.relative_to(ROOT).parts)]
DEMANDED = {  # call -> keyword and the value that it must have
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN = {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load", "eval", "exec",
             "os.system", "os.popen", "joblib.load", "marshal.loads", "dill.load"}  # fmt: skip


def violations(source: str) -> list[str]:
    """Calls in Python source that could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        if name in DEMANDED:
            keyword, value = DEMANDED[name]
            set_to = given.get(keyword)
            if not (isinstance(set_to, ast.Constant) and set_to.value is value):
                found.append(f"line {node.lineno}: {name} without {keyword}={value}")
        if name in FORBIDDEN:
            found.append(f"line {node.lineno}: {name}")
        trusted = given.get("trust_remote_code")
        if trusted is not None and not (isinstance(trusted, ast.Constant) and trusted.value is False):
            found.append(f"line {node.lineno}: trust_remote_code")
        if any(isinstance(value, ast.Constant) and value.value is True for value in [given.get("shell")] if value):
            found.append(f"line {node.lineno}: shell=True")
    return found


@pytest.mark.parametrize("source", [
    "torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=w)", "np.load(f)",
    "np.load(f, allow_pickle=True)", "x = pickle.loads(b)", "M.from_pretrained(n, trust_remote_code=True)",
    "subprocess.run(c, shell=True)", "eval(text)",
])  # fmt: skip
def test_the_check_sees_violations(source):
    assert violations(source)


def test_no_source_file_can_run_what_it_reads():
    assert len(SOURCES) > 50
    kept = [path for path in SOURCES if path.relative_to(ROOT).parts[0] not in ("tests", "interop")]
    found = [f"{path.relative_to(ROOT)}, {text}" for path in kept for text in violations(path.read_text())]
    assert found == []


@pytest.mark.parametrize("make", [malicious_pickle, malicious_zip, malicious_npy])
def test_a_malicious_file_is_refused_by_every_loader(make, tmp_path):
    """The file is real: unpickled, it makes a folder. (That is tried first.)"""
    import pickle

    content = make()
    if make is malicious_pickle:
        pickle.loads(content)
        assert MARK.is_dir(), "the malicious file does no harm: this test would show nothing"
        MARK.rmdir()
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    for name in ("x.bin", "x.pt", "x.safetensors", "x.npy", "x.png", f"checkpoint-1/{checkpoint.STATE}"):
        (tmp_path / name).write_bytes(content)
    for name in ("x.bin", "x.pt", "x.safetensors"):
        with pytest.raises(InputError):
            read_lora(tmp_path / name)
    for reader in (read_npy, read_array):
        with pytest.raises(ValueError):
            reader(tmp_path / "x.npy")
    for reader in (read_rgb, read_array):
        with pytest.raises(ValueError):
            reader(tmp_path / "x.png")
    atomic.seal(folder)
    with pytest.raises(InputError):
        checkpoint.load(folder, torch.nn.Linear(1, 1), {}, {})
    for part in ("unet", "vae", "text_encoder"):
        for weights in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.bin"):
            (tmp_path / "model" / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / "model" / part / weights).write_bytes(content)
            (tmp_path / "model" / part / "config.json").write_text("{}")
    (tmp_path / "model/tokenizer").mkdir()
    (tmp_path / "model/tokenizer/vocab.json").write_bytes(content)
    with pytest.raises(InputError):
        load_base(str(tmp_path / "model"))


def test_tokens_and_files_stay_where_they_belong(flags, tmp_path):
    """A run with every tracker and both tokens set: none of its files has one, and none is outside its folders."""
    home, output = tmp_path / "home", tmp_path / "output"
    home.mkdir()
    script = "sd_single_diode_pseudo_normal.py"
    words = flags(script, output, "--max_train_steps", 1, "--hub_token", TOKEN)
    words[words.index("--report_to") + 1] = "wandb,tensorboard"
    env = {
        "WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN, "HOME": str(home), "TMPDIR": str(tmp_path / "tmp"),
        "HF_HOME": str(home / "hf"), "NETRC": str(home / ".netrc"), "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": None,
    }  # fmt: skip
    (tmp_path / "tmp").mkdir()
    before = {path for path in ROOT.rglob("*") if ".git" not in path.parts}
    done = python(script, *words, env=env)
    assert records(output) and list(output.glob("wandb/offline-run-*")) and list(output.glob("logs/*"))
    for secret in (TOKEN, KEY):
        assert secret not in done.stdout + done.stderr
        holding = [
            path.relative_to(tmp_path)
            for path in tmp_path.rglob("*")
            if path.is_file() and secret.encode() in path.read_bytes()
        ]
        assert holding == [], f"{secret} is in these files"
    left = {path for path in ROOT.rglob("*") if ".git" not in path.parts} - before
    assert {path for path in left if "__pycache__" not in path.parts} == set(), "written into the source tree"
    outside = [path for path in home.rglob("*") if path.is_file() and ".cache" not in path.parts and path.parts]
    assert [path for path in outside if "hf" not in path.parts] == [], "written into the home folder"
    assert os.environ.get("HF_TOKEN") != TOKEN
