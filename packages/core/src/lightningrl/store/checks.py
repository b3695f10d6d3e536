"""Is a store in order? The rules that its tables can't state, looked at one by one."""

from __future__ import annotations

import msgspec

from lightningrl.schema import AttemptId
from lightningrl.store import event_log
from lightningrl.store.compression import Damaged
from lightningrl.store.session import Session

_RULES = {
    "broken_running": "a rollout runs if and only if one attempt of it does; not so",
    "broken_success": "a rollout succeeded if and only if one attempt of it did; not so",
    "broken_attempt_count": "the number of attempts noted is not the number that is there:",
    "broken_completion": "a rollout is complete once it ended and awaits no reward; not so",
    "broken_order": "rollouts are complete without a place in the order of completion:",
    "attempts_without_rollout": "attempts whose rollout is not there:",
    "events_without_attempt": "events whose attempt is not there:",
    "broken_base": "calls that continue what is no earlier call of their attempt:",
    "broken_take": "the ledger gave rollouts to an iteration that they are not of, or unsucceeded ones:",
    "broken_group": "the ledger took groups without giving a rollout of them:",
}
"""Statement of `checks.sql` -> what is wrong with the ids that it lists."""


def problems(session: Session) -> list[str]:
    """What is not in order, a sentence each; [] is a sound store.

    Reads everything, so it takes a while on a large store.
    """
    found: list[str] = []
    for name, sentence in _RULES.items():
        ids = [ident for (ident,) in session.rows(name)]
        if ids:
            found.append(f"{sentence} {', '.join(map(repr, ids))}")
    return found + _unreadable(session)


def _unreadable(session: Session) -> list[str]:
    found: list[str] = []
    after = 0
    while page := session.rows("attempts_after", after=after):
        after = page[-1][0]
        for _, ident in page:
            try:
                event_log.read(session, AttemptId(ident))
            except (msgspec.MsgspecError, Damaged, KeyError) as error:
                found.append(f"the events of attempt {ident!r} can't be read: {error!r}")
    return found
