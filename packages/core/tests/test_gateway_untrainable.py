"""What the trainer can't see, and what is no log-prob, is answered and not trained, with the reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lightningrl.conversation.parts import unseen
from lightningrl.conversation.rewriting.fields import raw_fields
from lightningrl.gateway.dialects.arrays import logprobs_from_json, no_logprob
from lightningrl.gateway.dialects.engine_reply import parse_reply
from lightningrl_testkit.gateway import GatewayRig, open_rig
from lightningrl_testkit.model_server import Answer, ModelServer

IMAGE, AUDIO, VIDEO, FILE = "an image", "audio", "a video", "a file"
DATA = "data:image/png;base64,AAAA"
TEXT = {"type": "text", "text": "Look."}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[GatewayRig]:
    async with open_rig(tmp_path) as rig:
        yield rig


async def reasons(
    rig: GatewayRig, route: str, body: dict[str, Any], answer: Answer
) -> list[str | None]:
    """Why the answers of one call are not trained."""
    with ModelServer(lambda request: answer) as engine:
        await rig.register(engine.url)
        claim = await rig.claim()
        headers = {"authorization": f"Bearer {claim.key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{rig.attempt_url(claim)}/{route}", json=body) as response,
        ):
            assert response.status == 200, await response.text()
    [call] = await rig.calls(claim)
    return [one.untrainable for one in call.choices]


# -- what is no text -----------------------------------------------------------------------------


def chat(*messages: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "chat/completions", {"model": "m", "messages": [*messages]}


def in_chat(part: Any) -> tuple[str, dict[str, Any]]:
    return chat({"role": "user", "content": [TEXT, part]})


def in_responses(part: Any) -> tuple[str, dict[str, Any]]:
    return "responses", {"model": "m", "input": [{"role": "user", "content": [part]}]}


def in_anthropic(*blocks: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": [*blocks]}]
    return "messages", {"model": "m", "max_tokens": 9, "messages": messages}


def base64(media: str) -> dict[str, str]:
    return {"type": "base64", "media_type": media, "data": "AAAA"}


def cases() -> Iterator[tuple[tuple[str, dict[str, Any]], str | None]]:
    yield in_chat({"type": "image_url", "image_url": {"url": DATA}}), IMAGE
    yield in_chat({"type": "image", "image": DATA}), IMAGE
    yield in_chat({"type": "image_embeds", "image_embeds": "AAAA"}), IMAGE
    yield in_chat({"image_url": DATA}), IMAGE  # vLLM tells the type by the key
    yield in_chat({"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}}), AUDIO
    yield in_chat({"type": "audio_url", "audio_url": {"url": DATA}}), AUDIO
    yield in_chat({"type": "video_url", "video_url": {"url": DATA}}), VIDEO
    yield in_chat({"type": "file", "file": {"file_data": "AAAA"}}), FILE
    yield chat({"role": "tool", "tool_call_id": "c", "content": [{"type": "image"}]}), IMAGE
    yield (
        chat({"role": "assistant", "content": None, "audio": {"id": "a"}}, TEXT | {"role": "user"}),
        AUDIO,
    )
    yield in_responses({"type": "input_image", "image_url": DATA}), IMAGE
    yield in_responses({"type": "input_file", "file_data": "AAAA", "filename": "f"}), FILE
    yield in_responses({"type": "input_audio", "input_audio": {"data": "A"}}), AUDIO
    output = [{"type": "input_image", "image_url": DATA}]
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    returned = {"type": "function_call_output", "call_id": "c", "output": output}
    yield ("responses", {"model": "m", "input": [call, returned]}), IMAGE
    image = {"type": "image", "source": base64("image/png")}
    yield in_anthropic(image), IMAGE
    yield in_anthropic({"type": "image", "source": {"type": "url", "url": "http://h/i"}}), IMAGE
    yield in_anthropic({"type": "document", "source": base64("application/pdf")}), FILE
    yield in_anthropic({"type": "tool_result", "tool_use_id": "c", "content": [image]}), IMAGE
    plain = {"type": "text", "media_type": "text/plain", "data": "A text."}
    yield in_anthropic({"type": "document", "source": plain}, TEXT), None
    yield in_chat({"text": "Without a type."}), None
    yield in_chat({"type": "refusal", "refusal": "No."}), None
    yield in_responses({"type": "input_text", "text": "A text."}), None
    yield ("completions", {"model": "m", "prompt": "A text."}), None


@pytest.mark.parametrize(("request_", "what"), list(cases()))
async def test_what_is_no_text_makes_its_call_untrainable(
    rig: GatewayRig, request_: tuple[str, dict[str, Any]], what: str | None
) -> None:
    found = await reasons(rig, *request_, Answer("Yo"))
    told = None if what is None else f"the prompt holds {what}, which the trainer does not see"
    assert found == [told]


# -- what is no log-prob -------------------------------------------------------------------------


def entries(*logprobs: Any) -> dict[str, Any]:
    """The log-probs of "Yo" and its end."""
    return {"content": [{"token": "t", "logprob": one, "top_logprobs": []} for one in logprobs]}


@pytest.mark.parametrize(
    ("strange", "told"),
    [
        (None, "none"),
        (float("nan"), "none"),
        (float("-inf"), "none"),  # no JSON: read as null
        (-9999.0, "-9999"),
        (-1e39, "-inf"),
        (1.0, "1"),
        (0.001, None),
        (-80.0, None),
    ],
)
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
async def test_a_token_without_a_log_prob_makes_its_call_untrainable(
    rig: GatewayRig, route: str, strange: float | None, told: str | None
) -> None:
    body: dict[str, Any] = {"model": "m", "prompt": "Hi"}
    values = [-1.0, strange, -1.0]
    given = {
        **entries(*values),
        "tokens": [],
        "token_logprobs": values,
    }  # of chat and of completions
    if route == "chat/completions":
        body = chat({"role": "user", "content": "Hi"})[1]
    found = await reasons(rig, route, body, Answer("Yo", extra={"logprobs": given}))
    assert found == [told and f"the engine gave {told} for a token's log-prob"]


def test_a_number_beyond_all_numbers_is_none() -> None:
    body = (
        b'{"choices": [{"message": {"x": 1e999}, "logprobs": {"content": [{"logprob": -1e999}]}}]}'
    )
    [choice] = parse_reply(body).choices
    assert no_logprob(logprobs_from_json(choice.logprobs)) == "none"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"type": "image_url", "image_url": DATA}, IMAGE),
        (["A bare text."], None),
        ([1], "a part that is no object"),
        (None, None),
    ],
)
def test_contents_in_forms_that_some_engines_take(content: Any, what: str | None) -> None:
    assert unseen(raw_fields({"messages": [{"role": "user", "content": content}]})) == what
