"""Draws the pictures of `lightningrl ui` in docs/images: `python scripts/screenshots.py RUN-FOLDER`.

It opens the page on a run in headless Chromium (Debian's chromium and chromium-driver) and walks as
docs/how-to/look-at-a-run.md does: the run, the newest whole iteration, its group of the largest spread, the member of
that which earned least, its tokens with the most surprising one picked, and its credit beside another method's.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1280, 900
BESIDE = "gigpo"
"""The method beside the run's own."""

SURPRISING = """
const all = [...document.querySelectorAll(".tokens span[title]")];
const level = (one) => Number(one.className.replace(/\\D/g, ""));
all.reduce((most, one) => level(one) > level(most) ? one : most).click();
"""
"""Clicks the token of the deepest colour, the first such."""


@contextmanager
def page(folder: Path) -> Generator[str]:
    """The address of the page on one run."""
    command = [sys.executable, "-m", "lightningrl.cli", "ui", str(folder), "--no-browser"]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        try:
            yield served.stdout.readline().split()[2]
        finally:
            served.terminate()


@contextmanager
def chromium() -> Generator[webdriver.Chrome]:
    """A browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for one in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "hide-scrollbars",
    ):
        options.add_argument(f"--{one}")
    options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def linked(url: str, address: str, screen: str) -> list[str]:
    """The addresses of a screen that a page links, in order."""
    text = httpx.get(url + address, timeout=60).text
    found = [html.unescape(one) for one in re.findall(rf'href="/({screen}\?[^"]*)"', text)]
    return [one for one in found if "as=" not in one]


def walk(url: str) -> dict[str, str]:
    """Picture -> address, from the run to a call."""
    (run,) = dict.fromkeys(linked(url, "", "run")[:1])
    rows = httpx.get(f"{url}{run}&as=csv").text.splitlines()
    newest = rows[-1].split(",")[0]
    iteration = f"iteration?{run.partition('?')[2]}&n={newest}&sort=spread&down=1"
    group = linked(url, iteration, "group")[0]
    listed = httpx.get(f"{url}{group}&as=csv").text.splitlines()[1:]
    rewards = {
        one.split(",")[1]: float(one.split(",")[2] or 0)
        for one in listed
        if one.count(",") > 2 and one[0].isdigit()
    }
    member = min(rewards, key=lambda one: rewards[one])
    rollout = f"rollout?{run.partition('?')[2]}&id={member}"
    own = rollout.partition("?")[2]
    return {
        "ui-run": run,
        "ui-iteration": iteration,
        "ui-group": group,
        "ui-rollout": rollout,
        "ui-tokens": f"tokens?{own}",
        "ui-credit": f"credit?{own}&with={BESIDE}",
    }


def main() -> None:
    """Draw them."""
    with page(Path(sys.argv[1])) as url, chromium() as browser:
        for name, address in walk(url).items():
            browser.get(url + address)
            if name == "ui-run":
                drawn = (By.CSS_SELECTOR, "#times .main-svg")
                WebDriverWait(browser, 60).until(lambda one, by=drawn: one.find_elements(*by))
                told = (By.CSS_SELECTOR, "[data-load] .note, [data-load] .good")
                WebDriverWait(browser, 60).until(lambda one, by=told: one.find_elements(*by))
            if name == "ui-tokens":
                browser.execute_script(SURPRISING)
            if name == "ui-credit":
                there = (By.ID, "methods-table")
                WebDriverWait(browser, 60).until(lambda one, by=there: one.find_elements(*by))
            browser.save_screenshot(str(IMAGES / f"{name}.png"))
            print(f"wrote {name}.png of /{address}")


if __name__ == "__main__":
    main()
