"""OpenAI completions: what becomes of each request field."""

from __future__ import annotations

from lightningrl.gateway.dialects.engine_fields import rows_of_prompts
from lightningrl.gateway.dialects.fields import (
    OTHERS,
    FieldTable,
    accepted,
    emulated,
    passed,
    refused,
)

_UNSUPPORTED = "unsupported_parameter"
_BAD_VALUE = "unsupported_value"
_SAMPLING = "unless the rollout says how to sample"

_OWN = (
        passed("model", "the policy that answers for it; the reply names the model asked for"),
        passed("prompt", "a text, or token ids"),
        refused("prompt", "a call has one prompt; send a request for each", "several",
                code=_BAD_VALUE),
        passed("max_tokens", "the lower of it and the rollout's"),
        passed("temperature", _SAMPLING),
        passed("top_p", _SAMPLING),
        passed("presence_penalty", _SAMPLING),
        passed("frequency_penalty", _SAMPLING),
        passed("seed", _SAMPLING),
        passed("n", "every answer is recorded, none trained where there are several"),
        passed("stop", "the engine ends the answer"),
        passed("logprobs", "the reply has them only where they were asked for"),
        passed("logit_bias", "the answer is not trained"),
        passed("response_format", "(vLLM, SGLang) but for `text` the answer is not trained"),
        passed("user", ""),
        emulated("stream", "the finished answer in chunks"),
        emulated("stream_options", "`include_usage`: a last chunk with the token counts"),
        accepted("return_token_ids", "every call is recorded with its token ids; the agent sees none"),
        refused("echo", "an answer holds no prompt", "true", code=_UNSUPPORTED),
        refused("best_of", "of answers that are thrown away none is recorded", "more than `n`",
                code=_UNSUPPORTED),
        refused("suffix", "the policy fills no gaps", code=_UNSUPPORTED),
)  # fmt: skip

COMPLETIONS_FIELDS = FieldTable((*_OWN, *rows_of_prompts(row.name for row in _OWN), OTHERS))
