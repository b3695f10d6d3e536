"""vLLM servers that others have started: they serve a policy, and take its weights by vLLM's RL interface.

Invariants:
- A server is paused from before the first new weight until its prefix cache is empty, and goes on only when
  every server of the policy has taken the weights.
- Whatever weights a server held before the run, it holds the run's when `open` returns.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import msgspec

from lightningrl.errors import RunError
from lightningrl.recipe import Recipe, VllmServers
from lightningrl.schema import Endpoint
from lightningrl_verl.machine.links import link_or_copy
from lightningrl_verl.serving.endpoint_key import endpoint_key
from lightningrl_verl.serving.http_engine import HttpEngine
from lightningrl_verl.serving.probe import EngineScore
from lightningrl_verl.serving.weight_file import SUFFIX, write_weights
from lightningrl_verl.worker.learner import Learner


class VllmEngines:
    """`Engines` of one policy at its `vllm.urls`."""

    sleeps = False
    can_tell = False

    def __init__(
        self, recipe: Recipe, alias: str, servers: VllmServers, *, model: Path, version: int,
        folder: Path,
    ) -> None:  # fmt: skip
        """Prepare; nothing is asked of the servers before `open`.

        Args:
            recipe: the run's.
            alias: of the policy; the servers must serve it under this name.
            servers: the policy's `vllm`.
            model: Hugging Face folder of the weights to begin with.
            version: of those weights.
            folder: where weights are written if `servers` names no other place.

        Raises:
            ConfigError: the variable that should hold the servers' key is not set.
        """
        self.version = version
        """Of the weights that all servers hold."""
        self._model = model
        self._dtype: Literal["fp32", "bf16"] = recipe.trainer.precision
        self._key = endpoint_key(f"policies.{alias}.vllm.key", servers.key)
        self._servers = [
            _Server("vLLM server", url.rstrip("/"), alias, self._key) for url in servers.urls
        ]
        self._folder = folder if servers.folder is None else Path(servers.folder)
        self._name = f"{recipe.name}-{alias}"
        self._written: list[Path] = []

    async def open(self) -> tuple[Endpoint, ...]:
        """Have every server take the weights that the run begins with.

        Raises:
            RunError: a server is not there, serves another model, or takes no weights from files.
        """
        await asyncio.gather(*(server.check() for server in self._servers))
        shared = await asyncio.to_thread(self._shared_model)
        await self._load(shared, self.version)
        return tuple(Endpoint(f"{server.url}/v1", self._key) for server in self._servers)

    async def sleep(self) -> None:
        """Nothing: their memory is their own."""

    async def take_weights(self, learner: Learner, version: int) -> None:
        """Write the learner's weights to a file, and have every server load it.

        Raises:
            RunError: a server does not answer, or refuses; those that were reached stay paused.
        """
        weights = await learner.call(lambda one: list(one.named_parameters()))
        path = self._folder / f"{self._name}-{version}{SUFFIX}"
        await asyncio.to_thread(write_weights, weights, path, dtype=self._dtype)
        del weights
        await self._load([path], version)
        self.version = version
        self._forget()
        self._written = [path]

    def scorers(self) -> Sequence[EngineScore]:
        """One per server, over HTTP."""
        return [server.score for server in self._servers]

    async def digests(self, names: Sequence[str]) -> Sequence[str]:
        """Not asked for: they can't tell."""
        raise NotImplementedError

    async def prompt_tokens(self) -> None:
        """Theirs are not asked for."""

    async def watch(self) -> None:
        """Never return; raise when a server no longer answers.

        One that was started again would serve the weights that it was started with, so none is waited for.

        Raises:
            RunError: with its address.
        """
        await asyncio.gather(*(server.watch() for server in self._servers))

    def close(self) -> None:
        """Remove what was written; the servers go on with the weights that they have."""
        self._forget()

    async def _load(self, paths: Sequence[Path], version: int) -> None:
        files = [str(path.resolve()) for path in paths]
        await asyncio.gather(*(one.take(files, f"{self._name}/{version}") for one in self._servers))
        await asyncio.gather(*(one.ask("/resume", {}) for one in self._servers))

    def _shared_model(self) -> list[Path]:
        """The model's files where the servers read: copies of them, unless the folder is the run's own."""
        found = sorted(self._model.glob(f"*{SUFFIX}"))
        if not found:
            raise RunError(f"no {SUFFIX} file in {str(self._model)!r} for vLLM to load")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_left()
        for source in found:
            target = self._folder / f"{self._name}-begin-{source.name}"
            link_or_copy(source, target)
            self._written.append(target)
        return list(self._written)

    def _remove_left(self) -> None:
        """Remove what a start of this run that was killed has left; others may use the same folder."""
        own = re.compile(rf"{re.escape(self._name)}-(\d+|begin-.+){re.escape(SUFFIX)}")
        for path in self._folder.iterdir():
            if own.fullmatch(path.name):
                path.unlink()

    def _forget(self) -> None:
        for path in self._written:
            path.unlink(missing_ok=True)
        self._written = []


class _Server(HttpEngine):
    """One vLLM server."""

    async def check(self) -> None:
        """See that it is there, serves the policy, and takes weights.

        Raises:
            RunError: what is missing, and how to start it.
        """
        models = msgspec.json.decode(await self.ask("/v1/models"), type=_Models)
        names = [one.id for one in models.data]
        if self._alias not in names:
            raise RunError(
                f"the vLLM server at {self.url} serves {names}, not the policy {self._alias!r}; start it"
                f" with --served-model-name {self._alias}"
            )
        await self.ask("/init_weight_transfer_engine", {"init_info": {}})

    async def take(self, files: Sequence[str], label: str) -> None:
        """Pause, load, forget the keys and values of the old weights; it stays paused.

        Raises:
            RunError: it does not answer, or refuses.
        """
        # The gateway has drained its calls; whatever else runs may not mix the weights of two versions.
        await self.ask("/pause?mode=abort", {})
        await self.ask("/start_weight_update", {})
        await self.ask("/update_weights", {"update_info": {"paths": list(files)}})
        await self.ask("/finish_weight_update", {"weight_version": label})
        await self.ask("/reset_prefix_cache", {})

    def hint(self, status: int) -> str:
        """How it must be started."""
        if status == HTTPStatus.NOT_FOUND:
            return "; its routes for training exist only with VLLM_SERVER_DEV_MODE=1 in its environment"
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return (
                "; its log says why. It must be started with --weight-transfer-config"
                ' \'{"backend": "lightningrl_files"}\', and again if an update was broken off'
            )
        return ""


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]
