"""predict.py: several LoRAs on photographs, and the page that shows them."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, python
from PIL import Image

import predict
from utils.errors import InputError
from utils.image_io.panels import spectral
from utils.inference.inputs import find_all
from utils.intrinsics import ALBEDO, DEPTH, INTRINSICS, NORMAL

SHIPPED = ROOT / "miniworld" / "mini-loras"


@pytest.fixture
def photographs(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (96, 72)), ("sub/<b>&.png", (40, 70))):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


def run(*words: object) -> int:
    return predict.main([*map(str, words), "--device", "cpu"])


def test_the_shipped_loras_predict_from_any_folder_and_the_page_shows_all(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(photographs, "--npy") == 0
    for task in INTRINSICS:
        assert np.load(f"out/{task}/predicted/a_{task}.npy").shape[:2] == (72, 96)
        assert Image.open(f"out/{task}/predicted/sub/<b>&_{task}.png").size == (40, 70)
    assert capsys.readouterr().out.strip().splitlines()[-1] == "next: open out/index.html"
    page = Path("out/index.html").read_text()
    titles = ["normal", "depth", "depth, grey", "albedo", "shading"]
    assert re.findall(r'data-title="([^"]*)"', page) == 2 * ["image", *titles]
    assert "sub/&lt;b&gt;&amp;.png" in page and "<b>" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|url\(""", page)  # nothing comes from elsewhere
    assert str(tmp_path) not in page and str(ROOT) not in page
    for uri in re.findall(r'<img src="data:image/jpeg;base64,([^"]*)"', page)[:6]:
        assert Image.open(io.BytesIO(base64.b64decode(uri))).size == (96, 72)


def test_the_pages_normals_are_those_of_the_files_in_familiar_colours(photographs, tmp_path):
    def shown_normals(colours: str) -> np.ndarray:
        run(
            photographs / "a.jpg",
            "--lora",
            SHIPPED / "normal",
            "--output_dir",
            tmp_path / colours,
            "--colours",
            colours,
        )
        page = (tmp_path / colours / "index.html").read_text()
        uri = re.search(r'data-title="normal"><img src="data:image/jpeg;base64,([^"]*)"', page)[1]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))).astype(int)

    files = [tmp_path / colours / "normal/predicted/a_normal.png" for colours in ("opengl", "opencv")]
    opengl, opencv = shown_normals("opengl"), shown_normals("opencv")
    assert files[0].read_bytes() == files[1].read_bytes()  # the files keep their frame
    written = np.asarray(Image.open(files[0])).astype(int)
    assert np.abs(opencv - written).mean() < 4  # JPEG
    assert np.abs(opengl[..., 0] - written[..., 0]).mean() < 4
    assert np.abs(opengl[..., 1:] - (255 - written[..., 1:])).mean() < 4


def test_colours_of_the_eye():
    facing = np.broadcast_to([0.0, 0.0, -1.0], (2, 2, 3))  # opencv: z forward, so this surface faces the camera
    assert NORMAL.map_kind.shown(facing)["normal"][0, 0].tolist() == [128, 128, 255]
    assert NORMAL.map_kind.shown(facing, "opencv")["normal"][0, 0].tolist() == [128, 128, 0]
    near = np.linspace(0, 1, 100).reshape(10, 10)
    maps = DEPTH.map_kind.shown(near)
    assert maps["depth"][-1, -1].tolist() == [158, 1, 66] and maps["depth"][0, 0].tolist() == [94, 79, 162]
    assert maps["depth, grey"][-1, -1].tolist() == [255, 255, 255]
    moved = DEPTH.map_kind.shown(3 * near - 7)["depth"].astype(int)  # scale and shift mean nothing
    assert np.abs(moved - maps["depth"]).max() <= 1
    assert spectral(np.array([[0.5]])).tolist() == [[[255, 255, 191]]]
    assert ALBEDO.map_kind.shown(np.full((1, 1, 3), [-1, 0.5, 2]))["albedo"].tolist() == [[[0, 128, 255]]]


def test_unreadable_images_are_named_and_the_rest_is_shown(photographs, tmp_path, capsys):
    (photographs / "bad.png").write_bytes(b"no image")
    assert run(photographs, "--lora", SHIPPED / "albedo", "--output_dir", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "bad.png: not a readable image" in said.err and "2 of 3 images predicted" in said.out
    assert "bad.png" not in (tmp_path / "out/index.html").read_text()
    assert run(photographs / "bad.png", "--lora", SHIPPED / "albedo", "--output_dir", tmp_path / "none") == 1
    assert "next:" in said.out and "next:" not in capsys.readouterr().out  # there is nothing to open


def test_sources_of_one_name_are_kept_apart(photographs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").touch()
    found = find_all([photographs, other, other / "a.jpg"], tmp_path / "out")
    assert sorted(found.pictures.values()) == ["a.jpg", "photos/a.jpg", "photos/sub/<b>&.png"]
    found = find_all([photographs, other], tmp_path / "out")
    assert sorted(found.pictures.values()) == ["other/a.jpg", "photos/a.jpg", "photos/sub/<b>&.png"]


def test_mistakes_are_reported_before_torch_is_imported(photographs, tmp_path):
    program = (
        "import sys, predict\n"
        "for words in (['{0}', '--lora', 'nromal'], ['{0}x'], ['{0}', '--colours', 'red'], []):\n"
        "    try: predict.main(words)\n"
        "    except ValueError as error: assert type(error).__name__ == 'InputError', error\n"
        "    else: raise SystemExit('accepted')\n"
        "assert not {{'torch', 'diffusers', 'accelerate'}} & set(sys.modules)\n"
    )
    python("-c", program.format(photographs))
    with pytest.raises(InputError, match=r"did you mean .*photos\?"):
        predict.main([f"{photographs}x"])
