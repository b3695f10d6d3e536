"""Several `torch` engines for one policy, each a process of its own on this machine.

Invariants:
- The weights that are served stand in one file, which every replica loads, so that one that was killed comes
  back with the same weights under the same version, at the same port.
- A sync ends only when every replica has taken the weights; a replica that can't be kept running ends the run.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from lightningrl.errors import RunError
from lightningrl.recipe import Recipe
from lightningrl.schema import Endpoint
from lightningrl_verl.engine.load import engine_settings
from lightningrl_verl.engine.replica import KEY, Digest, ReplicaSettings, Score, TakeWeights
from lightningrl_verl.machine.links import link_or_copy
from lightningrl_verl.machine.listening import Listening
from lightningrl_verl.machine.processes import Child, python_module
from lightningrl_verl.serving.http_engine import UNANSWERED, reason, send
from lightningrl_verl.serving.probe import EngineScore
from lightningrl_verl.serving.prompt_tokens import PromptTokens, total
from lightningrl_verl.serving.weight_file import write_weights
from lightningrl_verl.worker.learner import Learner

_Answer = TypeVar("_Answer")

_MODULE = "lightningrl_verl.engine.replica"

_PAUSE_SECONDS = 0.5
"""Between two tries to reach a replica that is being started again."""
_ANSWER_SECONDS = 600.0
"""Longest time to load weights, or to score."""


class Replicas:
    """`Engines` in processes of their own."""

    sleeps = False
    can_tell = True

    def __init__(
        self, recipe: Recipe, alias: str, *, model: Path, version: int, place: Path, logs: Path
    ) -> None:
        """Prepare; the processes start with `open`.

        Args:
            recipe: the run's.
            alias: of the policy.
            model: Hugging Face folder of the weights; it may go while they are served.
            version: of those weights.
            place: folder for the weights that they serve.
            logs: folder of what they print.
        """
        self.version = version
        """Of the weights that all replicas hold."""
        self._recipe = recipe
        self._alias = alias
        self._own = place
        self._model = self._own / "model"
        # A checkpoint is removed when newer ones are there.
        shutil.copytree(model, self._model, copy_function=link_or_copy)
        self._newer: tuple[str, int] | None = None
        self._base_version = version
        self._key = secrets.token_urlsafe(24)
        self._logs = logs
        self._replicas: list[_Replica] = []

    async def open(self) -> tuple[Endpoint, ...]:
        """Start the processes, and wait until all serve."""
        for number in range(self._recipe.engine.replicas):
            name = f"engine-{self._alias}-{number}"
            replica = _Replica(name, self._settings, self._logs / f"{name}.log", self._key)
            self._replicas.append(replica)
            replica.child.start()
        urls = await asyncio.gather(*(replica.ready() for replica in self._replicas))
        return tuple(Endpoint(f"{url}/v1") for url in urls)

    async def sleep(self) -> None:
        """Nothing: their memory is their own."""

    async def take_weights(self, learner: Learner, version: int) -> None:
        """Write the learner's weights to a file, and have every replica load it.

        Raises:
            RunError: a replica refuses them, or can't be kept running.
        """
        weights = await learner.call(lambda one: list(one.named_parameters()))
        path = self._own / f"version-{version}.safetensors"
        await asyncio.to_thread(write_weights, weights, path)
        before, self._newer = self._newer, (str(path), version)
        await asyncio.gather(*(replica.take(path, version) for replica in self._replicas))
        self.version = version
        if before is not None:
            Path(before[0]).unlink()

    def scorers(self) -> Sequence[EngineScore]:
        """One per replica, over HTTP."""
        return [replica.score for replica in self._replicas]

    async def digests(self, names: Sequence[str]) -> Sequence[str]:
        """One per replica, over HTTP.

        Raises:
            RunError: one is not there, or refuses.
        """
        return await asyncio.gather(
            *(asyncio.to_thread(one.digest, names) for one in self._replicas)
        )

    async def prompt_tokens(self) -> PromptTokens | None:
        """Of all replicas; `None` while one is being started again."""
        try:
            return total(
                await asyncio.gather(*(asyncio.to_thread(one.counted) for one in self._replicas))
            )
        except UNANSWERED:
            return None

    async def watch(self) -> None:
        """Never return; raise when a replica is given up.

        Raises:
            RunError: with its last lines.
        """
        done, _ = await asyncio.wait(
            [replica.child.failure for replica in self._replicas],
            return_when=asyncio.FIRST_COMPLETED,
        )
        for one in done:
            one.result()

    def close(self) -> None:
        """End the processes."""
        for replica in self._replicas:
            replica.child.stop()
        shutil.rmtree(self._own, ignore_errors=True)

    def _settings(self, port: int, pipe: int) -> ReplicaSettings:
        return ReplicaSettings(
            model=str(self._model.resolve()),
            engine=engine_settings(self._recipe, self._alias),
            name=self._alias,
            tool_parser=self._recipe.policies[self._alias].tool_parser,
            version=self._base_version,
            newer=self._newer,
            port=port,
            parent_fd=pipe,
        )


class _Replica:
    """One process, which is started again at the port that it had first."""

    def __init__(
        self, name: str, settings: Callable[[int, int], ReplicaSettings], log: Path, key: str
    ) -> None:
        self._key = key
        self._at = Listening()
        self.child = Child(
            name,
            lambda pipe: python_module(
                _MODULE, msgspec.json.encode(settings(self._at.port, pipe)).decode()
            ),
            log=log,
            environment={KEY: key},
            on_line=self._at.read,
        )

    async def ready(self) -> str:
        """Its URL, once it serves.

        Raises:
            RunError: it can't be kept running.
        """
        await asyncio.wait([self._at.url, self.child.failure], return_when=asyncio.FIRST_COMPLETED)
        if self.child.failure.done():
            self.child.failure.result()
        return self._at.url.result()

    async def take(self, path: Path, version: int) -> None:
        """Have it load weights; one that is being started again is waited for.

        Raises:
            RunError: it refuses them, or can't be kept running.
        """
        body = TakeWeights(str(path.resolve()), version)
        while True:
            try:
                await asyncio.to_thread(self._post, "/replica/weights", body)
            except UNANSWERED:  # it is dead, or not yet listening
                done, _ = await asyncio.wait([self.child.failure], timeout=_PAUSE_SECONDS)
                for failed in done:
                    failed.result()
            else:
                return

    def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Sequence[float]:
        """For the probe.

        Raises:
            RunError: it is not there, or refuses.
        """
        body = Score(list(prompt_ids), list(token_ids))
        return self._asked("/replica/score", body, list[float], "log-probs")

    def digest(self, names: Sequence[str]) -> str:
        """For the probe.

        Raises:
            RunError: it is not there, or refuses.
        """
        return self._asked("/replica/digest", Digest(list(names)), str, "a digest")

    def _asked(self, path: str, body: msgspec.Struct, kind: type[_Answer], what: str) -> _Answer:
        try:
            return msgspec.json.decode(self._post(path, body), type=kind)
        except UNANSWERED as error:
            raise RunError(f"the {self.child.name} does not answer: {error!r}") from error
        except msgspec.DecodeError as error:
            raise RunError(f"the {self.child.name} does not answer with {what}: {error}") from error

    def counted(self) -> PromptTokens:
        """Of its statistics.

        Raises:
            OSError, HTTPException: it can't be reached, or broke off.
        """
        answer = send(f"{self._at.url.result()}/stats", None, {}, _ANSWER_SECONDS)
        return msgspec.json.decode(answer, type=PromptTokens)

    def _post(self, path: str, body: msgspec.Struct) -> bytes:
        """Post a body to the replica.

        Raises:
            RunError: it refuses.
            OSError, HTTPException: it can't be reached, or broke off.
        """
        headers = {"authorization": f"Bearer {self._key}"}
        try:
            return send(self._at.url.result() + path, body, headers, _ANSWER_SECONDS)
        except urllib.error.HTTPError as error:
            raise RunError(f"the {self.child.name} refused {path}: {reason(error)}") from error
