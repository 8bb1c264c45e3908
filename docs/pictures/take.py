"""Take the pictures that README and docs show: `make screenshots`."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE_S = 300


def main() -> int:
    """Start a Hostler, fill it, and take every picture. Returns the exit code."""
    chromium = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if chromium is None:
        print("Needs Chromium: apt-get install chromium")
        return 1
    directory = Path(tempfile.mkdtemp(prefix="hostler-pictures-"))
    directory.chmod(0o711)
    data = directory / "data"
    command = [sys.executable, "-m", "cli", "up", "--port", "0", "--data", str(data)]
    up = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)  # noqa: S603
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (data / "sign-in-url").exists():
            if time.monotonic() > deadline:
                print("hostler up did not become ready.")
                return 1
            time.sleep(0.2)
        subprocess.run([sys.executable, "-m", "cli", "demo-data", "--data", str(data)], cwd=ROOT, check=True)  # noqa: S603
        admin = json.loads((data / "admin.json").read_text())
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
            )
            _take(browser, admin, (data / "sign-in-url").read_text().strip())
            browser.close()
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(90)
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _take(browser: Any, admin: dict[str, str], link: str) -> None:
    first = browser.new_context()
    first.set_default_timeout(PATIENCE_S * 1000)
    page = first.new_page()
    page.goto(link)
    page.get_by_role("heading", name="Overview").wait_for()
    state = first.storage_state()
    for name, place, how in _pictures(page):
        options = {
            "viewport": {"width": 1280, "height": 800},
            "locale": "en-GB",
            "reduced_motion": "reduce",
            **how,
        }
        context = browser.new_context(storage_state=state, **options)
        context.set_default_timeout(PATIENCE_S * 1000)
        page = context.new_page()
        page.goto(f"{admin['url']}/#{place}")
        page.locator("h1").first.wait_for()
        page.locator(".loading").first.wait_for(state="detached")
        page.wait_for_timeout(1500)  # charts draw, and a line or two arrive
        page.screenshot(path=HERE / f"{name}.png")
        context.close()


def _pictures(page: Any) -> list[tuple[str, str, dict[str, Any]]]:
    listed = page.evaluate("fetch('/api/jobs/list?limit=100').then((answer) => answer.json())")["jobs"]
    by_name = {job["name"]: job["jobId"] for job in listed}
    dark, small = {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 780}}
    return [
        ("overview", "/", {}),
        ("overview-dark", "/", dark),
        ("jobs", "/jobs", {}),
        ("job", f"/jobs/{by_name['Nightly tests of the shop']}", dark),
        ("schedules", "/schedules", {}),
        ("app", "/apps/hello-web", {}),
        ("install", "/catalogue?install=hello-web", {}),
        ("small", "/jobs", small),
    ]


if __name__ == "__main__":
    sys.exit(main())
