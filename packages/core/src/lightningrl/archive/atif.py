"""A run's rollouts as trajectories in ATIF, the Agent Trajectory Interchange Format (Harbor's RFC 0001, v1.4).

Invariants: one line a rollout that called a model, of its last attempt (the format asks for a step); the token ids and log-probs are the engine's. What the
format has no field for stands under `extra`, and a message that several calls repeat stands once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from lightningrl.archive import whole_file
from lightningrl.conversation.history import Recorded
from lightningrl.conversation.recorded import MESSAGES, whole_requests
from lightningrl.conversation.responses import reasoning_of
from lightningrl.conversation.tools.freeform import object_in
from lightningrl.experience.transition import Transition
from lightningrl.schema import CallEvent, CallStatus, StepKind
from lightningrl.store.base import GroupQuery, RolloutQuery, Store
from lightningrl.traces import AttemptRecord, read_attempts

VERSION = "ATIF-v1.4"
UNREADABLE = "INVALID_JSON"
"""Key of the arguments of a tool call that the policy wrote as no JSON object."""

Message = Mapping[str, Any]
Step = dict[str, Any]

_SOURCES = {"system": "system", "developer": "system", "assistant": "agent"}
"""Role of a message -> who says it; any other is the user."""


async def export_trajectories(store: Store, run: str, path: Path) -> int:
    """Write a trajectory for each rollout that called a model; return how many.

    Args:
        store: read only.
        run: whose rollouts.
        path: appears when it is whole, in the place of a former one.

    Raises:
        Malformed: a recorded request can't be read.
    """
    cursor = count = 0
    with whole_file(path) as partial, partial.open("wb") as file:
        while page := await store.tasks(GroupQuery(run=run, after=cursor, limit=100)):
            for one in page:
                rollouts = await store.rollouts(RolloutQuery(run=run, task_id=one.task_id))
                for records in await read_attempts(store, rollouts):
                    found = trajectory(records[-1]) if records else None
                    if found is not None and found["steps"]:
                        file.write(msgspec.json.encode(found) + b"\n")
                        count += 1
            cursor = page[-1].cursor
    return count


def trajectory(record: AttemptRecord) -> dict[str, Any]:
    """One attempt as a trajectory."""
    spec, attempt = record.rollout.spec, record.attempt
    told = _Told()
    asked = _asked(record)
    for one in record.transitions:
        if one.kind is StepKind.LLM and (one.choice is not None or one.output is not None):
            told.call(one, asked.get(one.step_id, []))
    return {
        "schema_version": VERSION,
        "session_id": attempt.id,
        "agent": {"name": spec.run, "version": "unknown"},
        "steps": told.steps,
        "final_metrics": told.totals(),
        "extra": {
            "rollout_id": record.rollout.id,
            "task_id": spec.task_id,
            "mode": spec.mode,
            "state": record.rollout.state,
            "reward": record.rollout.reward,
        },
    }


def _asked(record: AttemptRecord) -> dict[str, list[Message]]:
    """Step id -> the messages that its model was asked to continue."""
    kept: dict[str, Any] = {
        one.step_id: one.inputs for one in record.transitions if one.kind is StepKind.LLM
    }
    asked = {
        step_id: list(request.get(MESSAGES) or [])
        for step_id, request in whole_requests(kept).items()
        if isinstance(request, Mapping)
    }
    recorded = Recorded()
    for event in record.events:
        if isinstance(event, CallEvent) and event.status is CallStatus.DELIVERED:
            asked[event.step_id] = recorded.messages(event)
            recorded.add(event)
    return asked


class _Told:
    """The steps so far, and which messages they tell of."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._conversations: list[list[Any]] = []
        """What each call's messages and answer say."""
        self._callers: dict[str, Step] = {}
        """Tool call id -> the step that asks for it."""

    def call(self, one: Transition, asked: list[Message]) -> None:
        """A model call: what is new of its messages, then its answer."""
        keys = [_key(message) for message in asked]
        for message in asked[max((_common(keys, old) for old in self._conversations), default=0) :]:
            self._message(message)
        answer = _answer(one)
        self._conversations.append([*keys, _key(answer)])
        step = self._add("agent", answer, timestamp=one.started_at.isoformat())
        step["model_name"] = one.name if one.call is None else one.call.model
        step["metrics"] = _metrics(one)
        who = {"agent": one.agent, "lightningrl_step_id": one.step_id, "reward": one.reward}
        step["extra"] = {name: value for name, value in who.items() if value is not None}

    def totals(self) -> dict[str, int]:
        """The trajectory's own metrics."""
        metrics = [step["metrics"] for step in self.steps if "metrics" in step]
        return {
            "total_prompt_tokens": sum(one["prompt_tokens"] for one in metrics),
            "total_completion_tokens": sum(one["completion_tokens"] for one in metrics),
            "total_steps": len(self.steps),
        }

    def _message(self, message: Message) -> None:
        """A message that is no answer of a call here."""
        if message.get("role") != "tool":
            self._add(_SOURCES.get(str(message.get("role")), "user"), message)
            return
        caller = self._callers.get(str(message.get("tool_call_id")))
        result = {"content": _text(message.get("content"))}
        if caller is None:  # of a call that nobody here made
            caller = self._add("system", {})
        else:
            result["source_call_id"] = str(message["tool_call_id"])
        caller.setdefault("observation", {"results": []})["results"].append(result)

    def _add(self, source: str, message: Message, *, timestamp: str | None = None) -> Step:
        text = _text(message.get("content") or message.get("refusal"))
        step: Step = {"step_id": len(self.steps) + 1, "source": source, "message": text}
        if timestamp is not None:
            step["timestamp"] = timestamp
        if source == "agent":
            if reasoning := reasoning_of(message):
                step["reasoning_content"] = reasoning
            if calls := message.get("tool_calls"):
                step["tool_calls"] = [_tool_call(call, place) for place, call in enumerate(calls)]
                self._callers |= {call["tool_call_id"]: step for call in step["tool_calls"]}
        self.steps.append(step)
        return step


def _answer(one: Transition) -> Message:
    if one.call is not None:
        choice = one.choice
        return {} if choice is None else msgspec.json.decode(choice.message)
    if isinstance(one.output, Mapping):
        return cast("Message", one.output)
    return {"content": one.output}


def _metrics(one: Transition) -> dict[str, Any]:
    call = one.call
    if call is None:
        return {"prompt_tokens": 0, "completion_tokens": 0}
    prompt, tokens = one.prompt_ids.tolist(), one.token_ids.tolist()
    extra = {"policy": call.policy, "policy_version": call.version_start}
    if one.untrainable is not None:
        extra["untrainable"] = one.untrainable
    return {
        "prompt_tokens": len(prompt) or call.prompt_tokens,
        "completion_tokens": len(tokens) or call.completion_tokens,
        **({"prompt_token_ids": prompt} if prompt else {}),
        **({"completion_token_ids": tokens} if tokens else {}),
        **(
            {"logprobs": one.logprobs.tolist()}
            if tokens and np.isfinite(one.logprobs).all()
            else {}
        ),
        "extra": extra,
    }


def _tool_call(call: Message, place: int) -> dict[str, Any]:
    function: Message = call.get("function") or {}
    arguments = function.get("arguments") or "{}"
    found = object_in(arguments)
    return {
        "tool_call_id": str(call.get("id") or f"call_{place}"),
        "function_name": str(function.get("name") or ""),
        "arguments": {UNREADABLE: arguments} if found is None else found,
    }


def _text(content: Any) -> str:
    """What a message says; of what is no text its type."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return msgspec.json.encode(content).decode()
    parts = [one for one in cast("list[Any]", content) if isinstance(one, Mapping)]
    return "\n".join(str(one.get("text") or f"[{one.get('type')}]") for one in parts)


def _key(message: Message) -> Any:
    """What makes a message the same when it is sent again, however it is written."""
    calls = message.get("tool_calls") or ()
    asked = [_tool_call(call, place) for place, call in enumerate(calls)]
    role = message.get("role") or "assistant"
    return role, _text(message.get("content")), asked, message.get("tool_call_id")


def _common(keys: list[Any], old: list[Any]) -> int:
    """How many messages two conversations begin with alike."""
    same = 0
    while same < min(len(keys), len(old)) and keys[same] == old[same]:
        same += 1
    return same
