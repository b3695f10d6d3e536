"""The gateway: every model call of an agent passes here, and its tokens are recorded.

Agents speak OpenAI's chat completions to it and see nothing else; trainers change weights behind it
by hold, drain and publish. Routes:

    POST /rollouts/{rollout}/attempts/{attempt}/v1/chat/completions
    POST /v1/chat/completions                  attempt key as bearer token
    POST /keys/{attempt key}/v1/chat/completions
    GET  .../v1/models                         the policies of the attempt's run, by alias
    GET  /gateway/v1/status                    and POST /gateway/v1/policies/{run}/{name}, .../hold,
                                               .../publish, .../release: policy control

`app` routes, `identity` says whose call it is, `policies` which policy answers, `sync` whether it may
start now, `calls` leads it through, `dialects` know the wire format, `upstream` the engines, and
`record` what is kept.
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
