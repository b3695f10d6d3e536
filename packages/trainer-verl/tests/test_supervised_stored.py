"""Stored rollouts as demonstrations: which of them, with which tokens, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lightningrl.conversation.history import Asker, Recorded
from lightningrl.conversation.rewriting import Rewriter
from lightningrl.conversation.rewriting.fields import raw_fields
from lightningrl.errors import ConfigError
from lightningrl.experience.train_when import load_train_when
from lightningrl.experience.trained_calls import NOT_NOW, SIDE_CALL, UNTRAINED_AGENT
from lightningrl.recipe import PolicyRecipe, SideCall, WarmStart
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    CallEvent,
    Claim,
    Dialect,
    Event,
    EventId,
    Mode,
    Rewrite,
    RewriteRules,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import AT, call, group, ids, reward
from lightningrl_verl.supervised.rows import TOO_LONG, Example
from lightningrl_verl.supervised.scribe import Scribe
from lightningrl_verl.supervised.stored import (
    ANOTHER_POLICY,
    COMPLETION,
    NO_CHAT,
    Asked,
    StoredRollout,
    read_rollouts,
    stored_example,
)
from lightningrl_verl.tiny import build_tokenizer

TOKENIZER = build_tokenizer((" tom", " has", " pens"), context=64)
SCRIBE = Scribe(TOKENIZER, "compact")
ASK = {"role": "user", "content": "tom has 3 pens"}
SAY = {"role": "assistant", "content": "7"}
SETTINGS = WarmStart(demonstrations="run:old", min_reward=1.0, learning_rate=1e-4)


def _ids(text: str) -> list[int]:
    return SCRIBE.encode(text)


def _call(attempt: AttemptId, ident: str, prompt: str, answer: str, **changes: Any) -> CallEvent:
    """A call by this tokenizer, with the messages and the answer that its text stands for."""
    said = changes.pop("said", SAY)
    request = json.dumps({"model": "m", "messages": changes.pop("messages", [ASK])}).encode()
    made = call(attempt, ident, prompt=_ids(prompt), answer=_ids(answer), request=request)
    choice = msgspec.structs.replace(made.choices[0], message=json.dumps(said).encode())
    return msgspec.structs.replace(made, choices=(choice,), **changes)


async def _rollouts(folder: Path, *events: list[Event], **settings: Any) -> list[StoredRollout]:
    """What is read of a store whose i-th rollout has the i-th events, all with reward 1."""
    store = SqliteStore.open(folder / "store.db")
    for number, of_one in enumerate(events):
        await store.enqueue(group(1, task=f"task-{number}"))
        (claim,) = await store.claim("worker")
        await _finish(store, claim, of_one)
    await store.close()
    return await read_rollouts(
        folder / "store.db", msgspec.structs.replace(SETTINGS, **settings), "policy"
    )


async def _finish(
    store: SqliteStore, claim: Claim, events: list[Event], value: float = 1.0
) -> None:
    attempt = claim.attempt.id
    moved = [msgspec.structs.replace(one, attempt_id=attempt) for one in events]
    await store.append([*moved, reward(attempt, value)])
    await store.finish(attempt, AttemptState.SUCCEEDED)


def _example(stored: StoredRollout, **policy: Any) -> Example:
    settings = PolicyRecipe(**{"model": "m", "max_model_len": 64, **policy})
    asked = load_train_when({"policy": settings}).get("policy")
    return stored_example(stored, SCRIBE, alias="policy", policy=settings, train_when=asked)


def _is_large(request: dict[str, Any]) -> bool:
    return request["model"] == "gpt-large"


def _texts(example: Example) -> list[str]:
    return [TOKENIZER.decode(row.token_ids[row.mask]) for row in example.rows]


ANY = AttemptId("any")
PROMPT = "<user> tom has 3 pens<asst>"
TURNS = [ASK, SAY, ASK]


async def test_calls_of_this_tokenizer_keep_their_tokens_and_merge(tmp_path: Path) -> None:
    first = _call(ANY, "1", PROMPT, "<ans>7<end>")
    # As it was sampled, not as the message would be written: the parser took the mark away.
    second = _call(ANY, "2", f"{PROMPT}<ans>7<end>{PROMPT}", "8<end>", messages=TURNS)
    (stored,) = await _rollouts(tmp_path, [first, second])
    example = _example(stored)
    assert _texts(example) == ["<ans>7<end>8<end>"]
    assert (example.drift.rendered, example.drift.continued, example.left_out) == (0, 1, {})
    assert example.key == "task-0"


async def test_calls_of_another_tokenizer_or_without_ids_are_tokenised_again_and_counted(
    tmp_path: Path,
) -> None:
    foreign = msgspec.structs.replace(
        _call(ANY, "1", PROMPT, "<ans>7<end>"), prompt_ids=ids([90, 91, 92, 93])
    )
    bare = msgspec.structs.replace(_call(ANY, "1", PROMPT, ""), prompt_ids=b"")
    found = await _rollouts(tmp_path, [foreign], [bare])
    for stored in found:
        example = _example(stored)
        assert _texts(example) == ["<ans>7<end>"]
        assert TOKENIZER.decode(example.rows[0].token_ids).startswith(PROMPT)
        assert example.drift.rendered == 3


async def test_other_dialects_are_read_as_the_gateway_reads_them(tmp_path: Path) -> None:
    anthropic = {
        "model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "tom has 3 pens"}],
    }  # fmt: skip
    one = msgspec.structs.replace(
        _call(ANY, "1", PROMPT, ""),
        prompt_ids=b"",
        dialect=Dialect.ANTHROPIC,
        request=json.dumps(anthropic).encode(),
    )
    completion = msgspec.structs.replace(one, dialect=Dialect.COMPLETIONS)
    first, second = await _rollouts(tmp_path, [one], [completion])
    assert _texts(_example(first)) == ["<ans>7<end>"]
    assert _example(second).left_out == {COMPLETION: 1}


RULES = RewriteRules(
    roles={"developer": "system"},
    pin=(r"day \d",),
    drop_hosted=True,
    put_back=True,
    variables={"style": "brief"},
    free=True,
)
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}


def _served(ident: str, request: dict[str, Any], said: Any, earlier: Recorded) -> CallEvent:
    """A call by another tokenizer, as the gateway rewrites and records it."""
    place = Asker("policy", (), None)
    found = Rewriter(RULES).rewrite(
        raw_fields(request), Dialect.CHAT, earlier.held.get(place), earlier.thoughts.get(place)
    )
    made = _call(ANY, ident, PROMPT, "<ans>7<end>", said=said, rewrites=found.rewrites)
    served = msgspec.structs.replace(
        made, request=json.dumps(request).encode(), prompt_ids=ids([90, 91, 92, 93])
    )
    earlier.add(served)
    return served


async def test_what_was_asked_is_what_the_engine_was_asked_after_all_rewrites(
    tmp_path: Path,
) -> None:
    earlier = Recorded(to_rewrite=True)
    one = {"messages": [{"role": "developer", "content": "On day 1."}, ASK]}
    first = _served("1", one, {**SAY, "reasoning": "3 + 4"}, earlier)
    two = {
        "messages": [{"role": "developer", "content": "On day 2."}, *TURNS],
        "tools": [ADD, {"type": "web_search"}],
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"depth": 1},
        "documents": [{"text": "pens"}],
        "reasoning_effort": "low",
    }
    second = _served("2", two, SAY, earlier)
    (stored,) = await _rollouts(tmp_path, [first, second])
    words = "On day 1.\n\nAnswer with one JSON object and nothing else."
    assert stored.asked["step-2"] == Asked(
        messages=[
            {"role": "system", "content": words}, ASK, {**SAY, "reasoning": "3 + 4"}, ASK,
        ],
        tools=[ADD],
        variables={"documents": [{"text": "pens"}], "reasoning_effort": "low", "depth": 1},
        defaults={"style": "brief"},
        answer=SAY,
        ends=True,
    )  # fmt: skip
    example = _example(stored)  # the hosted tool, which no engine saw, makes nothing unfit
    assert (_texts(example), example.left_out) == (["<ans>7<end><ans>7<end>"], {})


async def test_a_record_that_cannot_be_read_is_left_out_with_the_reason(tmp_path: Path) -> None:
    later = _call(ANY, "1", PROMPT, "<ans>7<end>", rewrites=(Rewrite("tomorrow"),))
    (stored,) = await _rollouts(tmp_path, [later])
    assert _example(stored).left_out == {
        "its request can't be read: the rewrite 'tomorrow' is unknown here; read this record with a newer"
        " LightningRL": 1
    }


def test_the_policys_variables_stand_between_what_the_agent_and_what_the_gateway_set() -> None:
    tokenizer = build_tokenizer((" tom",), context=64)
    tokenizer.chat_template = "{{ a ~ b ~ c }}"
    scribe = Scribe(tokenizer, "compact", {"a": 2, "b": 2})
    ids_ = scribe.prompt([ASK], [], {"a": 1}, {"a": 3, "b": 3, "c": 3})
    assert tokenizer.decode(ids_) == "123"


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


async def test_a_prompt_with_an_image_is_left_out_though_its_tokens_were_recorded(
    tmp_path: Path,
) -> None:
    seen = {"role": "user", "content": [IMAGE]}
    one = _call(ANY, "1", PROMPT, "<ans>7<end>", messages=[seen, SAY, ASK])
    spoken = {**SAY, "audio": {"id": "a"}}
    found = await _rollouts(
        tmp_path, [one], _client_step({"messages": [seen, SAY, ASK]}, SAY),
        _client_step({"messages": [ASK, spoken, ASK]}, SAY),
    )  # fmt: skip
    left_out = [_example(stored).left_out for stored in found]
    image, audio = (
        f"the prompt holds {what}, which the trainer does not see" for what in ("an image", "audio")
    )
    assert left_out == [{image: 1}, {image: 1}, {audio: 1}]


def _client_step(
    inputs: Any, output: Any, *, parent: str | None = None, agent: str | None = None
) -> list[Event]:
    step = StepId("s")
    start = StepStartEvent(
        id=EventId("start"), attempt_id=ANY, at=AT, step_id=step,
        parent_id=None if parent is None else StepId(parent),
        kind=StepKind.LLM, name="gpt", agent=agent, inputs=inputs,
    )  # fmt: skip
    end = StepEndEvent(id=EventId("end"), attempt_id=ANY, at=AT, step_id=step, output=output)
    return [start, end]


async def test_recorded_traffic_is_tokenised_from_what_its_steps_keep(tmp_path: Path) -> None:
    chat, other = await _rollouts(
        tmp_path,
        _client_step({"messages": [ASK]}, SAY),
        _client_step({"messages": [ASK]}, "7"),
    )
    assert _texts(_example(chat)) == ["<ans>7<end>"]
    assert _example(chat).drift.rendered == 3
    assert _example(other).left_out == {NO_CHAT: 1}


async def test_recorded_traffic_is_chosen_by_the_agents_around_it_and_by_what_it_asks(
    tmp_path: Path,
) -> None:
    around = [
        StepStartEvent(
            id=EventId(name), attempt_id=ANY, at=AT, step_id=StepId(name),
            parent_id=None if parent is None else StepId(parent),
            kind=StepKind.AGENT, name=name, agent=name,
        )
        for name, parent in (("team", None), ("maths", "team"))
    ]  # fmt: skip
    asked = {"model": "gpt-mini", "messages": [ASK]}
    (stored,) = await _rollouts(
        tmp_path, [*around, *_client_step(asked, SAY, parent="maths", agent="maths")]
    )
    for named in ("team/maths", "maths"):
        assert _texts(_example(stored, train_agents=(named,))) == ["<ans>7<end>"]
    for other in ("team", "other/maths"):
        assert _example(stored, train_agents=(other,)).left_out == {UNTRAINED_AGENT: 1}
    aside = _example(stored, side_calls=(SideCall(model="gpt-mini"),))
    assert (aside.rows, aside.left_out) == ((), {SIDE_CALL: 1})
    told = _example(stored, train_when=f"{__name__}:_is_large")
    assert (told.rows, told.left_out) == ((), {NOT_NOW: 1})


async def test_an_answer_that_was_cut_off_gets_no_end_token(tmp_path: Path) -> None:
    made = _call(ANY, "1", PROMPT, "")
    choice = msgspec.structs.replace(made.choices[0], finish_reason="length")
    cut = msgspec.structs.replace(made, prompt_ids=b"", choices=(choice,))
    (stored,) = await _rollouts(tmp_path, [cut])
    assert _texts(_example(stored)) == ["<ans>7"]


async def test_what_others_answered_or_said_is_left_out_with_the_reason(tmp_path: Path) -> None:
    own = _call(ANY, "1", PROMPT, "<ans>7<end>", agent="solver")
    judge = _call(ANY, "2", PROMPT, "<ans>8<end>", policy="judge")
    checker = _call(ANY, "3", PROMPT, "<ans>9<end>", agent="checker")
    (stored,) = await _rollouts(tmp_path, [own, judge, checker])
    example = _example(stored, train_agents=("solver",))
    assert _texts(example) == ["<ans>7<end>"]
    assert example.left_out == {ANOTHER_POLICY: 1, UNTRAINED_AGENT: 1}


async def test_a_teachers_calls_are_all_shown_and_long_ones_counted(tmp_path: Path) -> None:
    teacher = _call(ANY, "1", PROMPT, "<ans>7<end>", policy="big")
    (stored,) = await _rollouts(tmp_path, [teacher])
    assert _texts(_example(stored)) == ["<ans>7<end>"]
    too_long = msgspec.structs.replace(stored.calls[0], prompt_bytes=b"")
    long = StoredRollout(stored.key, (too_long,), stored.asked)
    settings = PolicyRecipe(model="m", max_model_len=5)
    example = stored_example(long, SCRIBE, alias="policy", policy=settings)
    assert (example.rows, example.left_out) == ((), {TOO_LONG: 1})


async def test_only_training_and_live_rollouts_with_enough_reward_are_read(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "store.db")
    for mode, value in (
        (Mode.TRAIN, 1.0), (Mode.TRAIN, 0.5), (Mode.VAL, 1.0), (Mode.TRAIN, 2.0),
    ):  # fmt: skip
        await store.enqueue(group(1, task=f"{mode}-{value}", mode=mode))
        (claim,) = await store.claim("worker")
        events: list[Event] = [_call(ANY, "1", PROMPT, "<ans>7<end>")]
        await _finish(store, claim, events, value)
    await store.close()
    place = tmp_path / "store.db"
    assert [one.key for one in await read_rollouts(place, SETTINGS, "policy")] == [
        "train-2.0", "train-1.0",
    ]  # fmt: skip
    best = msgspec.structs.replace(SETTINGS, limit=1)
    assert [one.key for one in await read_rollouts(place, best, "policy")] == ["train-2.0"]
    none = msgspec.structs.replace(SETTINGS, min_reward=3.0)
    with pytest.raises(
        ConfigError, match=r"no training or live rollout with a reward of at least 3"
    ):
        await read_rollouts(place, none, "policy")


async def test_live_rollouts_of_tasks_that_score_the_policy_are_left_out_and_told(
    tmp_path: Path,
) -> None:
    store = SqliteStore.open(tmp_path / "store.db")
    for mode, task in ((Mode.LIVE, "held"), (Mode.LIVE, "other"), (Mode.TRAIN, "0")):
        (spec,) = group(1, task=task, mode=mode)
        await store.enqueue([spec])
        (claim,) = await store.claim("worker", rollout_ids=[spec.id])
        await _finish(store, claim, [_call(ANY, "1", PROMPT, "<ans>7<end>")])
    await store.close()
    said: list[str] = []
    # "0" is a task of another split that is numbered as well.
    found = await read_rollouts(
        tmp_path / "store.db", SETTINGS, "policy", {"held", "0"}, said.append
    )
    assert sorted(one.key for one in found) == ["0", "other"]
    assert said == [
        "warm start of 'policy': 1 live rollouts are left out, whose tasks are in data.val or data.test"
    ]
