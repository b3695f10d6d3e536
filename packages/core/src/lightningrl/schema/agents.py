"""By which names an agent is chosen: its own, and those with the agents around it in front."""

from __future__ import annotations

from collections.abc import Container, Sequence


def names_of(agent: str | None, within: Sequence[str] = ()) -> list[str]:
    """The names that mean an agent, the most telling first: `team/maths/agent`, `maths/agent`, `agent`.

    Args:
        agent: its own name. `None`: nobody said, and no name means it.
        within: the agents around it, the outermost first.
    """
    if agent is None:
        return []
    return ["/".join((*within[place:], agent)) for place in range(len(within) + 1)]


def is_among(names: Container[str], agent: str | None, within: Sequence[str] = ()) -> bool:
    """Whether an agent is meant by one of `names`."""
    return any(name in names for name in names_of(agent, within))
