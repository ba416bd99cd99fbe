"""--lora owner/name: from the hub's local cache, and from a server that speaks the hub's API."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import COMMIT, serve
from helpers import ROOT, fork, python, random_lora
from PIL import Image
from safetensors.torch import save_file

from miniworld.pretraining.random_sd import build_unet
from utils.errors import InputError
from utils.inference.job import by_task, check_lora, describe
from utils.intrinsics import INTRINSICS
from utils.lora import SAFETENSORS
from utils.lora.files import is_on_hub, named_for

SHIPPED = ROOT / "miniworld" / "mini-loras" / "depth"
AUTHORS, SD15 = "neph1/intrinsic_lora", "stable-diffusion-v1-5/stable-diffusion-v1-5"
AUTHORS_FILES = [f"intrinsic_lora_{task}.safetensors" for task in ("albedo", "depth", "normal", "shading")]
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
def server(tmp_path):
    """One repository, with a LoRA and a file that nobody needs."""
    (tmp_path / "depth").mkdir()
    shutil.copy(SHIPPED / SAFETENSORS, tmp_path / "depth")
    (tmp_path / "depth" / "model.ckpt").touch()
    with serve({"someone/depth": tmp_path / "depth"}) as hub:
        yield hub


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
    assert (
        f"someone/nothing: no such folder here ({ROOT}/someone/nothing), not in the hub's local cache" in done.stderr
    )
    assert "and HF_HUB_OFFLINE is set" in done.stderr


def test_the_lora_alone_is_downloaded_and_what_the_hub_does_not_have_is_one_line(server, tmp_path):
    env = server.env | {"HF_HUB_CACHE": str(tmp_path / "cache")}
    assert json.loads(python(*INSPECT, env=env).stdout)["metadata"]["task"] == "depth"
    assert server.sent == [f"someone/depth/{SAFETENSORS}"]
    done = python("-m", "utils.lora", "inspect", "someone/else", env=env, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "someone/else: no such folder here" in done.stderr and "not available from the hub" in done.stderr


def test_a_mistyped_file_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "normal").mkdir(parents=True)
    for name in ("runs/nromal", "loras/x.safetensors", "nromal", "./a", "a/b/c", str(tmp_path / "x")):
        assert not is_on_hub(name)
    assert is_on_hub("someone/normal")
    with pytest.raises(InputError, match=r"did you mean runs/normal\?"):
        check_lora("runs/nromal")


# The authors' LoRAs as they are on the hub: four files with names of their own, without headers


@pytest.fixture(scope="module")
def authors(tmp_path_factory, bases):
    """A hub with them, made for a base of random weights, and with that base under Stable Diffusion 1.5's name."""
    folder = tmp_path_factory.mktemp("authors")
    (folder / "README.md").write_text("license")
    for seed, name in enumerate(AUTHORS_FILES):
        save_file(random_lora(build_unet(channels=(32, 64, 64)), seed), folder / name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "a.png")
    with serve({AUTHORS: folder, SD15: bases["sd15"]}) as hub:
        hub.folder = folder
        yield hub


def maps(folder: Path) -> dict[str, np.ndarray]:
    return {path.parents[1].name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*/predicted/*.png"))}


def test_all_four_of_the_authors_loras_at_once(authors, bases, tmp_path):
    """With nothing given but the repository: tasks from the names, the base, prompt and timestep of the paper."""
    words, sizes = ["predict.py", authors.folder / "a.png"], ["--resolution", 64]
    cache = {"HF_HUB_CACHE": str(tmp_path / "cache")}
    done = fork(*words, "--lora", AUTHORS, "--output_dir", tmp_path / "hub", *sizes, env=authors.env | cache)
    named = "intrinsic_lora_normal.safetensors (normal), intrinsic_lora_depth.safetensors (depth)"
    assert (
        f"note: {named}" in done.stdout and "no base model in the header; taking the paper's, runwayml" in done.stdout
    )
    files = [authors.folder / f"intrinsic_lora_{task}.safetensors" for task in INTRINSICS]
    words += ["--pretrained_model_name_or_path", bases["sd15"]]
    fork(*words, "--lora", *files, "--output_dir", tmp_path / "files", *sizes)
    hub, local = maps(tmp_path / "hub"), maps(tmp_path / "files")
    assert set(hub) == set(local) == set(INTRINSICS) and all(np.array_equal(hub[task], local[task]) for task in hub)
    assert len({hub[task].tobytes() for task in hub}) == 4

    done = fork(*words, "--lora", AUTHORS, "--output_dir", tmp_path / "cached", *sizes, env=cache)  # offline
    assert all(np.array_equal(one, hub[task]) for task, one in maps(tmp_path / "cached").items())


@pytest.mark.parametrize("lora", [AUTHORS, f"{AUTHORS}/intrinsic_lora_shading.safetensors"])
def test_the_task_chooses_the_file_and_no_other_is_downloaded(lora, authors, bases, tmp_path):
    sent = len(authors.sent)
    words = [
        "inference_sd_single.py",
        "--task",
        "shading",
        "--input_dir",
        authors.folder / "a.png",
        "--resolution",
        64,
    ]
    words += ["--pretrained_model_name_or_path", bases["sd15"]]
    env = authors.env | {"HF_HUB_CACHE": str(tmp_path / "cache")}
    fork(*words, "--lora", lora, "--output_dir", tmp_path / "hub", env=env)
    assert authors.sent[sent:] == [f"{AUTHORS}/intrinsic_lora_shading.safetensors"]
    own = authors.folder / "intrinsic_lora_shading.safetensors"
    fork(*words, "--lora", own, "--output_dir", tmp_path / "file")
    assert np.array_equal(maps(tmp_path / "hub")["shading"], maps(tmp_path / "file")["shading"])
    hub = Image.open(tmp_path / "hub/shading/predicted/a_shading.png")
    assert hub.text["lora"].endswith("intrinsic_lora_shading.safetensors")

    words[2] = "depth"  # not in the cache, and the hub is gone
    done = fork(*words, "--lora", AUTHORS, env={"HF_HUB_CACHE": str(tmp_path / "cache")}, check=False)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(f"error: {AUTHORS}: no file there")
    assert "intrinsic_lora_shading.safetensors; pass another --task" in done.stderr


@pytest.mark.parametrize(("files", "task", "message"), [
    (["a_depth.safetensors", "b_depths.bin"], "depth", r"several LoRAs for depth: a_depth\.safetensors, "
     r"b_depths\.bin; pass one as --lora someone/many/a_depth\.safetensors"),
    (["a_depth.safetensors"], "albedo", r"no file there is named for albedo: a_depth\.safetensors; pass another"),
    (["README.md", "model.ckpt"], "albedo", r"holds neither .*; there: README\.md, model\.ckpt"),
    (["mine.safetensors"], None, r"holds neither .*; pass the file: mine\.safetensors"),
    (["one/pytorch_lora_weights.bin", "x"], None, r"holds neither .*; someone/many/one does"),
    (["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"], "depth", r"holds neither .* is in 2 parts"),
])  # fmt: skip
def test_what_a_repository_or_a_folder_holds_instead(files, task, message, tmp_path, monkeypatch):
    """The same line for both."""
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / "someone" / "many" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "someone" / "many" / name).touch()
    with pytest.raises(InputError, match=f"someone/many: {message}"):
        check_lora("someone/many", task=task)
        describe("someone/many", task=task)
    with serve({"someone/many": tmp_path / "someone" / "many"}) as hub:
        env = hub.env | {"HF_HUB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        program = f"import utils.inference.job as j\nj.check_lora('someone/many', task={task!r})"
        program += f"\nj.describe('someone/many', task={task!r})"
        program = f"from utils.errors import run\ndef main():\n {program.replace(chr(10), chr(10) + ' ')}\nrun(main)"
        (tmp_path / "elsewhere").mkdir()
        done = fork("-c", program, env=env, cwd=tmp_path / "elsewhere", check=False)
    with pytest.raises(InputError, match=f"someone/many: {message}"):
        raise InputError(done.stderr)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_a_file_that_the_repository_does_not_have(authors, tmp_path):
    env = authors.env | {"HF_HUB_CACHE": str(tmp_path)}
    done = fork("-m", "utils.lora", "inspect", f"{AUTHORS}/nothing.safetensors", env=env, check=False)
    assert done.returncode == 2 and f"{AUTHORS}: has no file nothing.safetensors; there: README.md" in done.stderr


def test_names_choose_among_files_only_where_none_is_the_lora(tmp_path):
    """The authors' four files from their Drive, and a training's output folder."""
    for task in INTRINSICS:
        (tmp_path / f"sd_single_{task}_pytorch_model.bin").touch()
    (tmp_path / "normalised.bin").touch()
    files = {task: f"{tmp_path}/sd_single_{task}_pytorch_model.bin" for task in INTRINSICS}
    assert named_for(tmp_path, list(INTRINSICS)) == files
    assert by_task([tmp_path], "albedo") == [files["albedo"]]
    (tmp_path / SAFETENSORS).touch()
    assert named_for(tmp_path, list(INTRINSICS)) == {} and by_task([tmp_path], "albedo") == [tmp_path]


def test_a_file_without_a_header_is_for_the_intrinsic_in_its_name(tmp_path):
    state = random_lora(build_unet(channels=(32, 64, 64)))
    for name, task in {"sd_single_normal.bin": "normal", "normal_or_albedo.bin": "depth", "x.bin": "depth"}.items():
        torch.save(state, tmp_path / name)
        assert describe(tmp_path / name).intrinsic.name == task
    job = describe(tmp_path / "sd_single_normal.bin", task="albedo")
    assert job.intrinsic.name == "albedo" and "was trained for normal" in job.closing[0]


def test_a_lora_that_is_nowhere_names_the_path_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"tried {tmp_path}/a/b/c: relative to the current folder\)$"):
        check_lora("a/b/c")
    shipped = "miniworld/mini-loras/depth"
    with pytest.raises(InputError, match=rf"tried {tmp_path}/{shipped}: .*\); pass {ROOT}/{shipped}$"):
        check_lora(shipped)
