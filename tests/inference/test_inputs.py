"""The files selected by --input_dir."""

from pathlib import Path

import pytest

from app.upload import read_upload
from dataloaders.listing import folder_samples
from dataloaders.to_label import find_pictures
from utils.cli import nearest
from utils.errors import InputError
from utils.inference.inputs import find_all, find_inputs, output_names

OUT = "nowhere/out"


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(inputs) -> list[str]:
    return list(inputs.pictures.values())


def test_a_tree_is_read_in_sorted_order_and_the_rest_is_counted_by_ending(tmp_path):
    tree(tmp_path, "b.PNG", "a.jpg", "x/c.webp", "x/y/d.tif", "x/e.cr3", "f.CR3", "g.mov", "README")
    inputs = find_inputs(tmp_path, OUT)
    assert names(inputs) == ["a.jpg", "b.PNG", "x/c.webp", "x/y/d.tif"]
    assert inputs.said() == "skipped: 2 .cr3, 1 .mov, 1 without ending"
    maps = output_names(inputs.pictures, "depth")
    assert list(maps.values()) == ["a_depth.png", "b_depth.png", "x/c_depth.png", "x/y/d_depth.png"]


def test_one_file_is_accepted_and_no_other_kind(tmp_path):
    tree(tmp_path, "x/a.jpg", "x/notes.txt")
    assert find_inputs(tmp_path / "x/a.jpg", OUT).pictures == {tmp_path / "x/a.jpg": "a.jpg"}
    with pytest.raises(InputError, match=r"notes\.txt: not an image we read"):
        find_inputs(tmp_path / "x/notes.txt", OUT)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    tree(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", ".cache/b.jpg")
    inputs = find_inputs(tmp_path, OUT)
    assert names(inputs) == ["a.jpg"] and inputs.said() == ""


@pytest.mark.parametrize(("output", "expected", "own"), [
    ("out", ["a.jpg"], 3),  # below the input: all of it is output
    (".", ["a.jpg", "out/c.jpg", "out/normal/predicted/a_normal.png"], 1),  # the input itself: only the maps
])  # fmt: skip
def test_the_output_folder_is_never_read(output, expected, own, tmp_path):
    tree(tmp_path, "a.jpg", "out/c.jpg", "out/normal/predicted/a_normal.png", "depth/predicted/x/a_depth.png")
    if output == "out":
        tree(tmp_path, "out/depth/uncertainty/b.png")
        (tmp_path / "depth/predicted/x/a_depth.png").unlink()
    inputs = find_inputs(tmp_path, tmp_path / output)
    assert names(inputs) == expected and inputs.own == own
    assert inputs.said() == f"skipped: {own} images in the output folder"


def test_the_folder_of_the_maps_is_refused_as_input(tmp_path):
    tree(tmp_path, "normal/predicted/x/a_normal.png")
    for folder in ("normal/predicted", "normal/predicted/x"):
        with pytest.raises(InputError, match="name another --output_dir"):
            find_inputs(tmp_path / folder, tmp_path)


def test_links_to_folders_are_followed_once_and_dead_ones_reported(tmp_path):
    tree(tmp_path, "data/a.jpg", "in/b.jpg")
    (tmp_path / "in/link").symlink_to(tmp_path / "data")
    (tmp_path / "in/again").symlink_to(tmp_path / "in")
    (tmp_path / "in/dead.png").symlink_to("/nowhere.png")
    assert names(find_inputs(tmp_path / "in", OUT)) == ["b.jpg", "dead.png", "link/a.jpg"]


def test_images_of_one_stem_are_both_predicted_and_their_maps_keep_the_ending(tmp_path):
    tree(tmp_path, "x/a.jpg", "x/a.png", "a.jpg", "x/b.png")
    inputs = find_inputs(tmp_path, OUT)
    maps = list(output_names(inputs.pictures, "normal").values())
    assert maps == ["a_normal.png", "x/a.jpg_normal.png", "x/a.png_normal.png", "x/b_normal.png"]
    (line,) = inputs.notes()
    assert line.startswith(f"2 images share their stem with another one, such as {tmp_path}/x/a.jpg and ")


def test_two_images_that_would_write_one_map_are_refused(tmp_path):
    tree(tmp_path, "x/a.jpg", "x/a.png", "x/a.jpg.png")
    with pytest.raises(InputError, match=r"would both be written as x/a\.jpg_normal\.png"):
        output_names(find_inputs(tmp_path, OUT).pictures, "normal")


def test_a_film_is_sent_to_the_command_that_predicts_it(tmp_path):
    """The other doors: predict.py (`find_all`), pseudo_label.py and the page's upload."""
    tree(tmp_path, "a film.mov")
    film = tmp_path / "a film.mov"
    command = f"python inference_sd_single.py --lora miniworld/mini-loras/normal --input_dir '{film}' --video"
    with pytest.raises(InputError, match=f"a video, which has a command of its own: {command}$"):
        find_all([film], OUT)
    with pytest.raises(InputError, match=r"a video; extract its frames first .*ffmpeg -i"):
        find_pictures(film, tmp_path / "out", ["train"], ["indoors"])
    with pytest.raises(InputError, match=r"a film\.mov: a video; the page takes images"):
        read_upload(film)


def test_unread_endings_are_named_by_every_door(tmp_path, capsys):
    tree(tmp_path, "images/a.jpg", "images/b.cr2", "images/c.cr2", "labels/a.png")
    assert find_inputs(tmp_path / "images", OUT).notes() == ["skipped: 2 .cr2"]
    find_pictures(tmp_path / "images", tmp_path / "out", ["train"], ["indoors"])
    assert capsys.readouterr().out == "note: skipped: 2 .cr2\n"
    folder_samples(tmp_path)
    assert capsys.readouterr().out == f"note: {tmp_path}/images: skipped: 2 .cr2\n"


def test_what_is_missing_is_named_with_its_neighbour(tmp_path):
    tree(tmp_path, "photos/clip.mov", "loras/normal/x.bin")
    with pytest.raises(InputError, match=r"photo: no such folder or image, did you mean .*photos\?"):
        find_inputs(tmp_path / "photo", OUT)
    with pytest.raises(InputError, match=r"no images .* in this folder; skipped: 1 \.mov"):
        find_inputs(tmp_path / "photos", OUT)
    assert nearest(tmp_path / "lors" / "normal") == f", did you mean {tmp_path / 'loras' / 'normal'}?"
    assert nearest(tmp_path / "loras" / "nromal") == f", did you mean {tmp_path / 'loras' / 'normal'}?"
    assert nearest(tmp_path / "lors" / "depth") == ""
