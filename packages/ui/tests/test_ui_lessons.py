"""Tokens and credit: what a lesson says, beside what the store tells without one."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from lab import HOSTILE, fill, write_folder
from test_ui_screens import Page, links, told
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lightningrl.cli.run_starts import How, Start, write_starts
from lightningrl.experience import trajectory
from lightningrl.experience.drift import Drift, DriftReport, Gap
from lightningrl.lessons import LessonCall, LessonHeader, tokenizer_path, write_lesson
from lightningrl.schema import BRANCH, AttemptState, Fork, Mode, StepId, branch_id, branches_id
from lightningrl.store import RolloutQuery, open_store
from lightningrl.store.sqlite import SqliteStore
from lightningrl.traces import read_attempts
from lightningrl_testkit.records import call, group, reward
from lightningrl_ui.views import tokens

WORDS = ["<pad>", "a", "b", "c", HOSTILE, "Ã", "©", "Ċ"]
"""Ids 0 to 7 of the lab's tokenizer; 5 and 6 are the two bytes of é, 7 ends a line."""


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(WORDS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tokenizer_path(folder, "policy")
    path.parent.mkdir()
    tokenizer.save(str(path))


async def lesson_of(folder: Path) -> list[LessonCall]:
    """Every call of the lab's iteration 1: planners trained with credit 1/2, writers left out."""
    store = open_store(folder / "store.db", read_only=True)
    rollouts = await store.rollouts(RolloutQuery(run="run", mode=Mode.TRAIN, iteration=1))
    calls: list[LessonCall] = []
    for rollout, records in zip(rollouts, await read_attempts(store, rollouts), strict=True):
        for place, one in enumerate(records[-1].transitions if records else ()):
            if one.call is None:
                continue
            plans = one.agent == "planner"
            calls.append(
                LessonCall(
                    group_id=rollout.spec.group_id,
                    task_id=rollout.spec.task_id,
                    rollout_id=rollout.id,
                    member=rollout.spec.member,
                    attempt_id=one.attempt_id,
                    step_id=one.step_id,
                    call_id=one.call.id,
                    place=place,
                    agent=one.agent,
                    policy="policy",
                    version=0,
                    reward=rollout.reward or 0.0,
                    step_reward=one.reward,
                    credit=0.5 if plans else -0.25,
                    parts={"reward": 1.0, "baseline": 0.5 if plans else 1.25},
                    state=7 if plans else None,
                    tokens=2,
                    reason=None if plans else f"left out {HOSTILE}",
                    row=0 if plans else None,
                    engine_log_probs=one.logprobs if plans else np.zeros(0, np.float32),
                    trainer_log_probs=one.logprobs - np.float32(0.25)
                    if plans
                    else np.zeros(0, np.float32),
                )
            )
    await store.close()
    return calls


async def long_run(folder: Path, name: str) -> Path:
    """A run with one call of 4000 tokens: 1999 times a, é, 1999 line ends."""
    write_tokenizer(write_folder(folder, name))
    store = SqliteStore.open(folder / "store.db")
    await store.enqueue(group(1, run=name))
    (claim,) = await store.claim("worker")
    answer = [1] * 1999 + [5, 6] + [7] * 1999
    plain = call(claim.attempt.id, "c", answer=answer)
    events: list[Any] = [plain, reward(claim.attempt.id, 1.0)]
    await store.append(events)
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    await store.close()
    return folder


async def taught_run(folder: Path) -> Path:
    """The lab's run with a lesson of iteration 1, and a tokenizer."""
    write_folder(folder)
    await fill(folder / "store.db")
    write_tokenizer(folder)
    header = LessonHeader(run="run", iteration=1, credit="broadcast")
    write_lesson(folder, header, await lesson_of(folder), keep=1)
    drift = Drift(
        rollouts=4, sampled=16, dropped=8, untrainable={f"left out {HOSTILE}": 8},
        continuing=4, continued=1, breaks={"truncated": 3}, gap=Gap(8, 0.25, 0.5),
    )  # fmt: skip
    report = DriftReport().with_iteration(1, drift)
    (folder / "drift.json").write_bytes(msgspec.json.encode(report))
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(taught_run(tmp_path_factory.mktemp("lessons") / "run"))


@pytest_asyncio.fixture
async def page(lab: Path) -> AsyncGenerator[Page]:
    page = Page(lab.parent)
    yield page
    await page.close()


async def rollout(page: Page) -> str:
    return await page.get(links(await page.get("/iteration?run=run&n=1"), "rollout")[0])


def pieces(text: str) -> list[tuple[str, str, str]]:
    """Class, text and title of each piece of tokens."""
    found = re.findall(r'<span class="([wcvu]\d?)" title="([^"]*)">([^<]*)</span>', text)
    return [(shade, html.unescape(body), html.unescape(title)) for shade, title, body in found]


async def test_from_a_run_to_the_first_tokens_credit_in_four_clicks(page: Page) -> None:
    text, clicks = await page.get("/"), 0
    for screen in ("run", "iteration", "rollout", "tokens"):
        text = await page.get(
            next(one for one in links(text, screen) if "as=" not in one and "n=2" not in one)
        )
        clicks += 1
    assert clicks <= 4
    assert "credit +0.5" in told(text)
    assert pieces(text)


async def test_tokens_are_coloured_by_what_is_asked_for(page: Page) -> None:
    address = links(await rollout(page), "tokens")[0]
    # log-prob -0.5 of -5 is a tenth of nine shades; ids 4 and 5
    assert pieces(await page.get(address))[:2] == [
        ("w1", HOSTILE, "token 0, id 4: engine -0.5000, trainer -0.7500 nats, credit +0.5"),
        ("w1", "◌", "token 1, id 5: engine -0.5000, trainer -0.7500 nats, credit +0.5"),
    ]
    # a gap of 0.25 of 0.5; the writer's tokens were not trained
    gaps = pieces(await page.get(f"{address}&by=gap"))
    assert [shade for shade, _, _ in gaps] == ["w4", "w4", "u", "u"]
    credit = pieces(await page.get(f"{address}&by=credit"))
    assert [one[::2] for one in credit] == [
        ("c9", "tokens 0 to 1: credit +0.5"), ("w4", "tokens 0 to 1: credit -0.25")
    ]  # fmt: skip
    mask = pieces(await page.get(f"{address}&by=mask"))
    assert [shade for shade, _, _ in mask] == ["c4", "u"]
    assert [one[2] for one in pieces(await page.get(f"{address}&by=version"))] == [
        "tokens 0 to 1: version 0"
    ] * 2
    assert "use one of logprob" in told(await page.get(f"{address}&by=mood", 400))


async def test_tokens_are_exported_each_with_all_that_is_known_of_it(page: Page) -> None:
    address = links(await rollout(page), "tokens")[0]
    rows = await page.table(f"{address}&as=csv")
    assert [(row["agent"], row["id"], row["trainer_log_prob"], row["trained"]) for row in rows] == [
        ("planner", "4", "-0.75", "True"), ("planner", "5", "-0.75", "True"),
        (f"writer {HOSTILE}", "4", "", "False"), (f"writer {HOSTILE}", "5", "", "False"),
    ]  # fmt: skip
    assert (rows[0]["text"], rows[0]["credit"]) == (HOSTILE, "0.5")
    assert rows[2]["reason"] == f"left out {HOSTILE}"
    whole = await page.table(f"{address}&as=csv&table=left-out")
    assert whole == [{"reason": f"left out {HOSTILE}", "calls": "1", "tokens": "2"}]


async def test_what_was_not_trained_and_what_broke_is_said(page: Page) -> None:
    shown = await page.get(links(await rollout(page), "tokens")[0])
    assert "<script>window" not in shown
    text = told(shown)
    assert f"not trained: left out {HOSTILE}" in text
    assert f"left out {HOSTILE} 1 2" in text  # one call of two tokens
    # the writer's prompt is 1 2 3, the row before it 1 2 3 4 5
    assert "A row broke here (truncated, at token 3 of the prompt): its prompt ends inside" in text
    assert f"up to there abc the row goes on {HOSTILE}" in text
    assert "begins row 0" in text
    assert "has no rollout" in await page.get("/tokens?run=run&id=none", 404)


def test_every_cause_of_a_break_has_its_words() -> None:
    assert set(tokens.CAUSES) == set(trajectory.CAUSES)


async def test_credit_is_a_bar_with_its_parts_and_links_to_its_state(page: Page) -> None:
    address = links(await rollout(page), "credit")[0]
    text = await page.get(address)
    assert 'aria-label="credit +0.5"' in text
    assert "planner 0.5 +0.5 1 0.5 state 7 2" in told(text)
    assert "planner 1 0.5" in told(text.split('id="baselines"')[1])
    (state,) = (one for one in links(text, "credit") if "state=7" in one)
    met = told((await page.get(state)).split('id="state"')[1])
    assert met.count("planner") == 4  # of both members of both groups that ended
    members = await page.table(f"{state.partition('#')[0]}&as=csv&table=state")
    assert [one["agent"] for one in members] == ["planner"] * 4
    assert await page.table(f"{address}&as=csv&table=baselines") == [
        {"agent": "planner", "calls": "1", "least": "0.5", "most": "0.5"},
        {"agent": f"writer {HOSTILE}", "calls": "1", "least": "1.25", "most": "1.25"},
    ]
    assert "use one of steps" in told(await page.get(f"{address}&as=csv&table=x", 400))
    rows = await page.table(f"{address}&as=csv")
    assert [(row["credit"], row["baseline"], row["state"]) for row in rows] == [
        ("0.5", "0.5", "7"), ("-0.25", "1.25", "")
    ]  # fmt: skip


async def test_every_table_is_saved_as_csv(page: Page) -> None:
    rollout_page = await rollout(page)
    credit, tokens = (links(rollout_page, one)[0] for one in ("credit", "tokens"))
    beside = f"{credit}&with=step_reward&state=7"
    await compared(page, beside)
    groups = "/iteration?run=run&n=1"
    others = (links(await page.get(groups), "group")[0], credit, tokens, beside, "/live?run=run")
    for address in ("/", "/run?run=run", groups, "/compare?run=run&metric=val/reward", *others):
        text = await page.get(address)
        found = set(map(html.unescape, re.findall(r'href="([^"]*as=csv[^"]*)"', text)))
        assert len(found) >= text.count("<table"), address
        for one in found:
            answer = await page.client.get(one)
            assert answer.headers["content-type"].startswith("text/csv"), one
            assert answer.text.count(",") > 1, one


async def test_the_tables_of_a_run_say_what_its_screen_says(page: Page) -> None:
    shown = await page.get("/run?run=run")
    rows = await page.table("/run?run=run&as=csv&table=iterations")
    assert [one["iteration"] for one in rows] == ["2", "1", "0"]
    assert (rows[0]["train/reward"], rows[0]["timing/iteration_seconds"]) == ("0.5", "4.0")
    assert "2 0.5 0.5 4 - - - - 4.0 s" in told(shown)
    drift = await page.table("/run?run=run&as=csv&table=drift")
    assert [one["iteration"] for one in drift].count("all") == len(drift) // 2
    assert "trained 8 tokens" in told(shown)
    assert {one["what"]: (one["value"], one["unit"]) for one in drift} == {
        "sampled": ("16", "tokens"), "trained": ("8", "tokens"),
        "masked: stand in a row as context": ("0", "tokens"), "dropped: stand in no row": ("8", "tokens"),
        f"not trained: left out {HOSTILE}": ("8", "tokens"), "should continue a row": ("4", "calls"),
        "continued it": ("1", "calls"), "broke the row: truncated": ("3", "calls"),
        "engine-trainer gap, mean": ("0.25", "nats"), "engine-trainer gap, largest": ("0.5", "nats"),
    }  # fmt: skip
    said = await page.table("/findings?run=run&as=csv")
    assert "broken conversations" in {one["kind"] for one in said}
    (own,) = await page.table("/compare?run=run&as=csv&table=runs")
    assert (own["run"], own["state"], own["best"]) == ("run", "finished", "0.5")


async def compared(page: Page, address: str) -> str:
    """The screen of credit, once the methods are computed; until then it says so and asks for them by itself."""
    while "data-again" in (text := await page.get(address)):
        assert 'data-load="/credit/methods?' in text
    return text


async def test_methods_stand_side_by_side_on_stored_rollouts(page: Page) -> None:
    address = links(await rollout(page), "credit")[0]
    text = await compared(page, f"{address}&with=step_reward,gae")
    table = told(text.split('id="methods-table"')[1])
    assert "broadcast (the run's) step_reward" in table
    # rewards 1 and 0: (1 - 1/2) / 0.7071
    assert "0 planner +0.7071" in table
    assert "gae: has a state or a critic, which is not stored" in told(text)
    rows = await page.table(f"{address}&with=step_reward,gae&as=csv&table=methods")
    first = {one["method"]: one["credit"][:6] for one in rows if one["place"] == "0"}
    assert first == {"broadcast": "0.7071", "step_reward": "0.5"}
    # Another rollout of the iteration needs no computing.
    other = links(await page.get("/iteration?run=run&n=1"), "rollout")[1].partition("id=")[2]
    beside = await page.get(f"/credit/methods?run=run&id={other}&with=step_reward,gae")
    assert "0 planner -0.7071" in told(beside)
    # An address must not make the page run code.
    for name in ("magic", "os:getcwd"):
        said = told(await page.get(f"{address}&with={name}", 400))
        assert f"no credit assigner '{name}' is installed" in said


async def test_without_a_lesson_tokens_show_what_the_store_has(tmp_path: Path, lab: Path) -> None:
    page = Page(lab / "store.db")
    text = await page.get(links(await rollout(page), "tokens")[0])
    assert "lessons are in the run's folder" in told(text)
    assert pieces(text)[0] == ("w1", "⟨4⟩", "token 0, id 4: engine -0.5000 nats")
    validation = links(await page.get("/iteration?run=run&n=1&mode=val"), "rollout")[0]
    scored = await page.get(links(await page.get(validation), "tokens")[0])
    assert "scored and never trained" in told(scored)
    await page.close()


async def test_a_long_answer_comes_in_parts(tmp_path: Path) -> None:
    """Characters whose bytes fall into two parts are whole in one of them."""
    folder = await long_run(tmp_path / "long", "run")
    page = Page(folder)
    text = await page.get(links(await rollout(page), "tokens")[0])
    assert len(pieces(text)) == 2000
    shown = "".join(body for _, body, _ in pieces(text))
    while more := re.search(r'data-more="([^"]*)"', text):
        text = await page.get(html.unescape(more[1]))
        shown += "".join(body for _, body, _ in pieces(text))
    assert shown == "a" * 1999 + "◌é" + "⏎\n" * 1999
    assert "start=-1" in told(
        await page.get(f"{links(await rollout(page), 'tokens')[0]}&start=-1", 400)
    )
    await page.close()


async def test_a_run_says_how_its_last_start_ended(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", iterations=9)
    write_starts(folder, [Start("2026-01-02T03:04:05+00:00", 1, How.GUARD, "2026-01-02T04:00:00+00:00", HOSTILE)])  # fmt: skip
    page = Page(tmp_path)
    for address in ("/", "/run?run=run"):
        shown = await page.get(address)
        assert f"guard at 2026-01-02 04:00:00 UTC: {HOSTILE}" in told(shown)
        assert "<script>window" not in shown
    write_starts(folder, [Start("2026-01-02T03:04:05+00:00", 1)])
    assert "killed about at 20" in told(await page.get("/run?run=run"))
    await page.close()


async def test_a_branch_says_so_and_names_its_parent(tmp_path: Path) -> None:
    store = SqliteStore.open(write_folder(tmp_path / "run") / "store.db")
    (spec,) = group(1)
    await store.enqueue([spec])
    (claim,) = await store.claim("worker")
    parent, step = claim.attempt.id, StepId("step-asked")
    await store.append([call(parent, "asked"), reward(parent, 1.0)])
    await store.finish(parent, AttemptState.SUCCEEDED)
    branch = msgspec.structs.replace(
        spec,
        id=branch_id(parent, step, 0),
        group_id=branches_id(spec.group_id, step),
        variant=BRANCH,
        fork=Fork(parent, step),
    )
    await store.enqueue([branch])
    await store.close()
    page = Page(tmp_path)
    groups = links(await page.get("/iteration?run=run&n=1"), "group")
    assert [parse_qs(urlsplit(one).query)["id"] for one in groups] == [
        [spec.group_id], [f"{spec.group_id}/fork/step-asked"]
    ]  # fmt: skip
    (address, *_) = links(await page.get(groups[1]), "rollout")
    text = await page.get(address)
    assert f"train (fork), iteration 1 · branch of {spec.id} from step step-asked" in told(text)
    assert any(one.endswith("#step-asked") for one in links(text, "rollout"))
    await page.close()
