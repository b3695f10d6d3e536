"""The screen of tokens on one call of 32,000 tokens, and what lessons cost: parts of `make bench-ui`.

- `server_ms_p95`, `server_cpu_ms`: of the first 2,000 tokens by log-prob, which is the most that a token can say, with
  both log-probs and its credit; and of the part that is scrolled to.
- `until_seen`: in headless Chromium from the click to the first frame with the 2,000 tokens, where Debian's chromium and
  chromium-driver are.
- `lesson`: CPU time of writing what an iteration of 4,096 calls with 200 trained tokens each was trained on.
"""

from __future__ import annotations

import asyncio
import html
import random
import re
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from harness.metering import Meter
from harness.results import OURS, Results
from lightningrl.lessons import LessonCall, LessonHeader, lesson_path, tokenizer_path, write_lesson
from lightningrl.schema import AttemptId, AttemptState, EventId, GroupId, RolloutId, StepId
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group, reward

_TOKENS = 32_000
_VOCABULARY = 40_000
_REQUESTS = 20
_RECIPE = """
name: run
agent: "m:f"
algorithm: {iterations: 1, tasks_per_iteration: 1, group_size: 2}
"""

Page = Callable[..., AbstractContextManager[tuple[str, Meter]]]
"""`lightningrl ui` in a process of its own, as `ui.page`."""

_SEEN = """
const done = arguments[arguments.length - 1];
requestAnimationFrame(() => setTimeout(() => done([performance.now(), document.querySelectorAll(".tokens span[title]").length])));
"""
"""Tells when a frame with all that is on the page was drawn, in ms since the click, and how many tokens it has."""


def measure_long_call(results: Results, folder: Path, page: Page) -> None:
    """The first tokens of a long call, from the server and in a browser, and the next ones."""
    address = asyncio.run(_long_call(folder))
    with page(folder) as (url, meter), httpx.Client(base_url=url, timeout=60) as client:
        first = client.get(address).raise_for_status().text
        found = re.search(r'data-more="([^"]*)"', first)
        assert found is not None, "the first tokens are all"
        for case, asked in (("first 2,000", address), ("the next 2,000", html.unescape(found[1]))):
            _ask(results, f"tokens, {_TOKENS:,} in a call: {case}", client, meter, asked)
        if shutil.which("chromium") and shutil.which("chromedriver"):
            times = _until_seen(url + address.removeprefix("/"))
            case = f"tokens, {_TOKENS:,} in a call: first 2,000"
            results.add(case, "chromium", "until_seen_median", [statistics.median(times)], "ms")
            results.add(case, "chromium", "until_seen_max", [max(times)], "ms")


def _ask(results: Results, case: str, client: httpx.Client, meter: Meter, address: str) -> None:
    times: list[float] = []
    with meter.cpu() as spent:
        for _ in range(_REQUESTS):
            begun = time.perf_counter()
            client.get(address).raise_for_status()
            times.append(1e3 * (time.perf_counter() - begun))
    results.add(case, OURS, "server_cpu_ms", [spent.cpu_ms / _REQUESTS], "ms")
    results.add(case, OURS, "server_ms_p95", [sorted(times)[-2]], "ms")


def _until_seen(url: str) -> list[float]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for one in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{one}")
    options.page_load_strategy = "eager"
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        browser.set_script_timeout(60)
        times: list[float] = []
        for _ in range(_REQUESTS // 2):
            browser.get(url)
            at, tokens = browser.execute_async_script(_SEEN)
            assert tokens >= 2000
            times.append(at)
        return times
    finally:
        browser.quit()


async def _long_call(folder: Path) -> str:
    """A run of one call, with a lesson and a tokenizer; the address of its tokens."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
    _write_tokenizer(tokenizer_path(folder, "policy"))
    rng = random.Random(0)
    ids = [rng.randrange(_VOCABULARY) for _ in range(_TOKENS)]
    store = SqliteStore.open(folder / "store.db")
    await store.enqueue(group(1, run="run"))
    (claim,) = await store.claim("worker")
    said = call(claim.attempt.id, "c", prompt=ids[:8000], answer=ids)
    await store.append([said, reward(claim.attempt.id, 1.0)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    await store.close()
    spec = claim.rollout.spec
    lesson = _lesson_call(0, _TOKENS, spec.id, claim.attempt.id, said.step_id, said.id)
    write_lesson(folder, LessonHeader(run="run", iteration=1, credit="broadcast"), [lesson], keep=1)
    return f"/tokens?run=run&id={spec.id}"


def _write_tokenizer(path: Path) -> None:
    """A byte-level tokenizer of made-up words."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words: dict[str, int] = {}
    while len(words) < _VOCABULARY:
        words.setdefault("Ġ" + "".join(rng.choices(letters, k=rng.randint(2, 7))), len(words))
    made = Tokenizer(models.BPE(words, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    path.parent.mkdir(parents=True)
    made.save(str(path))


def measure_lesson(results: Results, folder: Path) -> None:
    """Writing the lesson of a large iteration; the second of two, as of a run that goes on."""
    folder.mkdir()
    calls = [_lesson_call(place, 200, RolloutId(f"{place // 8:032x}")) for place in range(4096)]
    header = LessonHeader(run="run", iteration=1, credit="gigpo")
    write_lesson(folder, header, calls, keep=2)
    begun, cpu = time.perf_counter(), time.process_time()
    write_lesson(folder, header, calls, keep=2)
    spent = (time.perf_counter() - begun, time.process_time() - cpu)
    case = "lesson, 4,096 calls, 819,200 tokens"
    results.add(case, OURS, "wall", [spent[0]], "s")
    results.add(case, OURS, "cpu", [spent[1]], "s")
    results.add(case, OURS, "size", [lesson_path(folder, 1).stat().st_size / 2**20], "MiB")


def _lesson_call(
    place: int,
    tokens: int,
    rollout: RolloutId,
    attempt: str = "attempt",
    step: str = "step",
    ident: str = "call",
) -> LessonCall:
    rng = np.random.default_rng(place)
    engine = -rng.exponential(0.5, tokens).astype(np.float32)
    trainer = engine + rng.normal(0, 1e-3, tokens).astype(np.float32)
    return LessonCall(
        group_id=GroupId("g"), task_id="task", rollout_id=rollout, member=0, attempt_id=AttemptId(attempt),
        step_id=StepId(step), call_id=EventId(ident), place=place, agent="writer", policy="policy", version=0, reward=1.0, step_reward=None, credit=0.5,
        parts={"reward": 1.0, "baseline": 0.5, "deviation": 0.5}, state=None, tokens=tokens, reason=None, row=0,
        engine_log_probs=engine, trainer_log_probs=trainer,
    )  # fmt: skip
