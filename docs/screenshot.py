"""Write docs/images/report.png: the report of `sample`, as chromium draws it.

    python docs/screenshot.py

Needs playwright and a chromium on the PATH.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "images/report.png"
WIDTH, HEIGHT = 1120, 1640
COLOURS = 128  # the page has few: the picture takes a third of the space, and looks the same


def main() -> None:
    """Build `sample`, write its report, and take its picture."""
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            "build sample --layout blocks --block-size 128",
            "report sample.lance",
        ):
            subprocess.run([sys.executable, "-m", "lance_prep", *command.split()], cwd=folder, check=True)
        shot = Path(folder, "shot.png")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            page.goto(Path(folder, "report.html").as_uri())
            page.screenshot(path=shot)
            browser.close()
        PICTURE.parent.mkdir(exist_ok=True)
        image = Image.open(shot).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        image.save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
