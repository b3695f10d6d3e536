"""What the engine is asked: chat completions, with the fields that training needs.

Every dialect is brought into this form. Invariant: where the rollout says how to sample, nothing that
the agent or the engine's own defaults say counts.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from lightningrl.gateway.dialects.engine_reply import EngineReply, parse_reply
from lightningrl.gateway.dialects.reading import decode, raw_fields
from lightningrl.schema import Sampling

_ENCODER = msgspec.json.Encoder()

BEYOND_CONTEXT = "maximum context length"
"""In vLLM's words: the context has no room for what was asked."""

CONSTRAINTS: dict[str, tuple[Any, ...]] = {
    "response_format": ("text",),
    "tool_choice": ("auto", "none"),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "structural_tag": (),
    "logit_bias": ({},),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "logits_processors": ([],),
    "custom_logit_processor": (),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "thinking_token_budget": (),
}
"""Request fields (OpenAI's, vLLM's and SGLang's) that shut tokens out, force them or shift their
log-probs -> the values, beside `null`, that constrain nothing; of `response_format` its type."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (None, 1.0),
    "top_p": (None, 1.0),
    "top_k": (None, -1, 0),
    "min_p": (None, 0.0),
    "presence_penalty": (None, 0.0),
    "frequency_penalty": (None, 0.0),
    "repetition_penalty": (None, 1.0),
}
"""Values that leave sampling plain, at temperature 1."""


class StreamOptions(msgspec.Struct, frozen=True):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None


class _Kind(msgspec.Struct, frozen=True):
    type: str | None = None


class Wanted(msgspec.Struct, frozen=True):
    """The fields that the gateway acts on; all others pass through."""

    model: str
    messages: list[msgspec.Raw]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    response_format: _Kind | None = None
    tool_choice: str | _Kind | None = None


_WANTED = msgspec.json.Decoder(Wanted)


class EngineRequest(msgspec.Struct, frozen=True):
    """A chat completion to ask of the engine."""

    wanted: Wanted
    fields: dict[str, msgspec.Raw]
    """All top-level fields, undecoded."""

    @property
    def path(self) -> str:
        """Route below the engine's base URL."""
        return "/chat/completions"

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that the agent wants in one answer. `None`: it did not say."""
        limits = (self.wanted.max_tokens, self.wanted.max_completion_tokens)
        return min((limit for limit in limits if limit is not None), default=None)

    def constraint(self) -> str | None:
        """The field by which the agent shuts tokens out of the answer. `None`: there is none."""
        return next(
            (
                name
                for name, idle in CONSTRAINTS.items()
                if name in self.fields and _constrains(name, self.fields[name], idle)
            ),
            None,
        )

    def own_sampling(self) -> str:
        """What the agent asked for beyond plain sampling at temperature 1; empty: nothing."""
        found = ((name, getattr(self.wanted, name)) for name in _NEUTRAL)
        return ", ".join(
            f"{name}={value:g}" for name, value in found if value not in _NEUTRAL[name]
        )

    def effective_sampling(self, sampling: Sampling | None) -> Sampling | None:
        """What the answer is sampled with: the rollout's sampling, `max_tokens` the lower of both."""
        if sampling is None or self.max_tokens is None:
            return sampling
        limit = min(self.max_tokens, sampling.max_tokens or self.max_tokens)
        return msgspec.structs.replace(sampling, max_tokens=limit)

    def encoded(self, policy: str, sampling: Sampling | None, *, limited: bool = True) -> bytes:
        """The request as the engine gets it.

        Args:
            policy: its name.
            sampling: what `effective_sampling` returned.
            limited: whether the answer's tokens are limited by more than the context.
        """
        fields = self.asked(policy, sampling)
        if not limited:
            fields.pop("max_tokens", None)
        return _ENCODER.encode(fields)

    def is_beyond_context(self, refusal: bytes) -> bool:
        """Whether an engine's refusal is about more tokens than the context has room for (vLLM).

        A prompt that is too long alone is refused in the same words, and again when no limit is asked for.
        """
        return BEYOND_CONTEXT.encode() in refusal

    def asked(self, policy: str, sampling: Sampling | None) -> dict[str, Any]:
        """The fields of the request as the engine gets it.

        Neutral values are written out rather than left away: an engine may take what is missing from
        the model's `generation_config.json` (vLLM does), and sample otherwise than recorded.
        """
        fields: dict[str, Any] = dict(self.fields)
        for name in ("stream", "stream_options", "max_completion_tokens"):
            fields.pop(name, None)
        if not self.wanted.logprobs:
            fields.pop("top_logprobs", None)
        fields["model"] = policy
        fields["logprobs"] = True
        fields["return_token_ids"] = True
        limit = self.max_tokens
        if sampling is not None:
            limit = sampling.max_tokens
            fields |= _engine_sampling(sampling)
            if sampling.seed is None:
                fields.pop("seed", None)
        if limit is not None:
            fields["max_tokens"] = limit
        return fields

    def parse(self, answer: bytes) -> EngineReply:
        """Read the engine's answer.

        Raises:
            msgspec.DecodeError: it is not a chat completion.
        """
        return parse_reply(answer)


def engine_request(body: bytes) -> EngineRequest:
    """Read a chat completion request.

    Raises:
        Refusal: 400, it is no JSON object, or a field that the gateway acts on has a wrong type.
    """
    return EngineRequest(decode(_WANTED, body), raw_fields(body))


def _constrains(name: str, given: msgspec.Raw, idle: tuple[Any, ...]) -> bool:
    try:
        value: Any = msgspec.json.decode(given)
    except RecursionError:  # no idle value is that deep
        return True
    if name == "response_format" and isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("type")
    return value is not None and value not in idle


def _engine_sampling(sampling: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": 1.0,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    return fields
