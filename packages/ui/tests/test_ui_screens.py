"""Each screen, as a server without a browser answers it."""

from __future__ import annotations

import asyncio
import csv
import html
import io
import random
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import pytest_asyncio
from click.testing import CliRunner
from lab import HOSTILE, answered, conversation, fill, many_agents, started, write_folder

from lightningrl.cli import commands
from lightningrl.keys import ViewerKey
from lightningrl.schema import AttemptState, StepId, StepKind
from lightningrl.store.queries import folder as sql_folder
from lightningrl.store.sqlite import SqliteStore
from lightningrl.store.versions import SCHEMA_VERSION
from lightningrl_testkit.records import group, reward
from lightningrl_testkit.server import ServerProcess
from lightningrl_ui.app import make_app
from lightningrl_ui.sources import Sources


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run; tests that change it take a copy."""
    runs = tmp_path_factory.mktemp("lab")
    folder = write_folder(runs / "run")
    asyncio.run(fill(folder / "store.db"))
    return runs


class Page:
    """What a server that was pointed at `targets` answers."""

    def __init__(
        self, *targets: object, viewers: Sequence[ViewerKey] = (), key: str | None = None
    ) -> None:
        self.sources = Sources([str(one) for one in targets], key)
        self.sources.check()
        transport = httpx.ASGITransport(make_app(self.sources, viewers))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1")

    async def get(self, address: str, code: int = 200) -> str:
        answer = await self.client.get(address)
        assert answer.status_code == code, answer.text
        return answer.text

    async def table(self, address: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(await self.get(address))))

    async def close(self) -> None:
        await self.client.aclose()
        await self.sources.close()


@pytest_asyncio.fixture
async def page(lab: Path) -> AsyncGenerator[Page]:
    page = Page(lab)
    yield page
    await page.close()


def links(text: str, screen: str) -> list[str]:
    """The addresses of a screen in a page, in order, each once."""
    found = (html.unescape(one) for one in re.findall(r'href="([^"]*)"', text))
    return list(dict.fromkeys(one for one in found if urlsplit(one).path == f"/{screen}"))


def told(text: str) -> str:
    """The text of a page, without tags, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


async def test_one_comes_from_the_runs_to_a_call_by_links(page: Page) -> None:
    text = await page.get("/")
    assert "run finished 2 of 2 val/reward 0.5 0.5" in told(text)
    for screen in ("run", "iteration", "group", "rollout", "call"):
        text = await page.get(
            next(one for one in links(text, screen) if "as=" not in one and "n=2" not in one)
        )
    assert "Answer in Ελληνικά." in text
    assert "→ search({" in text


async def test_what_others_wrote_is_text(page: Page) -> None:
    text = await page.get("/")
    seen = [text]
    for screen in ("run", "iteration", "group", "rollout", "call"):
        text = await page.get(
            next(one for one in links(text, screen) if "as=" not in one and "n=2" not in one)
        )
        seen.append(text)
    assert any(html.escape("<script>window") in one for one in seen)
    for one in seen:
        assert set(re.findall(r"<script[^>]*>", one)) <= {
            '<script src="/static/plotly.js" defer>', '<script src="/static/ui.js" defer>'
        }  # fmt: skip
        assert "<img" not in one
        assert "11106" not in told(one)  # 1234 * 9


async def test_every_answer_forbids_what_is_not_ours(page: Page) -> None:
    for address in ("/", "/run?run=run", "/nothing", "/static/ui.js", "/?as=csv"):
        answer = await page.client.get(address)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "plotly.js v" in await page.get("/static/plotly.js")


async def test_a_browser_that_asks_for_a_foreign_name_gets_nothing(page: Page) -> None:
    foreign = await page.client.get("/", headers={"host": "rebound.example:8788"})
    assert foreign.status_code == 421
    assert "finished" not in foreign.text
    for host in ("localhost:8788", "[::1]:8788", "127.0.0.1"):
        assert (await page.client.get("/", headers={"host": host})).status_code == 200


async def test_with_keys_nobody_without_one_is_answered(lab: Path) -> None:
    keys = [ViewerKey("ä key"), ViewerKey("of another run", frozenset({"other"}))]
    page = Page(lab, viewers=keys)
    for address in ("/", "/run?run=run", "/static/ui.js", "/pulse", "/nothing"):
        answer = await page.client.get(address)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")
        assert "finished" not in answer.text
    wrong = [("anyone", "a key"), ("ä key", "")]
    assert [(await page.client.get("/", auth=one)).status_code for one in wrong] == [401, 401]
    for header in ("Basic !", "Digest x", "Bearer", "Basic /w=="):
        answer = await page.client.get("/", headers={"authorization": header})
        assert answer.status_code == 401
    # Who has one may ask under whatever name: there is a proxy before it, perhaps.
    named = {"host": "runs.example"}
    whole = await page.client.get("/run?run=run", auth=("", "ä key".encode()), headers=named)
    assert "val/reward" in whole.text
    other = httpx.Headers({"authorization": "Bearer of another run"})
    assert "There is no run in" in (await page.client.get("/", headers=other)).text
    for screen in ("run", "iteration", "group", "rollout", "call", "findings", "pulse", "compare"):
        hidden = await page.client.get(f"/{screen}?run=run&n=1&id=x", headers=other)
        assert hidden.status_code == 404
    await page.close()


def test_elsewhere_than_on_loopback_it_wants_a_key(lab: Path) -> None:
    refused = CliRunner().invoke(commands, ["ui", str(lab), "--host", "0.0.0.0"])
    assert refused.exit_code == 2
    assert "set LIGHTNINGRL_VIEWER_KEY" in refused.output


async def test_a_run_of_a_server_is_shown_with_a_viewers_key(tmp_path: Path) -> None:
    await fill(tmp_path / "store.db")
    viewers = "of-all\nof-another other"
    with ServerProcess(tmp_path / "store.db", admin_key="admin", viewer_key=viewers) as server:
        page = Page(server.url, key="of-all")
        text = await page.get("/")
        assert "Its store alone is known here" in await page.get("/run?run=run")
        for screen in ("run", "iteration", "group", "rollout", "call"):
            text = await page.get(
                next(one for one in links(text, screen) if "as=" not in one and "n=2" not in one)
            )
        assert "Answer in Ελληνικά." in text
        assert "warning" in told(await page.get("/findings?run=run"))
        await page.close()
        page = Page(server.url, key="of-another")
        assert "There is no run in" in await page.get("/")
        await page.close()


async def test_a_run_shows_guards_time_drift_and_recipe(page: Page) -> None:
    text = told(await page.get("/run?run=run"))
    # collect 3 + 3, update 1 + 1, validate 1: of 9 seconds 6 are 66.7 %
    assert "collect 3.0 s 66.7 %" in text
    # the guard's limit is the recipe's default; 0.01 is far from it
    assert re.search(r"max_ppo_kl actor/ppo_kl 0\.01 ≤ [\d.]+ nats \d+ % 0 of \d+", text)
    assert "Nothing was trained yet." in text
    assert "tasks_per_iteration: 2" in text
    assert "end of trainer.log iteration 1: update" in text


async def test_tables_of_a_run_are_exported(page: Page, tmp_path: Path) -> None:
    rows = await page.table("/run?run=run&as=csv&table=guards")
    (guard,) = (row for row in rows if row["guard"] == "max_ppo_kl")
    assert (guard["metric"], guard["last"], guard["beyond"]) == ("actor/ppo_kl", "0.01", "0")
    assert guard["unit"] == "nats"
    rows = await page.table("/run?run=run&as=csv&table=phases")
    assert [(row["phase"], row["mean_seconds"]) for row in rows] == [
        ("collect", "3.0"), ("update", "1.0"), ("validate", "1.0")
    ]  # fmt: skip
    assert "a run has iterations" in told(await page.get("/run?run=run&as=csv&table=x", 400))
    for seed in (0, 2):
        write_folder(tmp_path / f"seed{seed}", f"seed{seed}", seed=seed)
    other = Page(tmp_path)
    rows = await other.table("/compare?run=seed0&run=seed2&as=csv&table=recipes")
    assert {row["key"]: row["seed2"] for row in rows} == {"name": "seed2", "seed": "2"}
    await other.close()


async def test_parts_of_the_reward_have_curves_of_their_own(page: Page) -> None:
    text = await page.get("/run?run=run")
    found = re.search(r'id="parts"[^>]*data-figure="([^"]*)"', text)
    assert found is not None
    figure = html.unescape(found[1])
    assert '"x": [1, 2], "y": [0.5, 1.0], "name": "format, training"' in figure


async def test_metrics_are_found_by_a_part_of_their_name(page: Page) -> None:
    text = await page.get("/run?run=run&q=ENTR")
    assert 'value="train/entropy"' in text
    assert 'value="actor/ppo_kl"' not in text
    many = "&metric=train/entropy" * 13
    assert "The first 12 of the 13 that are ticked are drawn" in await page.get(
        f"/run?run=run{many}"
    )
    drawn = await page.get("/run?run=run&metric=train/entropy&metric=actor/ppo_kl")
    found = re.search(r'id="chosen"[^>]*data-figure="([^"]*)"', drawn)
    assert found is not None
    figure = html.unescape(found[1])
    assert '"x": [1, 2], "y": [2.0, 1.0], "name": "train/entropy"' in figure
    assert '"yaxis2"' in figure


async def test_groups_say_why_they_taught_nothing(page: Page) -> None:
    rows = await page.table("/iteration?run=run&n=1&as=csv")
    verdicts = {row["task"]: (row["verdict"], row["why"]) for row in rows}
    assert verdicts[HOSTILE] == ("mixed", "")
    assert verdicts["flat"][0] == "flat"
    assert verdicts["failing"] == ("skipped", "left out: 0 of 2 members can be used")
    assert [row["failure"] for row in rows if row["task"] == "failing"] == [
        f"agent: ValueError: {HOSTILE}"
    ] * 2
    assert [row["reward"] for row in rows if row["task"] == HOSTILE] == ["1.0", "0.0"]
    validation = told(await page.get("/iteration?run=run&n=1&mode=val"))
    assert "held out greedy 1 1 0 0 scored" in validation


async def test_groups_are_sorted_by_what_their_heads_say(page: Page) -> None:
    async def order(query: str) -> list[str]:
        text = await page.get(f"/iteration?run=run&n=1{query}")
        ids = [parse_qs(urlsplit(one).query)["id"][0] for one in links(text, "group")]
        rows = await page.table("/iteration?run=run&n=1&as=csv")
        tasks = {row["group"]: row["task"] for row in rows}
        return [tasks[one] for one in ids]

    assert await order("") == [HOSTILE, "flat", "failing"]
    # spreads 0.5, 0 and none at all
    assert await order("&sort=spread&down=1") == [HOSTILE, "flat", "failing"]
    assert await order("&sort=spread") == ["failing", "flat", HOSTILE]
    assert "can't be sorted by" in told(await page.get("/iteration?run=run&n=1&sort=size", 400))


async def test_members_are_aligned_and_their_first_difference_is_marked(page: Page) -> None:
    address = links(await page.get("/iteration?run=run&n=1"), "group")[0]
    text = await page.get(address)
    assert text.count('id="first-difference"') == 1
    row = told(text.split('id="first-difference"')[1].split("</tr>")[0])
    # planning and searching were the same; the writers' answers begin alike
    assert row.startswith("> 2 first difference")
    assert "good morning" in row
    assert '<span class="same">good</span>' in text
    rewards = told(text.split("<td>rewards</td>")[1].split("</tr>")[0])
    assert "+0.5 found, from agent, for step tool +1 final, from agent" in rewards


async def test_a_rollout_is_a_tree_in_time_with_a_lane_per_agent(page: Page) -> None:
    (address, *_) = links(await page.get("/iteration?run=run&n=1"), "rollout")
    text = await page.get(address)
    assert text.count('<svg class="lane"') == 2
    # of 3 seconds or more, the search took from 1.1 to 1.5
    assert "tool search, 1.1 s to 1.5 s" in text
    assert re.findall(r'class="kind b-(\w+)"', text) == ["llm", "tool"]
    steps = re.findall(r'class="step b-(\w+) d(\d)', text)
    assert steps == [("llm", "0"), ("tool", "1"), ("llm", "0")]
    rows = await page.table(f"{address}&as=csv")
    assert [(row["step"], row["kind"], row["reward"]) for row in rows] == [
        ("plan", "llm", "0.5"), ("tool", "tool", "0.5"), ("write", "llm", "")
    ]  # fmt: skip
    assert [row["version"] for row in rows] == ["0", "", "0"]


async def test_steps_are_found_by_their_text(page: Page) -> None:
    (address, *_) = links(await page.get("/iteration?run=run&n=1"), "rollout")
    found = await page.get(f"{address}&q=GOOD MORNING")
    assert re.findall(r'class="step b-(\w+) d0 found"', found) == ["llm"]
    assert "with “GOOD MORNING”: 1" in told(found)


async def test_an_address_that_names_nothing_says_so(page: Page) -> None:
    assert "there is no run &#39;rnu&#39;. Did you mean &#39;run&#39;?" in await page.get(
        "/run?run=rnu", 404
    )
    assert "has no rollout" in await page.get("/rollout?run=run&id=none", 404)
    assert "has no group" in await page.get("/group?run=run&id=none", 404)
    assert "lacks id" in await page.get("/group?run=run", 400)
    assert "no whole number" in await page.get("/iteration?run=run&n=last", 400)
    assert "there is no page" in await page.get("/settings", 404)


async def test_doctor_says_on_the_page_what_it_says_in_the_terminal(page: Page) -> None:
    text = told(await page.get("/findings?run=run"))
    assert "broken conversations warning" in text
    assert re.fullmatch(
        r"(\d+ problems?, )?\d+ warnings?", told(await page.get("/findings?run=run&short=1"))
    )


async def test_an_empty_run_and_an_empty_folder_are_told_of(tmp_path: Path) -> None:
    page = Page(tmp_path)
    assert "There is no run in" in await page.get("/")
    (tmp_path / "new").mkdir()
    shutil.copy(write_folder(tmp_path / "other" / "x", "new") / "recipe.yaml", tmp_path / "new")
    assert "new not started" in told(await page.get("/"))
    text = told(await page.get("/run?run=new"))
    assert "No iteration is over yet" in text
    assert "has no rollouts (yet)" in await page.get("/iteration?run=new&n=1", 404)
    await page.close()


async def test_starts_that_cannot_be_read_hide_no_other_run(tmp_path: Path) -> None:
    for name in ("torn", "whole"):
        write_folder(tmp_path / name, name)
    (tmp_path / "torn" / "run.json").write_text('{"starts": [{"at": "yesterday", "process": 1}]}')
    page = Page(tmp_path)
    text = told(await page.get("/"))
    assert "run.json" in text
    assert "whole finished 2 of 2 val/reward" in text
    await page.close()


async def test_a_recipe_that_cannot_be_read_hides_nothing_else(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "old")
    (folder / "recipe.yaml").write_text("name: old\nforgotten_key: 1\n")
    page = Page(tmp_path)
    assert "unknown recipe key 'forgotten_key'" in told(await page.get("/"))
    assert "val/reward 0.5" in told(await page.get("/run?run=old"))
    await page.close()


async def test_a_store_is_shown_while_it_is_written(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "s.db")
    await store.enqueue(group(2))
    page = Page(tmp_path / "s.db")
    before = await page.get("/pulse?run=run")
    assert "train 0 of 2" in told(await page.get("/iteration?run=run&n=1"))
    (claim, _) = await store.claim("worker", limit=2)
    await store.append([*conversation(claim, "done"), reward(claim.attempt.id, 1.0)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    assert "train 1 of 2" in told(await page.get("/iteration?run=run&n=1"))
    assert await page.get("/pulse?run=run") != before
    # Nothing that the page holds keeps the write-ahead log from being folded in.
    await store.close()
    assert (tmp_path / "s.db").stat().st_size > 0
    with sqlite3.connect(tmp_path / "s.db") as direct:
        busy, _, _ = direct.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0
    await page.close()


async def test_a_store_that_kill_9_left_is_shown(tmp_path: Path) -> None:
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, tmp_path / "s.db")
    assert await killed.wait() == -signal.SIGKILL
    assert (tmp_path / "s.db-wal").stat().st_size > 0
    page = Page(tmp_path / "s.db")
    (iteration, *_) = links(await page.get("/run?run=run"), "iteration")
    text = await page.get(iteration)
    assert "train 0 of 2" in told(text)
    text = await page.get(links(text, "rollout")[0])
    assert "good morning" in text
    assert "interrupted" in text
    await page.close()


KILLED = f"""
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from lab import conversation, started
from lightningrl.schema import StepKind
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import group

async def write():
    store = SqliteStore.open(Path(sys.argv[1]))
    await store.enqueue(group(2))
    (claim,) = await store.claim("worker")
    await store.append(conversation(claim, "good morning"))
    await store.append([started(claim.attempt, "open", 4.0, StepKind.TOOL, name="search")])
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(write())
"""


async def test_an_open_page_lets_the_log_be_folded_in(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "s.db")
    page = Page(tmp_path / "s.db")
    await store.enqueue(group(400))
    largest = 0
    while claims := await store.claim("worker", limit=20):
        outputs = [random.Random(claim.rollout.id).randbytes(75_000).hex() for claim in claims]
        writes = [
            store.finish(claim.attempt.id, AttemptState.SUCCEEDED, output=output)
            for claim, output in zip(claims, outputs, strict=True)
        ]
        looks = [page.get("/run?run=run"), page.get("/iteration?run=run&n=1")]
        await asyncio.gather(*writes, *looks)
        largest = max(largest, (tmp_path / "s.db-wal").stat().st_size)
    # 400 outputs of 75 kB; a writer that rests folds in what is longer than 4 MB, one batch of 1.5 MB may come on top.
    await store.close()
    assert (tmp_path / "s.db").stat().st_size > 400 * 60_000
    assert largest < 15_000_000
    await page.close()


async def test_names_of_files_are_text(tmp_path: Path) -> None:
    name = "<img src=x onerror='window.hit = 3'>\"&"
    folder = write_folder(tmp_path / name, "run")
    shutil.move(folder / "logs" / "trainer.log", folder / "logs" / f"{name}.log")
    page = Page(tmp_path)
    for text in (await page.get("/"), await page.get("/run?run=run")):
        assert "<img" not in text
        assert html.escape("<img src=x") in text
    answer = await page.client.get("/?as=csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="runs.csv"'
    await page.close()


async def test_a_run_without_an_adapters_steps_has_its_calls(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "s.db")
    await store.enqueue(group(1))
    (claim,) = await store.claim("worker")
    await store.append([answered(claim.attempt, "a", 1.0, [], {"content": "hello"})])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    await store.close()
    page = Page(tmp_path / "s.db")
    (address, *_) = links(await page.get("/iteration?run=run&n=1"), "rollout")
    text = told(await page.get(address))
    assert "(no agent named)" in text
    assert "ANSWER · STOP hello" in text.upper().replace("HELLO", "hello")
    await page.close()


async def test_a_store_that_was_made_anew_is_read_anew(tmp_path: Path) -> None:
    page = Page(tmp_path / "s.db") if (tmp_path / "s.db").exists() else None
    assert page is None
    for task in ("first", "second"):
        (tmp_path / "next.db").unlink(missing_ok=True)
        store = SqliteStore.open(tmp_path / "next.db")
        await store.enqueue(group(1, task=task))
        await store.close()
        (tmp_path / "next.db").replace(tmp_path / "s.db")
        page = page or Page(tmp_path / "s.db")
        assert task in told(await page.get("/iteration?run=run&n=1"))
    assert page is not None
    await page.close()


async def test_an_older_store_is_shown_from_a_copy(tmp_path: Path) -> None:
    scripts = sorted((sql_folder("sqlite") / "migrations").iterdir(), key=lambda one: one.name)
    path = write_folder(tmp_path / "old", "old") / "store.db"
    with sqlite3.connect(path) as direct:
        direct.executescript(scripts[0].read_text(encoding="utf-8"))
        direct.execute("INSERT INTO meta VALUES ('schema_version', 1), ('secret', x'00')")
    bytes_before = path.read_bytes()
    page = Page(tmp_path)
    assert "The store has an older schema" in await page.get("/run?run=old")
    assert "has no train rollouts" in await page.get("/iteration?run=old&n=1")
    assert path.read_bytes() == bytes_before
    assert SCHEMA_VERSION > 1
    await page.close()


async def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_folder(tmp_path / place / "run")
    page = Page(tmp_path / "a", tmp_path / "b")
    found = links(await page.get("/"), "run")
    assert len(found) == 2
    for one in found:
        assert "val/reward" in await page.get(one)
    await page.close()
    # Such an address opens the same run where it is alone.
    alone = Page(tmp_path / "a")
    assert "val/reward" in await alone.get(found[0])
    assert "run finished" in told(await alone.get(found[0].replace("/run?", "/compare?")))
    await alone.get(found[1], 404)
    await alone.close()


async def test_seeds_are_compared_as_mean_and_spread(tmp_path: Path) -> None:
    for seed in (0, 2):
        write_folder(tmp_path / f"seed{seed}", f"seed{seed}", seed=seed)
    write_folder(tmp_path / "longer", "longer", iterations=9)
    page = Page(tmp_path)
    query = "/compare?run=seed0&run=seed2&run=longer&metric=train/reward"
    text = told(await page.get(query))
    # iteration 2: 0.5 and 0.52, mean 0.51, standard deviation 0.02 / sqrt 2
    assert (
        "mean of 2: seed0, seed2: at iteration 2 0.51 ± 0.01414 (standard deviation), 0.5 to 0.52"
        in text
    )
    assert "algorithm.iterations 2 2 9" in text
    (_, second) = await page.table(f"{query}&as=csv&table=seeds")
    assert (second["iteration"], second["least"], second["most"]) == ("2.0", "0.5", "0.52")
    assert second["mean"][:4] == "0.51"
    assert "have runs, seeds, recipes" in await page.get(f"{query}&as=csv&table=x", 400)
    assert "seed 0 2 0" in text
    rows = await page.table(f"{query}&over=rollouts&as=csv")
    assert [row["rollouts"] for row in rows if row["run"] == "longer"] == ["4", "8"]
    for metric, title in (
        ("train/reward", "train/reward"),
        ("train/entropy", "train/entropy, nats"),
    ):
        drawn = await page.get(query.replace("train/reward", metric))
        assert f'"text": "{title}", "standoff"' in html.unescape(drawn)
    assert "use one of" in await page.get(f"{query}&over=tea", 400)
    await page.close()


async def test_a_text_in_a_table_is_no_formula(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "s.db")
    await store.enqueue(group(1, task="=HYPERLINK(1)"))
    await store.close()
    page = Page(tmp_path / "s.db")
    (row,) = await page.table("/iteration?run=run&n=1&as=csv")
    assert row["task"] == "'=HYPERLINK(1)"
    await page.close()


async def test_many_agents_and_names_of_any_kind(tmp_path: Path) -> None:
    await many_agents(tmp_path / "s.db", "läuft/100 % & more?")
    page = Page(tmp_path / "s.db")
    (run,) = links(await page.get("/"), "run")
    (iteration, *_) = links(await page.get(run), "iteration")
    (rollout, *_) = links(await page.get(iteration), "rollout")
    text = await page.get(rollout)
    assert text.count('<svg class="lane"') == 64
    ends = [float(x) + float(w) for x, w in re.findall(r'<rect [^>]*x="([^"]*)".*width="([^"]*)"', text)]  # fmt: skip
    assert len(ends) == 64
    assert max(ends) <= 1000  # the last step of all is seen too
    assert "日本/#1" in text
    assert "no such step" in text
    await page.close()


async def test_agents_of_one_name_have_a_lane_for_each_agent_around_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run")
    store = SqliteStore.open(folder / "store.db")
    await store.enqueue(group(1))
    (claim,) = await store.claim("worker")
    question = [{"role": "user", "content": "hello"}]
    for second, around in enumerate(("red", "blue", "red"), 1):
        answer = {"role": "assistant", "content": around}
        where = {"agent": "writer", "within": (around,)}
        said = answered(claim.attempt, f"c{second}", second, question, answer, **where)
        await store.append([said])
    tool = StepId("tool")
    begun = started(claim.attempt, tool, 2.5, StepKind.TOOL, parent_id=StepId("c2"), agent="writer")
    await store.append([begun, reward(claim.attempt.id, 1.0)])
    await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
    await store.close()
    page = Page(tmp_path)
    address = links(await page.get("/iteration?run=run&n=1"), "rollout")[0]
    text = await page.get(address)
    lanes = re.findall(r'aria-label="steps of ([^"]*)"(.*?)</svg>', text, re.DOTALL)
    assert [(name, body.count("<rect")) for name, body in lanes] == [
        ("red/writer", 2), ("blue/writer", 2)
    ]  # fmt: skip
    calls = told(await page.get(address.replace("/rollout", "/tokens")))
    assert "blue/writer step c2" in calls
    await page.close()
