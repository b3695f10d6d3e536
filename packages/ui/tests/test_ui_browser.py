"""The page in a real browser: charts, keys, looking again, and hostile texts that stay texts."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import fill, metrics_line, write_folder
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="Debian's chromium and chromium-driver are not here"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("browser") / "run", iterations=5)
    asyncio.run(fill(folder / "store.db"))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "lightningrl.cli",
        "ui",
        str(folder),
        "--no-browser",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    yield line.split()[2]
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for one in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(one)
    found = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield found
    found.quit()


def test_from_the_curve_to_a_call_by_keys_alone(
    browser: webdriver.Chrome, url: str, folder: Path
) -> None:
    wait = WebDriverWait(browser, 30)

    def press(*keys: str) -> None:
        for key in keys:
            browser.switch_to.active_element.send_keys(key)

    browser.get(url)
    press("j", Keys.ENTER)
    wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, "#rewards .main-svg"))
    assert browser.current_url.endswith("/run?run=run")
    # Another iteration is over: the page shows it by itself.
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(metrics_line(3)) + "\n")
    wait.until(lambda one: "iteration 3 of 5" in one.find_element(By.ID, "head").text)
    browser.get(f"{url}iteration?run=run&n=1")
    press("j", Keys.ENTER)
    wait.until(lambda one: one.find_elements(By.ID, "first-difference"))
    press("j", Keys.ENTER)
    wait.until(lambda one: "/rollout?" in one.current_url)
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg.lane")) == 2
    press("u")
    wait.until(lambda one: "/group?" in one.current_url)
    assert browser.execute_script("return window.hit") is None
    refused = [one["message"] for one in browser.get_log("browser") if "script" in one["message"]]
    assert not [one for one in refused if "script-src" in one]
