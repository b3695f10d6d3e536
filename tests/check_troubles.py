"""The page of troubles, made from the checks: what is seen, what it comes from, what to do, and the command.

Invariant: pure but for the cases, which `check_cases` runs; cause and remedy are the checks' own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from check_cases import VARYING, Case, Said, ask

from lightningrl.capture.context import step
from lightningrl.checks import (
    CHECKS,
    SYMPTOMS,
    Engine,
    Evidence,
    Finding,
    Operations,
    Place,
    examine,
)
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Policy,
    RolloutId,
    StepKind,
)

HEAD = """\
# Troubleshooting

```bash
lightningrl doctor RUN                                                # a run that trains or has ended
lightningrl try recipe.yaml --policy http://127.0.0.1:8000/v1         # an agent, before anything is trained
```

Both say what is wrong, with evidence and a remedy. Find here what you see, or the name that they print. [The checks](reference/checks.md) has exit codes
and every case that is tested.
"""


async def _beside_its_step(task: Mapping[str, str]) -> str:
    with step(StepKind.LLM, "policy"):
        pass
    return await ask(task["question"])


UNJOINED = Case(
    "unjoined calls", "opened a model's step, and called the model outside of it", _beside_its_step
)
"""As an adapter does that does not know the client."""

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_LATE = Attempt(
    AttemptId("a-1"), RolloutId("o-1"), 1, AttemptState.RUNNING, "w-1", _NOW - timedelta(seconds=90),
    _NOW - timedelta(seconds=120), None, None, None,
)  # fmt: skip
_QUEUED = Operations(_NOW, 12, (), (), (), ())
_HELD = Policy("policy", "RUN", 3, (), held_until=_NOW - timedelta(seconds=60))
_DOWN = Engine("policy", "http://127.0.0.1:8000/v1", "it can't be reached")
_OPERATIONS = (
    ("no runner", "no process runs the agent", _QUEUED),
    ("expired lease", "the server was stopped", replace(_QUEUED, running=(_LATE,))),
    ("engine down", "an engine was stopped", replace(_QUEUED, engines=(_DOWN,))),
    (
        "gateway held",
        "the trainer was stopped in a weight sync",
        replace(_QUEUED, policies=(_HELD,)),
    ),
)
"""A kind of a run under way, what happened, and what doctor is then told."""


_LOOK_AGAIN = {
    Place.TRY: "`lightningrl try recipe.yaml --policy URL`",
    Place.DOCTOR: "`lightningrl doctor RUN`",
}


def operational() -> Iterator[tuple[Case, Said]]:
    """The kinds of a run under way, each with what is said of it."""
    for kind, did, operations in _OPERATIONS:
        found = examine(Evidence("RUN", (), operations=operations), Place.DOCTOR)
        [finding] = [one for one in found if one.kind == kind]
        yield Case(kind, did, ask), {Place.DOCTOR: finding}


def happened(case: Case) -> str:
    """The line of what a user did."""
    return f"- {case.did}"


def said_of(finding: Finding) -> str:
    """What is printed, without what changes from run to run."""
    return f"> {fixed(finding.evidence)}"


def remedied(finding: Finding) -> str:
    """The paragraph of what to do."""
    return f"**Do this.** {_sentence(fixed(finding.remedy))}"


def fixed(text: str) -> str:
    """One line, with `...` in the place of ids."""
    line = " ".join(text.split())
    for varying, shown in VARYING.items():
        line = re.sub(varying, shown, line)
    return re.sub(r"--rollout \S+", "--rollout ID", line).replace("*", "\\*")


def section(kind: str, seen: Sequence[tuple[Case, Said]]) -> str:
    """One kind's part of the page."""
    checks = [one for one in CHECKS if one.kind == kind]
    causes = dict.fromkeys(_cause(one.look.__doc__ or "") for one in checks)
    findings = [finding for _, said in seen for finding in said.values()]
    places = [place for place in Place if any(place in one.places for one in checks)]
    again = " or ".join(_LOOK_AGAIN[one] for one in places if one in _LOOK_AGAIN)
    example = "For example:" if places == [Place.DOCTOR] else "For example, somebody"
    levels = " or ".join(sorted({one.level.value for one in findings}))
    parts = [
        f"## {SYMPTOMS[kind]}",
        f"{_listed(places)} this `{kind}`, a {levels}.",
        f"**Why.** {' '.join(causes)} {example}",
        "\n".join(happened(case) for case, _ in seen),
        "**The message.**",
        said_of(findings[0]),
        *dict.fromkeys(map(remedied, findings)),
        f"**Then look again**: {again}.",
    ]
    return "\n\n".join(parts) + "\n"


def _listed(places: Sequence[Place]) -> str:
    names = [f"`{place}`" for place in places]
    return (
        f"{names[0]} calls" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} call"
    )


def _cause(docstring: str) -> str:
    return _sentence(docstring.strip().splitlines()[0])


def _sentence(text: str) -> str:
    command = text.startswith("lightningrl ")
    whole = text if command else text[:1].upper() + text[1:]
    return whole if whole.endswith((".", "?", "!")) else f"{whole}."


def page(seen: Sequence[tuple[Case, Said]]) -> str:
    """The whole page; every kind in the order of the checks."""
    kinds = dict.fromkeys(one.kind for one in CHECKS)
    sections = [section(kind, [one for one in seen if one[0].kind == kind]) for kind in kinds]
    return "\n".join([HEAD, *sections])
