"""Makes sure that a Chromium is there for tests/browser; prints nothing where it is."""

import os
import shutil
import subprocess
import sys


def find_chromium() -> str | None:
    """The path of a Chromium: the system's, else the one that playwright downloaded."""
    system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if system:
        return system
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None


def install() -> None:
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        packages = ["chromium", "fonts-dejavu-core"]
        subprocess.run(
            ["apt-get", "install", "-qy", "--no-install-recommends", *packages], check=True, stdout=subprocess.DEVNULL
        )
    else:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


if __name__ == "__main__":
    if not find_chromium():
        install()
    if not find_chromium():
        sys.exit("The browser tests need Chromium: install it (apt-get install chromium), then run again.")
