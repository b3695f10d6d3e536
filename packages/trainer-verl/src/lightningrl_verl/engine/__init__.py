"""The embedded inference engine of a laptop run: a Hugging Face model behind an OpenAI endpoint.

Invariant: what it reports is what happened: token ids as sampled, log-probs of the distribution they
were drawn from, and the policy version of the weights that drew them.
"""

from lightningrl_verl.engine.errors import (
    EngineAsleepError,
    EngineClosedError,
    EngineDiedError,
    EngineError,
    NonFiniteLogitsError,
    PromptTooLongError,
    SamplingError,
    UnsupportedModelError,
    WeightSwapError,
)
from lightningrl_verl.engine.parsers import (
    TOOL_PARSERS,
    ParsedMessage,
    ToolCall,
    ToolParser,
    UnknownToolParserError,
    UnwritableError,
    tool_parser,
)
from lightningrl_verl.engine.sampling import SamplingParams
from lightningrl_verl.engine.scheduler import Completion, WeightSpan
from lightningrl_verl.engine.server import EngineServer, engine_app, serve_engine
from lightningrl_verl.engine.torch_engine import EngineStats, TorchEngine

__all__ = [
    "TOOL_PARSERS",
    "Completion",
    "EngineAsleepError",
    "EngineClosedError",
    "EngineDiedError",
    "EngineError",
    "EngineServer",
    "EngineStats",
    "NonFiniteLogitsError",
    "ParsedMessage",
    "PromptTooLongError",
    "SamplingError",
    "SamplingParams",
    "ToolCall",
    "ToolParser",
    "TorchEngine",
    "UnknownToolParserError",
    "UnsupportedModelError",
    "UnwritableError",
    "WeightSpan",
    "WeightSwapError",
    "engine_app",
    "serve_engine",
    "tool_parser",
]
