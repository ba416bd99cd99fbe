"""Films as players show them: every tag of a film that changes its colours or its shape, against known frames."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.errors import InputError
from utils.image_io.colour_space import to_linear
from utils.image_io.opening import _told
from utils.inference.video_files import frames, join

av = pytest.importorskip("av")

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (128, 128, 128)]
SIZE = (96, 72)


@pytest.fixture(autouse=True)
def every_note_is_new():
    _told.clear()


def chart(width: int = SIZE[0], height: int = SIZE[1]) -> np.ndarray:
    """Upper half a ramp of greys, lower half six colours; uint8 (H,W,3)."""
    pixels = np.repeat(np.linspace(0, 255, width).round().astype(np.uint8)[None, :, None], 3, axis=2)
    pixels = np.repeat(pixels, height, axis=0)
    for i, colour in enumerate(COLOURS):
        pixels[height // 2 :, i * width // 6 : (i + 1) * width // 6] = colour
    return pixels


def film(path: Path, pixels: np.ndarray, pix_fmt="yuv444p", codec="libx264", tags="", matrix=5, full=False, **stream):
    """One frame, uint8 or uint16 (H,W,3 or 4), encoded with swscale's `matrix` and tagged as x264 is told to."""
    with av.open(str(path), "w") as out:
        params = ":".join(filter(None, [tags, f"fullrange={'on' if full else 'off'}"]))
        options = {"crf": "1", "x264-params": params} if codec == "libx264" else {}
        track = out.add_stream(codec, rate=5, options=options | stream.get("options", {}))
        track.height, track.width = pixels.shape[:2]
        track.pix_fmt = pix_fmt
        if "aspect" in stream:
            track.codec_context.sample_aspect_ratio = stream["aspect"]
        name = {3: "rgb", 4: "rgba"}[pixels.shape[2]]
        bits = ("24" if name == "rgb" else "") if pixels.dtype == np.uint8 else ("48le" if name == "rgb" else "64le")
        for i in range(stream.get("count", 1)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=name + bits)
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=2 if full else 1)
            frame.pts = i
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return path


def first(path: Path) -> np.ndarray:
    return np.asarray(next(frames(path))[0]).astype(int)


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv444p10le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("name", "matrix"), [("", 5), ("smpte170m", 5), ("bt470bg", 5), ("bt709", 1), ("fcc", 4),
    ("smpte240m", 7), ("bt2020nc", 9)])  # fmt: skip
def test_matrix_and_range_are_undone(name, matrix, full, pix_fmt, tmp_path):
    tags = f"colormatrix={name}" if name else ""
    found = first(film(tmp_path / "a.mp4", chart(), pix_fmt, tags=tags, matrix=matrix, full=full))
    assert np.abs(found - chart()).max() <= 3


@pytest.mark.parametrize(("width", "height", "matrix"), [(96, 72, 5), (720, 576, 5), (1280, 72, 1), (96, 578, 1)])
def test_an_untagged_film_is_read_as_players_do(width, height, matrix, tmp_path):
    found = first(film(tmp_path / "a.mp4", chart(width, height), matrix=matrix))
    assert np.abs(found - chart(width, height)).max() <= 4


def signal(light: np.ndarray, transfer: str) -> np.ndarray:
    """Light (1 = diffuse white) to the signal in [0,1], by the standards' own formulas."""
    if transfer == "arib-std-b67":
        scene = light * 0.26496256  # 75 % signal (ITU-R BT.2408)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    if transfer == "smpte2084":
        y = (light * 203 / 10_000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    return {"linear": light, "bt470m": light ** (1 / 2.2), "bt470bg": light ** (1 / 2.8)}[transfer]


@pytest.mark.parametrize("transfer", ["arib-std-b67", "smpte2084", "linear", "bt470m", "bt470bg"])
def test_transfers_are_undone(transfer, tmp_path, capsys):
    grey = np.repeat(chart()[:36, :, :1], 3, axis=2)
    coded = np.rint(signal(to_linear(grey / 255), transfer) * 65535).astype(np.uint16)
    tags = f"transfer={transfer}:colormatrix=bt2020nc:colorprim=bt2020"
    found = first(film(tmp_path / "a.mp4", coded, "yuv444p10le", tags=tags, matrix=9))
    dark = 12 if transfer == "linear" else 4  # ten bits of linear light are coarse in the dark
    assert np.abs(found - grey).max() <= dark and np.abs(found - grey)[:, 32:].max() <= 4
    said = capsys.readouterr().out
    assert "converted to sRGB" in said and said.count("note:") == 1
    if transfer in ("arib-std-b67", "smpte2084"):
        assert "ffmpeg -i" in said and "tonemap" in said


@pytest.mark.parametrize(
    ("name", "red"), [("bt2020", (0.6274, 0.0691, 0.0164)), ("smpte432", (0.8225, 0.0332, 0.0171))]
)
def test_wide_primaries_become_srgbs(name, red, tmp_path):
    """sRGB's red in the other primaries (ITU-R BT.2087; Display P3) comes back as (1, 0, 0)."""
    coded = np.rint(65535 * np.broadcast_to(np.array(red) ** (1 / 2.2), (72, 96, 3))).astype(np.uint16)
    tags = f"colorprim={name}:transfer=bt470m:colormatrix=bt709"
    found = first(film(tmp_path / "a.mp4", coded, "yuv444p10le", tags=tags, matrix=1))
    assert found[..., 0].min() >= 252 and found[..., 1:].max() <= 24


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(4, 3), (128, 72)), (Fraction(8, 9), (96, 81))])
def test_frames_have_square_pixels(aspect, size, tmp_path, capsys):
    path = film(tmp_path / "a.mp4", chart(), aspect=aspect)
    assert next(frames(path))[0].size == size
    assert f"pixels of {aspect.numerator}:{aspect.denominator}" in capsys.readouterr().out


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """The film with another display matrix in its track's header."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    for i, value in enumerate([a, b, 0, c, d, 0, 0, 0, 1 << 14]):
        content[place + 4 * i : place + 4 * i + 4] = round(value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, -1, 0),
    (0, -1, 1, 0), (0, 1, 1, 0), (0, -1, -1, 0)])  # fmt: skip
def test_turned_and_mirrored_films_are_upright(matrix, tmp_path):
    """Pixel (x, y) of the file is shown at (a x + c y, b x + d y), shifted to where the frame begins."""
    pixels = np.zeros((72, 96, 3), np.uint8)
    pixels[8:24, 8:40], pixels[48:64, 56:88, 1] = 200, 255
    found = first(with_matrix(film(tmp_path / "a.mp4", pixels), *matrix))
    a, b, c, d = matrix
    y, x = np.mgrid[:72, :96]
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    expected = np.zeros((row.max() + 1, column.max() + 1, 3))
    expected[row, column] = pixels
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 2


def test_a_film_turned_by_no_quarter_is_refused(tmp_path):
    path = with_matrix(film(tmp_path / "a.mp4", chart()), 0.8, 0.6, -0.6, 0.8)
    with pytest.raises(InputError, match=r"turned by no quarter; convert it: ffmpeg -i .*a\.mp4"):
        first(path)


def transparent() -> np.ndarray:
    """Colours in the middle, and other ones hidden around them; uint8 (72,96,4)."""
    rgba = np.random.default_rng(0).integers(0, 256, (72, 96, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    rgba[16:56, 16:80] = (200, 120, 60, 255)
    return rgba


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [
    ("a.webm", "libvpx-vp9", "yuva420p"), ("a.mov", "prores_ks", "yuva444p10le"), ("a.mov", "qtrle", "argb"),
])  # fmt: skip
def test_transparent_films_are_read_on_white(name, codec, pix_fmt, tmp_path, capsys):
    options = {"profile": "4444"} if codec == "prores_ks" else {"crf": "5", "b": "0"} if "vp9" in codec else {}
    found = first(film(tmp_path / name, transparent(), pix_fmt, codec, full="rgb" in pix_fmt, options=options))
    assert found[:8].min() >= 250 and found[:, :8].min() >= 250
    assert np.abs(found[24:48, 24:72] - (200, 120, 60)).max() <= 8
    assert "transparent areas are shown on white" in capsys.readouterr().out


def test_a_transparent_animation_is_read_on_white(tmp_path):
    images = [Image.fromarray(transparent()).convert("RGBA") for _ in range(2)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], disposal=2)
    found = first(tmp_path / "a.gif")
    assert found[:8].min() == 255 and np.abs(found[24:48, 24:72] - (200, 120, 60)).max() <= 8


def test_an_interlaced_film_is_named_with_the_fix(tmp_path, capsys):
    first(film(tmp_path / "a.mp4", chart(), "yuv420p", tags="tff=1", count=4))
    assert "interlaced" in (said := capsys.readouterr().err) and "ffmpeg -i" in said and "bwdif" in said


@pytest.mark.parametrize(("tags", "reason"), [
    ("colormatrix=ycgco", "colour matrix 8"), ("transfer=log100", "transfer 9"),
    ("colorprim=smpte428", "primaries 10"),
])  # fmt: skip
def test_colours_that_are_not_read_are_refused_with_the_command(tags, reason, tmp_path):
    with pytest.raises(InputError, match=rf"{reason}.*convert it: ffmpeg -i .*a\.mp4 -vf zscale"):
        first(film(tmp_path / "a.mp4", chart(), tags=tags))


def several(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        tracks = []
        for width in (48, 96):
            track = out.add_stream("libx264", rate=5)
            track.width, track.height, track.pix_fmt = width, 72, "yuv420p"
            tracks.append(track)
        for track in tracks:
            out.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((72, track.width, 3), np.uint8), "rgb24")))
            out.mux(track.encode(None))
    return path


def test_of_several_streams_it_is_stated_which_one_is_read(tmp_path, capsys):
    size = next(frames(several(tmp_path / "a.mkv")))[0].size
    assert size == (48, 72)
    assert "of its 2 video streams number 0 alone is read" in capsys.readouterr().out


def test_a_cover_image_is_not_the_film(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        cover, track = out.add_stream("mjpeg", rate=1), out.add_stream("libx264", rate=5)
        cover.width, cover.height, cover.pix_fmt = 256, 256, "yuvj420p"
        cover.disposition = 0x400
        track.width, track.height, track.pix_fmt = 96, 72, "yuv420p"
        for one in (cover, track):
            pixels = np.zeros((one.height, one.width, 3), np.uint8)
            out.mux(one.encode(av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=one.pix_fmt)))
            out.mux(one.encode(None))
    assert [image.size for image, _ in frames(tmp_path / "a.mp4")] == [(96, 72)]


def test_a_film_that_changes_its_size_is_refused_with_the_command(tmp_path):
    film(tmp_path / "a.ts", chart(), count=3)
    film(tmp_path / "b.ts", chart(160, 120), count=3)
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    with pytest.raises(InputError, match=r"change from 96x72 to 160x120.*-vf scale=96:72"):
        list(frames(tmp_path / "c.ts"))


def test_the_joined_film_states_its_colours_and_shows_them(tmp_path):
    Image.fromarray(chart()).save(tmp_path / "map.png")
    source = film(tmp_path / "a.mp4", chart(), aspect=Fraction(4, 3))
    join(source, [tmp_path / "map.png"], tmp_path / "map.mp4")
    with av.open(str(tmp_path / "map.mp4")) as made:
        track = made.streams.video[0].codec_context
        assert (int(track.colorspace), int(track.color_primaries), int(track.color_trc)) == (1, 1, 1)
    found = first(tmp_path / "map.mp4")
    assert np.abs(found - chart())[8:28].max() <= 4 and np.abs(found - chart())[44:64, 4:12].max() <= 4
