"""The stores that are compared, each behind the same few requests.

A system builds whole HTTP requests and reads what it must of the answers; it never waits. All three
are given the same work: one rollout, one claim, one event at a time. What they keep differs: the peers
hold everything in memory, LightningRL answers after the commit to a file.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import deque
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from harness.load import request
from harness.peers import Peer
from harness.results import OURS
from harness.servers import free_port, running
from lightningrl.schema import (
    AttemptId,
    AttemptState,
    Event,
    EventId,
    LogEvent,
    Mode,
    NewRollout,
    RewardEvent,
    group_id,
    rollout_id,
)
from lightningrl.store import wire
from lightningrl.store.compression import Compressor, unpack
from store_payloads import SMALL, TASK, Spoken, spoken_call

_KEY = "the key of a benchmark"


class Held(NamedTuple):
    """A claimed rollout."""

    rollout: str
    attempt: str


class System(Protocol):
    """One store's server under measurement."""

    name: str
    """As it stands in the results."""
    url: str
    pid: int

    def enqueue(self) -> bytes:
        """Enqueue one rollout."""
        ...

    def enqueued(self, answer: bytes) -> None:
        """Learn from the answer to `enqueue`."""
        ...

    def claim(self) -> bytes:
        """Claim one rollout that was enqueued."""
        ...

    def claimed(self, answer: bytes) -> Held:
        """What the answer to `claim` handed out."""
        ...

    def small(self, held: Held) -> bytes:
        """Append an event of about half a kilobyte."""
        ...

    def call(self, held: Held, spoken: Spoken) -> bytes:
        """Append a model call."""
        ...

    def finish(self, held: Held) -> bytes:
        """End the attempt and its rollout as succeeded."""
        ...


class Lightning:
    """LightningRL's server, with a key, on a store in a file unless given another."""

    name = OURS

    def __init__(self, folder: Path, stack: ExitStack, store_url: str | None = None) -> None:
        """Start the server; it ends with `stack`."""
        self.path = folder / "store.db"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        serve = [sys.executable, "-m", "lightningrl.cli", "serve", store_url or str(self.path)]
        environment = {**os.environ, "LIGHTNINGRL_ADMIN_KEY": _KEY}
        self.pid = stack.enter_context(
            running(
                [*serve, "--port", str(port)],
                url=self.url,
                health="/healthz",
                log=folder / "server.log",
                environment=environment,
            )
        )
        self._compressor = Compressor()
        self._numbers = itertools.count()

    def request(self, method: str, **arguments: Any) -> bytes:
        """A call of the store's `method`, byte for byte as our client sends it."""
        body, headers = wire.packed_call(method, arguments, self._compressor)
        headers["authorization"] = f"Bearer {_KEY}"
        return request("POST", wire.PREFIX + method, body, headers)

    def result(self, method: str, answer: bytes) -> Any:
        """What the answer to a call of `method` says."""
        return wire.METHODS[method].answer.decode(unpack(answer)).ok

    def rollout(
        self, *, run: str = "bench", task: str | None = None, member: int = 0
    ) -> NewRollout:
        """A new rollout, in a group of its own unless `task` is given."""
        task = task or f"task {next(self._numbers)}"
        group = group_id(run, Mode.TRAIN, 1, task)
        return NewRollout(
            id=rollout_id(group, member),
            run=run,
            mode=Mode.TRAIN,
            iteration=1,
            task_id=task,
            group_id=group,
            member=member,
            task=TASK,
        )

    def enqueue(self) -> bytes:
        """See `System`."""
        return self.request("enqueue", rollouts=[self.rollout()])

    def enqueued(self, answer: bytes) -> None:
        """See `System`."""

    def claim(self) -> bytes:
        """See `System`."""
        return self.claim_of("bench")

    def claim_of(self, run: str) -> bytes:
        """Claim as a runner of one run, with a lease that outlives the measurement."""
        return self.request("claim", worker="bench", run=run, lease_seconds=3600.0)

    def claimed(self, answer: bytes) -> Held:
        """See `System`."""
        (claim,) = self.result("claim", answer)
        return Held(claim.rollout.id, claim.attempt.id)

    def event(self, held: Held) -> Event:
        """An event of about half a kilobyte."""
        return LogEvent(
            id=EventId(f"e-{next(self._numbers)}"),
            attempt_id=AttemptId(held.attempt),
            at=datetime.now(UTC),
            level="info",
            message=SMALL,
        )

    def rewarded(self, held: Held) -> bytes:
        """Append a final reward."""
        return self.append(
            [
                RewardEvent(
                    id=EventId(f"r-{next(self._numbers)}"),
                    attempt_id=AttemptId(held.attempt),
                    at=datetime.now(UTC),
                    value=1.0,
                    source="recipe",
                )
            ]
        )

    def append(self, events: list[Event]) -> bytes:
        """Append several events at once."""
        return self.request("append", events=events)

    def small(self, held: Held) -> bytes:
        """See `System`."""
        return self.append([self.event(held)])

    def call(self, held: Held, spoken: Spoken) -> bytes:
        """See `System`."""
        return self.append([spoken_call(held.attempt, f"c-{next(self._numbers)}", spoken)])

    def finish(self, held: Held) -> bytes:
        """See `System`."""
        return self.request("finish", attempt_id=held.attempt, state=AttemptState.SUCCEEDED)


class AgentLightning10:
    """Agent Lightning 1.0's server. Its claim is a change of state to `running`."""

    peer = Peer("Agent Lightning 1.0.2", "agentlightning==1.0.2", any_python=True)
    name = peer.name

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Start the server; it ends with `stack`."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        serve = [str(self.peer.environment() / "bin" / "agl-server"), "host=127.0.0.1"]
        options = ["default_proxy.model_name=model", f"hydra.run.dir={folder}"]
        self.pid = stack.enter_context(
            running(
                [*serve, f"port={port}", *options, "hydra.output_subdir=null"],
                url=self.url,
                health="/healthz",
                log=folder / "server.log",
                environment=os.environ,
            )
        )
        self._queued: deque[str] = deque()

    def _json(self, method: str, path: str, value: object) -> bytes:
        return request(
            method, path, json.dumps(value).encode(), {"content-type": "application/json"}
        )

    def enqueue(self) -> bytes:
        """See `System`."""
        return self._json("POST", "/api/rollouts", [{"input": TASK, "is_train": True}])

    def enqueued(self, answer: bytes) -> None:
        """See `System`."""
        self._queued += [one["rollout_id"] for one in json.loads(answer)]

    def claim(self) -> bytes:
        """See `System`."""
        running_now = {"status": {"state": "running", "last_attempt_id": "0"}}
        return self._json("PATCH", f"/api/rollouts/{self._queued.popleft()}", running_now)

    def claimed(self, answer: bytes) -> Held:
        """See `System`."""
        return Held(json.loads(answer)["rollout_id"], "0")

    def _event(self, held: Held, kind: str, data: object) -> bytes:
        path = f"/api/rollouts/{held.rollout}/attempt/0/events"
        return self._json("POST", path, {"event_type": kind, "data": data})

    def small(self, held: Held) -> bytes:
        """See `System`."""
        return self._event(held, "note", {"level": "info", "message": SMALL})

    def call(self, held: Held, spoken: Spoken) -> bytes:
        """See `System`; with the engine's answer as its own gateway keeps it."""
        tokens = [
            {"token": f"tok{one}", "logprob": value, "bytes": [1, 2, 3], "top_logprobs": []}
            for one, value in zip(spoken.answer_ids, spoken.logprobs, strict=True)
        ]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": spoken.answer},
            "token_ids": list(spoken.answer_ids),
            "finish_reason": "stop",
            "logprobs": {"content": tokens},
        }
        data = {
            "model": "model",
            "model_version": 0,
            "request": {"messages": spoken.messages, "model": "model"},
            "response": {
                "id": "x",
                "prompt_token_ids": list(spoken.prompt_ids),
                "choices": [choice],
            },
            "latency_ms": 1.0,
            "http_status": 200,
            "status": "ok",
            "retry_count": 0,
        }
        return self._event(held, "model_request", data)

    def finish(self, held: Held) -> bytes:
        """See `System`."""
        done = {"status": {"state": "succeeded"}}
        return self._json("PATCH", f"/api/rollouts/{held.rollout}", done)


class AgentLightning03:
    """Agent Lightning 0.3's store server, in memory: its default."""

    peer = Peer("Agent Lightning 0.3.0", "agentlightning==0.3.0", uploaded_before="2025-12-28")
    name = peer.name
    _PREFIX = "/v1/agl"

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Start the server; it ends with `stack`."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        agl = str(self.peer.environment() / "bin" / "agl")
        self.pid = stack.enter_context(
            running(
                [agl, "store", "--host", "127.0.0.1", "--port", str(port)],
                url=self.url,
                health=f"{self._PREFIX}/health",
                log=folder / "server.log",
                # Else its import asks the network for a list of prices.
                environment={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            )
        )
        self._numbers = itertools.count(1)

    def _post(self, path: str, value: object) -> bytes:
        body = json.dumps(value).encode()
        return request("POST", self._PREFIX + path, body, {"content-type": "application/json"})

    def enqueue(self) -> bytes:
        """See `System`."""
        rollouts = [{"input": TASK, "mode": "train"}]
        return self._post("/queues/rollouts/enqueue", {"rollouts": rollouts})

    def enqueued(self, answer: bytes) -> None:
        """See `System`."""

    def claim(self) -> bytes:
        """See `System`."""
        return self._post("/queues/rollouts/dequeue", {"limit": 1, "worker_id": "bench"})

    def claimed(self, answer: bytes) -> Held:
        """See `System`."""
        (one,) = json.loads(answer)
        return Held(one["rollout_id"], one["attempt"]["attempt_id"])

    def _span(self, held: Held, attributes: dict[str, object]) -> bytes:
        number = next(self._numbers)
        trace, span = f"{number:032x}", f"{number:016x}"
        context = {"trace_id": trace, "span_id": span, "is_remote": False, "trace_state": {}}
        return self._post(
            "/spans",
            {
                "rollout_id": held.rollout,
                "attempt_id": held.attempt,
                "sequence_id": number,
                "trace_id": trace,
                "span_id": span,
                "parent_id": None,
                "name": "openai.chat.completion",
                "status": {"status_code": "OK", "description": None},
                "attributes": attributes,
                "events": [],
                "links": [],
                "start_time": 1.0,
                "end_time": 2.0,
                "context": context,
                "parent": None,
                "resource": {"attributes": {}, "schema_url": ""},
            },
        )

    def small(self, held: Held) -> bytes:
        """See `System`."""
        return self._span(held, {"level": "info", "message": SMALL})

    def call(self, held: Held, spoken: Spoken) -> bytes:
        """See `System`; with flat lists, without the log-prob objects that 1.0 keeps."""
        return self._span(
            held,
            {
                "prompt_token_ids": list(spoken.prompt_ids),
                "response_token_ids": list(spoken.answer_ids),
                "gen_ai.prompt": json.dumps(spoken.messages),
                "gen_ai.completion": spoken.answer,
                "logprobs.content": json.dumps(list(spoken.logprobs)),
            },
        )

    def finish(self, held: Held) -> bytes:
        """See `System`."""
        path = f"/rollouts/{held.rollout}/attempts/{held.attempt}"
        return self._post(path, {"status": "succeeded"})


PEERS = (AgentLightning10, AgentLightning03)
