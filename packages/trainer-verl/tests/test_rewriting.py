"""A record's rewritten request renders to the prompt that the engine was given, whatever dialect and template.

`LIGHTNINGRL_EXAMPLES` (8 unless set) conversations for each template, each in every dialect, over the gateway
and the embedded engine.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import openai
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightningrl.conversation.history import Recorded
from lightningrl.conversation.rewriting.template import rules_of
from lightningrl.schema import CallEvent, CallStatus, Claim, Dialect, RewriteRules
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_verl.engine import TorchEngine, serve_engine
from lightningrl_verl.engine.chat import read_request
from lightningrl_verl.engine.completions import plain_ids, read_completion
from lightningrl_verl.engine.prompts import PromptRenderer
from lightningrl_verl.engine.template import read_template, renderer
from lightningrl_verl.tiny.tokenizer import build_tokenizer

EXAMPLES = int(os.environ.get("LIGHTNINGRL_EXAMPLES", "4"))

_TURNS = """
{%- for m in rest -%}
{%- if m.role == 'user' -%}{{ 'U ' ~ m.content }}
{%- elif m.role == 'assistant' -%}{{ 'A ' ~ m.content }}
{%- for c in m.tool_calls or [] -%}{{ 'C ' ~ (c.function.arguments | tojson) }}{%- endfor -%}
{%- elif m.role == 'tool' -%}{{ 'T ' ~ m.content }}
{%- elif m.role == 'system' -%}{{ system(m, loop.first) }}
{%- else -%}{{ other(m.role) }}
{%- endif -%}
{%- endfor -%}
{{ 'A ' ~ ('no thought' if enable_thinking is defined and not enable_thinking else '') }}
"""
_TOOLS = "{%- for t in tools or [] -%}{{ 'tool ' ~ t.function.name }}{%- endfor -%}"
SILENT = (
    "{%- macro system(m, first) -%}{{ 'S ' ~ m.content }}{%- endmacro -%}"
    "{%- macro other(role) -%}{%- endmacro -%}{%- set rest = messages -%}" + _TOOLS + _TURNS
)
"""Leaves out roles that it does not know."""
STRICT = (
    "{%- macro system(m, first) -%}{{ 'S ' ~ m.content if first else raise_exception('begin with it') }}"
    "{%- endmacro -%}{%- macro other(role) -%}{{ raise_exception('no role ' ~ role) }}{%- endmacro -%}"
    "{%- if not (messages | selectattr('role', 'equalto', 'user') | list) -%}"
    "{{ raise_exception('no user') }}{%- endif -%}{%- set rest = messages -%}" + _TOOLS + _TURNS
)
"""One system message, first, and a user's after it."""
FIRST_ALONE = (
    "{%- macro system(m, first) -%}{%- endmacro -%}{%- macro other(role) -%}{%- endmacro -%}"
    "{%- if messages[0].role in ('system', 'developer') -%}{{ 'D ' ~ messages[0].content }}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set rest = messages -%}{%- endif -%}"
    + _TOOLS
    + _TURNS
)
"""Reads instructions in the first message alone, of either role."""

TEMPLATES = {"silent": SILENT, "strict": STRICT, "first alone": FIRST_ALONE}
RULES = {
    "silent": RewriteRules(roles={"developer": "system"}, lost=("other",), thinks=True),
    "strict": RewriteRules(
        roles={"developer": "system"},
        merge_instructions=True,
        alone_as_user=True,
        later_as_user=True,
        thinks=True,
    ),
    "first alone": RewriteRules(
        merge_instructions=True, later_as_user=True, lost=("other",), thinks=True
    ),
}

REWRITES = {
    "silent": {"left_out", "no_thinking", "roles"},
    "strict": {
        "left_out", "no_thinking", "roles", "one_instruction", "alone_as_user", "later_as_user",
    },
    "first alone": {"left_out", "no_thinking", "one_instruction", "later_as_user"},
}  # fmt: skip

Body = dict[str, Any]
Turn = tuple[str, str]
"""Who speaks, and what is said; of a `call` its argument, of a `result` what the tool said."""


# -- one conversation in every dialect -----------------------------------------------------------


def chat(turns: list[Turn]) -> Body:
    messages: list[Body] = []
    for place, (who, text) in enumerate(turns):
        if who == "call":
            function = {"name": "f", "arguments": f'{{"q": "{text}"}}'}
            call = {"id": f"c{place}", "type": "function", "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif who == "result":
            messages.append({"role": "tool", "tool_call_id": f"c{place - 1}", "content": text})
        else:
            messages.append({"role": who, "content": text})
    return {"messages": messages, "max_tokens": 1}


def responses(turns: list[Turn]) -> Body:
    items: list[Body] = []
    for place, (who, text) in enumerate(turns):
        if who == "call":
            arguments = f'{{"q": "{text}"}}'
            one = {"type": "function_call", "name": "f", "arguments": arguments}
            items.append({**one, "call_id": f"c{place}"})
        elif who == "result":
            one = {"type": "function_call_output", "call_id": f"c{place - 1}", "output": text}
            items.append(one)
        else:
            items.append({"role": who, "content": text})
    return {"input": items, "max_output_tokens": 1}


def anthropic(turns: list[Turn]) -> Body:
    messages: list[Body] = []
    for place, (who, text) in enumerate(turns):
        if who == "call":
            block = {"type": "tool_use", "id": f"c{place}", "name": "f", "input": {"q": text}}
            messages.append({"role": "assistant", "content": [block]})
        elif who == "result":
            block = {"type": "tool_result", "tool_use_id": f"c{place - 1}", "content": text}
            messages.append({"role": "user", "content": [block]})
        else:
            role = "system" if who == "developer" else who
            messages.append({"role": role, "content": text})
    return {"messages": messages, "max_tokens": 1}


def requests(turns: list[Turn], tools: str, instructions: str | None) -> list[tuple[str, Body]]:
    """Route and body of the conversation in every dialect; `tools` are `some`, `none` or `empty`."""
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    chat_tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    declared = {
        "chat/completions": chat_tool,
        "responses": {"type": "function", "name": "f", "parameters": schema},
        "messages": {"name": "f", "input_schema": schema},
    }
    bodies = {
        "chat/completions": chat(turns),
        "responses": responses(turns)
        | ({} if instructions is None else {"instructions": instructions}),
        "messages": anthropic(turns) | ({} if instructions is None else {"system": instructions}),
    }
    for route, body in bodies.items():
        if tools != "none":
            body["tools"] = [declared[route]] if tools == "some" else []
            body["tool_choice"] = {"type": "auto"} if route == "messages" else "auto"
    prompt = " ".join(text for _, text in turns)
    return [*bodies.items(), ("completions", {"prompt": prompt or "x", "max_tokens": 1})]


USE = (("user", "u"), ("call", "x"), ("result", "r"))

texts = st.text("ab c\n", max_size=6)
speeches = st.tuples(
    st.sampled_from(["system", "developer", "user", "user", "assistant"]), texts
).map(lambda one: [one])
uses = st.tuples(texts.map(str.strip), texts).map(
    lambda one: [("call", one[0].replace("\n", "")), ("result", one[1])]
)
conversations = st.lists(speeches | uses, min_size=1, max_size=5).map(
    lambda pieces: [turn for piece in pieces for turn in piece]
)


# -- the engine and the gateway ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer([], context=512)


@pytest.fixture(scope="module")
def engine(tokenizer: PreTrainedTokenizerFast) -> Iterator[TorchEngine]:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    engine = TorchEngine(model, tokenizer, slots=8, max_model_len=512, threads=1, version=0)
    engine.start()
    yield engine
    engine.close()
    torch.set_num_threads(before)


@asynccontextmanager
async def served(engine: TorchEngine, template: str, folder: Path) -> AsyncGenerator[GatewayRig]:
    """A gateway over the engine with one of the templates, registered as a trainer does it."""
    engine.tokenizer.chat_template = TEMPLATES[template]
    server = serve_engine(engine, model_name="policy", parser="hermes")
    try:
        async with open_rig(folder) as rig:
            rules = rules_of(renderer(engine.tokenizer))
            await rig.register(f"{server.url}/v1", rules=rules)
            yield rig
    finally:
        server.close()


def rendered(call: CallEvent, recorded: Recorded, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The prompt of what the record says that the engine was asked."""
    body = msgspec.json.encode(recorded.request(call))
    if call.dialect is Dialect.COMPLETIONS:
        return plain_ids(read_completion(body), tokenizer)
    return PromptRenderer(tokenizer).render(read_request(body))[0]


class Asking:
    """Sends conversations, and compares each record with what the engine was given."""

    def __init__(self, rig: GatewayRig, claim: Claim, tokenizer: PreTrainedTokenizerFast) -> None:
        self._rig = rig
        self._claim = claim
        self._tokenizer = tokenizer
        self.answered: dict[Dialect, int] = {}
        self.rewrites: set[str] = set()

    async def send(self, bodies: list[tuple[str, Body]]) -> None:
        self._claim = await self._rig.claim()
        headers = {"authorization": f"Bearer {self._claim.key}"}
        base = self._rig.attempt_url(self._claim)
        async with aiohttp.ClientSession(headers=headers) as session:
            for route, body in bodies:
                answer = await self._post(session, f"{base}/{route}", body)
                if answer is not None and route == "responses":
                    more = {"input": [{"role": "user", "content": "b"}], "max_output_tokens": 1}
                    follows = {**more, "previous_response_id": answer["id"]}
                    await self._post(session, f"{base}/{route}", follows)
        await self._compare()

    async def _post(self, session: aiohttp.ClientSession, url: str, body: Body) -> Body | None:
        async with session.post(url, json={"model": "policy", **body}) as response:
            answer = await response.json()
        assert response.status in (200, 400), answer
        return answer if response.status == 200 else None

    async def _compare(self) -> None:
        recorded = Recorded()
        for call in await self._rig.calls(self._claim):
            if call.status is not CallStatus.DELIVERED:
                continue
            prompt = np.frombuffer(call.prompt_ids, "<i4").tolist()
            assert rendered(call, recorded, self._tokenizer) == prompt
            recorded.add(call)
            self.answered[call.dialect] = self.answered.get(call.dialect, 0) + 1
            self.rewrites |= {one.name for one in call.rewrites}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_record_renders_to_the_recorded_prompt(
    engine: TorchEngine, tokenizer: PreTrainedTokenizerFast, template: str, tmp_path: Path
) -> None:
    with asyncio.Runner() as runner:
        opened = served(engine, template, tmp_path)
        rig = runner.run(opened.__aenter__())
        asking = Asking(rig, runner.run(rig.claim()), tokenizer)

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @example(
            [("developer", "a"), ("system", "b"), *USE, ("system", "c"), ("user", "d")], "some", "i"
        )
        @example([("system", "a")], "empty", None)
        @given(conversations, st.sampled_from(["some", "none", "empty"]), st.none() | st.just("i"))
        def every_dialect(turns: list[Turn], tools: str, instructions: str | None) -> None:
            runner.run(asking.send(requests(turns, tools, instructions)))

        try:
            every_dialect()
        finally:
            runner.run(opened.__aexit__(None, None, None))
    assert min(asking.answered.values()) > EXAMPLES // 2
    assert set(asking.answered) == set(Dialect)
    assert asking.rewrites == REWRITES[template]


@pytest.mark.parametrize("template", TEMPLATES)
def test_rules_follow_from_a_published_folder(
    tokenizer: PreTrainedTokenizerFast, template: str, tmp_path: Path
) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    tokenizer.save_pretrained(tmp_path)
    found = read_template(tmp_path)
    assert found.rules == RULES[template]
    assert found.text is not None
    assert found.text.strip() == TEMPLATES[template].strip()


async def test_the_instructions_of_a_real_client_reach_the_model(
    engine: TorchEngine, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As Codex asks: instructions, then a developer's message, to a template that takes one system message."""
    async with served(engine, "strict", tmp_path) as rig:
        claim = await rig.claim()
        async with openai.AsyncOpenAI(
            base_url=rig.attempt_url(claim), api_key=claim.key, max_retries=0
        ) as client:
            asked: Any = {
                "model": "policy",
                "instructions": "be brief",
                "input": [
                    {"role": "developer", "content": "say banana"},
                    {"role": "user", "content": "hi"},
                ],
            }
            counted = await client.responses.input_tokens.count(**asked)
            await client.responses.create(**asked, max_output_tokens=1)
        [call] = await rig.calls(claim)
    prompt = tokenizer.decode(np.frombuffer(call.prompt_ids, "<i4").tolist())
    assert counted.input_tokens == len(call.prompt_ids) // 4
    assert prompt == "S be brief\n\nsay bananaU hiA "
    assert [one.name for one in call.rewrites] == ["roles", "one_instruction"]
    assert call.choices[0].untrainable is None


# -- thoughts, by templates in the manner of published families (each is our own text) -------------

_IM = "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ %s ~ '<|im_end|>\\n' }}"
_OPEN = "{{ '<|im_start|>assistant\\n' }}"
_EMPTY = "{{ '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking else '' }}"
_LAST_USER = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
_THOUGHTS = (
    "('<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n\\n' if m.reasoning_content and loop.index0 > ns.last"
    " else '') ~ m.content"
)
_KEEPS = "('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' else '') ~ m.content"


def _each(body: str, roles: str = "") -> str:
    if roles:
        body = f"{{%- if m.role in {roles} -%}}{body}{{%- endif -%}}"
    return f"{{%- for m in messages -%}}{body}{{%- endfor -%}}"


_KNOWN = "('system', 'user', 'assistant', 'tool')"
_QWEN3 = _LAST_USER + _each(_IM % _THOUGHTS, _KNOWN) + _OPEN + _EMPTY
_REFUSES = "{%- for m in messages[1:] -%}{{ raise_exception('begin with it') if m.role == 'system' }}{%- endfor -%}"
_LLAMA = "{{ '<|header|>' ~ m.role ~ '<|/header|>\\n\\n' ~ m.content ~ '<|eot|>' }}"
_PHI = "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' }}"
_HARMONY = (
    "{{ ('<|start|>assistant<|channel|>final' if m.role == 'assistant' else '<|start|>' ~ m.role)"
    " ~ '<|message|>' ~ m.content ~ '<|end|>' }}"
)

FAMILIES: dict[str, tuple[str, str, bool, bool, bool]] = {
    # template, end of an answer; whether it thinks, shows thoughts, and goes on when told not to think
    "Qwen2.5": (_each(_IM % "m.content", _KNOWN) + _OPEN, "<|im_end|>", False, False, True),
    "Qwen3": (_QWEN3, "<|im_end|>", True, True, False),
    "Qwen3.5": (_REFUSES + _QWEN3, "<|im_end|>", True, True, False),
    "Qwen3, mended": (
        _each(_IM % _KEEPS, _KNOWN) + _OPEN + _EMPTY, "<|im_end|>", True, False, True,
    ),
    "gpt-oss": (_each(_HARMONY) + "<|start|>assistant", "<|end|>", False, False, False),
    "Llama 3": (
        _each(_LLAMA) + "{{ '<|header|>assistant<|/header|>\\n\\n' }}", "<|eot|>", False, False, True,
    ),
    "Phi-3": (
        _each(_PHI, "('system', 'user', 'assistant')") + "{{ '<|assistant|>\\n' }}",
        "<|end|>", False, False, True,
    ),
    "SmolLM2": (_each(_IM % "m.content") + _OPEN, "<|im_end|>", False, False, True),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_templates_of_the_families_make_of_thoughts(
    tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    """gpt-oss's channel is sampled, and stands in no message: its answer alone does not go on."""
    template, end, thinks, shows, goes_on = FAMILIES[family]
    tokenizer.chat_template = template
    rules = rules_of(renderer(tokenizer))
    assert (rules.thinks, rules.put_back) == (thinks, shows)
    render = renderer(tokenizer, {"enable_thinking": False})
    asked = [{"role": "user", "content": "Hi"}]
    answered = [*asked, {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "So"}]
    first, second = render(asked, [], {}), render(answered, [], {})
    assert second.startswith(f"{first}Yo{end}") == goes_on


def test_thoughts_that_are_put_back_let_a_tool_loop_go_on(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = _QWEN3
    render = renderer(tokenizer)
    asked = [{"role": "user", "content": "Hi"}]
    tool = {"role": "tool", "content": "1"}
    sampled = "<think>\nHm.\n</think>\n\nYo<|im_end|>"
    for thought, goes_on in ({}, False), ({"reasoning": "Hm."}, True):
        answer = {"role": "assistant", "content": "Yo", **thought}
        second = render([*asked, answer, tool], [], {})
        assert second.startswith(render(asked, [], {}) + sampled) == goes_on
