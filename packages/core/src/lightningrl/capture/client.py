"""Sends the model calls of a rollout to the gateway, whoever built the client and when.

The SDKs `openai` and `anthropic` come of one generator: in each one private method is wrapped,
`_base_client.BaseClient._build_request`, through which every request of every client passes (sync, async,
streamed, retried), with the same signature since openai 1.66 and anthropic 0.49. Lower layers differ:
openai 3 left httpx for httpx2.

Invariant: inside a rollout a request is sent to the gateway only if its client's base URL is the server's
placeholder, or its model is an alias of the run. Every other request leaves as the agent made it, and
is named in the attempt's log. Where a runner's process put its URL and a placeholder in the place of the user's, a
request that is not the policy's (another route, a reward function's) leaves with the user's. Outside a runner and
outside a rollout nothing is touched.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from lightningrl.capture.context import (
    RolloutContext,
    agent_path,
    current,
    current_step,
    is_judging,
    outlived,
)
from lightningrl.capture.importing import OnImport
from lightningrl.capture.jsonable import unicode_text
from lightningrl.capture.variables import (
    ANTHROPIC_URLS,
    OPENAI_URLS,
    PLACEHOLDER_KEY,
    runners_url,
    users,
)
from lightningrl.capture.wire import ROUTES
from lightningrl.errors import ConfigError
from lightningrl.schema import LogTopic, Origin, StepKind

STEP_HEADER = "x-lightningrl-step"
"""Step id of the call: joins the gateway's record to the adapter's events."""
AGENT_HEADER = "x-lightningrl-agent"
_DEEPEST = 8
"""Names that the agent header has at most: agents may call each other without an end."""
"""Name of the agent that calls, percent-encoded."""
STATE_HEADER = "x-lightningrl-state"
"""Key of the state that the agent said it is in, percent-encoded."""

OUTSIDE_HEADER = "x-lightningrl-outside"
"""Of a call at a server that is of no rollout: where in the runner's process it was made, an `Origin`."""

_LONGEST_NAME = 256
"""Characters of an agent's name that the gateway takes."""
_AZURE_KEY_HEADER = "api-key"
_AZURE_DEPLOYMENT = re.compile("^/deployments/[^/]+")
"""What Azure's clients put before their routes."""
_MARK = "_lightningrl_original"


class Sdk(NamedTuple):
    """A client package."""

    package: str
    prefix: str
    """What its routes begin with; the base URL of its clients ends before it."""
    since: str
    """The oldest version whose requests can be captured."""
    host: str
    """Its clients' base URL where nobody names one."""
    urls: tuple[str, ...]
    """Variables of its base URL."""
    key: str
    """The variable of its key."""
    key_header: str
    key_prefix: str
    """What stands before the key in that header."""

    @property
    def module(self) -> str:
        """Where the class is whose method is wrapped."""
        return f"{self.package}._base_client"

    def is_installed(self) -> bool:
        """Whether the program could import it; nothing is imported."""
        return importlib.util.find_spec(self.package) is not None

    def wrap(self, module: ModuleType) -> None:
        """Wrap its clients' method, unless that was done."""
        original = module.BaseClient.__dict__.get("_build_request")
        if not hasattr(original, _MARK):
            check_signature(original, self.package, self.since)
            wrapped = _wrap(cast("Callable[..., Any]", original), self)
            module.BaseClient._build_request = wrapped

    def unwrap(self) -> None:
        """Put the original method back where the package was imported."""
        module = sys.modules.get(self.module)
        wrapped = None if module is None else module.BaseClient.__dict__["_build_request"]
        if module is not None and hasattr(wrapped, _MARK):
            module.BaseClient._build_request = getattr(wrapped, _MARK)


_OPENAI = Sdk(
    *("openai", "", "1.66", "https://api.openai.com/v1"),
    *(OPENAI_URLS, "OPENAI_API_KEY", "Authorization", "Bearer "),
)
_ANTHROPIC = Sdk(
    *("anthropic", "/v1", "0.49", "https://api.anthropic.com"),
    *(ANTHROPIC_URLS, "ANTHROPIC_API_KEY", "X-Api-Key", ""),
)
_ROUTES = (*ROUTES, "/models")
"""What a server's gateway answers; all below it too."""
SDKS = (_OPENAI, _ANTHROPIC)
"""The client packages that are known."""
_imports = OnImport()


def install_client_patch() -> bool:
    """Wrap the clients that are installed here; return whether one is. Twice is the same as once.

    Those that the program has not imported are wrapped when it does: importing them takes seconds, and
    most agents use one of them.

    Raises:
        ConfigError: the private method isn't what this was written for. Where the package is imported
            later, its import raises it.
    """
    installed = [sdk for sdk in SDKS if sdk.is_installed()]
    for sdk in installed:
        _imports.act(sdk.module, sdk.wrap)
    return bool(installed)


def uninstall_client_patch() -> None:
    """Put the original methods back; does nothing where they are."""
    _imports.forget()
    for sdk in SDKS:
        sdk.unwrap()


def check_signature(method: Any, package: str, since: str) -> None:
    """Refuse a `_build_request` of another form than `(self, options, *, retries_taken)`.

    Raises:
        ConfigError: it has another form; the text names the package's version and the remedy.
    """
    found = inspect.signature(method) if callable(method) else None
    names = None if found is None else list(found.parameters)
    if names != ["self", "options", "retries_taken"]:
        # The package itself may be in the middle of its import.
        version = importlib.import_module(f"{package}._version").__version__
        raise ConfigError(
            f"{package} {version} builds requests by {names!r} instead of (self, options, *, "
            f"retries_taken), so its calls can't be captured; install a {package} from {since} on that"
            " does"
        )


class CallHeaders(Mapping[str, str]):
    """What a model call made now must say, for clients that take headers and nothing patched.

    A mapping whose items are looked up when the request is built: whose rollout, step and agent it then
    is. With the server's URL (ending in `/v1`) as the client's base URL, and this as extra headers of
    each call, the gateway files the call where it belongs. Outside a rollout it is empty.
    """

    def __getitem__(self, name: str) -> str:
        return _call_headers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_call_headers())

    def __len__(self) -> int:
        return len(_call_headers())


def _call_headers() -> dict[str, str]:
    context = current()
    if context is None or not context.has_gateway:
        return {}
    step = current_step()
    step_id = step.id if step is not None and step.kind is StepKind.LLM else None
    return {"Authorization": f"Bearer {context.key}", **_told(context, step_id)}


def _told(context: RolloutContext, step_id: str | None) -> dict[str, str]:
    """The headers in which a call made now says what it is of."""
    path = "/".join(quote(_printable(one), safe="") for one in agent_path()[-_DEEPEST:] if one)
    said = (
        (STEP_HEADER, step_id),
        (AGENT_HEADER, path or None),
        (STATE_HEADER, None if context.state is None else quote(context.state)),
    )
    return {header: value for header, value in said if value is not None}


def _printable(name: str) -> str:
    """`name` as the gateway takes it: printable characters, not too many."""
    cut = unicode_text(name)[:_LONGEST_NAME]
    if cut.isprintable():
        return cut
    return "".join(one if one.isprintable() else "\ufffd" for one in cut)


def _wrap(original: Callable[..., Any], sdk: Sdk) -> Callable[..., Any]:
    @functools.wraps(original)
    def _build_request(self: Any, options: Any, *, retries_taken: int = 0) -> Any:
        context = current()
        if context is not None and not context.has_gateway:
            context = None
        # An absolute URL is a request that the user spelt out: its host is no client's base URL.
        spelt_out = not str(options.url).startswith(f"{sdk.prefix}/")
        if context is not None and not spelt_out and not _is_users(self, options, sdk):
            if _is_ours(context, self, options, sdk):
                options = _redirected(context, options, retries_taken, sdk)
                request = original(self, options, retries_taken=retries_taken)
                request.headers.pop(_AZURE_KEY_HEADER, None)  # the user's key stays at home
                return request
            if retries_taken == 0:
                _name_outside(context, self, options)
        return _outside_request(original, self, options, retries_taken, sdk)

    setattr(_build_request, _MARK, original)
    return _build_request


def _is_users(client: Any, options: Any, sdk: Sdk) -> bool:
    """Whether the request goes where the user's own variables say: no policy answers such a route.

    Without a key of the user's it stays the run's, and is refused there by name.
    """
    route = str(options.url).partition("?")[0].removeprefix(sdk.prefix)
    if route.startswith(_ROUTES):
        return False
    return _is_runners(client, sdk) and _users_key(client, sdk) is not None


def _is_runners(client: Any, sdk: Sdk) -> bool:
    """Whether the client has the base URL that a runner's process gives."""
    return _base_url(client, sdk) == runners_url()


def _base_url(client: Any, sdk: Sdk) -> str:
    return str(client.base_url).removesuffix("/") + sdk.prefix


def _users_key(client: Any, sdk: Sdk) -> str | None:
    """The key that the client would have without us. `None`: the user has none."""
    own = getattr(client, "api_key", None)
    return users(sdk.key) if own in (None, "", PLACEHOLDER_KEY) else own


def _outside_request(
    original: Callable[..., Any], client: Any, options: Any, retries_taken: int, sdk: Sdk
) -> Any:
    """A request that is of no rollout: with the user's base URL and key, where a runner's stand in their place."""
    users_own = is_judging() or _is_users(client, options, sdk)
    key = _users_key(client, sdk)
    if users_own and key is not None and _is_runners(client, sdk):
        url = str(options.url)
        if url.startswith("/"):
            options = copy.copy(options)
            options.url = (users(*sdk.urls) or sdk.host).rstrip("/") + url
    request = original(client, options, retries_taken=retries_taken)
    if runners_url() is None or not _has_placeholder(request.headers):
        return request
    at_server = str(request.url).startswith(f"{runners_url()}/")
    if key is not None and not at_server:
        request.headers[sdk.key_header] = f"{sdk.key_prefix}{key}"
    elif at_server and current() is None:
        request.headers[OUTSIDE_HEADER] = _outside().value
    return request


def _outside() -> Origin:
    if is_judging():
        return Origin.REWARD
    if outlived():
        return Origin.ENDED
    main = threading.current_thread() is threading.main_thread()
    return Origin.MAIN if main else Origin.THREAD


def _has_placeholder(headers: Mapping[str, str]) -> bool:
    given = headers.get("authorization", ""), headers.get("x-api-key", "")
    return PLACEHOLDER_KEY in (given[0].removeprefix("Bearer "), given[1])


def model_of(options: Any) -> str | None:
    """The model that a request asks. `None`: it names none."""
    body = options.json_data
    model = cast("Mapping[str, Any]", body).get("model") if isinstance(body, Mapping) else None
    return model if isinstance(model, str) else None


def _is_ours(context: RolloutContext, client: Any, options: Any, sdk: Sdk) -> bool:
    if _base_url(client, sdk) == context.placeholder_url:
        return True
    return bool(context.aliases) and model_of(options) in context.aliases


def _redirected(context: RolloutContext, options: Any, retries_taken: int, sdk: Sdk) -> Any:
    """A copy of `options` that goes to the attempt's URL with the attempt's key."""
    if retries_taken == 0:
        with context.lock:
            context.model_calls += 1
    redirected = copy.copy(options)
    given = options.headers if isinstance(options.headers, Mapping) else {}
    headers = dict(cast("Mapping[str, Any]", given))
    headers["Authorization"] = f"Bearer {context.key}"
    if sdk is _ANTHROPIC:
        headers["X-Api-Key"] = context.key  # in place of the user's, which stays at home
    redirected.headers = headers | _told(context, _step_id(options))
    route = str(options.url).removeprefix(sdk.prefix)
    redirected.url = context.attempt_url + _AZURE_DEPLOYMENT.sub("", route)
    return redirected


def _step_id(options: Any) -> str | None:
    """The model step that the call belongs to, else an id that the call's retries share.

    openai keeps one idempotency key for a call and its retries, so that the gateway can tell a retry
    from a second call: a model step stands for one call, and a second one within it (a client that asks
    twice, a step that its framework never ended) is a call of its own. `None`: there is no key here
    (openai 1.66, while 1.109 has one; anthropic), and without a step the gateway takes each try for a call.
    """
    key = options.idempotency_key
    step = current_step()
    if step is not None and step.kind is StepKind.LLM:
        if step.call_key is None or key is None:
            step.call_key = key
        if step.call_key == key:
            return step.id
    if key is None:
        return None
    return "s-" + hashlib.blake2b(str(key).encode(), digest_size=16).hexdigest()


def _name_outside(context: RolloutContext, client: Any, options: Any) -> None:
    """Log, once for each host and model, that the agent calls something outside the run."""
    where = (str(client.base_url.host), model_of(options) or "no model")
    with context.lock:
        if where in context.named_outside:
            return
        context.named_outside.add(where)
    context.log(
        "info",
        f"the agent called {where[1]!r} at {where[0]!r}, which is not of this run: sent on untouched, "
        "not recorded, not trained (policies.*.replaces names the models that a policy answers for)",
        LogTopic.OUTSIDE,
    )
