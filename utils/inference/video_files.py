"""Reading and writing videos with PyAV (optional: requirements-extra.txt), frame by frame."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import InputError, note, warn
from utils.image_io.colour_space import HDR, PRIMARIES, REFERENCE_WHITE, TRANSFERS, Chromaticities, Transfer, to_srgb8
from utils.image_io.opening import once

QUALITY = {  # of x264: 14 is hard to tell from the frames; colours as players expect them, and stated
    "crf": "14",
    "preset": "medium",
    "x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709:fullrange=off",
}
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # H.273's code -> swscale's
ATTACHED = 0x400  # FFmpeg's flag of a stream that is a cover image
TURNS = {  # signs of a display matrix (a, b, c, d): x' = a x + c y, y' = b x + d y, y down
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def frames(path: Path) -> Iterator[tuple[Image.Image, int | None]]:
    """(8-bit sRGB frame as players show it, its time in the stream's units) in the order in which they are shown.

    As the file states it: matrix, range, transfer and primaries of its colours, the shape of its pixels (frames come
    with square ones), rotation and mirroring, transparency (on white). What a file leaves open is filled in as players
    do: BT.709 for films of 1280 pixels width or more than 576 lines, else BT.601; limited range.

    Raises InputError where the file has no video, breaks off in the middle of a frame, or states what is
    not converted here; the message has the ffmpeg command that does.
    """
    with closing(_open(path)) as container:
        import av

        stream = _main_stream(container, path)
        look: Look | None = None
        size = None
        try:
            for frame in _decoded(container, stream, path):
                look = look or _look(path, stream, frame)
                image = look.shown(frame)
                if size not in (None, image.size):
                    cure = _ffmpeg(path, f"scale={size[0]}:{size[1]}")
                    raise InputError(
                        f"{path}: its frames change from {size[0]}x{size[1]} to {image.width}x{image.height} pixels; "
                        f"convert it: {cure}"
                    )
                size = image.size
                yield image, frame.pts
        except av.error.FFmpegError as error:
            raise InputError(f"{path}: cannot be decoded ({_reason(error)}); convert it again, or cut it") from None


def frame_count(path: Path) -> int | None:
    """The number of frames that the file states, or its duration and rate give; None where it states neither.

    For progress bars alone: broken and edited files state others than they have.
    """
    with closing(_open(path)) as container:
        stream = _main_stream(container, path)
        rate, seconds = stream.average_rate, None
        if stream.duration is not None and stream.time_base:
            seconds = stream.duration * stream.time_base
        elif container.duration is not None:
            seconds = Fraction(container.duration, 1_000_000)  # AV_TIME_BASE
        return stream.frames or (round(seconds * rate) if seconds and rate else None) or None


@dataclass(frozen=True)
class Look:
    """How the frames of a film become what players show.

    matrix, limited: of YUV, as `reformat` takes them (`_colours`). transfer, primaries: see `to_srgb8`. aspect: width
    of a pixel over its height. turn: after that; None where the frame is upright. alpha: frames have transparency.
    """

    matrix: int | None
    limited: bool
    transfer: Transfer | None
    primaries: Chromaticities | None
    aspect: Fraction
    turn: Image.Transpose | None
    alpha: bool

    def shown(self, frame: Any) -> Image.Image:
        """One frame as an image, 8-bit sRGB."""
        deep = self.transfer is not None or self.primaries is not None  # 8 bits would leave bands in the dark
        name = ("rgba64le" if self.alpha else "rgb48le") if deep else ("rgba" if self.alpha else "rgb24")
        colours = {}
        if self.matrix is not None:
            colours = {"src_colorspace": self.matrix, "src_color_range": 1 if self.limited else 2}
        pixels = frame.reformat(format=name, dst_color_range=2, **colours).to_ndarray()
        alpha = pixels[..., 3] if self.alpha else None
        pixels = pixels[..., :3]
        if deep:
            pixels = to_srgb8(pixels, self.transfer, self.primaries)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if alpha is not None:
            opacity = Image.fromarray((alpha >> 8 if deep else alpha).astype(np.uint8))
            image = Image.composite(image, Image.new("RGB", image.size, "white"), opacity)
        if self.aspect != 1:
            image = image.resize(square(image.size, self.aspect), Image.Resampling.BILINEAR)
        return image if self.turn is None else image.transpose(self.turn)


def square(size: tuple[int, int], aspect: Fraction) -> tuple[int, int]:
    """(width, height) with square pixels of a frame whose pixels are `aspect` times as wide as high: none is lost."""
    width, height = size
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def join(source: Path, files: Sequence[Path], target: Path) -> None:
    """Write an .mp4 of images, all of one size, one for each frame of `source`, with its times and sound: in BT.709
    and square pixels, and the file states it.

    x264 takes even sides: an odd one is repeated once. Sound is copied as it is, where .mp4 can hold it; else a
    warning says that it is left out.
    """
    import av

    with closing(_open(source)) as container, av.open(str(target), "w", format="mp4") as out:
        video = _main_stream(container, source)
        sound = container.streams.audio[0] if container.streams.audio else None
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        stream: Any = out.add_stream("libx264", rate=rate, options=QUALITY)
        stream.pix_fmt, stream.time_base, stream.codec_context.time_base = "yuv420p", video.time_base, video.time_base
        copied = _copied(out, sound, source)
        images = map(_even, files)
        first = next(images)
        following = chain([first], images)
        stream.width, stream.height = first.size  # before anything is written, which opens the encoder
        for packet in container.demux([video] if copied is None else [video, sound]):
            if packet.stream.type == "audio":
                if packet.dts is not None:
                    packet.stream = copied
                    out.mux(packet)
                continue
            for frame, image in zip(packet.decode(), following):
                made = av.VideoFrame.from_image(image).reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
                made.pts, made.time_base = frame.pts, video.time_base
                out.mux(stream.encode(made))
        out.mux(stream.encode(None))


def _even(file: Path) -> Image.Image:
    """An image as RGB with even sides: an odd one's last row or column is repeated."""
    with Image.open(file) as image:
        pixels = np.asarray(image)
    margins = [(0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)]
    return Image.fromarray(np.pad(pixels, margins[: pixels.ndim], mode="edge")).convert("RGB")


def _copied(out: Any, sound: Any, source: Path) -> Any:
    """The output's stream for the source's sound, None where it has none or .mp4 cannot hold it."""
    if sound is None:
        return None
    if sound.codec_context.name in ("aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "alac", "flac"):
        return out.add_stream_from_template(sound)
    warn(f"{source}: its sound ({sound.codec_context.name}) does not go into an .mp4; the video is silent")
    return None


def _open(path: Path) -> Any:
    import av

    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path}: not a readable video ({_reason(error)}); replace it") from None
    if container.format.name == "concat":
        container.close()
        raise InputError(f"{path}: not a video but a list of other files; name those")
    if not container.streams.video:
        container.close()
        raise InputError(f"{path}: holds no video stream; name a file with images")
    return container


def _main_stream(container: Any, path: Path) -> Any:
    """The video stream that players show: FFmpeg's choice, but never a cover image."""
    films = [stream for stream in container.streams.video if not int(stream.disposition) & ATTACHED]
    if not films:
        raise InputError(f"{path}: holds a cover image and no film; name a file with frames")
    best = container.streams.best("video")
    stream = best if best in films else films[0]
    if len(films) > 1:
        once(note, f"streams {path}", f"{path}: of its {len(films)} video streams number {stream.index} alone is read")
    stream.thread_type = "AUTO"
    return stream


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """The frames of a stream, with their transparency: FFmpeg's own decoders of VP8 and VP9 leave it out."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    import av

    try:
        decoder = av.CodecContext.create(name, "r")
    except ValueError:
        cure = f"ffmpeg -c:v {name} -i {shlex.quote(str(path))} -c:v ffv1 -pix_fmt bgra {_converted(path, '.mkv')}"
        raise InputError(f"{path}: PyAV lacks {name}, which reads its transparency; convert it: {cure}") from None
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)  # type: ignore[attr-defined]


def _look(path: Path, stream: Any, frame: Any) -> Look:
    """The meaning of a film's frames, as the file states it, from the first one, with notes of what is converted.
    InputError: see `frames`.
    """
    context, pixels = stream.codec_context, frame.format
    tags = {}
    for tag in ("color_primaries", "color_trc", "colorspace"):
        values = (int(getattr(one, tag, None) or 0) for one in (frame, context))  # older PyAVs: the context alone
        tags[tag] = next((value for value in values if value not in (0, 2)), 2)
    primaries, transfer, matrix = tags["color_primaries"], tags["color_trc"], tags["colorspace"]
    if transfer == 2 and any(data.type.name.startswith("DOVI") for data in frame.side_data):
        raise InputError(f"{path}: Dolby Vision colours, which are not read; convert it: {_ffmpeg(path, LIBPLACEBO)}")
    if transfer not in TRANSFERS or primaries not in PRIMARIES:
        what = f"transfer {transfer}, primaries {primaries} of H.273"
        raise InputError(f"{path}: colours not read here ({what}); convert it: {_ffmpeg(path, TO_BT709)}")
    is_yuv = not pixels.is_rgb and pixels.name != "pal8" and not pixels.name.startswith(("gray", "ya", "mono"))
    if is_yuv and matrix == 2:
        high = frame.width >= 1280 or frame.height > 576  # players' rule, mpv's and others'
        matrix = 9 if primaries == 9 else 1 if high else 5
    if is_yuv and matrix not in MATRICES:
        raise InputError(
            f"{path}: colour matrix {matrix} of H.273, not read here; convert it: {_ffmpeg(path, TO_BT709)}"
        )
    if transfer in HDR:
        once(
            note,
            f"film {path}",
            f"{path}: an HDR film ({HDR[transfer]}), converted to sRGB: diffuse white, {REFERENCE_WHITE} cd/m2, is "
            f"white and what is brighter is clipped; to keep it, convert it before: {_ffmpeg(path, TONE_MAPPED)}",
        )
    elif TRANSFERS[transfer] or PRIMARIES[primaries]:
        once(note, f"film {path}", f"{path}: converted to sRGB (transfer {transfer}, primaries {primaries} of H.273)")
    alpha = pixels.name == "pal8" or any(part.is_alpha for part in pixels.components)
    if alpha and stream.codec_context.name != "gif":  # every GIF might have it
        once(note, "alpha", f"{path}: transparent areas are shown on white")
    if frame.interlaced_frame:
        cure = _ffmpeg(path, "bwdif=mode=send_frame")
        once(warn, f"interlaced {path}", f"{path}: interlaced, moving edges are combed; convert it: {cure}")
    aspect = Fraction(stream.sample_aspect_ratio or context.sample_aspect_ratio or 1)
    if not Fraction(1, 8) <= aspect <= 8:
        raise InputError(f"{path}: pixels of {aspect} are not plausible; convert it: {_ffmpeg(path, 'setsar=1')}")
    if aspect != 1:
        width, height = square((frame.width, frame.height), aspect)
        text = f"pixels of {aspect.numerator}:{aspect.denominator}, read as {width}x{height} square pixels"
        once(note, f"aspect {path}", f"{path}: {frame.width}x{frame.height} {text}")
    full = int(frame.color_range or 0) == 2 or pixels.name.startswith("yuvj")
    return Look(
        MATRICES[matrix] if is_yuv else None,
        not full,
        TRANSFERS[transfer],
        PRIMARIES[primaries],
        aspect,
        _turn(path, frame),
        alpha,
    )


def _turn(path: Path, frame: Any) -> Image.Transpose | None:
    """The turn that brings a frame upright, by the file's display matrix: phones turn, front cameras mirror."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data), "=i4")[:5].tolist()
            largest = max(map(abs, (a, b, c, d))) or 1
            signs = tuple(round(value / largest) for value in (a, b, c, d))
            if signs not in TURNS or any(
                abs(value / largest - round(value / largest)) > 0.01 for value in (a, b, c, d)
            ):
                raise InputError(f"{path}: turned by no quarter; convert it: {_ffmpeg(path, 'null')}")
            return TURNS[signs]
    return None


LIBPLACEBO = "libplacebo=colorspace=bt709:color_primaries=bt709:color_trc=bt709,format=yuv420p"
TO_BT709 = "zscale=primaries=709:transfer=709:matrix=709:range=tv,format=yuv420p"
TONE_MAPPED = (
    "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=709,tonemap=hable,"
    "zscale=transfer=709:matrix=709:range=tv,format=yuv420p"
)


def _ffmpeg(path: Path, filters: str) -> str:
    """The command that converts a film by these filters, ready to be pasted."""
    return f"ffmpeg -i {shlex.quote(str(path))} -vf {filters} -crf 14 -c:a copy {_converted(path, '.mp4')}"


def _converted(path: Path, ending: str) -> str:
    return shlex.quote(f"{path.stem}_converted{ending}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:150]
