"""OpenAI chat completions: read the agent's request, tell the engine what training needs, split its answer.

Invariants:
- The agent never sees a token id, and a log-prob only if it asked for log-probs; its reply holds the
  fields of OpenAI's format and no other, under the model name that it asked for.
- Where the rollout says how to sample, nothing that the agent or the engine's own defaults say counts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.gateway.asgi import Refusal
from lightningrl.gateway.dialects.arrays import ids_from_json, logprobs_from_json
from lightningrl.schema import Sampling

_NULL = msgspec.Raw(b"null")
_ENCODER = msgspec.json.Encoder()

CONSTRAINTS = (
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structural_tag",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "logits_processors",
    "min_tokens",
    "ignore_eos",
    "use_beam_search",
)
"""Request fields (OpenAI's and vLLM's) that shut tokens out or shift their log-probs."""


class StreamOptions(msgspec.Struct, frozen=True):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None


class _Kind(msgspec.Struct, frozen=True):
    type: str | None = None


class _Wanted(msgspec.Struct, frozen=True):
    """The fields of a request that the gateway acts on; all others pass through."""

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


_WANTED = msgspec.json.Decoder(_Wanted)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ChatRequest(msgspec.Struct, frozen=True):
    """A chat completion request."""

    body: bytes
    """JSON, as the agent sent it."""
    wanted: _Wanted
    fields: dict[str, msgspec.Raw]
    """All top-level fields, undecoded."""

    @property
    def model(self) -> str:
        """The model name that the agent asked for."""
        return self.wanted.model

    @property
    def streams(self) -> bool:
        """Whether the agent wants server-sent events."""
        return bool(self.wanted.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the token counts."""
        options = self.wanted.stream_options
        return bool(options and options.include_usage)

    @property
    def wants_logprobs(self) -> bool:
        """Whether the agent itself asked for log-probs."""
        return bool(self.wanted.logprobs)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that the agent wants in one answer. `None`: it did not say."""
        limits = (self.wanted.max_tokens, self.wanted.max_completion_tokens)
        return min((limit for limit in limits if limit is not None), default=None)

    def constraint(self) -> str | None:
        """The field by which the agent shuts tokens out of the answer. `None`: there is none."""
        wanted = self.wanted
        if wanted.response_format and wanted.response_format.type not in (None, "text"):
            return "response_format"
        if wanted.tool_choice is not None and wanted.tool_choice not in ("auto", "none"):
            return "tool_choice"
        idle = {b"null", b"false", b"0", b"{}", b"[]"}
        return next(
            (name for name in CONSTRAINTS if bytes(self.fields.get(name, _NULL)) not in idle), None
        )

    def own_sampling(self) -> str:
        """What the agent asked for beyond plain sampling at temperature 1; empty: nothing."""
        neutral: dict[str, tuple[Any, ...]] = {
            "temperature": (None, 1.0),
            "top_p": (None, 1.0),
            "top_k": (None, -1, 0),
            "min_p": (None, 0.0),
            "presence_penalty": (None, 0.0),
            "frequency_penalty": (None, 0.0),
            "repetition_penalty": (None, 1.0),
        }
        found = ((name, getattr(self.wanted, name)) for name in neutral)
        return ", ".join(f"{name}={value:g}" for name, value in found if value not in neutral[name])


def parse_request(body: bytes) -> ChatRequest:
    """Read a request.

    Raises:
        Refusal: 400, it is no JSON object, or a field that the gateway acts on has a wrong type.
    """
    try:
        body.decode()  # undecoded fields are stored as they are: they must be UTF-8, too
        return ChatRequest(body, _WANTED.decode(body), _FIELDS.decode(body))
    except msgspec.ValidationError as error:
        raise Refusal(400, "invalid_request", f"the request is not valid: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "invalid_json", f"the request body is not JSON: {error}") from error


def effective_sampling(request: ChatRequest, sampling: Sampling | None) -> Sampling | None:
    """What the answer is sampled with: the rollout's sampling, `max_tokens` the lower of both."""
    if sampling is None or request.max_tokens is None:
        return sampling
    limit = min(request.max_tokens, sampling.max_tokens or request.max_tokens)
    return msgspec.structs.replace(sampling, max_tokens=limit)


def engine_request(request: ChatRequest, policy: str, sampling: Sampling | None) -> bytes:
    """The request as the engine gets it; `sampling` is what `effective_sampling` returned.

    Neutral values are written out rather than left away: an engine may take what is missing from
    the model's `generation_config.json` (vLLM does), and sample otherwise than recorded.
    """
    fields: dict[str, Any] = dict(request.fields)
    for name in ("stream", "stream_options", "max_completion_tokens"):
        fields.pop(name, None)
    if not request.wants_logprobs:
        fields.pop("top_logprobs", None)
    fields["model"] = policy
    fields["logprobs"] = True
    fields["return_token_ids"] = True
    limit = request.max_tokens
    if sampling is not None:
        limit = sampling.max_tokens
        fields |= _engine_sampling(sampling)
        if sampling.seed is None:
            fields.pop("seed", None)
    if limit is not None:
        fields["max_tokens"] = limit
    return _ENCODER.encode(fields)


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


class _WeightVersion(msgspec.Struct, frozen=True):
    version: str | int | None = None


class EngineChoice(msgspec.Struct, frozen=True):
    """One answer as the engine gave it, undecoded where nobody needs it."""

    index: int = 0
    message: msgspec.Raw = _NULL
    finish_reason: str | None = None
    logprobs: msgspec.Raw = _NULL
    token_ids: msgspec.Raw = _NULL
    weight_versions: list[_WeightVersion] | None = None
    tool_parser_error: str | None = None

    def versions(self) -> set[int]:
        """The weight versions that the engine says it sampled with.

        Names that are no number are the engine's own and say nothing about a policy version.
        """
        labels = (str(one.version) for one in self.weight_versions or [])
        return {int(label) for label in labels if label.isdecimal()}


class Usage(msgspec.Struct, frozen=True):
    """Token counts as the engine reports them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class EngineReply(msgspec.Struct, frozen=True):
    """The engine's answer; fields that no agent needs are not read at all."""

    choices: list[EngineChoice]
    created: int = 0
    usage: msgspec.Raw = _NULL
    system_fingerprint: str | None = None
    service_tier: str | None = None
    prompt_token_ids: msgspec.Raw = _NULL

    def prompt_ids(self) -> bytes:
        """Token ids of the prompt, int32 bytes; empty where the engine gave none."""
        return ids_from_json(self.prompt_token_ids)


class Tokens(msgspec.Struct, frozen=True):
    """What was sampled in one choice."""

    ids: bytes
    """int32, end-of-sequence included."""
    logprobs: bytes
    """float32."""


_REPLY = msgspec.json.Decoder(EngineReply)
_USAGE: msgspec.json.Decoder[Usage | None] = msgspec.json.Decoder(Usage | None)


def parse_reply(body: bytes) -> EngineReply:
    """Read an engine's answer.

    Raises:
        msgspec.DecodeError: it is not a chat completion.
    """
    return _REPLY.decode(body)


def usage_of(reply: EngineReply) -> Usage | None:
    """The engine's token counts. `None`: it gave none."""
    return _USAGE.decode(reply.usage)


def tokens_of(choice: EngineChoice) -> Tokens:
    """The tokens of one choice.

    Raises:
        ValueError: ids or log-probs are not what an engine gives (`msgspec.DecodeError` is one).
    """
    return Tokens(ids_from_json(choice.token_ids), logprobs_from_json(choice.logprobs))


class AgentChoice(msgspec.Struct, frozen=True):
    """One answer as the agent gets it."""

    index: int
    message: msgspec.Raw
    finish_reason: str | None
    logprobs: msgspec.Raw


class AgentReply(msgspec.Struct, frozen=True):
    """A chat completion as the agent gets it."""

    id: str
    created: int
    model: str
    choices: list[AgentChoice]
    usage: msgspec.Raw
    system_fingerprint: str | None
    service_tier: str | None
    object: str = "chat.completion"


def agent_reply(request: ChatRequest, reply: EngineReply, reply_id: str) -> AgentReply:
    """The engine's answer without what is none of the agent's business."""
    return AgentReply(
        id=reply_id,
        created=reply.created,
        model=request.model,
        choices=[
            AgentChoice(
                one.index,
                one.message,
                one.finish_reason,
                one.logprobs if request.wants_logprobs else _NULL,
            )
            for one in reply.choices
        ],
        usage=reply.usage,
        system_fingerprint=reply.system_fingerprint,
        service_tier=reply.service_tier,
    )
