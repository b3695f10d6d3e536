"""Tokens in a real browser: how near they are, that long answers follow, and that hostile ones stay text."""

from __future__ import annotations

import asyncio
import html
import re
from pathlib import Path

import httpx
import pytest
from lab import many_agents, write_folder
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_ui_browser import SIZES, browser, check_screens, pytestmark, url  # noqa: F401  # fixtures and the reason to skip
from test_ui_lessons import long_run, taught_run

from lightningrl_ui.views.tokens import BY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("browser")
    asyncio.run(taught_run(runs / "run"))
    asyncio.run(long_run(runs / "long", "long"))
    asyncio.run(many_agents(write_folder(runs / "many", "many") / "store.db", "many"))
    write_folder(runs / "<img src=x onerror='window.hit = 3'>", "empty", lines=0)
    return runs


def _click(browser: webdriver.Chrome, selector: str) -> None:  # noqa: F811
    WebDriverWait(browser, 30).until(lambda one: one.find_elements(By.CSS_SELECTOR, selector))
    browser.find_element(By.CSS_SELECTOR, selector).click()


def test_the_first_tokens_credit_is_four_clicks_from_the_runs(
    browser: webdriver.Chrome,  # noqa: F811
    url: str,  # noqa: F811
) -> None:
    browser.get(url)
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
    browser: webdriver.Chrome,  # noqa: F811
    url: str,  # noqa: F811
) -> None:
    browser.get(f"{url}iteration?run=long&n=1")
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
    browser: webdriver.Chrome,  # noqa: F811
    url: str,  # noqa: F811
    width: int,
    scheme: str,
) -> None:
    own, many = (_rollout(url, run) for run in ("run", "many"))
    colours = [f"tokens?{own}&by={one}" for one in BY]
    others = [f"credit?{own}", f"credit?{own}&state=7&with=step_reward", "live?run=run"]
    # 64 agents, and a run in which nothing happened, whose folder's name is hostile.
    odd = [f"rollout?{many}", f"tokens?{many}", "", "run?run=empty", "iteration?run=empty&n=1"]
    check_screens(browser, [url + one for one in (*colours, *others, *odd)], width, scheme)


def test_the_step_that_an_address_names_is_open(
    browser: webdriver.Chrome,  # noqa: F811
    url: str,  # noqa: F811
) -> None:
    browser.get(f"{url}rollout?{_rollout(url, 'many')}#s%25%2040")
    wait = WebDriverWait(browser, 30)

    def opened() -> list[str]:
        found = browser.find_elements(By.CSS_SELECTOR, ".step:has(> details[open])")
        return [str(one.get_attribute("id")) for one in found]

    wait.until(lambda _: opened() == ["s% 40"])
    _click(browser, "svg.lane a[href='#s% 7']")
    wait.until(lambda _: opened() == ["s% 7", "s% 40"])


def _rollout(url: str, run: str) -> str:  # noqa: F811
    """The part of an address that names a run's first rollout."""
    text = httpx.get(f"{url}iteration?run={run}&n=1").text
    ident = re.findall(rf'href="/rollout\?run={run}&amp;id=([^"&]*)"', text)[0]
    return f"run={run}&id={html.unescape(ident)}"


def test_methods_that_are_being_computed_come_by_themselves(
    browser: webdriver.Chrome,  # noqa: F811
    url: str,  # noqa: F811
) -> None:
    browser.get(f"{url}iteration?run=run&n=1")
    _click(browser, "#groups a.cell")
    _click(browser, "a[href^='/credit']")
    _click(browser, "input[name=with]")
    browser.switch_to.active_element.send_keys("per_agent", Keys.ENTER)
    wait = WebDriverWait(browser, 30)
    wait.until(lambda one: "with=per_agent" in one.current_url)
    wait.until(lambda one: one.find_elements(By.ID, "methods-table"))
