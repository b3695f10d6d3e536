"""What the agent's three roles are told, and how their answers are read.

Invariant: plain data and text; each prompt stands for itself and holds no earlier turn, so that a role is shown no more than
it needs.
"""

from __future__ import annotations

import re

Message = dict[str, str]
"""OpenAI's chat form: `role` and `content`."""

WRITER = "Write one SQLite query that answers the question. Answer with the query alone."
CHECKER = (
    "Check whether the SQLite query answers the question. "
    'Answer "correct", or "wrong: " and what is to be changed.'
)
REWRITER = "The SQLite query is wrong. Write a better one. Answer with the query alone."

_FENCED = re.compile(r"```[a-z]*\s(.*?)(?:```|$)", re.DOTALL | re.IGNORECASE)


def to_writer(schema: str, question: str) -> list[Message]:
    """Return the prompt for the first query."""
    return _prompt(WRITER, _facts(schema, question))


def to_checker(schema: str, question: str, query: str, result: str) -> list[Message]:
    """Return the prompt for a verdict on a query that ran."""
    return _prompt(CHECKER, _facts(schema, question, Query=query, Result=result))


def to_rewriter(
    schema: str, question: str, query: str, result: str, verdict: str | None
) -> list[Message]:
    """Return the prompt for a better query; `verdict` is `None` where the query could not be run."""
    told = {} if verdict is None else {"Check": verdict}
    return _prompt(REWRITER, _facts(schema, question, Query=query, Result=result, **told))


def query_in(answer: str) -> str:
    """Return the query that an answer holds: its first fenced block, else all of it."""
    fenced = _FENCED.search(answer)
    return (fenced[1] if fenced else answer).strip().removesuffix(";").strip()


def approves(verdict: str) -> bool:
    """Whether the checker found the query right; a verdict in any other form found it wrong."""
    return verdict.strip().lower().startswith("correct")


def _facts(schema: str, question: str, **more: str) -> str:
    rest = "".join(f"\n{name}: {text}" for name, text in more.items())
    return f"Tables:\n{schema}\nQuestion: {question}{rest}"


def _prompt(system: str, user: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
