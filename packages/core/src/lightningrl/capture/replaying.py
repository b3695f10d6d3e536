"""Whether what a tool would do has been done already, in the rollout that this one is a fork of.

Invariant: asks nobody but in an attempt that may be answered from a record; outside of rollouts it is False, so that
the same file runs in production.
"""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from lightningrl.capture.client import CallHeaders
from lightningrl.capture.context import current
from lightningrl.errors import StoreUnavailable

_TIMEOUT_SECONDS = 30.0


def replaying() -> bool:
    """Return whether the running code acts on a model's answer that was recorded, and so was what came after it.

    Then its effects on the world (a row that was written, a mail that was sent) are done, and it should only return
    what it returned then. It asks the run's server, over one short connection.

    Raises:
        StoreUnavailable: the server can't be asked.
    """
    context = current()
    if context is None or not context.replays:
        return False
    url = urlsplit(f"{context.attempt_url}/replaying")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", url.path, headers=dict(CallHeaders()))
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise StoreUnavailable(
            f"{url.netloc!r} can't say whether this is replayed: {error}"
        ) from error
    finally:
        connection.close()
    if answer.status != 200:
        raise StoreUnavailable(
            f"{url.netloc!r} can't say whether this is replayed: {answer.status} {body[:200]!r}"
        )
    return bool(json.loads(body)["replaying"])
