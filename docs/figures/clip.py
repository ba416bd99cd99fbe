"""Write examples/clip.mp4: three seconds of a camera that moves through a rendered room. Needs PyAV.

python -m docs.figures.clip
"""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from miniworld.render.raycast import trace
from miniworld.render.rooms import draw_room

OUT = Path(__file__).resolve().parents[2] / "examples" / "clip.mp4"
SEED, FRAMES, RATE, WIDTH, HEIGHT = 65, 48, 16, 256, 192


def main() -> None:
    room = draw_room(np.random.default_rng(SEED))
    x, y, z = room.camera.position
    with av.open(str(OUT), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for part in np.linspace(0, 1, FRAMES):
            eased = part * part * (3 - 2 * part)  # starts and ends at rest
            side = 0.7 * (eased - 0.5)
            camera = replace(room.camera, position=(x + side, y, z - 0.5 * eased), yaw=room.camera.yaw + 0.18 * side)
            image = trace(replace(room, camera=camera), HEIGHT, WIDTH).rgb
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode(None))
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
