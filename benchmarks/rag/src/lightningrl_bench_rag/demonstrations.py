"""Demonstrations: the agent's own dialogues with the real search, some with a slip, most slips mended.

A slip is a search that is too short, for the wrong relation or for the wrong entity, or an answer that is read off too
early or from the wrong passage. Without slips a policy never sees what to do after one, and reinforcement learning has no
mended one to reward.

Invariants, each checked by a test: a dialogue's messages and tools are what `agent.solve` sends when a model answers so; it is
about a training question; an unmended slip is the only thing that makes its answer wrong.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from lightningrl_bench_rag.prompts import INSTRUCTIONS, TOOL
from lightningrl_bench_rag.search import Index, index_of
from lightningrl_bench_rag.tasks import Level, Question, draw
from lightningrl_bench_rag.world import RELATIONS, Kind, corpus_of, query, world

Message = dict[str, Any]

SILENT_SHARE = 0.2
"""Share of slips that are a wrong answer; all others are a poor search that the right one follows."""


def demonstrations(
    count: int, seed: int, slips: float = 0.2, level: Level = 1
) -> Iterator[dict[str, Any]]:
    """Yield `count` demonstrations, for `policies.NAME.warm_start`.

    Args:
        count: how many.
        seed: of the questions and of their corpus; the same arguments give the same ones.
        slips: share of dialogues that have a slip, 0 to 1. 0: all are clean.
        level: of the questions.

    Raises:
        ValueError: `slips` is no share.
    """
    if not 0 <= slips <= 1:
        raise ValueError(f"slips must be between 0 and 1, got {slips}")
    rng = random.Random(f"demonstrations/{seed}")
    index = index_of(corpus_of("train", seed))
    for number in range(count):
        question = draw("train", seed, level, rng)
        slip = ""
        if rng.random() < slips:
            slip = "answer" if rng.random() < SILENT_SHARE else "search"
        yield {
            "id": f"{seed}-{number}",
            "messages": _messages(question, slip, index, seed, rng),
            "tools": [TOOL],
        }


def _messages(
    question: Question, slip: str, index: Index, seed: int, rng: random.Random
) -> list[Message]:
    messages: list[Message] = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": question.text},
    ]
    shown, answer = question.queries, question.entities[-1]
    if slip == "answer":
        shown = shown[: rng.randint(1, len(shown))]
        answer = _wrong_answer(question, len(shown), index, seed)
    poor = rng.randrange(len(shown)) if slip == "search" else None
    for hop, asked in enumerate(shown):
        if hop == poor:
            _search(messages, _poor_query(question, hop, seed, rng), index)
        _search(messages, asked, index)
    messages.append({"role": "assistant", "content": answer})
    return messages


def _poor_query(question: Question, hop: int, seed: int, rng: random.Random) -> str:
    """A search in place of the right one: without the relation, for another one, or for another entity."""
    relation, entity = question.chain[hop], question.entities[hop]
    entities = world("train", seed).entities
    kind: Kind = next(kind for kind in RELATIONS if entity in entities[kind])
    others = [
        entity,
        query(rng.choice([one for one in RELATIONS[kind] if one != relation]), entity),
        query(relation, rng.choice([one for one in entities[kind] if one != entity])),
    ]
    return rng.choice(others)


def _wrong_answer(question: Question, searched: int, index: Index, seed: int) -> str:
    """What a hasty reader writes: the last value so far, or, at the end, another name in the last passages."""
    if searched < len(question.chain):
        return question.entities[searched]
    text = index.answer(question.queries[-1])
    return next(name for name in _names_in(text, seed) if name not in question.entities[-2:])


def _names_in(text: str, seed: int) -> Sequence[str]:
    """The entities that a text names, in its order."""
    named = [one for some in world("train", seed).entities.values() for one in some if one in text]
    return sorted(named, key=text.index)


def _search(messages: list[Message], asked: str, index: Index) -> None:
    """Add a search and what the tool says to it."""
    identifier = f"call-{len(messages)}"
    function = {"name": "search", "arguments": json.dumps({"query": asked})}
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": identifier, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": identifier, "content": index.answer(asked)},
    ]
