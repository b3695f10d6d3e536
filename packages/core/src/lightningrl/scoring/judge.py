"""A judge: an OpenAI-compatible model that gives each answer of a rollout a number, or the whole rollout one.

Invariants: an answer of the judge is asked for once and then read from its folder, if it has one, where it names the rollout that it is of,
so that it is deleted with that; a judge that fails, or says no number in range, gives no reward, never 0, and is
asked again the next time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Trace, Transition
from lightningrl.schema import RolloutId, StepKind
from lightningrl.scoring.rules import Values, answer_text
from lightningrl.user_input.arguments import AboveZero, Positive

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w%]|[.,]\d)")
"""A number that stands alone: no part of a word, a version or a percentage."""

_FAILURES = (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError, OSError)
"""What a judge may fail of: the connection, the time, an answer that is none."""


class JudgeArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`args` of the rule `judge`."""

    url: str
    """Base URL up to and including `/v1`."""
    model: str
    prompt: str
    """What is to be judged; the judge is told to answer with a number from `lowest` to `highest`."""
    lowest: float = 0.0
    highest: float = 1.0
    key_env: str | None = None
    """Environment variable that holds the key. `None`: none is sent."""
    timeout_seconds: AboveZero = 60.0
    concurrency: Positive = 8
    """Questions at a time."""


class Judge:
    """Scores the answers of traces, or whole rollouts."""

    def __init__(
        self, args: dict[str, Any], cache: Path | None, *, where: str = "step_rewards: "
    ) -> None:
        """Check the arguments.

        Args:
            args: see `JudgeArgs`.
            cache: folder of the answers; made when the first one is there. `None`: none is kept.
            where: what errors begin with.

        Raises:
            ConfigError: an argument is missing, unknown, of the wrong type or out of range.
        """
        try:
            self._args = msgspec.convert(args, JudgeArgs)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}judge: {error}") from error
        if not self._args.lowest < self._args.highest:
            raise ConfigError(f"{where}judge: 'lowest' must be below 'highest'")
        self._cache = cache
        self.failures: Counter[str] = Counter()
        """Why the judge gave no number, and how often."""
        self._turns = asyncio.Semaphore(self._args.concurrency)

    async def values(self, traces: Sequence[Trace]) -> list[Values]:
        """Per trace, a number for each delivered model call, or `None` where the judge gave none."""
        async with self._session() as http:
            return list(await asyncio.gather(*(self._of_trace(http, trace) for trace in traces)))

    async def of_rollouts(self, shown: Mapping[RolloutId, str]) -> dict[RolloutId, float | None]:
        """A number for each rollout, or `None` where the judge gave none.

        Args:
            shown: what the judge reads of each.
        """
        async with self._session() as http:
            values = await asyncio.gather(*(self._of(http, *one) for one in shown.items()))
        return dict(zip(shown, values, strict=True))

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=self._args.timeout_seconds)
        return aiohttp.ClientSession(timeout=timeout)

    async def _of_trace(self, http: aiohttp.ClientSession, trace: Trace) -> Values:
        return list(
            await asyncio.gather(
                *(
                    self._of_step(http, trace, place, one)
                    for place, one in enumerate(trace.transitions)
                )
            )
        )

    async def _of_step(
        self, http: aiohttp.ClientSession, trace: Trace, place: int, one: Transition
    ) -> float | None:
        if one.kind is not StepKind.LLM or one.call is None:
            return None
        return await self._of(http, trace.rollout.id, _shown(trace, place))

    async def _of(
        self, http: aiohttp.ClientSession, rollout_id: RolloutId, shown: str
    ) -> float | None:
        body = {
            "model": self._args.model,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": self._instruction()},
                {"role": "user", "content": shown},
            ],
        }
        path = None
        if self._cache is not None:
            path = self._cache / f"{_digest(self._args.url, body)}.json"
            if path.exists():
                return float(json.loads(path.read_text(encoding="utf-8"))["score"])
        try:
            async with self._turns:
                said = await self._ask(http, body)
            score = self._score(said)
        except _FAILURES as error:
            self.failures[f"{type(error).__name__}: {error}"] += 1
            return None
        if path is not None:
            _write(path, {"rollout": rollout_id, "score": score, "said": said})
        return score

    def _instruction(self) -> str:
        args = self._args
        scale = f"Answer with one number from {args.lowest:g} to {args.highest:g} and nothing else."
        return f"{args.prompt}\n{scale}"

    async def _ask(self, http: aiohttp.ClientSession, body: dict[str, Any]) -> str:
        key = os.environ.get(self._args.key_env) if self._args.key_env else None
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = self._args.url.rstrip("/") + "/chat/completions"
        async with http.post(url, json=body, headers=headers) as answer:
            answer.raise_for_status()
            return (await answer.json())["choices"][0]["message"]["content"]

    def _score(self, said: str) -> float:
        """The number that the judge said.

        Raises:
            ValueError: it said none, several, or one out of range.
        """
        numbers = _NUMBER.findall(said)
        if len(numbers) != 1 or re.search(r"\d", _NUMBER.sub("", said)):
            raise ValueError(f"it said {said!r:.80}, which is not one number")
        [found] = numbers
        score = float(found)
        if not self._args.lowest <= score <= self._args.highest:
            raise ValueError(f"{score} is out of range")
        return score


def _shown(trace: Trace, place: int) -> str:
    """The task, what was done before, and the answer to judge."""
    lines = ["Task:", json.dumps(trace.rollout.spec.task, ensure_ascii=False), "", "Before:"]
    lines += [f"{one.agent or one.kind.value}: {_told(one)}" for one in trace.transitions[:place]]
    return "\n".join([*lines, "", "Judge this answer:", answer_text(trace.transitions[place])])


def _told(one: Transition) -> str:
    if one.kind is StepKind.LLM:
        return answer_text(one)
    return one.error or json.dumps(one.output, ensure_ascii=False, default=str)


def _digest(url: str, body: dict[str, Any]) -> str:
    text = json.dumps([url, body], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write(path: Path, answer: dict[str, Any]) -> None:
    """Whole or not at all, also where another process writes the same answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_text(json.dumps(answer), encoding="utf-8")
    draft.replace(path)
