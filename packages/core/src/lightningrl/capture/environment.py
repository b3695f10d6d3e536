"""What a child process of the agent's needs to be part of its rollout.

Invariant: outside of rollouts it is nothing, so that the same file runs in production.
"""

from __future__ import annotations

from lightningrl.capture.context import current
from lightningrl.capture.replaying import replaying
from lightningrl.capture.variables import for_attempt

_REPLAYING = "LIGHTNINGRL_REPLAYING"
"""1: what the child process would do is done already."""


def environment() -> dict[str, str]:
    """The variables by which a child process or container makes its model calls in the current rollout.

    `subprocess.run(command, env={**os.environ, **lightningrl.environment()})`. They hold the attempt's URL
    (`LIGHTNINGRL_ATTEMPT_URL`, `OPENAI_BASE_URL`, ...) and its key (`OPENAI_API_KEY`, ...), which opens the attempt's
    model calls until its end and nothing else. `LIGHTNINGRL_REPLAYING` is 1 where `lightningrl.replaying()`. Outside a rollout they are none, so the same file runs in production.
    """
    context = current()
    if context is None or not context.has_gateway:
        return {}
    done = {_REPLAYING: "1"} if replaying() else {}
    return {**for_attempt(context), **done}
