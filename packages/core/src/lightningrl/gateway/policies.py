"""The policies that this gateway serves: which one a call means, which version it has, whether it is held.

Invariants:
- Which policy answers a call is declared (alias, `replaces`, `agents`), never guessed; within a run no
  name means two policies.
- A version is on disk before any call is answered under it, and never goes back. A hold is on disk
  too, so a restarted gateway refuses calls of a policy whose hold ran out meanwhile.
- The store's row decides: a change is committed first and then adopted, by this gateway as by every
  other one on the store (`replicas`). An older row never takes the place of a newer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from lightningrl.conversation.rewriting import Rewriter
from lightningrl.errors import ConfigError, Conflict, NotFound
from lightningrl.gateway.asgi import Refusal
from lightningrl.gateway.identity import Contexts
from lightningrl.gateway.sync import Gate, GateState
from lightningrl.schema import AttemptId, Policy, names_of
from lightningrl.store.base import Store
from lightningrl.user_input.names import suggest

_FENCED_SECONDS = 3600.0
"""How long a fenced gate waits at most: calls give up before."""

_TRIES = 10
"""How often a change is decided anew because another gateway changed the policy meanwhile."""


class Served:
    """A policy with its gate."""

    def __init__(self, policy: Policy, gate: Gate) -> None:
        self.policy = policy
        self.rewriter = Rewriter(policy.rules)
        self.gate = gate
        self.lock = asyncio.Lock()
        """Held while the policy changes, so that changes reach the store in order."""

    def take(self, policy: Policy) -> None:
        """Go on as the changed policy says."""
        if policy.rules != self.policy.rules:
            self.rewriter = Rewriter(policy.rules)
        self.policy = policy


class Others(Protocol):
    """The other gateways on the store; see `replicas.Replicas`."""

    async def drained(self, served: Served) -> int | None:
        """Wait until every gateway has drained the policy's hold; return how many calls were stopped.

        `None`: the hold ended before.
        """
        ...

    async def all_drained(self, served: Served) -> bool:
        """Whether every living gateway has drained the policy's hold."""
        ...


class Policies:
    """The table of policies, kept in the store and in memory."""

    def __init__(self, store: Store, contexts: Contexts) -> None:
        self._store = store
        self._contexts = contexts
        self._served: dict[str, dict[str, Served]] = {}
        """Run -> name -> policy."""
        self._registering = asyncio.Lock()
        self._fenced = False
        self.others: Others | None = None
        """The other gateways on the store. `None`: there are none."""

    async def load(self, run: str | None = None) -> None:
        """Do as the store says of the policies of `run`, or of all."""
        self.adopt(await self._store.policies(run), await self._store.now())

    def adopt(self, policies: Sequence[Policy], now: datetime, *, afresh: bool = False) -> None:
        """Hold, open or take up policies as the store's rows say; older rows are passed over.

        Args:
            policies: Rows of the store.
            now: The store's time.
            afresh: Set the gates anew where nothing changed too: what ends a `fence`.
        """
        if afresh:
            self._fenced = False
        if self._fenced:
            return
        for policy in policies:
            served = self._served.get(policy.run, {}).get(policy.name)
            if served is None:
                of_run = self._served.setdefault(policy.run, {})
                served = of_run[policy.name] = Served(policy, Gate(policy.name, self._extend))
                if policy.held_until is None:
                    continue
            elif policy.revision < served.policy.revision or (
                policy == served.policy and not afresh
            ):
                continue
            served.take(policy)
            if policy.held_until is None:
                served.gate.open()
            else:
                served.gate.hold((policy.held_until - now).total_seconds())

    async def fence(self) -> None:
        """Let no call pass, and stop those under way, until rows are adopted afresh."""
        self._fenced = True
        for served in self:
            served.gate.hold(_FENCED_SECONDS)
        await asyncio.gather(*(served.gate.drain(0.0) for served in self))

    async def _extend(self, attempt_ids: list[AttemptId], seconds: float) -> None:
        if attempt_ids:
            await self._store.extend(attempt_ids, seconds)
            self._contexts.extended(attempt_ids, seconds)

    def __iter__(self) -> Iterator[Served]:
        return (served for run in self._served.values() for served in run.values())

    def get(self, run: str, name: str) -> Served:
        """One policy.

        Raises:
            NotFound: it was never registered.
        """
        names = self._served.get(run, {})
        if name not in names:
            raise NotFound(f"run {run!r} has no policy {name!r}.{suggest(name, names)}")
        return names[name]

    # -- which policy a call means -------------------------------------------------------------

    async def resolve(
        self, run: str, model: str, agent: str | None, within: tuple[str, ...] = ()
    ) -> Served:
        """The policy that answers a call for `model` by `agent`, which acts within other agents.

        Raises:
            Refusal: 404, no policy of the run declares that it does.
        """
        found = self._declared(run, model, agent, within)
        if found is None:
            await self.load(run)  # another process may have registered it
            found = self._declared(run, model, agent, within)
        if found is None:
            raise self._undeclared(run, model, names_of(agent, within))
        return found

    def aliases(self, run: str) -> list[str]:
        """The names of a run's policies."""
        return sorted(self._served.get(run, {}))

    def of(self, run: str) -> dict[str, Policy]:
        """A run's policies as they are now, by alias."""
        return {name: served.policy for name, served in self._served.get(run, {}).items()}

    def answered(self, run: str) -> dict[str, Policy]:
        """The model names that a run's policies declare to answer, sorted: their own, and what they replace."""
        policies = [served.policy for served in self._served.get(run, {}).values()]
        names = {name: one for one in policies for name in (one.name, *one.replaces)}
        return dict(sorted(names.items()))

    def answering(self, run: str, model: str) -> Policy | None:
        """The policy that answers a call for `model` by an agent without a name. `None`: none does."""
        found = self._declared(run, model, None)
        return None if found is None else found.policy

    def _declared(
        self, run: str, model: str, agent: str | None, within: tuple[str, ...] = ()
    ) -> Served | None:
        served = self._served.get(run, {})
        policies = list(served.values())
        for name in names_of(agent, within):
            for one in policies:
                if name in one.policy.agents:
                    return one
        if model in served:
            return served[model]
        for one in policies:
            if model in one.policy.replaces:
                return one
        if len(policies) == 1 and not (policies[0].policy.replaces or policies[0].policy.agents):
            return policies[0]
        return None

    def _undeclared(self, run: str, model: str, names: list[str]) -> Refusal:
        aliases = self.aliases(run)
        who = f" (asked for by agent {names[0]!r})" if names else ""
        remedy = (
            f"Its policies are {', '.join(map(repr, aliases))}: ask for one of them by name, or list"
            " the model under the policy's `replaces`, or the agent under its `agents`, in the recipe"
            if aliases
            else "The run has no policy: the trainer registers one before agents start"
        )
        return Refusal(
            404,
            "model_not_found",
            f"no policy of run {run!r} answers for model {model!r}{who}. {remedy}",
            param="model",
        )

    # -- changes -------------------------------------------------------------------------------

    async def register(self, policy: Policy) -> Policy:
        """Create or replace a policy; a hold that is in force stays in force.

        Raises:
            ConfigError: it has no endpoint or no name, an endpoint's URL names a user, or what it holds
                still is no regular expression.
            Conflict: its version is lower than the stored one, or another policy of the run
                answers for the same model or agent name.
        """
        if not policy.endpoints or not policy.name or not policy.run:
            raise ConfigError(
                f"policy {policy.name!r} of run {policy.run!r} needs a run, a name and at least one "
                "endpoint"
            )
        if any("@" in one.url.partition("://")[2].partition("/")[0] for one in policy.endpoints):
            raise ConfigError(
                f"policy {policy.name!r} of run {policy.run!r} has an endpoint with a user or password in"
                " its URL, which no engine is sent and every log would show; give its `key` instead"
            )
        Rewriter(policy.rules)  # raises where its rules can't be followed
        async with self._registering:
            await self.load(policy.run)
            self._refuse_overlap(policy)
            return await self._register(policy)

    async def _register(self, policy: Policy) -> Policy:
        known = self._served.get(policy.run, {}).get(policy.name)
        if known is None:
            await self._store.put_policy(policy)
            self.adopt([policy], await self._store.now())
            return policy
        async with known.lock:
            return await self._change(
                known,
                lambda old: msgspec.structs.replace(
                    policy,
                    held_until=old.held_until,
                    held_since=old.held_since,
                    drain_seconds=old.drain_seconds,
                ),
            )

    def _refuse_overlap(self, policy: Policy) -> None:
        models = {policy.name, *policy.replaces}
        for name, served in self._served.get(policy.run, {}).items():
            if name == policy.name:
                continue
            other = served.policy
            shared = models & {name, *other.replaces} or set(policy.agents) & set(other.agents)
            if shared:
                raise Conflict(
                    f"policies {policy.name!r} and {name!r} of run {policy.run!r} both answer for "
                    f"{', '.join(sorted(map(repr, shared)))}; take it from one of them"
                )

    async def _change(self, served: Served, decide: Callable[[Policy], Policy]) -> Policy:
        """Commit what `decide` makes of the present policy, then do as it says.

        Raises:
            Conflict: the store refuses it, or others change the policy again and again.
        """
        for _ in range(_TRIES):
            old = served.policy
            new = msgspec.structs.replace(decide(old), revision=old.revision + 1)
            try:
                await self._store.put_policy(new, if_was=old)
            except Conflict:
                await self.load(old.run)
                if served.policy == old:
                    raise
                continue
            self.adopt([new], await self._store.now())
            return new
        raise Conflict(
            f"policy {served.policy.name!r} of run {served.policy.run!r} is changed by others all the"
            " time; let one trainer control it"
        )

    async def hold(self, run: str, name: str, *, hold_seconds: float, drain_seconds: float) -> int:
        """Let new calls wait and running ones finish; return how many had to be stopped.

        Holding again renews the lease.

        Raises:
            NotFound: there is no such policy.
            ConfigError: the hold would not outlast the drain.
            Conflict: the hold was released, or ran out, before the drain was done.
        """
        if not 0 <= drain_seconds < hold_seconds:
            raise ConfigError(
                f"hold of policy {name!r}: hold_seconds ({hold_seconds}) must be more than "
                f"drain_seconds ({drain_seconds}), and that at least 0"
            )
        served = self.get(run, name)
        until = await self._store.now() + timedelta(seconds=hold_seconds)

        def held(old: Policy) -> Policy:
            since = old.revision + 1 if old.held_since is None else old.held_since
            return msgspec.structs.replace(
                old, held_until=until, held_since=since, drain_seconds=drain_seconds
            )

        async with served.lock:
            await self._change(served, held)
        if self.others is None:
            stopped = await served.gate.drain(drain_seconds)
        else:
            stopped = await self.others.drained(served)
        if stopped is None or served.gate.state is not GateState.HELD or served.gate.in_flight:
            raise Conflict(
                f"the hold of policy {name!r} of run {run!r} ended before its calls were drained (it"
                f" is {served.gate.state.value} now); don't change its weights, hold it again"
            )
        return stopped

    async def publish(self, run: str, name: str, version: int) -> Policy:
        """The engines now have the weights of `version`: let calls pass under it.

        Publishing the present version of a policy that is not held changes nothing.

        Raises:
            NotFound: there is no such policy.
            Conflict: `version` is not higher than the present one, or calls are still in flight
                under a hold.
        """
        served = self.get(run, name)
        async with served.lock:
            policy = served.policy
            if version == policy.version and served.gate.state is GateState.OPEN:
                return policy
            if version <= policy.version:
                raise Conflict(
                    f"policy {name!r} of run {run!r} has version {policy.version}; {version} can't"
                    " be published after it (a number is never used for two sets of weights);"
                    " publish a higher one, or release the hold if the weights did not change"
                )
            if served.gate.state is GateState.HELD and not await self._is_drained(served):
                raise Conflict(
                    f"policy {name!r} of run {run!r} still has calls in flight; publish when `hold`"
                    " has returned"
                )
            return await self._open(served, version)

    async def release(self, run: str, name: str) -> Policy:
        """The engines still have the weights of the present version: let calls pass.

        Raises:
            NotFound: there is no such policy.
        """
        served = self.get(run, name)
        async with served.lock:
            if served.gate.state is GateState.OPEN:
                return served.policy
            return await self._open(served, served.policy.version)

    async def _is_drained(self, served: Served) -> bool:
        if served.gate.in_flight:
            return False
        return self.others is None or await self.others.all_drained(served)

    async def _open(self, served: Served, version: int) -> Policy:
        """Let calls pass under `version`; another gateway may have done so already."""

        def opened(old: Policy) -> Policy:
            return msgspec.structs.replace(
                old, version=max(version, old.version), held_until=None, held_since=None
            )

        return await self._change(served, opened)
