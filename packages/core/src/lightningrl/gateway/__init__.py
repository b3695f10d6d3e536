"""The gateway: every model call of an agent passes here, and its tokens are recorded.

Agents speak to it as to OpenAI or Anthropic and see nothing else; trainers change weights behind it
by hold, drain and publish. Routes:

    POST /rollouts/{rollout}/attempts/{attempt}/v1/chat/completions
                                               .../v1/responses, .../v1/messages
    POST /v1/chat/completions, ...             attempt key as bearer token
    POST /keys/{attempt key}/v1/chat/completions, ...
    GET  .../v1/models                         the policies of the attempt's run, by alias
    POST .../v1/rewards                        by an agent whose rollout says `rewards: emitted`
    GET  /gateway/v1/status                    and POST /gateway/v1/policies/{run}/{name}, .../hold,
                                               .../publish, .../release: policy control

`app` routes, `identity` says whose call it is, `policies` which policy answers, `sync` whether it may
start now, `calls` leads it through, `dialects` know the wire format, `upstream` the way to the engines,
`health` which of them live, `record` what is kept, and `recollection` what a request may refer to. `observe` says who else is told of a recorded call: `metrics` (`GET /metrics`),
`call_log` and `spans`.
"""

from lightningrl.gateway.app import Gateway
from lightningrl.gateway.control import (
    EndpointStatus,
    GatewayClient,
    Held,
    PolicyStatus,
)
from lightningrl.gateway.limits import GatewayLimits

__all__ = [
    "EndpointStatus",
    "Gateway",
    "GatewayClient",
    "GatewayLimits",
    "Held",
    "PolicyStatus",
]
