"""Videos: frames in order and upright, one range of depth for a clip, continued after a kill, times and sound kept."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

import inference_sd_single
from utils.errors import InputError
from utils.inference.video_files import frame_count, frames

av = pytest.importorskip("av")

LORAS = ROOT / "miniworld" / "mini-loras"
TIMES = [0, 40, 80, 200, 240, 400]  # milliseconds: no constant frame rate
SIZE = (70, 49)  # width, height: odd ones, which x264 alone does not take


def film(path: Path, codec: str = "ffv1", sound: bool = False, size: tuple[int, int] = SIZE) -> Path:
    """Six frames, dark to light, each with a red left half."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        tone = out.add_stream("aac", rate=16000) if sound else None
        for i, time in enumerate(TIMES):
            pixels = np.full((size[1], size[0], 3), 30 + 35 * i, np.uint8)
            pixels[:, : size[0] // 2, 1:] //= 4
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if tone is not None:
            wave = np.sin(np.arange(6400) / 8).astype(np.float32)
            for start in range(0, 6400, 1024):
                frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
                frame.sample_rate, frame.pts = 16000, start
                out.mux(tone.encode(frame))
            out.mux(tone.encode(None))
    return path


def turned(path: Path) -> Path:
    """A film tagged, like a phone's, to be turned by 90 degrees to the right."""
    content = bytearray(film(path, "libx264", size=(64, 48)).read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # version, flags, times, id, duration, reserved, layer, volume
    assert content[place : place + 4] == b"\x00\x01\x00\x00"
    one = 1 << 16
    for i, value in enumerate([0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30]):
        content[place + 4 * i : place + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


def predict(task: str, source: Path, out: Path, *more: object) -> Path:
    """Run the script; the folder of the frames' maps."""
    words = ["--lora", LORAS / task, "--input_dir", source, "--output_dir", out, "--device", "cpu", *more]
    assert inference_sd_single.main([str(word) for word in words]) == 0
    return out / task / "predicted" / source.stem


def test_frames_come_in_order_with_their_times(tmp_path):
    found = list(frames(film(tmp_path / "a.mkv")))
    assert [time for _, time in found] == TIMES
    assert [np.asarray(image)[10, 60, 0] for image, _ in found] == [30 + 35 * i for i in range(6)]


def test_a_bar_has_the_films_length_where_the_file_states_it(tmp_path, capfd):
    assert frame_count(film(tmp_path / "a.mp4", "libx264", size=(64, 48))) == 6
    assert 6 <= frame_count(film(tmp_path / "b.mkv")) <= 16  # by its length and its mean rate
    predict("normal", tmp_path / "a.mp4", tmp_path / "out")
    assert "predicting normal of a.mp4: 100%" in capfd.readouterr().err
    with av.open(str(tmp_path / "d.h264"), "w", format="h264") as out:  # a bare stream states nothing
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    (tmp_path / "d.h264").rename(tmp_path / "d.mp4")
    assert frame_count(tmp_path / "d.mp4") is None
    predict("normal", tmp_path / "d.mp4", tmp_path / "out")
    assert "predicting normal of d.mp4 (of unknown length): 3frame" in capfd.readouterr().err


def test_a_phones_film_is_turned_upright(tmp_path):
    image, _ = next(frames(turned(tmp_path / "a.mp4")))
    assert image.size == (48, 64)
    pixels = np.asarray(image).astype(int)  # turned to the right, the red left half is the upper one
    redness = pixels[..., 0] - pixels[..., 1]
    assert redness[:28].mean() > redness[36:].mean() + 10


def test_a_film_of_maps_has_the_sources_times_and_sound(tmp_path):
    source = film(tmp_path / "a.mkv", sound=True)
    folder = predict("normal", source, tmp_path / "out", "--video")
    assert len(list(folder.glob("*_normal.png"))) == 6
    first = Image.open(folder / "000000_normal.png")
    assert first.size == SIZE and first.text["frame"].startswith("opencv")
    with av.open(str(folder.parent / "a_normal.mp4")) as made, av.open(str(source)) as theirs:
        times = [round(float(frame.pts * frame.time_base) * 1000) for frame in made.decode(video=0)]
        assert times == TIMES and (made.streams.video[0].width, made.streams.video[0].height) == (70, 50)
        made.seek(0)
        sounds = [[bytes(packet) for packet in file.demux(audio=0) if packet.size] for file in (made, theirs)]
        assert sounds[0] == sounds[1] and len(sounds[0]) > 3
    last = list(frames(folder.parent / "a_normal.mp4"))[-1][0].crop((0, 0, *SIZE))
    written = np.asarray(Image.open(folder / "000005_normal.png")).astype(int)
    assert np.abs(np.asarray(last).astype(int) - written).mean() < 4


def test_depth_is_scaled_once_for_the_clip_and_a_broken_run_continues(tmp_path, capsys):
    source = film(tmp_path / "a.mkv")
    folder = predict("depth", source, tmp_path / "out", "--batch_size", 4, "--formats", "png,png16")
    values = np.stack([np.load(folder / f"{i:06d}_depth.npy") for i in range(6)])
    shown = np.stack([np.asarray(Image.open(folder / f"{i:06d}_depth.png")) for i in range(6)])
    low, high = values.min(), values.max()
    assert np.abs(shown - 255 * (values - low) / (high - low)).max() <= 1
    assert (shown.min((1, 2)) > 0).any() or (shown.max((1, 2)) < 255).any()  # not every frame has the whole range
    text = Image.open(folder / "000003_depth_16bit.png").text
    assert (float(text["value_at_0"]), float(text["value_at_65535"])) == (low, high)

    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    (folder / "000004_depth.npy").unlink()
    capsys.readouterr()
    predict("depth", source, tmp_path / "out", "--batch_size", 4, "--formats", "png,png16")
    assert "6 frames, 5 of them were there already" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert {name for name in before if before[name] != after[name]} == {"000004_depth.npy"}
    assert np.abs(np.load(folder / "000004_depth.npy") - values[4]).max() < 1e-4
    with pytest.raises(InputError, match=r"other settings \(flip tta False, now True\); remove it"):
        predict("depth", source, tmp_path / "out", "--flip_tta")


def test_an_animation_is_a_video(tmp_path):
    images = [Image.new("RGB", (64, 64), (60 * i, 90, 30)) for i in range(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    folder = predict("albedo", tmp_path / "a.gif", tmp_path / "out", "--video")
    assert len(list(folder.glob("*.png"))) == 3 and (folder.parent / "a_albedo.mp4").is_file()


@pytest.mark.parametrize(("name", "words", "expected"), [
    ("text.mp4", [], "not a readable video"),
    ("a.mkv", ["--formats", "ply", "--near", "1", "--far", "2"], "of images only"),
    ("a.mkv", ["--formats", "npy", "--video"], "add png to --formats"),
    ("a.png", ["--video"], "is not a video"),
])  # fmt: skip
def test_what_cannot_work_is_one_line(name, words, expected, tmp_path):
    film(tmp_path / "a.mkv")
    (tmp_path / "text.mp4").write_text("no video")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=expected):
        predict("depth", tmp_path / name, tmp_path / "out", *words)


def test_frames_read_by_other_rules_are_not_continued(tmp_path, monkeypatch):
    source = film(tmp_path / "a.mkv")
    predict("normal", source, tmp_path / "out")
    monkeypatch.setattr("utils.inference.video.READING", 1)
    with pytest.raises(InputError, match=r"other settings \(version of reading \d, now 1\)"):
        predict("normal", source, tmp_path / "out")


def test_a_film_of_wide_pixels_is_joined_to_one_that_is_shown_the_same(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((72, 96, 3), 90, np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    folder = predict("normal", tmp_path / "a.mp4", tmp_path / "out", "--video")
    assert Image.open(folder / "000000_normal.png").size == (128, 72)
    with av.open(str(folder.parent / "a_normal.mp4")) as made:
        video = made.streams.video[0]
        assert (video.width, video.height, video.sample_aspect_ratio or 1) == (128, 72, 1)
