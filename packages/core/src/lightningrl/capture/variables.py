"""The environment variables by which model clients find a server: ours while agents run, the user's beside them.

Invariant: a key of an attempt is given to a child process alone (`capture.environment`, a command). In a runner's own
process a placeholder stands, and what the user had set there is found under `LIGHTNINGRL_USER_*`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from lightningrl.capture.context import RolloutContext
from lightningrl.settings import KEPT_PREFIX

PLACEHOLDER_KEY = "lightningrl-placeholder"
"""What the variables of keys say in a runner: calls outside a rollout arrive with it, and are refused."""
USER_PREFIX = KEPT_PREFIX

OPENAI_URLS = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
"""What openai's clients read, LangChain, LlamaIndex and LiteLLM; ends in `/v1`."""
ANTHROPIC_URLS = ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_URL", "ANTHROPIC_API_BASE")
"""What Anthropic's clients read, LangChain and LiteLLM; they append `/v1` themselves."""
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")
TOKENS = ("ANTHROPIC_AUTH_TOKEN",)
"""Sent beside a key where they are set, so they are replaced, and never added."""
NAMES = (*OPENAI_URLS, *ANTHROPIC_URLS, *KEYS, *TOKENS)
_pointed_at: str | None = None
_NO_PROXY = ("NO_PROXY", "no_proxy")


def point_at(server_url: str) -> None:
    """Make this process a runner's: its clients find the server, under a placeholder."""
    global _pointed_at
    for name in NAMES:
        given = os.environ.get(name)
        if given and given != PLACEHOLDER_KEY:
            os.environ.setdefault(f"{USER_PREFIX}{name}", given)
    _pointed_at = f"{server_url.rstrip('/')}/v1"
    os.environ.update(_variables(_pointed_at, PLACEHOLDER_KEY, os.environ))


def runners_url() -> str | None:
    """The base URL that clients of this process got, ends in `/v1`. `None`: it is no runner's."""
    return _pointed_at


def users(*names: str) -> str | None:
    """What the user had set, under the first of these names that has a value."""
    given = (os.environ.get(f"{USER_PREFIX}{name}") for name in names)
    return next((one for one in given if one), None)


def take_changed() -> dict[str, str]:
    """Put back what a module of the user's has changed since `point_at`; those values are the user's from now on.

    Returns:
        Name -> value of the base URLs among them. Clients that were made meanwhile may keep them.
    """
    if _pointed_at is None:
        return {}
    ours = _variables(_pointed_at, PLACEHOLDER_KEY, os.environ)
    changed = {
        one: os.environ[one] for one in NAMES if os.environ.get(one, "") not in ("", ours.get(one))
    }
    for name, value in changed.items():
        os.environ[f"{USER_PREFIX}{name}"] = value
    os.environ.update(ours)
    return {one: value for one, value in changed.items() if one in (*OPENAI_URLS, *ANTHROPIC_URLS)}


def for_attempt(context: RolloutContext) -> dict[str, str]:
    """What a child process needs, beside this process's environment, to make model calls of the attempt."""
    told = _variables(context.attempt_url, context.key, os.environ)
    return {**told, "LIGHTNINGRL_ATTEMPT_URL": context.attempt_url}


def _variables(base_url: str, key: str, given: Mapping[str, str]) -> dict[str, str]:
    """All that clients read, for a base URL that ends in `/v1`."""
    host = urlsplit(base_url).hostname or ""
    hosts = [one.strip() for name in _NO_PROXY for one in given.get(name, "").split(",")]
    direct = ",".join(dict.fromkeys(one for one in (*hosts, host) if one))
    return {
        **dict.fromkeys(OPENAI_URLS, base_url),
        **dict.fromkeys(ANTHROPIC_URLS, base_url.removesuffix("/v1")),
        **dict.fromkeys(KEYS, key),
        **{name: key for name in TOKENS if given.get(name)},
        **dict.fromkeys(_NO_PROXY, direct),
    }
