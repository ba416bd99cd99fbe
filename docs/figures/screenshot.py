"""Takes a screenshot of a page without the browser around it.

    python docs/figures/screenshot.py docs/report.png 1200x1500 "file://$PWD/report/index.html"
    tensorboard --logdir runs/normal/logs &
    python docs/figures/screenshot.py docs/tensorboard.png 1200x1126+243+64 "http://localhost:6006/?smoothing=0#timeseries"

Needs Chromium and `pip install playwright`. TensorBoard's settings are closed first, and its curves get the time to be
drawn. `&tagFilter=train_loss%7Cval` in the address chooses cards.
"""

import argparse
import io
import re
import shutil

from PIL import Image
from playwright.sync_api import sync_playwright

LOADING, SETTLING = 6000, 3000  # milliseconds
CLOSE_SETTINGS = """
for (const box of document.querySelectorAll("mat-checkbox"))
  if (/step selection/.test(box.textContent) && box.querySelector("input").checked) box.querySelector("input").click();
for (const button of document.querySelectorAll("button"))
  if (/Settings/.test(button.textContent) && button.className.includes("settings")) { button.click(); break; }
"""


def capture(address: str, width: int, height: int) -> Image.Image:
    """The page at `address` in a window of that size, in pixels."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(address)
        page.wait_for_timeout(LOADING)
        page.evaluate(CLOSE_SETTINGS)
        page.wait_for_timeout(SETTLING)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    return shot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="file to write")
    parser.add_argument("geometry", help="WIDTHxHEIGHT of the window, with +LEFT+TOP to cut away, in pixels")
    parser.add_argument("address")
    args = parser.parse_args()
    width, height, left, top = (int(number) for number in [*re.findall(r"\d+", args.geometry), "0", "0"][:4])
    image = capture(args.address, width, height).crop((left, top, width, height))
    image.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
