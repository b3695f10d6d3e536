"""`lightningrl ui` on a run that was really trained, in a real browser: from its curve to a token's credit."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from test_ui_browser import browser, check_screens, pytestmark, url  # noqa: F401  # fixtures and the reason to skip
from user_project import Project


@pytest.fixture(scope="module")
def folder(trained: Project) -> Path:
    """What `url` shows."""
    return trained.run


def test_each_screen_of_a_trained_run_opens_down_to_a_tokens_credit(
    browser: webdriver.Chrome,  # noqa: F811
    url: str,  # noqa: F811
) -> None:
    wait, seen = WebDriverWait(browser, 30), list[str]()

    def at(selector: str) -> str:
        """The text of what a screen shows, once it is there."""
        (first, *_) = wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, selector))
        seen.append(browser.current_url)
        assert not browser.find_elements(By.CSS_SELECTOR, ".problem")
        return first.text

    def go(selector: str) -> None:
        at(selector)
        browser.find_element(By.CSS_SELECTOR, selector).click()

    browser.get(url)
    go("a[href^='/run?']")
    assert "finished iteration 3 of 3" in at("#head")
    at("#rewards .main-svg")
    assert "sampled" in at("#drift table")
    assert "collect" in at("#phases table")
    go("#iterations a.open")
    go("a[href*='sort=spread']")
    go("a[href*='down=1']")
    assert "mixed" in at("#groups .badge")
    go("#groups a.open")
    assert "final, from" in at("table.members")
    go("table.members a.open")
    at("svg.lane rect")
    go("a[href^='/call']")
    at("#raw")
    browser.back()
    go("a[href^='/tokens']")
    # The tokenizer that the run's folder keeps reads them, and its lesson says what they earned.
    assert "⟨" not in at(".tokens")
    token = browser.find_element(By.CSS_SELECTOR, ".tokens span")
    for known in ("engine -", "trainer -", "credit "):
        assert known in str(token.get_attribute("title"))
    go("a[href^='/credit']")
    assert "baseline" in at("#steps")
    browser.get(f"{browser.current_url}&with=gigpo")
    assert "gigpo" in at("#methods-table")
    run = next(one for one in seen if "/run?" in one)
    browser.get(run.replace("/run?", "/live?"))
    assert "Nothing waits." in at("#waits")
    browser.get(run.replace("/run?", "/compare?"))
    at("#curves .main-svg")
    check_screens(browser, list(dict.fromkeys(seen)), 1280, "light")
