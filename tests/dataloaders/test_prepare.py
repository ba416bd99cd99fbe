"""DIODE's archives: verified, unpacked safely, and continued; and the check of files on disk."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from helpers import fork
from PIL import Image

from dataloaders.__main__ import main
from dataloaders.diode import Diode
from dataloaders.prepare import archives as preparation
from utils.errors import InputError
from utils.intrinsics import DEPTH, NORMAL


@pytest.fixture(scope="module")
def archives(diode, tmp_path_factory):
    """The mini world packed as DIODE is: top-level train/ and val/ in both archives, some names with ./ before."""
    folder = tmp_path_factory.mktemp("archives")
    for kind in ("depths", "normals"):
        with tarfile.open(folder / f"{kind}.tar.gz", "w:gz", compresslevel=1) as tar:
            tar.add(diode / kind / "val", "val")
            tar.add(diode / kind / "train", "./train")
    return folder


def words(archives, root, *more):
    packed = ["--depths", archives / "depths.tar.gz", "--normals", archives / "normals.tar.gz"]
    return [str(word) for word in ("prepare", *packed, "--root", root, *more)]


def files(root) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_from_archives_to_training_data(diode, archives, tmp_path, capsys):
    assert not main(words(archives, tmp_path, "--skip_md5"))
    for kind in ("depths", "normals"):
        assert files(tmp_path / kind) == files(diode / kind)
    assert json.loads((tmp_path / "diode_meta.json").read_text()) == json.loads(
        (diode / "diode_meta.json").read_text()
    )
    assert len(Diode(NORMAL, tmp_path / "normals", diode / "pseudo" / "normal", "train")) == 24
    assert len(Diode(DEPTH, tmp_path / "depths", diode / "pseudo" / "depth", "val")) == 10
    assert "102 files written" in capsys.readouterr().out
    main(words(archives, tmp_path, "--skip_md5"))
    assert capsys.readouterr().out.count("already unpacked") == 2


def test_md5_sums_guard(archives, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"depths\.tar\.gz: MD5 sum \w{32} is not one published"):
        main(words(archives, tmp_path))
    assert not (tmp_path / "depths").exists()
    import hashlib

    sums = {
        kind: hashlib.md5((archives / f"{kind}.tar.gz").read_bytes()).hexdigest() for kind in ("depths", "normals")
    }
    monkeypatch.setattr(preparation, "MD5", {kind: {"val": value} for kind, value in sums.items()})
    assert not main(words(archives, tmp_path)) and (tmp_path / "normals" / "val").is_dir()
    swapped = ["prepare", "--depths", archives / "normals.tar.gz", "--root", tmp_path / "other"]
    with pytest.raises(InputError, match="one of the normals: pass it to --normals"):
        main([str(word) for word in swapped])


def test_the_md5_sums_are_diodes():
    assert preparation.MD5 == {
        "depths": {"val": "5c895d09201b88973c8fe4552a67dd85", "train": "3a94632398fe1d002d89f11743f748b1"},
        "normals": {"val": "323ccaf60abebdb59705dcd8b529d709", "train": "9c0617ebe1eaf1928fdf3344e1c42aef"},
    }


def test_interrupted_runs_continue(diode, archives, tmp_path, monkeypatch, capsys):
    place, left = preparation._place, [40]

    def tiring(*args):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return place(*args)

    monkeypatch.setattr(preparation, "_place", tiring)
    with pytest.raises(KeyboardInterrupt):
        main(words(archives, tmp_path, "--skip_md5"))
    written = len(files(tmp_path / "depths"))
    assert 0 < written < 102
    next((tmp_path / "depths").rglob("*.npy")).with_suffix(".npy.part").write_bytes(b"half")
    monkeypatch.setattr(preparation, "_place", place)
    main(words(archives, tmp_path, "--skip_md5"))
    assert f"{102 - written} files written" in capsys.readouterr().out
    assert {
        name: content for name, content in files(tmp_path / "depths").items() if not name.endswith(".part")
    } == files(diode / "depths")


GOOD = "val/indoors/scene_00001/scan_00002/00001_00002_indoors_000_000.png"


def pack(path, *members):
    """(name, content or type of link) -> an archive of them, after one good file."""
    with tarfile.open(path, "w:gz") as tar:
        for name, what in ((GOOD, "image"), *members):
            info = tarfile.TarInfo(name)
            if isinstance(what, str):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what.encode()))
            else:
                info.type, info.linkname = what, "../../../../../outside"
                tar.addfile(info)
    return path


@pytest.mark.parametrize(("name", "what", "message"), [
    ("/tmp/absolute.png", "x", "points outside"),
    ("../outside.png", "x", "points outside"),
    (GOOD.replace("scan_00002", "../.."), "x", "points outside"),
    ("val\\..\\..\\outside.png", "x", "points outside"),
    ("C:/outside.png", "x", "points outside"),
    (GOOD.replace(".png", "_depth.npy"), tarfile.SYMTYPE, "link or a device"),
    (GOOD.replace(".png", "_depth.npy"), tarfile.LNKTYPE, "link or a device"),
    ("val/indoors", tarfile.SYMTYPE, "link or a device"),
    (GOOD.replace(".png", "_depth.npy"), tarfile.FIFOTYPE, "link or a device"),
    (GOOD.replace(".png", "_depth.npy"), tarfile.CHRTYPE, "link or a device"),
])  # fmt: skip
def test_hostile_archives_write_nothing_outside(tmp_path, name, what, message):
    archive, root = pack(tmp_path / "bad.tar.gz", (name, what)), tmp_path / "a" / "b" / "DIODE"
    with pytest.raises(InputError, match=message):
        main(["prepare", "--depths", str(archive), "--root", str(root), "--skip_md5"])
    outside = [path for path in tmp_path.rglob("*") if root not in path.parents and path != archive and path.is_file()]
    assert outside == [] and not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert list(files(root)) == [f"depths/{GOOD}"]


def test_other_names_are_passed_over_and_large_claims_refused(tmp_path, capsys, monkeypatch):
    strays = [("val/.DS_Store", "x"), (GOOD.replace("/0000", "/._0000"), "x"), ("train/readme.txt", "x")]
    archive = pack(tmp_path / "stray.tar.gz", *strays)
    main(["prepare", "--depths", str(archive), "--root", str(tmp_path / "D"), "--skip_md5"])
    assert "1 files written" in capsys.readouterr().out and list((tmp_path / "D" / "depths").rglob(".*")) == []
    monkeypatch.setattr(preparation, "LARGEST", 3)
    with pytest.raises(InputError, match="claims 5 bytes"):
        main(["prepare", "--depths", str(archive), "--root", str(tmp_path / "E"), "--skip_md5"])


@pytest.mark.parametrize("lost", [0.7, 0.1, 4])  # shares, and the last 4 bytes: gzip's own end
def test_archives_that_are_cut_off(archives, tmp_path, lost):
    whole = (archives / "depths.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: -lost if lost == 4 else -int(lost * len(whole))])
    with pytest.raises(InputError, match=r"cut\.tar\.gz: broken or cut off"):
        main(["prepare", "--depths", str(tmp_path / "cut.tar.gz"), "--root", str(tmp_path / "D"), "--skip_md5"])


@pytest.mark.parametrize(("content", "message"), [
    (b"<html>not found</html>" * 100, "broken"), (None, "holds none of DIODE's normals"),
], ids=["a page", "other files"])  # fmt: skip
def test_not_an_archive_of_this_kind(content, message, tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content or (pack(tmp_path / "y", ("val/a.txt", "x"))).read_bytes())
    with pytest.raises(InputError, match=message):
        main(["prepare", "--normals", str(path), "--root", str(tmp_path / "D"), "--skip_md5"])


def test_a_list_that_is_there_is_only_completed(diode, tmp_path):
    shutil.copytree(diode / "depths", tmp_path / "depths")
    meta = json.loads((diode / "diode_meta.json").read_text())
    scan = next(iter(next(iter(meta["val"]["indoors"].values())).values()))
    dropped = scan.pop()  # DIODE's own list leaves out images of val
    del meta["train"]
    (tmp_path / "diode_meta.json").write_text(json.dumps(meta))
    assert preparation.complete_meta(tmp_path) == (24, 33)
    now = json.loads((tmp_path / "diode_meta.json").read_text())
    assert dropped not in json.dumps(now["val"]) and now["val"] == meta["val"]


def damaged(diode, tmp_path):
    """A copy with one file of each kind of damage, all in scenes of val/indoors and val/outdoor."""
    tree = shutil.copytree(diode, tmp_path / "DIODE")
    rgb = sorted((tree / "depths" / "val").rglob("*.png"))
    rgb[0].write_bytes(rgb[0].read_bytes()[:200])
    rgb[1].with_name(f"{rgb[1].stem}_depth.npy").unlink()
    np.save(rgb[2].with_name(f"{rgb[2].stem}_depth_mask.npy"), np.ones((36, 48)))
    normal = sorted((tree / "normals" / "val").rglob("*.npy"))[-1]
    np.save(normal, np.ones((72, 96), np.float32))
    label = tree / "pseudo" / "normal" / rgb[3].relative_to(tree / "depths")
    Image.fromarray(np.full((72, 96), 40000, np.uint16)).save(label)
    return tree, rgb, normal, label


def test_check_finds_each_damage(diode, tmp_path, capsys):
    tree, rgb, normal, label = damaged(diode, tmp_path)
    command = ["check", "--root", tree, "--pseudo_root", tree / "pseudo" / "normal", "--workers", 2]
    assert main([str(word) for word in command]) == 1
    text = capsys.readouterr().out
    assert "34 samples, 170 files" in text and "1 missing, 3 corrupt, 1 mismatched" in text
    first, second, third = (path.with_suffix("") for path in rgb[:3])
    lines = [f"corrupt: {first}.png", f"missing: {second}_depth.npy", f"corrupt: {normal}", f"corrupt: {label}"]
    for line in [*lines, f"mismatched: {third}_depth_mask.npy: 48x36, its image 96x72"]:
        assert line in text
    scene = rgb[0].relative_to(tree / "depths").parents[1].as_posix()
    assert any(line.endswith(f"  {scene}") for line in text.splitlines())


def test_check_of_a_good_tree_from_the_command_line(diode):
    done = fork("-m", "dataloaders.diode", "check", "--root", diode)
    assert "34 samples, 136 files" in done.stdout and "all good" in done.stdout and "version" in done.stdout
    done = fork("-m", "dataloaders.diode", "check", "--root", diode / "normals", check=False)
    assert done.returncode == 2 and "no such folder; --root is" in done.stderr and "Traceback" not in done.stderr


def test_check_and_the_list_agree(diode, tmp_path, capsys):
    tree = shutil.copytree(diode, tmp_path / "DIODE")
    gone = next((tree / "depths" / "train").rglob("*.png"))
    gone.unlink()
    assert main(["check", "--root", str(tree)]) == 1
    assert f"missing: {gone}" in capsys.readouterr().out
    shutil.rmtree(tree / "depths" / "train")  # only val was downloaded
    assert not main(["check", "--root", str(tree)])
    assert "24 listed samples of splits that are not on disk" in capsys.readouterr().out
