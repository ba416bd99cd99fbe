"""Reading and writing videos with PyAV (optional: requirements-extra.txt), frame by frame."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import InputError, warn

QUALITY = {"crf": "14", "preset": "medium"}  # of x264: 14 is hard to tell from the frames


def frames(path: Path) -> Iterator[tuple[Image.Image, int | None]]:
    """(RGB frame, turned upright; its time in the stream's units) in the order in which they are shown.

    Raises InputError where there is no video in the file, or it breaks off in the middle of a frame.
    """
    with closing(_open(path)) as container:
        import av

        try:
            for frame in container.decode(container.streams.video[0]):
                yield _upright(frame), frame.pts
        except av.error.FFmpegError as error:
            raise InputError(f"{path}: cannot be decoded ({_reason(error)}); convert it anew, or cut it") from None


def join(source: Path, files: Sequence[Path], target: Path) -> None:
    """Write an .mp4 of pictures, all of one size, one for each frame of `source`, with its times and sound.

    x264 takes even sides: an odd one is repeated once. Sound is copied as it is, where .mp4 can hold it; else a
    warning says that it is left out.
    """
    import av

    with closing(_open(source)) as container, av.open(str(target), "w", format="mp4") as out:
        video = container.streams.video[0]
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
                made = av.VideoFrame.from_image(image)
                made.pts, made.time_base = frame.pts, video.time_base
                out.mux(stream.encode(made))
        out.mux(stream.encode(None))


def _even(file: Path) -> Image.Image:
    """A picture as RGB with even sides: an odd one's last row or column is repeated."""
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
    if not container.streams.video:
        container.close()
        raise InputError(f"{path}: holds no video stream; name a file with pictures")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _upright(frame: Any) -> Image.Image:
    """The frame as players show it: turned as the file's display matrix says (a phone held upright)."""
    image = frame.to_image().convert("RGB")
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:150]
