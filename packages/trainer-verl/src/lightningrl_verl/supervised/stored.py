"""Stored rollouts as demonstrations: those with enough reward, of training runs and of recorded traffic.

Invariants:
- What a call was asked is what the engine was asked, recorded rewrites included. A prompt that the trainer does not
  see whole (an image) is left out, whatever was recorded.
- A call's token ids are used as they were recorded where this policy's tokenizer wrote them; every other call is
  tokenised again from its messages, and counted as such.
- Rollouts that scored a policy (`val`, `test`) are never imitated, and live ones whose task scores this one neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from lightningrl.cli.stored_run import StoredRun, open_runs
from lightningrl.conversation.history import Recorded
from lightningrl.conversation.parts import why_unseen
from lightningrl.conversation.recorded import MESSAGES, whole_requests
from lightningrl.conversation.rewriting import set_variables
from lightningrl.conversation.rewriting.fields import Fields, raw_fields
from lightningrl.conversation.rewriting.values import VARIABLES
from lightningrl.errors import ConfigError
from lightningrl.experience.side_calls import is_side_request
from lightningrl.experience.tokens import ids_from_bytes
from lightningrl.experience.train_when import TrainWhen
from lightningrl.experience.trained_calls import NOT_NOW, SIDE_CALL, UNTRAINED_AGENT
from lightningrl.experience.transition import Transition
from lightningrl.recipe import PolicyRecipe, WarmStart
from lightningrl.schema import (
    AttemptState,
    CallEvent,
    CallStatus,
    Dialect,
    Mode,
    Rollout,
    RolloutState,
    StepKind,
    is_among,
)
from lightningrl.store.base import RolloutQuery
from lightningrl.traces import AttemptRecord, agent_path, read_attempts
from lightningrl_verl.supervised.rows import Example, call_transition, merged, with_tokens
from lightningrl_verl.supervised.scribe import Scribe, UnfitError

ANOTHER_POLICY = "another policy of the run answered it"
"""Why a call is no demonstration, where calls of a policy of the same alias are."""

NO_CHAT = "recorded in another form than chat completions"
"""Why an answer that no gateway recorded is left out."""

COMPLETION = "a completion of a text, which has no chat form"
"""Why an answer to a prompt that was no dialogue is left out."""

_OWN_VARIABLES = ("documents", "reasoning_effort")
"""Fields that are variables of the template (vLLM)."""
_READ = (MESSAGES, "tools", VARIABLES, *_OWN_VARIABLES)
"""Fields of a chat request that make its prompt."""
_CUT = "length"
"""Finish reason of an answer without an end token."""


@dataclass(frozen=True)
class Asked:
    """What the model was asked in one call, and what it answered, in the form of chat completions."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]
    """Of the template, as the agent set them."""
    defaults: Mapping[str, Any]
    """Of the template, as the gateway set them by what the run's recipe says."""
    answer: Mapping[str, Any]
    ends: bool
    """False: the answer was cut off by a limit."""


@dataclass(frozen=True)
class Ungated:
    """What is known of an `llm` step that no gateway recorded."""

    agents: Sequence[str]
    """Those around it, the outermost first, and its own last; empty where nobody said."""
    request: Mapping[str, Any]
    """As the client made it; empty where it was not kept."""


@dataclass(frozen=True)
class StoredRollout:
    """One rollout that is worth imitating."""

    key: str
    """Its task: rollouts of one are held out together."""
    calls: tuple[Transition, ...]
    """Its `llm` steps, in order of their start."""
    asked: Mapping[str, Asked | str]
    """Step id -> what was asked, or why it can't be said."""
    ungated: Mapping[str, Ungated] = field(default_factory=dict[str, Ungated])
    """Step id -> what is known of each of `calls` without a call."""


async def read_rollouts(
    run: Path,
    settings: WarmStart,
    alias: str,
    scored: Set[str] = frozenset(),
    say: Callable[[str], None] = lambda _: None,
) -> list[StoredRollout]:
    """A run's training and live rollouts with enough reward, best first, then in order of their creation.

    Args:
        run: its folder, or the file of a store, all of whose runs are read.
        settings: how much is enough, and how many at most.
        alias: of the policy that is to learn; for messages.
        scored: ids of the tasks that it is scored on. Live rollouts of them are left out: those ids are made up
            where they begin, so that no other task has one by chance.
        say: is told how many those are.

    Raises:
        ConfigError: there is no such run, or no such rollout in it.
    """
    place = (None, str(run)) if run.is_file() else (str(run), None)
    async with open_runs(*place, None) as runs:
        worthy = [rollout for one in runs for rollout in await _worthy(one, settings)]
        found = [
            one for one in worthy if one.spec.mode is Mode.TRAIN or one.spec.task_id not in scored
        ]
        if len(found) < len(worthy):
            say(
                f"warm start of {alias!r}: {len(worthy) - len(found)} live rollouts are left out, whose tasks are in"
                " data.val or data.test"
            )
        found.sort(key=lambda one: -(one.reward or 0.0))
        records = await read_attempts(runs[0].store, found[: settings.limit]) if runs else []
    if not records:
        raise ConfigError(
            f"policies.{alias}.warm_start: {str(run)!r} has no training or live rollout with a reward of at"
            f" least {settings.min_reward}, whose task is in neither data.val nor data.test"
        )
    return [_stored(attempts) for attempts in records]


async def _worthy(run: StoredRun, settings: WarmStart) -> list[Rollout]:
    queries = [
        RolloutQuery(
            run=run.name,
            mode=mode,
            states=(RolloutState.SUCCEEDED,),
            min_reward=settings.min_reward,
        )
        for mode in (Mode.TRAIN, Mode.LIVE)
    ]
    every = [one for query in queries for one in await run.store.rollouts(query)]
    return [one for one in every if one.spec.fork is None]  # a branch repeats its parent's answers


def _stored(attempts: Sequence[AttemptRecord]) -> StoredRollout:
    record = next(one for one in reversed(attempts) if one.attempt.state is AttemptState.SUCCEEDED)
    calls = tuple(one for one in record.transitions if one.kind is StepKind.LLM)
    by_step: dict[str, Asked | str] = {}
    earlier = Recorded()
    counting = {one.call.id: one for one in calls if one.call is not None}
    for event in record.events:
        if not isinstance(event, CallEvent) or event.status is not CallStatus.DELIVERED:
            continue
        if event.id in counting:
            by_step[event.step_id] = _asked_of_engine(event, counting[event.id], earlier)
        earlier.add(event)
    steps = {one.step_id: one for one in record.transitions}
    ungated: dict[str, Ungated] = {}
    requests = whole_requests({one.step_id: one.inputs for one in calls if one.call is None})
    for one in calls:
        if one.call is None:
            request = requests[one.step_id]
            said = _asked_by_client(request, one.output)
            # Of a call that failed at the gateway its step has no request.
            by_step[one.step_id] = said if one.inputs is not None else one.untrainable or NO_CHAT
            known = request if isinstance(request, dict) else {}
            ungated[one.step_id] = Ungated(agent_path(one, steps), known)
    return StoredRollout(record.rollout.spec.task_id, calls, by_step, ungated)


def _asked_of_engine(call: CallEvent, step: Transition, earlier: Recorded) -> Asked | str:
    """What the gateway made of a request, whatever its dialect."""
    choice = step.choice
    if call.dialect is Dialect.COMPLETIONS:
        return COMPLETION
    if choice is None:
        return "it has no answer"
    if len(call.choices) > 1 and step.untrainable is not None:
        return step.untrainable
    try:
        fields = earlier.request(call)
    except ValueError as error:
        return f"its request can't be read: {error}"
    return _asked(
        fields,
        set_variables(call.rewrites),
        msgspec.json.decode(choice.message),
        ends=choice.finish_reason != _CUT,
    )


def _asked_by_client(request: Any, answer: Any) -> Asked | str:
    """What a client asked where no gateway was."""
    if not isinstance(request, dict) or not isinstance(answer, dict):
        return NO_CHAT
    asked, answered = cast("dict[str, Any]", request), cast("dict[str, Any]", answer)
    content = answered.get("content")
    if not isinstance(asked.get(MESSAGES), list) or answered.get("role") != "assistant":
        return NO_CHAT
    if not isinstance(content, str | None):
        return NO_CHAT
    fields = raw_fields({name: asked[name] for name in _READ if name in asked})
    return _asked(fields, frozenset(), answered, ends=True)


def _asked(
    fields: Fields, set_by_gateway: Set[str], answer: Mapping[str, Any], *, ends: bool
) -> Asked | str:
    """What a chat request asks. Args: `set_by_gateway`, the template's variables that the agent did not set."""
    if unread := why_unseen(fields):
        return unread
    given = {name: msgspec.json.decode(fields[name]) for name in _READ if name in fields}
    variables: Any = given.get(VARIABLES) or {}
    if not isinstance(variables, dict):
        return NO_CHAT
    own = {name: given[name] for name in _OWN_VARIABLES if given.get(name) is not None}
    variables = {**own, **variables}
    return Asked(
        messages=given[MESSAGES],
        tools=given.get("tools") or (),
        variables={name: variables[name] for name in variables if name not in set_by_gateway},
        defaults={name: variables[name] for name in variables if name in set_by_gateway},
        answer=answer,
        ends=ends,
    )


def stored_example(
    stored: StoredRollout,
    scribe: Scribe,
    *,
    alias: str,
    policy: PolicyRecipe,
    train_when: TrainWhen | None = None,
) -> Example:
    """What a rollout gives to a policy.

    Where some of its calls were answered by a policy of the same alias those alone are imitated; else all are. Of
    agents that `train_agents` leaves out, of side calls, and of those that `train_when` says no to, none is.
    """
    own = any(one.call is not None and one.call.policy == alias for one in stored.calls)
    found: list[Transition] = []
    from_text: list[int] = []
    for one in stored.calls:
        if own and (one.call is None or one.call.policy != alias):
            found.append(_without(one, ANOTHER_POLICY))
            continue
        if beside := _why_beside(one, stored, policy, train_when):
            found.append(_without(one, beside))
            continue
        call, recorded = _tokens(one, stored.asked[one.step_id], scribe, policy.max_model_len)
        if not recorded:
            from_text.append(len(found))
        found.append(call)
    return merged(stored.key, alias, found, from_text)


def _why_beside(
    one: Transition, stored: StoredRollout, policy: PolicyRecipe, train_when: TrainWhen | None
) -> str | None:
    """Why the recipe leaves a call out. `None`: it does not."""
    if one.call is not None:
        within, agent = one.call.within, one.agent
    else:
        *within, agent = stored.ungated[one.step_id].agents or (None,)
    if policy.train_agents and not is_among(policy.train_agents, agent, within):
        return UNTRAINED_AGENT
    if not policy.side_calls and train_when is None:
        return None
    call = one.call
    request = msgspec.json.decode(call.request) if call else stored.ungated[one.step_id].request
    if is_side_request(request, policy.side_calls):
        return SIDE_CALL
    if train_when is not None and not train_when.trains_request(request, f"step {one.step_id!r}"):
        return NOT_NOW
    return None


def _tokens(
    step: Transition, asked: Asked | str, scribe: Scribe, longest: int
) -> tuple[Transition, bool]:
    """The call with its tokens, and whether they are those that were recorded."""
    whole = step if step.call is not None else _with_call(step, asked)
    if isinstance(asked, str):
        return _without(whole, asked), False
    prompt, answer = ids_from_bytes(step.prompt_bytes), ids_from_bytes(step.token_bytes)
    if len(prompt) and len(answer) and scribe.wrote(prompt.tolist(), asked.messages):
        return with_tokens(whole, prompt.tolist(), answer.tolist(), longest=longest), True
    try:
        prompt_ids = scribe.prompt(asked.messages, asked.tools, asked.variables, asked.defaults)
        answer_ids = scribe.answer(asked.answer, asked.tools, ends=asked.ends)
    except UnfitError as error:
        return _without(whole, str(error)), False
    return with_tokens(whole, prompt_ids, answer_ids, longest=longest), False


def _with_call(step: Transition, asked: Asked | str) -> Transition:
    """The step as if a gateway had recorded it: rows look for an earlier answer in the request."""
    messages = () if isinstance(asked, str) else asked.messages
    found = call_transition(step.rollout_id, 0, {"messages": messages})
    return msgspec.structs.replace(step, call=found.call)


def _without(step: Transition, reason: str) -> Transition:
    """The call without tokens, as one that is left out."""
    return msgspec.structs.replace(
        step, prompt_bytes=b"", token_bytes=b"", logprob_bytes=b"", untrainable=reason
    )
