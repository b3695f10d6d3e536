"""Checks of model calls: which were answered and recorded, and which of them may be trained."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lightningrl.checks.evidence import Evidence, Finding, Level, counted, delivered, logs
from lightningrl.experience.trainable import TrainableCalls, count_calls
from lightningrl.experience.trained_calls import as_meant
from lightningrl.experience.transition import NO_CALL, Transition
from lightningrl.recipe import Guards, PolicyRecipe
from lightningrl.schema import (
    TOOL_PARSER_ERROR,
    AttemptState,
    CallEvent,
    CallStatus,
    LogEvent,
    LogTopic,
    Origin,
    StepKind,
    StepStartEvent,
)
from lightningrl.traces import AttemptRecord

_OF_ADAPTERS = (StepKind.LLM, StepKind.AGENT)
"""Kinds of steps that only an adapter opens; tools and retrievals may be opened by hand."""

_TOOL_CALL_TEXT = re.compile(
    r"<tool_call>|<function=|<\|tool_call|\[TOOL_CALLS\]"
    r'|\{\s*"(?:name|function|tool)"\s*:.{0,200}"(?:arguments|parameters)"\s*:',
    re.DOTALL,
)
"""How models write tool calls in their text: Hermes, Llama, Mistral, and bare JSON."""

_CAUGHT = "an error that is caught shows nowhere else"

_BIND = "a queue or thread that no rollout started needs `lightningrl.bind(function)`"
_ENVIRONMENT = "a child process needs `subprocess.run(command, env={**os.environ, **lightningrl.environment()})`"
_COMMAND = (
    "a client that is neither openai's nor anthropic's needs URL and key out of `lightningrl.environment()`, or the agent"
    " to be a `command`"
)
_CAME: Mapping[Origin, tuple[str, str]] = {
    Origin.THREAD: ("from a thread that no rollout started", _BIND),
    Origin.ENDED: (
        "from work of a rollout that had ended",
        "end threads and tasks with the agent, or hand work to shared ones as `lightningrl.bind(function)`",
    ),
    Origin.REWARD: (
        "from the reward function",
        "a policy never judges itself: export the judge's key (OPENAI_API_KEY, ANTHROPIC_API_KEY) before the start, or"
        " give its client a base URL and key",
    ),
    Origin.MAIN: (
        "from the main thread outside every rollout",
        "make the call, or start the task that makes it, inside the agent, not while its module is imported",
    ),
    Origin.CHILD: ("from a child process", _ENVIRONMENT),
    Origin.LIBRARY: ("by a client that is not captured", _COMMAND),
    Origin.ELSEWHERE: (
        "without a valid key of an attempt",
        "a client must send the key that stands in OPENAI_API_KEY or ANTHROPIC_API_KEY while its rollout runs",
    ),
}
"""Origin of a call without a rollout -> in words, and what to do."""
_WHICHEVER = f"the error that the agent got says which it is: {_BIND}; {_ENVIRONMENT}; {_COMMAND}"


def untrainable_calls(found: Evidence) -> Iterator[Finding]:
    """Too few of the calls that the recipe would train could be."""
    guards = found.recipe.guards if found.recipe is not None else Guards()
    policies = found.recipe.policies if found.recipe is not None else {}
    finding = few_trainable(
        count_calls(as_meant(found.transitions, policies, code=found.code)), guards
    )
    if finding is not None:
        yield finding


def few_trainable(seen: TrainableCalls, guards: Guards) -> Finding | None:
    """The finding where less than `guards.min_trainable_share` of the calls could be trained."""
    if seen.share is None or seen.share >= guards.min_trainable_share:
        return None
    calls = seen.trainable + sum(seen.lost.values())
    return Finding(
        "untrainable calls",
        Level.PROBLEM,
        f"only {seen.share:.0%} of the {counted(calls, 'model call')} could be trained"
        f" (guards.min_trainable_share: {guards.min_trainable_share:g}): {seen.reasons}",
        _remedy(" ".join(seen.lost)),
    )


def _remedy(reasons: str) -> str:
    if "grammar" in reasons:
        return (
            "an answer that a grammar forces is not what the policy would say. Ask for the format in the"
            " prompt and read it from the text: in LangChain leave out response_format and"
            " with_structured_output, in the OpenAI Agents SDK output_type and tool_choice other than"
            " 'auto', in PydanticAI use a text output, in AutoGen leave out output_content_type, in"
            " smolagents use CodeAgent; or set policies.NAME.constrained to free, which asks for the form in words and"
            " trains what comes"
        )
    if "the trainer does not see" in reasons:
        return (
            "models are trained on texts alone. Say in words what an image or a file holds, or leave the calls"
            " that need it to a policy with 'trainable: false'"
        )
    if "token ids" in reasons or "log-prob" in reasons:
        return (
            "the endpoint must give the token ids and log-probs of its answers: vLLM from 0.10 on does,"
            " hosted models don't. What `lightningrl train` starts itself does. To see all the rest with this"
            " endpoint, add guards.min_trainable_share=0"
        )
    return "the reasons name what to change in the agent's requests"


def is_joined(record: AttemptRecord) -> bool:
    """Whether a delivered call has a step that an adapter opened; without an adapter, whether there is a call.

    Where no adapter spoke of models or agents, the gateway's record alone is the step: such an agent trains
    too, without agent names and tools.
    """
    called = {call.step_id for call in delivered(record)}
    opened = {
        event.step_id
        for event in record.events
        if isinstance(event, StepStartEvent) and event.kind in _OF_ADAPTERS
    }
    return bool(called & opened if opened else called)


def no_model_call(found: Evidence) -> Iterator[Finding]:
    """Rollouts ended well without an answered call; in one that failed early, that means nothing."""
    without = [one for one in _well(found) if not delivered(one) and not _is_without_gateway(one)]
    if without:
        hosts = _outside(without)
        yield Finding(
            "no model call",
            Level.PROBLEM,
            f"in {counted(len(without), 'rollout')}, such as {without[0].rollout.id!r}, no model call was"
            f" answered{': ' + '; '.join(hosts) if hosts else ''}",
            "the agent's client must use OPENAI_BASE_URL or ANTHROPIC_BASE_URL, or ask for a model that a policy"
            " names or `replaces`; a cache of the framework's (LangChain's, DSPy's) must be off while training",
        )


def unjoined_calls(found: Evidence) -> Iterator[Finding]:
    """An adapter's steps and the gateway's calls never meet."""
    without = [one for one in _well(found) if delivered(one) and not is_joined(one)]
    if without:
        yield Finding(
            "unjoined calls",
            Level.PROBLEM,
            f"in {counted(len(without), 'rollout')}, such as {without[0].rollout.id!r}, an adapter saw steps and"
            " the gateway saw calls, and none belong together",
            "a client was built that the adapter does not know; build it the way that the adapter's page shows",
        )


def _is_without_gateway(record: AttemptRecord) -> bool:
    """Whether it was recorded in production: then model steps keep what was asked themselves, and there are no calls."""
    return any(step.kind is StepKind.LLM and step.inputs is not None for step in record.transitions)


def _well(found: Evidence) -> list[AttemptRecord]:
    return [one for one in found.decisive if one.attempt.state is AttemptState.SUCCEEDED]


def several_models(found: Evidence) -> Iterator[Finding]:
    """Several models are called, and nothing says which of them the policy stands for."""
    if found.recipe is None:
        return
    seen = undeclared_models(
        (one for record in found.decisive for one in record.transitions), found.recipe.policies
    )
    if seen:
        listing = ", ".join(f"{model!r} ({counted(n, 'call')})" for model, n in seen.items())
        yield Finding(
            "several models",
            Level.PROBLEM,
            f"the agent called several models, and no policy says which of them it answers for: {listing}",
            "say which of them are trained with 'policies.NAME.replaces: [MODEL]' or 'policies.NAME.agents:"
            " [AGENT]'",
        )


def undeclared_models(
    transitions: Iterable[Transition], policies: Mapping[str, PolicyRecipe]
) -> dict[str, int]:
    """Model -> calls, the most frequent first, where there are several and no policy says which it stands for."""
    if any(policy.replaces or policy.agents for policy in policies.values()):
        return {}
    seen = Counter(
        one.call.model
        for one in transitions
        # An alias says which policy is meant.
        if one.call is not None and one.call.model not in policies
    )
    return dict(seen.most_common()) if len(seen) > 1 else {}


def other_hosts(found: Evidence) -> Iterator[Finding]:
    """A client went to another host: what it was answered is not recorded and not trained."""
    named = _outside(found.attempts)
    if named:
        yield Finding(
            "other host",
            Level.WARNING,
            "; ".join(named),
            "right for a judge or a helper model of your own. Else list the model under"
            " 'policies.NAME.replaces', or build the client without a base URL of its own",
        )


def _outside(records: Iterable[AttemptRecord]) -> list[str]:
    """What went past the gateway, as capture named it; each once."""
    named = (one.message for record in records for one in logs(record, LogTopic.OUTSIDE))
    return list(dict.fromkeys(named))


def refused_requests(found: Evidence) -> Iterator[Finding]:
    """Requests that got an error for an answer, while the agent went on."""
    if unidentified := sum(found.unidentified.values()):
        origins = [one for one in Origin if found.unidentified.get(one)]
        listing = ", ".join(f"{found.unidentified[one]} {_CAME[one][0]}" for one in origins)
        yield Finding(
            "refused requests",
            Level.PROBLEM,
            f"{counted(unidentified, 'model call')} came without a rollout and got status 401:"
            f" {listing or 'nobody could say whose they are'}; {_CAUGHT}",
            "; ".join(_CAME[one][1] for one in origins) or _WHICHEVER,
        )
    refused: Counter[str] = Counter()
    for record in _well(found):
        refused.update(_refusal(event) for event in record.events if _is_refused(event))
    if refused:
        listing = "; ".join(f"{times} x {why}" for why, times in refused.most_common(3))
        yield Finding(
            "refused requests",
            Level.WARNING,
            f"{counted(sum(refused.values()), 'request')} of rollouts that succeeded got an error for an"
            f" answer: {listing}; {_CAUGHT}",
            "mend what the errors name; the rollouts' trees (lightningrl show RUN) have them in their place",
        )


def unknown_fields(found: Evidence) -> Iterator[Finding]:
    """Fields of requests that the gateway left out, since it does not know them."""
    named = dict.fromkeys(
        one.message for record in found.attempts for one in logs(record, LogTopic.UNKNOWN_FIELD)
    )
    if named:
        yield Finding(
            "unknown fields",
            Level.WARNING,
            "; ".join(named),
            "fine if the answers need none of them; else take them out of the client's requests."
            " `gateway.unknown_fields: refuse` answers such requests with an error",
        )


def _is_refused(event: object) -> bool:
    if isinstance(event, LogEvent):
        return event.topic is LogTopic.REFUSED
    # 5xx are the engine's, and are sent again by the client; 499 is a client that hung up.
    failed = isinstance(event, CallEvent) and event.status is CallStatus.FAILED
    return failed and event.http_status < 500  # pyright: ignore[reportAttributeAccessIssue]


def _refusal(event: Any) -> str:
    """What requests that are refused for the same reason have in common."""
    if isinstance(event, CallEvent):
        return f"status {event.http_status}: {_first_sentence(event.error or 'no reason given')}"
    return _first_sentence(event.message)


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].splitlines()[0][:160]


def unanswered_steps(found: Evidence) -> Iterator[Finding]:
    """Model steps that an adapter saw end well, and for which no call reached the gateway."""
    # A call to another host leaves such a step too, and is told as that.
    seen = [one for one in found.decisive if not _outside([one]) and not _is_without_gateway(one)]
    steps = [step for one in seen for step in one.transitions if step.kind is StepKind.LLM]
    silent = [step for step in steps if _is_silent(step)]
    if silent:
        yield Finding(
            "unanswered steps",
            Level.PROBLEM,
            f"{len(silent)} of {counted(len(steps), 'model step')} reached no model, such as"
            f" {silent[0].step_id!r} of rollout {silent[0].rollout_id!r}: a cache answered, or a client that"
            " goes past the gateway",
            "turn caches off while training (LangChain: set_llm_cache(None); DSPy:"
            " dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False); LiteLLM: litellm.cache ="
            " None): rollouts of one task would all get one answer",
        )


def _is_silent(step: Transition) -> bool:
    ended_well = step.error is None and not step.interrupted
    return step.call is None and step.untrainable == NO_CALL and ended_well


def tool_parser_off(found: Evidence) -> Iterator[Finding]:
    """The policy writes tool calls, and the agent gets most of them as text.

    Some unreadable ones are how a policy learns the form, so they must outnumber those that were read.
    An answer that was cut off by its token limit says nothing about the parser.
    """
    whole = [call for call in found.calls if _is_whole(call)]
    unread = [call for call in whole if _unread_tool_call(call)]
    read = [call for call in whole if _message(call).get("tool_calls")]
    if len(unread) <= len(read):
        return
    last = unread[0]
    shown = last.error or f"it answered {_content(last)[:80]!r} and no tool call was read from it"
    yield Finding(
        "tool parser off",
        Level.PROBLEM,
        f"{len(unread)} of the last {counted(len(unread) + len(read), 'tool call')} were not read,"
        f" such as in step {last.step_id!r} of attempt {last.attempt_id!r}: {shown}",
        "set policies.NAME.tool_parser to the form that the model writes (or start vLLM with"
        " --enable-auto-tool-choice --tool-call-parser NAME)",
    )


def _is_whole(call: CallEvent) -> bool:
    answered = call.status is CallStatus.DELIVERED and bool(call.choices)
    return answered and call.choices[0].finish_reason != "length"


def _unread_tool_call(call: CallEvent) -> bool:
    if (call.error or "").startswith(TOOL_PARSER_ERROR):
        return True
    message = _message(call)
    if message.get("tool_calls") or not _TOOL_CALL_TEXT.search(_content(call)):
        return False
    return bool(json.loads(call.request or b"{}").get("tools"))


def _message(call: CallEvent) -> dict[str, Any]:
    return json.loads(call.choices[0].message or b"{}")


def _content(call: CallEvent) -> str:
    content = _message(call).get("content")
    return content if isinstance(content, str) else ""
