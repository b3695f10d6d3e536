"""The gateway rewrites requests by the policy's rules, and the record says how."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from lightningrl.conversation.history import messages_of
from lightningrl.credit.turns import Conversations
from lightningrl.errors import ConfigError
from lightningrl.experience.formats import count_formats
from lightningrl.experience.transition import assemble
from lightningrl.schema import Claim, RewriteRules
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer, Script, ToolCall

if TYPE_CHECKING:
    import anthropic

HI: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


def agent(rig: GatewayRig, claim: Claim, name: str = "") -> openai.AsyncOpenAI:
    headers = {"x-lightningrl-agent": name} if name else {}
    return openai.AsyncOpenAI(
        base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0, default_headers=headers
    )


def anthropic_client(rig: GatewayRig, claim: Claim) -> anthropic.AsyncAnthropic:
    import anthropic

    url = rig.attempt_url(claim).removesuffix("/v1")
    return anthropic.AsyncAnthropic(base_url=url, api_key=claim.key, max_retries=0)


async def test_the_record_keeps_the_agents_own_body_and_names_the_rewrites(
    rig: GatewayRig,
) -> None:
    rules = RewriteRules(roles={"developer": "system"}, merge_instructions=True)
    with ModelServer() as engine:
        await rig.register(engine.url, rules=rules)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            await client.responses.create(
                model="m", instructions="a", input=[{"role": "developer", "content": "b"}, *HI]
            )
        [arrival] = engine.arrivals
    sent = [{"role": "system", "content": "a\n\nb"}, *HI]
    assert arrival.body["messages"] == sent
    [call] = await rig.calls(claim)
    assert b'"developer"' in call.request
    assert [(one.name, one.by) for one in call.rewrites] == [
        ("roles", {"developer": "system"}),
        ("one_instruction", None),
    ]
    assert messages_of(call) == sent
    assert call.choices[0].untrainable is None


async def test_a_message_that_the_model_would_not_read_is_refused_before_the_engine_is_asked(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url, rules=RewriteRules(lost=("tool",)))
        claim = await rig.claim()
        history = [*HI, {"role": "tool", "tool_call_id": "c", "content": "t"}]
        async with agent(rig, claim) as client:
            with pytest.raises(openai.BadRequestError, match=r"leaves out .* role 'tool'") as told:
                await client.chat.completions.create(model="m", messages=history)
        assert engine.calls == 0
    assert told.value.param == "messages[1].role"


async def test_what_changes_from_call_to_call_is_held_still_and_the_turns_continue(
    tmp_path: Path,
) -> None:
    """A gateway that was started anew reads what it holds still from the record."""

    async def ask(rig: GatewayRig, claim: Claim, who: str, nonce: str, *more: Any) -> Any:
        system = {"role": "system", "content": f"Be. nonce={nonce}"}
        async with agent(rig, claim, who) as client:
            reply = await client.chat.completions.create(model="m", messages=[system, *HI, *more])
        return {"role": "assistant", "content": reply.choices[0].message.content}

    with ModelServer() as engine:
        async with open_rig(tmp_path) as rig:
            await rig.register(engine.url, rules=RewriteRules(pin=(r"nonce=\w+",)))
            claim = await rig.claim()
            answer = await ask(rig, claim, "a", "1")
            await ask(rig, claim, "b", "2")
        async with open_rig(tmp_path) as rig:
            await ask(rig, claim, "a", "3", answer, *HI)
            await ask(rig, claim, "team/a", "4")  # another one of that name
            calls = await rig.calls(claim)
            found = await rig.store.attempt(claim.attempt.id)
    systems = [one.body["messages"][0]["content"] for one in engine.arrivals]
    assert systems == [f"Be. nonce={nonce}" for nonce in (1, 2, 1, 4)]
    assert [messages_of(call)[0]["content"] for call in calls] == systems
    one, _, three, _ = calls
    assert three.prompt_ids.startswith(one.prompt_ids + one.choices[0].token_ids)
    turns = Conversations().read(assemble(*found, calls))
    assert [turn.continues for turn in turns] == [None, None, 0, None]


async def test_a_prompt_is_counted_with_what_its_own_agent_holds_still(rig: GatewayRig) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url, rules=RewriteRules(pin=(r"nonce=\w+",)))
        claim = await rig.claim()
        counted: list[int] = []
        answered: list[int] = []
        for name, nonce in (("a", "1"), ("team/a", "12345"), ("team/a", "9")):
            asked: Any = {"model": "m", "input": f"nonce={nonce}"}
            async with agent(rig, claim, name) as client:
                counted.append((await client.responses.input_tokens.count(**asked)).input_tokens)
                usage = (await client.responses.create(**asked)).usage
                answered.append(usage.input_tokens if usage is not None else 0)
    assert counted == answered
    assert [tokens - answered[0] for tokens in answered] == [0, 4, 4]


async def test_a_policy_with_a_pattern_that_cannot_be_matched_is_refused(rig: GatewayRig) -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        await rig.register("http://127.0.0.1:9/v1", rules=RewriteRules(pin=("(",)))


# -- forms that are asked for in words -----------------------------------------------------------


def one_by_one(*answers: str | Answer) -> Script:
    """A model that gives these answers, whatever it is asked."""
    left = iter(answers)

    def script(request: dict[str, Any]) -> Answer:
        answer = next(left)
        return Answer(answer) if isinstance(answer, str) else answer

    return script


SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FREE = RewriteRules(free=True)
COUNT: Any = {"type": "function", "function": {"name": "count", "parameters": SHAPE}}


async def test_a_format_is_asked_for_in_words_and_a_wrong_answer_is_delivered_trained_and_named(
    rig: GatewayRig,
) -> None:
    """The dialects ask alike: the engine gets equal prompts, and the record says them again."""
    with ModelServer(one_by_one('{"n": 1}', "one", '{"n": "1"}')) as engine:
        await rig.register(engine.url, rules=FREE)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SHAPE}}
            right = await client.chat.completions.create(
                model="m", messages=HI, response_format=form
            )
            text: Any = {"format": {"type": "json_schema", "name": "a", "schema": SHAPE}}
            wrong = await client.responses.create(model="m", input="Hi", text=text)
        async with anthropic_client(rig, claim) as client:
            config: Any = {"format": {"type": "json_schema", "schema": SHAPE}}
            await client.messages.create(
                model="m", max_tokens=50, messages=HI, output_config=config
            )
    assert right.choices[0].message.content == '{"n": 1}'
    assert wrong.output_text == "one"
    prompts = [one.body["messages"] for one in engine.arrivals]
    assert prompts[0] == prompts[1] == prompts[2]
    assert not any("response_format" in one.body for one in engine.arrivals)
    calls = await rig.calls(claim)
    assert [messages_of(call) for call in calls] == prompts
    choices = [call.choices[0] for call in calls]
    assert [one.untrainable for one in choices] == [None] * 3
    assert [one.wrong_format for one in choices] == [
        None,
        "the answer: no JSON (JSON is malformed: invalid character (byte 0))",
        "the answer: $.n: '1' is not of type 'integer'",
    ]
    found = await rig.store.attempt(claim.attempt.id)
    assert count_formats(assemble(*found, calls)) == (3, 1, 0)


async def test_a_forced_call_is_free_and_is_trained(rig: GatewayRig) -> None:
    with ModelServer(
        one_by_one("no", Answer(tool_calls=(ToolCall("c", "count", '{"n": 1}'),)))
    ) as engine:
        await rig.register(engine.url, rules=FREE)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            for _ in range(2):
                await client.chat.completions.create(
                    model="m", messages=HI, tools=[COUNT], tool_choice="required"
                )
    assert [one.body["tool_choice"] for one in engine.arrivals] == ["auto", "auto"]
    choices = [call.choices[0] for call in await rig.calls(claim)]
    assert [(one.untrainable, one.wrong_format) for one in choices] == [
        (None, "no tool was called, and one had to be"),
        (None, None),
    ]


async def test_an_answer_that_cannot_be_judged_is_delivered_recorded_and_trained(
    rig: GatewayRig,
) -> None:
    cents = {"type": "number", "multipleOf": 0.01}
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": cents}}
    with ModelServer(one_by_one("1" * 311)) as engine:
        await rig.register(engine.url, rules=FREE)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            reply = await client.chat.completions.create(
                model="m", messages=HI, response_format=form
            )
    assert reply.choices[0].message.content == "1" * 311
    calls = await rig.calls(claim)
    [choice] = calls[0].choices
    assert (choice.wrong_format or "").startswith("could not be judged: OverflowError")
    assert choice.untrainable is None
    found = await rig.store.attempt(claim.attempt.id)
    counted = count_formats(assemble(*found, calls))
    assert (counted, counted.rate) == ((0, 0, 1), None)


async def test_without_the_rule_the_engine_forces_the_form_and_the_call_is_not_trained(
    rig: GatewayRig,
) -> None:
    with ModelServer() as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            await client.chat.completions.create(
                model="m", messages=HI, tools=[COUNT], tool_choice="required"
            )
    assert [one.body["tool_choice"] for one in engine.arrivals] == ["required"]
    [call] = await rig.calls(claim)
    assert call.choices[0].untrainable == "sampled under a grammar (tool_choice)"


# -- reasoning that clients leave out ------------------------------------------------------------


def thinking(text: str, thought: str, call_id: str = "") -> Answer:
    """An answer with reasoning, and with a tool call if it has an id."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "reasoning": thought}
    if call_id:
        function = {"name": "count", "arguments": "{}"}
        message["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
    return Answer(text, extra={"message": message})


async def test_reasoning_that_a_client_left_out_is_put_back(tmp_path: Path) -> None:
    """Where the conversation goes on, and from the record after a restart."""
    answers = [thinking("", "t1", "c1"), thinking("Yes", "t2"), thinking("Yes", "t3"), "End"]
    left_out: list[Any] = [
        *HI,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "count", "arguments": "{ }"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
        *HI,
        {"role": "assistant", "content": "Yes"},
        {"role": "assistant", "content": "Mine"},
        *HI,
    ]

    async def ask(rig: GatewayRig, claim: Claim, who: str, messages: list[Any]) -> None:
        async with agent(rig, claim, who) as client:
            await client.chat.completions.create(model="m", messages=messages)

    with ModelServer(one_by_one(*answers, "Other", "Other")) as engine:
        async with open_rig(tmp_path) as rig:
            await rig.register(engine.url, rules=RewriteRules(put_back=True))
            claim = await rig.claim()
            for count in (1, 3, 5):
                await ask(rig, claim, "a", left_out[:count])
        async with open_rig(tmp_path) as rig:
            await ask(rig, claim, "a", left_out)
            for other in ("b", "team/a"):
                await ask(rig, claim, other, left_out)  # another agent, who was answered nothing
            calls = await rig.calls(claim)
    sent = [
        [one.get("reasoning") for one in arrival.body["messages"]] for arrival in engine.arrivals
    ]
    whole = [None, "t1", None, "t2", None, "t3", None, None]
    assert sent == [whole[:1], whole[:3], whole[:5], whole, [None] * 8, [None] * 8]
    first, second, third, *_ = (call.id for call in calls)
    assert [[(one.name, one.by) for one in call.rewrites] for call in calls] == [
        [],
        [("reasoning_restored", {"more": [[0, first, 0]]})],
        [("reasoning_restored", {"as": second, "more": [[1, second, 0]]})],
        [("reasoning_restored", {"as": third, "more": [[2, third, 0]]})],
        [],
        [],
    ]
    read = [messages_of(call, calls[:place]) for place, call in enumerate(calls)]
    assert read == [arrival.body["messages"] for arrival in engine.arrivals]


async def test_clients_of_every_dialect_may_leave_reasoning_out(rig: GatewayRig) -> None:
    with ModelServer(one_by_one(thinking("", "t1", "c1"), "End")) as engine:
        await rig.register(engine.url, rules=RewriteRules(put_back=True))
        claim = await rig.claim()
        async with anthropic_client(rig, claim) as client:
            use: Any = {"type": "tool_use", "id": "c1", "name": "count", "input": {}}
            result: Any = {"type": "tool_result", "tool_use_id": "c1", "content": "1"}
            talk: list[Any] = [
                *HI,
                {"role": "assistant", "content": [use]},
                {"role": "user", "content": [result]},
            ]
            for count in (1, 3):
                await client.messages.create(model="m", max_tokens=50, messages=talk[:count])
    with ModelServer(one_by_one(thinking("", "t1", "c1"), "End")) as responding:
        await rig.register(responding.url, rules=RewriteRules(put_back=True), version=1)
        claim = await rig.claim()
        async with agent(rig, claim) as client:
            items: list[Any] = [
                *HI,
                {"type": "function_call", "call_id": "c1", "name": "count", "arguments": "{ }"},
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
            ]
            for count in (1, 3):
                await client.responses.create(model="m", input=items[:count])
    for arrivals in (engine.arrivals, responding.arrivals):
        assert [one.get("reasoning") for one in arrivals[1].body["messages"]] == [None, "t1", None]


async def test_reasoning_that_was_sent_back_stays(rig: GatewayRig) -> None:
    with ModelServer(one_by_one(thinking("Yes", "t1"), "End")) as engine:
        await rig.register(engine.url, rules=RewriteRules(put_back=True))
        claim = await rig.claim()
        own: Any = {"role": "assistant", "content": "Yes", "reasoning_content": "mine"}
        async with agent(rig, claim) as client:
            await client.chat.completions.create(model="m", messages=HI)
            await client.chat.completions.create(model="m", messages=[*HI, own, *HI])
    assert engine.arrivals[1].body["messages"] == [*HI, own, *HI]
    assert [call.rewrites for call in await rig.calls(claim)] == [(), ()]
