"""An engine in another process, as the trainer asks it over HTTP: does it live, and what does it make of given tokens?"""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence

import msgspec

from lightningrl.errors import RunError

_ANSWER_SECONDS = 600.0
"""Longest time to load weights, or to score."""
_HEALTH_SECONDS = 5.0
"""Longest time to say that it lives, and how often it is asked."""
_DEATHS = 3
"""Questions without an answer after which an engine is given up."""

_SHOWN = 500
"""Characters of a refusal."""

UNANSWERED = (OSError, http.client.HTTPException)
"""What is raised where nobody answers, or an answer breaks off or is no HTTP."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Engines are reached directly, by the gateway as by the trainer."""


class HttpEngine:
    """One engine that serves a policy in vLLM's manner."""

    def __init__(self, what: str, url: str, alias: str, key: str | None = None) -> None:
        """Nothing is asked yet.

        Args:
            what: it is, as errors say: "vLLM server".
            url: without `/v1`.
            alias: of the policy, under which it is served.
            key: `None`: it asks for none.
        """
        self.url = url
        self._what = what
        self._alias = alias
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Sequence[float]:
        """For the probe: log-probs that it computes of a prompt, at temperature 1.

        Raises:
            RunError: it does not answer, refuses, or answers something else.
        """
        ids = [*prompt_ids, *token_ids]
        # A prompt whose log-probs are asked for is computed in full: vLLM takes nothing of it from its cache.
        body = {"model": self._alias, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
        answer = self.ask_now("/v1/completions", body)
        try:
            found = msgspec.json.decode(answer, type=_Completion).choices[0].prompt_logprobs
            return [
                entry[str(token)].logprob
                for token, entry in zip(
                    ids[len(prompt_ids) :], found[len(prompt_ids) :], strict=True
                )
                if entry is not None
            ]
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            said = answer.decode(errors="replace")[:_SHOWN]
            raise RunError(
                f"the {self._what} at {self.url} does not give a prompt's log-probs as vLLM does ({error});"
                f" see its version and log. It answered: {said}"
            ) from error

    async def watch(self) -> None:
        """Never return; raise when it no longer answers.

        Raises:
            RunError: with its address.
        """
        silent = 0
        while True:
            await asyncio.sleep(_HEALTH_SECONDS)
            try:
                await self.ask("/health", seconds=_HEALTH_SECONDS)
                silent = 0
            except RunError as error:
                silent += 1
                if silent == _DEATHS:
                    raise RunError(f"{error}; it is given up") from error

    async def ask(
        self, path: str, body: object = None, *, seconds: float = _ANSWER_SECONDS
    ) -> bytes:
        """Get `path`, or post a body to it.

        Raises:
            RunError: it does not answer, or refuses.
        """
        return await asyncio.to_thread(self.ask_now, path, body, seconds)

    def ask_now(self, path: str, body: object, seconds: float = _ANSWER_SECONDS) -> bytes:
        """As `ask`; blocks."""
        try:
            return send(self.url + path, body, self._headers, seconds)
        except urllib.error.HTTPError as error:
            said = reason(error)[:_SHOWN]
            raise RunError(
                f"the {self._what} at {self.url} refused {path} ({error.code}): {said}"
                f"{self.hint(error.code)}"
            ) from error
        except UNANSWERED as error:
            raise RunError(f"the {self._what} at {self.url} does not answer: {error!r}") from error

    def hint(self, status: int) -> str:  # noqa: ARG002 # what subclasses know
        """What may be wrong where it refuses with an HTTP status."""
        return ""


def send(url: str, body: object, headers: Mapping[str, str], seconds: float) -> bytes:
    """Get a URL of an engine, or post a body to it; no proxy of the environment is asked.

    Raises:
        HTTPError: it refuses; see `reason`.
        OSError, HTTPException: see `UNANSWERED`.
    """
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(url, data, dict(headers))
    with _DIRECT.open(request, timeout=seconds) as response:
        return response.read()


def reason(error: urllib.error.HTTPError) -> str:
    """What an engine says with a refusal."""
    try:
        return error.read().decode(errors="replace")
    except UNANSWERED as broken:
        return f"its answer broke off: {broken!r}"


class _LogProb(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _LogProb] | None]
    """Per token; None for the first. vLLM may name further tokens beside the prompt's own."""


class _Completion(msgspec.Struct):
    choices: list[_Choice]
