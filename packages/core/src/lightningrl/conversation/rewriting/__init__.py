"""What is changed in a request before an engine sees it: pure, in one fixed order, each change named.

The gateway decides by a policy's rules (`Rewriter`); whoever reads a record does the recorded changes again
(`as_sent`). Invariants:

- `as_sent(asked, rewritten.rewrites)` is `rewritten.fields`: the agent's own body and the recorded rewrites
  say what the engine was asked, whatever the rules are by then.
- A rewrite that changes nothing, now or later, is not named. What a name means never changes; a new meaning gets
  a new name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from lightningrl.conversation.rewriting import free, hosted, pins, values
from lightningrl.conversation.rewriting import roles as places
from lightningrl.conversation.rewriting.fields import MESSAGES, Fields, raw, roles_of
from lightningrl.conversation.rewriting.thoughts import REASONING_RESTORED, Thoughts, may_lack
from lightningrl.schema import Dialect, Rewrite, RewriteRules
from lightningrl.user_input.patterns import compiled

HOSTED_TOOLS = "hosted_tools"
"""Tools that the service would run are left out; `by` has their types."""
LEFT_OUT = "left_out"
"""Fields that say nothing are left out; `by` names them."""
NO_THINKING = "no_thinking"
"""`enable_thinking: false`, the service's default, is said to a template that thinks by its own."""
TEMPLATE_VARIABLES = "template_variables"
"""Variables of the chat template are set that the request does not set; `by` has them."""
HELD_STILL = "held_still"
"""Texts that match a pattern are what they were at first; `by` has them, pattern -> texts."""
FREE_CHOICE = "free_choice"
"""A tool that must be called becomes one that may be."""
FORMAT_IN_WORDS = "format_in_words"
"""The form that the answer must have is said at the end of the instructions."""
IN_WORDS = frozenset({FREE_CHOICE, FORMAT_IN_WORDS})
"""Those by which an answer's form is asked for instead of forced."""
ROLES = "roles"
"""Messages get a role that the template has; `by` maps the old to the new."""
ONE_INSTRUCTION = "one_instruction"
"""The instructions that a conversation begins with are one message."""
ALONE_AS_USER = "alone_as_user"
"""The last of those is the user's message, since none follows."""
LATER_AS_USER = "later_as_user"
"""Instructions after the beginning are the user's messages."""


def _without_thinking(fields: Fields, by: Any = None) -> Fields:
    del by
    return {**fields, _VARIABLES: raw({_THINKING: False})}


_VARIABLES = values.VARIABLES
_THINKING = "enable_thinking"

_STEPS: Mapping[str, Callable[[Fields, Any], Fields]] = {
    HOSTED_TOOLS: hosted.without,
    LEFT_OUT: values.without,
    NO_THINKING: _without_thinking,
    TEMPLATE_VARIABLES: values.with_variables,
    HELD_STILL: pins.hold,
    FREE_CHOICE: free.with_free_choice,
    FORMAT_IN_WORDS: free.with_format_in_words,
    ROLES: places.with_roles,
    ONE_INSTRUCTION: places.with_one_instruction,
    ALONE_AS_USER: places.with_user_alone,
    LATER_AS_USER: places.with_user_later,
}
"""Name -> what is done, in the order in which it is done."""


class Rewritten(NamedTuple):
    """A request as the engine gets it."""

    fields: Fields
    rewrites: tuple[Rewrite, ...]
    """What was changed, in order."""
    demand: free.Demand | None = None
    """What the answer must be, though nothing forces it. `None`: anything goes, or the engine forces it."""


class Rewriter:
    """Rewrites the requests to one policy."""

    def __init__(self, rules: RewriteRules) -> None:
        """Get ready to rewrite.

        Raises:
            ConfigError: what should be held still is no regular expression.
        """
        self.rules = rules
        self._pins = compiled(rules.pin, key=pins.PIN)
        self._reads_roles = rules != RewriteRules(
            thinks=rules.thinks,
            pin=rules.pin,
            free=rules.free,
            drop_hosted=rules.drop_hosted,
            variables=rules.variables,
            put_back=rules.put_back,
        )
        self._settled = frozenset(places.TURNS).difference(rules.lost, rules.roles)
        self._first = frozenset({"system"}).difference(rules.lost, rules.roles)

    def remembers(self, asked: Fields) -> bool:
        """Whether a request's rewrites depend on the agent's calls before, in the same attempt."""
        return bool(self._pins) or (self.rules.put_back and may_lack(asked))

    def rewrite(
        self,
        asked: Fields,
        dialect: Dialect,
        held: pins.Held | None = None,
        thoughts: Thoughts | None = None,
    ) -> Rewritten:
        """A chat request, which was read from `dialect`, as the engine is to get it.

        Args:
            asked: the request.
            dialect: what the agent speaks.
            held: what the agent's calls before held still (`hold_also`). `None`: there were none.
            thoughts: the reasoning of the answers that it got. `None`: there is none.

        Raises:
            Malformed: the template would leave out a message, a tool must be chosen and there is none, nobody here
                runs a tool, or what is asked of the answer can't be read.
        """
        types, kept = hosted.kinds(asked), asked
        if types:
            if not self.rules.drop_hosted:
                raise hosted.refusal(asked)
            kept = hosted.without(asked, types)
        demand = free.demanded(kept) if self.rules.free and MESSAGES in kept else None
        rewrites = self._decided(kept, dialect, held or {}, thoughts, demand)
        if types:
            rewrites = (Rewrite(HOSTED_TOOLS, types), *rewrites)
        return Rewritten(as_sent(asked, rewrites, thoughts), rewrites, demand)

    def _decided(
        self,
        asked: Fields,
        dialect: Dialect,
        held: pins.Held,
        thoughts: Thoughts | None,
        demand: free.Demand | None,
    ) -> tuple[Rewrite, ...]:
        found: list[Rewrite] = []
        if idle := values.idle(asked):
            found.append(Rewrite(LEFT_OUT, idle))
        found += self._variables_of(asked, dialect)
        found += self._remembered(asked, held, thoughts)
        if demand is not None and demand.tools is not None:
            found.append(Rewrite(FREE_CHOICE))
        in_words = demand is not None and demand.format is not None and roles_of(asked) is not None
        if in_words:
            found.append(Rewrite(FORMAT_IN_WORDS))
        roles = roles_of(asked) if self._reads_roles else None
        if roles is not None and in_words:
            roles = free.with_instructions(roles)
        if roles is not None and not self._is_settled(roles):
            found += self._placed(roles)
        return tuple(found)

    def _variables_of(self, asked: Fields, dialect: Dialect) -> list[Rewrite]:
        """The rewrites of the chat template's variables."""
        rules, found = self.rules, list[Rewrite]()
        unsaid = dialect is Dialect.ANTHROPIC and _VARIABLES not in asked
        if rules.thinks and unsaid and _THINKING not in rules.variables:
            found.append(Rewrite(NO_THINKING))
        if rules.variables and MESSAGES in asked:
            unset = values.unset(asked, rules.variables)
            if unset:
                found.append(Rewrite(TEMPLATE_VARIABLES, unset))
        return found

    def _remembered(
        self, asked: Fields, held: pins.Held, thoughts: Thoughts | None
    ) -> list[Rewrite]:
        """The rewrites by what the agent's calls before were."""
        found: list[Rewrite] = []
        texts = pins.held(asked, self._pins, held) if self._pins else {}
        if thoughts is not None and self.rules.put_back:
            missing = thoughts.missing_in(pins.hold(asked, texts) if texts else asked)
            if missing is not None:
                found.append(Rewrite(REASONING_RESTORED, missing))
        if texts:
            found.append(Rewrite(HELD_STILL, texts))
        return found

    def _is_settled(self, roles: list[str]) -> bool:
        """Whether no rule is for these: perhaps a system message, a user's, then turns. Most calls' are such."""
        turns = roles[1:] if roles and roles[0] in self._first else roles
        return turns[:1] == ["user"] and self._settled.issuperset(turns)

    def _placed(self, roles: list[str]) -> list[Rewrite]:
        """The rewrites of roles and places; each sees the roles as the former ones left them."""
        rules, found = self.rules, list[Rewrite]()
        if names := places.renamed(roles, rules):
            found.append(Rewrite(ROLES, names))
            roles = [names.get(role, role) for role in roles]
        if places.is_merged(roles, rules):
            found.append(Rewrite(ONE_INSTRUCTION))
            roles = [roles[0], *roles[places.beginning(roles) :]]
        if places.is_alone(roles, rules):
            found.append(Rewrite(ALONE_AS_USER))
            roles = places.alone_as_user(roles)
        if places.has_later(roles, rules):
            found.append(Rewrite(LATER_AS_USER))
            roles = places.later_as_user(roles)
        if rules.lost:
            places.refuse_lost(roles, rules.lost)
        return found


def hold_also(held: pins.Held, rewrites: Iterable[Rewrite]) -> None:
    """Add to what an agent's calls hold still what the next of them does; what was first stays."""
    for rewrite in rewrites:
        if rewrite.name == HELD_STILL:
            for pattern, texts in rewrite.by.items():
                kept = held.setdefault(pattern, [])
                kept += texts[len(kept) :]


def set_variables(rewrites: Iterable[Rewrite]) -> frozenset[str]:
    """The chat template's variables that the gateway set where the agent's request had none."""
    names: set[str] = set()
    for rewrite in rewrites:
        if rewrite.name == NO_THINKING:
            names.add(_THINKING)
        elif rewrite.name == TEMPLATE_VARIABLES:
            names |= rewrite.by.keys()
    return frozenset(names)


def as_sent(asked: Fields, rewrites: Iterable[Rewrite], thoughts: Thoughts | None = None) -> Fields:
    """A chat request with its recorded rewrites done again; `thoughts` are of the agent's calls before.

    Raises:
        Malformed: a rewrite names a call that is not among `thoughts`.
        ValueError: a rewrite is of a later version of LightningRL.
    """
    for rewrite in rewrites:
        if rewrite.name == REASONING_RESTORED:
            asked = (thoughts or Thoughts()).put_back(asked, rewrite.by)
            continue
        step = _STEPS.get(rewrite.name)
        if step is None:
            raise ValueError(
                f"the rewrite {rewrite.name!r} is unknown here; read this record with a newer LightningRL"
            )
        asked = step(asked, rewrite.by)
    return asked


def as_held(asked: Fields, rewrites: Iterable[Rewrite]) -> Fields:
    """A chat request with what was held still in it, and as it was asked else: so conversations are compared."""
    return as_sent(asked, [one for one in rewrites if one.name == HELD_STILL])
