"""How many tokens a request would be as a prompt: agents decide by it when to shorten their history.

Invariant: what is counted is the prompt that a call with the same fields would get, by the engine's own tokenizer;
nothing is sampled, and nothing recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lightningrl.conversation.history import Asker
from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting.fields import Fields
from lightningrl.gateway.asgi import Answer, Refusal, to_json
from lightningrl.gateway.dialects.anthropic import ANTHROPIC
from lightningrl.gateway.dialects.base import AgentRequest, Recall, Spoken
from lightningrl.gateway.dialects.reading import decoded_fields, refusal_of, without_halves
from lightningrl.gateway.dialects.responses import RESPONSES
from lightningrl.gateway.identity import AttemptContext
from lightningrl.gateway.policies import Policies
from lightningrl.gateway.recollection import Recollection
from lightningrl.gateway.upstream import Sending, Upstream, rank, refusal_of_engine
from lightningrl.schema import Endpoint

COUNTED: Mapping[str, Spoken] = {
    "messages/count_tokens": ANTHROPIC,
    "responses/input_tokens": RESPONSES,
}
"""Route below `/v1/` -> the dialect of the requests that are counted there."""

_TOKENIZE = "/tokenize"
"""vLLM's route, beside `/v1`; the embedded engine has it, too."""
_PROMPT = ("messages", "tools", "chat_template_kwargs")
"""Fields that a prompt is rendered from."""


class _Count(msgspec.Struct, frozen=True):
    count: int


_COUNT = msgspec.json.Decoder(_Count)


class Counting:
    """Counts the tokens of requests."""

    def __init__(self, policies: Policies, upstream: Upstream, recollection: Recollection) -> None:
        self._policies = policies
        self._upstream = upstream
        self._recollection = recollection

    async def answer(
        self,
        route: str,
        context: AttemptContext,
        agent: str | None,
        body: bytes,
        within: tuple[str, ...] = (),
    ) -> Answer:
        """The count, as the clients of the route's dialect expect it.

        Raises:
            Refusal: the request is wrong, or its engine can't count.
        """
        spoken = COUNTED[route]
        request = await read_counted(spoken, body, lambda: self._recollection.of(context.id))
        served = await self._policies.resolve(context.rollout.run, request.model, agent, within)
        fields, held, thoughts = request.engine.fields, None, None
        if served.rewriter.remembers(fields):
            recorded = await self._recollection.of(context.id)
            asker = Asker(served.policy.name, within, agent)
            held, thoughts = recorded.held.get(asker), recorded.thoughts.get(asker)
        try:
            sent = served.rewriter.rewrite(fields, spoken.dialect, held, thoughts).fields
        except Malformed as error:
            raise refusal_of(error) from error
        ranked = rank(served.policy.endpoints, context.rollout.id)
        return await counted(self._upstream, ranked, served.policy.name, spoken, sent)


async def read_counted(spoken: Spoken, body: bytes, recall: Recall) -> AgentRequest:
    """A request whose tokens are to be counted.

    Raises:
        Refusal: it is wrong.
    """
    body = without_halves(body)
    if spoken is ANTHROPIC:  # which demands a limit of calls alone
        body = to_json({"max_tokens": 1, **decoded_fields(body)})
    return await spoken.read(body, recall)


async def counted(
    upstream: Upstream, ranked: Sequence[Endpoint], model: str, spoken: Spoken, sent: Fields
) -> Answer:
    """The count of a rewritten request by the first of these engines that answers, as the dialect's clients expect it.

    Raises:
        Refusal: the engine refuses the request, or can't count.
    """
    prompt: dict[str, Any] = {name: sent[name] for name in _PROMPT if name in sent}
    sending = Sending()
    status, answer = await upstream.post(
        ranked,
        _TOKENIZE,
        to_json({"model": model, **prompt}),
        {"content-type": "application/json"},
        sending,
        beside=True,
    )
    if status == 400:
        raise refusal_of_engine(status, answer, sending.endpoint)
    count = _count_in(answer) if status == 200 else None
    if count is None:
        raise Refusal(
            501,
            "tokens_not_counted",
            f"engine {sending.endpoint!r} can't count tokens: it answered {status} to POST {_TOKENIZE}",
        )
    told: dict[str, Any] = {"input_tokens": count}
    if spoken is RESPONSES:
        told["object"] = "response.input_tokens"
    return Answer(200, to_json(told))


def _count_in(answer: bytes) -> int | None:
    """`None`: it is no engine's that counts."""
    try:
        return _COUNT.decode(answer).count
    except msgspec.DecodeError:
        return None
