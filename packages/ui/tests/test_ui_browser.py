"""The page in a real browser: charts, keys, looking again, and hostile texts that stay texts."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from lab import fill, many_agents, metrics_line, write_folder
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_ui_lessons import long_run, taught_run

from lightningrl_ui.views.tokens import BY

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
    with shown(folder) as url:
        yield url


@contextmanager
def shown(folder: Path) -> Generator[str]:
    """The address at which `lightningrl ui` shows a folder."""
    command = [sys.executable, "-m", "lightningrl.cli", "ui"]
    command += [str(folder), "--no-browser", "--port", "0"]
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
    press("?")
    assert browser.find_element(By.ID, "keys").is_displayed()
    press(Keys.ESCAPE)
    press("j", Keys.ENTER)
    wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, "#rewards .main-svg"))
    assert browser.current_url.endswith("/run?run=run")
    # Another iteration is over: the page shows it by itself.
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(metrics_line(3)) + "\n")
    wait.until(lambda one: "iteration 3 of 5" in one.find_element(By.ID, "head").text)
    press("/")
    press("entropy", Keys.ENTER)
    wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, "input[value='train/entropy']"))
    browser.get(f"{url}iteration?run=run&n=1")
    press("]")
    wait.until(lambda one: "n=2" in one.current_url)
    press("[")
    wait.until(lambda one: "n=1" in one.current_url)
    press("j", Keys.ENTER)
    wait.until(lambda one: one.find_elements(By.ID, "first-difference"))
    press("j", Keys.ENTER)
    wait.until(lambda one: "/rollout?" in one.current_url)
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg.lane")) == 2
    press("u")
    wait.until(lambda one: "/group?" in one.current_url)
    press("u")
    wait.until(lambda one: "/iteration?" in one.current_url)
    press("u")
    wait.until(lambda one: "/run?" in one.current_url)
    press("r")
    wait.until(lambda one: one.find_elements(By.ID, "runs"))


@pytest.fixture(scope="module")
def screens(url: str) -> list[str]:
    """An address of every screen."""
    found, text = [url], httpx.get(url).text
    for screen in ("run", "iteration", "group", "rollout", "call"):
        every = [html.unescape(one) for one in re.findall(rf'href="/({screen}\?[^"]*)"', text)]
        wanted = "n=1" if screen == "iteration" else ""
        found.append(url + next(one for one in every if "as=" not in one and wanted in one))
        text = httpx.get(found[-1]).text
    return [*found, f"{url}compare?run=run&metric=train/reward", f"{url}iteration?run=no"]


SIZES = [(1280, "light"), (2560, "dark")]
"""Width in pixels and colour scheme."""


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_screen_opens_by_its_address_fits_and_runs_nothing_of_others(
    browser: webdriver.Chrome, screens: list[str], width: int, scheme: str
) -> None:
    check_screens(browser, screens, width, scheme)


def check_screens(
    browser: webdriver.Chrome, screens: Sequence[str], width: int, scheme: str
) -> None:
    """Whether each screen fits, can be read, and neither runs nor loads what others wrote."""
    browser.set_window_size(width, 1000)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for address in screens:
        browser.get(address)
        script = "const it = document.documentElement; return [it.scrollWidth, it.clientWidth]"
        scroll, client = browser.execute_script(script)
        assert scroll <= client, address
        back, ink = browser.execute_script(
            "const it = getComputedStyle(document.body); return [it.backgroundColor, it.color]"
        )
        assert contrast(back, ink) > 7, address
        assert (brightness(back) < 0.5) == (scheme == "dark")
        assert browser.execute_script("return window.hit") is None
        assert browser.find_elements(By.CSS_SELECTOR, "main img") == []
    refused = [one["message"] for one in browser.get_log("browser")]
    assert not [one for one in refused if "script-src" in one or "Uncaught" in one]


def brightness(colour: str) -> float:
    """WCAG 2.2's relative luminance of `rgb(r, g, b)`."""
    parts = [int(one) / 255 for one in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_chart_is_saved_and_a_point_of_it_opens_its_iteration(
    browser: webdriver.Chrome, url: str, tmp_path: Path
) -> None:
    wait = WebDriverWait(browser, 30)
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    browser.get(f"{url}run?run=run")
    wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, "#rewards .main-svg"))
    for kind in ("PNG", "SVG"):
        button = f"#rewards [data-title='Save as {kind}']"
        browser.execute_script("document.querySelector(arguments[0]).click()", button)
    wait.until(lambda _: len(list(tmp_path.glob("run-reward.[ps][nv]g"))) == 2)
    assert (tmp_path / "run-reward.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "run-reward.svg").read_bytes()
    point = "document.getElementById('rewards').emit('plotly_click', {points: [{x: 1}]})"
    browser.execute_script(point)
    wait.until(lambda one: one.current_url.endswith("/iteration?run=run&n=1"))


# -- tokens: how near they are, that long answers follow, and that hostile ones stay text ----------


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where runs are shown whose lessons are kept, among them one of long answers and one of many agents."""
    runs = tmp_path_factory.mktemp("lessons")
    asyncio.run(taught_run(runs / "run"))
    asyncio.run(long_run(runs / "long", "long"))
    asyncio.run(many_agents(write_folder(runs / "many", "many") / "store.db", "many"))
    write_folder(runs / "<img src=x onerror='window.hit = 3'>", "empty", lines=0)
    with shown(runs) as url:
        yield url


def _click(browser: webdriver.Chrome, selector: str) -> None:
    WebDriverWait(browser, 30).until(lambda one: one.find_elements(By.CSS_SELECTOR, selector))
    browser.find_element(By.CSS_SELECTOR, selector).click()


def test_the_first_tokens_credit_is_four_clicks_from_the_runs(
    browser: webdriver.Chrome,
    lessons: str,
) -> None:
    browser.get(lessons)
    clicks = (
        "a[href='/run?run=run']",
        "a[href='/iteration?run=run&n=1']",
        "#groups a.cell",
        "a[href^='/tokens']",
    )
    for selector in clicks:
        _click(browser, selector)
    token = WebDriverWait(browser, 30).until(
        lambda one: one.find_element(By.CSS_SELECTOR, ".tokens span")
    )
    assert (
        token.get_attribute("title")
        == "token 0, id 4: engine -0.5000, trainer -0.7500 nats, credit +0.5"
    )
    assert "credit +0.5" in browser.find_element(By.CSS_SELECTOR, "section.call").text
    assert browser.execute_script("return window.hit") is None
    # By a click or by keys a token's numbers stay on the screen.
    token.click()
    told = browser.find_element(By.ID, "told")
    assert told.text.endswith("token 0, id 4: engine -0.5000, trainer -0.7500 nats, credit +0.5")
    browser.switch_to.active_element.send_keys("l")
    assert "token 1, id 5" in told.text
    browser.switch_to.active_element.send_keys("h", "h")
    assert "token 0, id 4" in told.text
    assert browser.execute_script("return window.hit") is None
    # The link of the credit's screen is there too, and its bars are drawn.
    _click(browser, "a[href^='/credit']")
    bars = WebDriverWait(browser, 30).until(
        lambda one: one.find_elements(By.CSS_SELECTOR, "svg.bar rect")
    )
    assert bars[0].get_attribute("class") == "plus"
    assert bars[0].size["width"] > 0


def test_a_long_answer_follows_while_one_scrolls(
    browser: webdriver.Chrome,
    lessons: str,
) -> None:
    browser.get(f"{lessons}iteration?run=long&n=1")
    _click(browser, "#groups a.cell")
    _click(browser, "a[href^='/tokens']")

    def pieces() -> int:
        return len(browser.find_elements(By.CSS_SELECTOR, ".tokens span:not(.more)"))

    wait = WebDriverWait(browser, 30)
    wait.until(lambda _: pieces() >= 2000)
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    wait.until(lambda _: pieces() == 4000)
    assert not browser.find_elements(By.CSS_SELECTOR, "[data-more]")


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_tokens_credit_and_now_open_by_their_addresses_and_run_nothing_of_others(
    browser: webdriver.Chrome,
    lessons: str,
    width: int,
    scheme: str,
) -> None:
    own, many = (_rollout(lessons, run) for run in ("run", "many"))
    colours = [f"tokens?{own}&by={one}" for one in BY]
    others = [f"credit?{own}", f"credit?{own}&state=7&with=step_reward", "live?run=run"]
    # 64 agents, and a run in which nothing happened, whose folder's name is hostile.
    odd = [f"rollout?{many}", f"tokens?{many}", "", "run?run=empty", "iteration?run=empty&n=1"]
    check_screens(browser, [lessons + one for one in (*colours, *others, *odd)], width, scheme)


def test_the_step_that_an_address_names_is_open(
    browser: webdriver.Chrome,
    lessons: str,
) -> None:
    browser.get(f"{lessons}rollout?{_rollout(lessons, 'many')}#s%25%2040")
    wait = WebDriverWait(browser, 30)

    def opened() -> list[str]:
        found = browser.find_elements(By.CSS_SELECTOR, ".step:has(> details[open])")
        return [str(one.get_attribute("id")) for one in found]

    wait.until(lambda _: opened() == ["s% 40"])
    _click(browser, "svg.lane a[href='#s% 7']")
    wait.until(lambda _: opened() == ["s% 7", "s% 40"])


def _rollout(lessons: str, run: str) -> str:
    """The part of an address that names a run's first rollout."""
    text = httpx.get(f"{lessons}iteration?run={run}&n=1").text
    ident = re.findall(rf'href="/rollout\?run={run}&amp;id=([^"&]*)"', text)[0]
    return f"run={run}&id={html.unescape(ident)}"


def test_methods_that_are_being_computed_come_by_themselves(
    browser: webdriver.Chrome,
    lessons: str,
) -> None:
    browser.get(f"{lessons}iteration?run=run&n=1")
    _click(browser, "#groups a.cell")
    _click(browser, "a[href^='/credit']")
    _click(browser, "input[name=with]")
    browser.switch_to.active_element.send_keys("per_agent", Keys.ENTER)
    wait = WebDriverWait(browser, 30)
    wait.until(lambda one: "with=per_agent" in one.current_url)
    wait.until(lambda one: one.find_elements(By.ID, "methods-table"))
