"""Takes a screenshot of a page without the browser around it: docs/report.png and docs/tensorboard.png.

    tensorboard --logdir runs/normal/logs &
    python docs/figures/screenshot.py docs/tensorboard.png 1200x1126+243+64 "http://localhost:6006/?smoothing=0#timeseries"
    python docs/figures/screenshot.py docs/report.png 1200x1500 "file://$PWD/report/index.html"

Needs Chromium and `pip install websocket-client`. TensorBoard's settings are closed first, and its curves get the time
to be drawn. `&tagFilter=train_loss%7Cval` in the address chooses cards.
"""

import argparse
import base64
import io
import json
import re
import subprocess
import tempfile
import time
import urllib.request

import websocket
from PIL import Image

FLAGS = "--headless=new --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --remote-allow-origins=*".split()
QUIET = "--disable-background-networking --disable-component-update --disable-sync".split()
PORT, LOADING, SETTLING = 9333, 14, 8  # seconds
CLOSE_SETTINGS = """
for (const box of document.querySelectorAll("mat-checkbox"))
  if (/step selection/.test(box.textContent) && box.querySelector("input").checked) box.querySelector("input").click();
for (const button of document.querySelectorAll("button"))
  if (/Settings/.test(button.textContent) && button.className.includes("settings")) { button.click(); break; }
"""


def tab() -> str:
    """The web socket of the browser's page, once the browser is up."""
    for _ in range(40):
        try:
            with urllib.request.urlopen(f"http://localhost:{PORT}/json") as answer:
                return next(one["webSocketDebuggerUrl"] for one in json.load(answer) if one["type"] == "page")
        except OSError:
            time.sleep(0.5)
    raise SystemExit("error: Chromium did not start")


def capture(address: str, width: int, height: int) -> Image.Image:
    """The page at `address` in a window of that size, in pixels."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [*FLAGS, *QUIET, f"--user-data-dir={profile}", f"--remote-debugging-port={PORT}", "about:blank"]
        with subprocess.Popen(["chromium", *words], stderr=subprocess.DEVNULL) as browser:
            socket = websocket.create_connection(tab())

            def call(method: str, number: int, **parameters) -> dict:
                socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
                while True:
                    answer = json.loads(socket.recv())
                    if answer.get("id") == number:
                        return answer["result"]

            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            call("Emulation.setDeviceMetricsOverride", 1, **size)
            call("Page.navigate", 2, url=address)
            time.sleep(LOADING)
            call("Runtime.evaluate", 3, expression=CLOSE_SETTINGS)
            time.sleep(SETTLING)
            picture = base64.b64decode(call("Page.captureScreenshot", 4, format="png")["data"])
            browser.terminate()
    return Image.open(io.BytesIO(picture))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="file to write")
    parser.add_argument("geometry", help="WIDTHxHEIGHT of the window, with +LEFT+TOP to cut away, in pixels")
    parser.add_argument("address")
    args = parser.parse_args()
    width, height, left, top = (int(number) for number in [*re.findall(r"\d+", args.geometry), "0", "0"][:4])
    picture = capture(args.address, width, height).convert("RGB").crop((left, top, width, height))
    picture.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
