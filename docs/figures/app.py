"""Takes the screenshots of the app's page, docs/app.jpg and docs/app_narrow.jpg: what it shows when it is opened.

python docs/figures/app.py

Starts the app itself. Needs Chromium and `pip install playwright`.
"""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SCREENS = {"app": (1200, 1000), "app_narrow": (380, 800)}
WAITING, SETTLING = 300_000, 20_000  # milliseconds; the surface is drawn without a GPU
LAMP = (0.62, 0.3)


def take(browser: Browser, address: str, name: str) -> None:
    width, height = SCREENS[name]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address)
    page.wait_for_selector("#light canvas", timeout=WAITING)  # the example is predicted
    page.wait_for_selector("#surface canvas", timeout=WAITING)
    page.locator("#surface canvas").scroll_into_view_if_needed()
    page.wait_for_timeout(SETTLING)
    page.locator("#light canvas").hover()
    box = page.locator("#light canvas").bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + LAMP[0] * box["width"], box["y"] + LAMP[1] * box["height"])
    page.mouse.up()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True, timeout=WAITING))).convert("RGB")
    shot.save(ROOT / "docs" / f"{name}.jpg", quality=82, optimize=True)
    page.close()


def main() -> None:
    words = [sys.executable, "-m", "app", "--device", "cpu"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as app:
        try:
            address = next(found[1] for line in app.stdout if (found := re.match(r"next: open (\S+)", line)))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                for name in SCREENS:
                    take(browser, address, name)
                browser.close()
        finally:
            app.terminate()


if __name__ == "__main__":
    main()
