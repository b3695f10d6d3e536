"""Whether an engine renders recorded requests to the prompts that were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from lightningrl.conversation.history import Recorded
from lightningrl.errors import RunError
from lightningrl.experience.tokens import ids_from_bytes
from lightningrl.schema import CallEvent, CallStatus, Endpoint, Policy

_PROMPT = ("messages", "tools", "chat_template_kwargs")
"""Fields that a prompt is rendered from."""


async def verify_prompts(calls: Sequence[CallEvent], policies: Sequence[Policy]) -> str:
    """Render the delivered calls' requests as their engines do now; return what a person is told.

    Args:
        calls: the first ones of an attempt, in order of arrival.
        policies: whose engines are asked.

    Raises:
        RunError: a prompt has other tokens than were recorded, or an engine can't tell.
    """
    by_name = {one.name: one for one in policies}
    recorded, count = Recorded(), 0
    async with aiohttp.ClientSession() as session:
        for call in calls:
            if call.status is CallStatus.DELIVERED:
                policy = by_name.get(call.policy, policies[0])
                fields = recorded.request(call)
                prompt = {name: fields[name] for name in _PROMPT if name in fields}
                found = await _rendered(
                    session, policy.endpoints[0], {"model": policy.name, **prompt}
                )
                expected = ids_from_bytes(call.prompt_ids).tolist()
                if found != expected:
                    raise RunError(_differs(call, expected, found))
                count += 1
            recorded.add(call)
    return f"the engine renders all {count} prompts of the trunk to the recorded tokens"


def _differs(call: CallEvent, expected: list[int], found: list[int]) -> str:
    pairs = zip(expected, found, strict=False)
    length = min(len(expected), len(found))
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), length)
    return (
        f"--verify: the engine renders the prompt of step {call.step_id!r} otherwise: {len(found)} tokens, {len(expected)}"
        f" recorded, and the first that differs is token {place}; it has another tokenizer or chat template"
    )


async def _rendered(
    session: aiohttp.ClientSession, endpoint: Endpoint, body: dict[str, Any]
) -> list[int]:
    url = endpoint.url.rstrip("/").removesuffix("/v1") + "/tokenize"
    headers = {"content-type": "application/json"}
    if endpoint.key is not None:
        headers["authorization"] = f"Bearer {endpoint.key}"
    try:
        async with session.post(url, data=msgspec.json.encode(body), headers=headers) as answer:
            text = await answer.read()
            if answer.status == 200:
                return msgspec.json.decode(text, type=_Tokens).tokens
            why = f"it answered {answer.status}"
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        why = str(error) or type(error).__name__
    raise RunError(f"--verify: {url!r} can't say how it renders a prompt: {why}")


class _Tokens(msgspec.Struct):
    tokens: list[int]
