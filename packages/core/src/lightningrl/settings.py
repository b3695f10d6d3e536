"""Every setting that the environment holds, in one table, and how it is read.

Invariants: a variable that begins with `LIGHTNINGRL_` and is not in the table is an error that names the
nearest valid one; a secret is also read from the file that `NAME_FILE` names, and no message contains it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lightningrl.errors import ConfigError
from lightningrl.user_input.names import suggest

PREFIX = "LIGHTNINGRL_"

_MIB = 2**20


class Setting(NamedTuple):
    """One variable."""

    name: str
    read_by: str
    """Commands, or what else reads it."""
    default: str
    """In words, where it is not set."""
    meaning: str
    secret: bool = False
    """Whether `NAME_FILE` may name a file that holds it."""


SETTINGS = (
    Setting(
        "LIGHTNINGRL_ADMIN_KEY",
        "`serve`",
        "none",
        "what a server demands of those who may do everything; several keys, one a line or with commas,"
        " are all good",
        secret=True,
    ),
    Setting(
        "LIGHTNINGRL_RUNNER_KEY",
        "`serve`",
        "none",
        "what it demands of runners, which may lease rollouts and report on them; several are all good",
        secret=True,
    ),
    Setting(
        "LIGHTNINGRL_VIEWER_KEY",
        "`serve`, `ui`",
        "none",
        "what they demand of those who look; one a line; `KEY RUN RUN` shows these runs alone",
        secret=True,
    ),
    Setting("LIGHTNINGRL_HOST", "`serve`", "`127.0.0.1`", "the address to listen on"),
    Setting("LIGHTNINGRL_PORT", "`serve`", "`8787`", "the port to listen on; 0 takes a free one"),
    Setting(
        "LIGHTNINGRL_SYNCHRONOUS",
        "`serve`",
        "`NORMAL`",
        "`NORMAL`: what was answered survives the end of any process; `FULL`: a power cut too, at the"
        " price of a sync to disk per commit",
    ),
    Setting(
        "LIGHTNINGRL_DELETE_OLDER_THAN",
        "`serve`",
        "nothing is deleted",
        "an age such as `12h` or `30d`: every minute, rollouts that ended longer ago are deleted; training"
        " only when its iteration has committed",
    ),
    Setting(
        "LIGHTNINGRL_DELETE_DOWN_TO",
        "`serve`",
        "nothing is deleted",
        "bytes: every minute, the oldest of the same are deleted until the store holds no more",
    ),
    Setting(
        "LIGHTNINGRL_DELETE_MODE",
        "`serve`",
        "all",
        "the modes whose rollouts these two may delete, with spaces: `live val`",
    ),
    Setting(
        "LIGHTNINGRL_STORE_BODY_BYTES",
        "`serve`",
        f"{64 * _MIB}",
        "longest request to the store, before and after decompression; a longer one is answered 413",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_BODY_BYTES",
        "`serve`",
        f"{16 * _MIB}",
        "longest request of an agent to the gateway; a longer one is answered 413",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_CONCURRENT_CALLS_PER_ATTEMPT",
        "`serve`",
        "64",
        "model calls of one attempt under way at a time, counted by each gateway for itself; one more waits"
        " for its turn",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_QUEUED_CALLS_PER_ATTEMPT",
        "`serve`",
        "1024",
        "model calls of one attempt that wait for their turn, counted by each gateway for itself; one more is"
        " answered 429",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_STREAM_SILENCE_SECONDS",
        "`serve`",
        "2",
        "how long an agent that asked for a stream waits for its first byte",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_STREAM_COMMENT_SECONDS",
        "`serve`",
        "5",
        "how often it is then told that the answer is on its way",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_CALLS_PER_ATTEMPT",
        "`serve`",
        "no limit",
        "model calls that one attempt may make in all, at whatever gateway of the store; the next one is"
        " answered 429",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_TOKENS_PER_ATTEMPT",
        "`serve`",
        "no limit",
        "prompt and answer tokens that one attempt may use in all, at whatever gateway of the store; the"
        " call that goes beyond is answered, the next one 429",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_UPSTREAM_SECONDS",
        "`serve`",
        "1800",
        "longest time that an engine may take for one answer; then the agent is answered 504",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_CONNECT_SECONDS",
        "`serve`",
        "10",
        "longest time to connect to an engine",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_UPSTREAM_RETRIES",
        "`serve`",
        "6",
        "how often a call is sent again after a broken connection, 502, 503 or 504",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_BACKOFF_SECONDS",
        "`serve`",
        "0.25",
        "wait before the second retry, doubled for each further one; the first is immediate",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_BACKOFF_LIMIT_SECONDS",
        "`serve`",
        "4",
        "longest wait between two retries, and how long an endpoint is avoided that failed a call",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_HEALTH_SECONDS",
        "`serve`",
        "5",
        "how often each endpoint in use is asked whether it lives; 0: never, calls alone find out",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_HEALTH_TIMEOUT_SECONDS",
        "`serve`",
        "5",
        "longest time that such an answer may take",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_HEALTH_FAILURES",
        "`serve`",
        "3",
        "failures in a row after which an endpoint is out of rotation until a check succeeds",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_HEALTH_PATH",
        "`serve`",
        "`/health`",
        "what an endpoint is asked for: a path of its host, or, without a slash at its beginning, below"
        " its base URL; any answer below 500 is a sign of life",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_CLOSE_SECONDS",
        "`serve`",
        "30",
        "how long calls may go on when the server ends before they are stopped",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_CONTEXT_SECONDS",
        "`serve`",
        "5",
        "how long an attempt is believed to be running before the store is asked again; whatever is"
        " believed, the commit of a call checks it",
    ),
    Setting(
        "LIGHTNINGRL_GATEWAY_CONTEXTS",
        "`serve`",
        "65536",
        "attempts remembered at a time; idle ones are forgotten first",
    ),
    Setting(
        "LIGHTNINGRL_OTEL", "`serve`", "off", "`1`: export recorded calls as OpenTelemetry spans"
    ),
    Setting(
        "LIGHTNINGRL_LOG_LEVEL",
        "`serve`, `runner`",
        "`warning`",
        "`debug`, `info`, `warning`, `error`",
    ),
    Setting("LIGHTNINGRL_LOG_FORMAT", "`serve`", "`text`", "`text` or `json`"),
    Setting(
        "LIGHTNINGRL_SERVER", "`runner`, live rollouts, `feedback`", "none", "the server's URL"
    ),
    Setting(
        "LIGHTNINGRL_KEY",
        "`runner`, `show`, `doctor`, ..., live rollouts",
        "none",
        "the key for the server: its admin key, for runners its runner key, to look a viewer key",
        secret=True,
    ),
    Setting(
        "LIGHTNINGRL_RETRY_SECONDS",
        "clients of a server",
        "`30`",
        "how long a client tries again while the server can't be reached",
    ),
    Setting("LIGHTNINGRL_PROCESSES", "`runner`", "the recipe's", "processes that run agents"),
    Setting("LIGHTNINGRL_CONCURRENCY", "`runner`", "the recipe's", "attempts at a time in each"),
    Setting(
        "LIGHTNINGRL_GRACE_SECONDS",
        "`runner`",
        "`20`",
        "how long attempts may go on after a stop before they are given back",
    ),
    Setting(
        "LIGHTNINGRL_RECORD",
        "`lightningrl.record`",
        "none: nothing is recorded",
        "the store that a process in production records its rollouts to: a path or URL",
    ),
    Setting(
        "LIGHTNINGRL_RECORD_SAMPLING_RATE",
        "`lightningrl.record`",
        "`1`",
        "the share of rollouts that it records, from 0 to 1",
    ),
    Setting("LIGHTNINGRL_STORE", "`db`", "none", "the path or URL of the store"),
    Setting("LIGHTNINGRL_POLICY_KEY", "`try`", "none", "the endpoint's API key"),
    Setting(
        "LIGHTNINGRL_CACHE",
        "`train`, `sft`, `tiny`, `model`",
        "the user's cache folder",
        "folder of tiny policies, warm starts, and pretrained models that were fetched or converted",
    ),
    Setting("LIGHTNINGRL_DEBUG", "all commands", "off", "`1`: show tracebacks of errors"),
)
"""What users set."""

GIVEN_TO_AGENTS = (
    "LIGHTNINGRL_ATTEMPT_URL",
    "LIGHTNINGRL_OUTPUT_FILE",
    "LIGHTNINGRL_REPLAYING",
    "LIGHTNINGRL_RESOURCES_FILE",
    "LIGHTNINGRL_TASK_FILE",
)
"""What a runner sets for an agent that is a command, and `lightningrl.environment()` for what an agent starts."""

KEPT_PREFIX = "LIGHTNINGRL_USER_"
"""Before the name of a variable that a runner replaces: what the user had set there."""

FOR_TESTS = ("LIGHTNINGRL_EXAMPLES", "LIGHTNINGRL_FAULT_RUNS")
"""What the test suite reads."""


def names() -> list[str]:
    """Every valid variable."""
    files = [f"{one.name}_FILE" for one in SETTINGS if one.secret]
    return [*(one.name for one in SETTINGS), *files, *GIVEN_TO_AGENTS, *FOR_TESTS]


def check_names(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a variable of ours that nothing reads.

    Raises:
        ConfigError: the message has the nearest valid name.
    """
    valid = set(names())
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in valid and not name.startswith(KEPT_PREFIX):
            near = suggest(name, valid).partition(" Valid:")[0]
            raise ConfigError(
                f"there is no setting {name!r}.{near} docs/reference/settings.md lists them"
            )


def admin_keys() -> tuple[str, ...]:
    """`LIGHTNINGRL_ADMIN_KEY`: see the table."""
    return _keys("LIGHTNINGRL_ADMIN_KEY")


def runner_keys() -> tuple[str, ...]:
    """`LIGHTNINGRL_RUNNER_KEY`: see the table."""
    return _keys("LIGHTNINGRL_RUNNER_KEY")


def viewer_keys() -> tuple[str, ...]:
    """`LIGHTNINGRL_VIEWER_KEY`: see the table; each with the runs that it names behind it.

    Raises:
        ConfigError: there is a comma. Between keys or runs it would make a run's name a key that shows all.
    """
    name = "LIGHTNINGRL_VIEWER_KEY"
    lines = [line.strip() for line in _secret(name).splitlines()]
    if any("," in line for line in lines):
        raise ConfigError(
            f"{name}: write one key a line, and the runs behind it with spaces, not commas"
        )
    return tuple(line for line in lines if line)


def client_key() -> str | None:
    """`LIGHTNINGRL_KEY`: see the table."""
    keys = _keys("LIGHTNINGRL_KEY")
    if len(keys) > 1:
        raise ConfigError("LIGHTNINGRL_KEY holds several keys; a client has one")
    return keys[0] if keys else None


def server_url() -> str | None:
    """`LIGHTNINGRL_SERVER`: see the table."""
    return os.environ.get("LIGHTNINGRL_SERVER") or None


def retry_seconds() -> float:
    """`LIGHTNINGRL_RETRY_SECONDS`: see the table."""
    return _number("LIGHTNINGRL_RETRY_SECONDS", 30.0)


def store_body_bytes() -> int:
    """`LIGHTNINGRL_STORE_BODY_BYTES`: see the table."""
    return int(_number("LIGHTNINGRL_STORE_BODY_BYTES", 64 * _MIB))


def gateway_limit(field: str) -> tuple[str, str]:
    """The variable of a field of `GatewayLimits`, and its text; empty: it is not set."""
    name = f"LIGHTNINGRL_GATEWAY_{field.upper()}"
    return name, os.environ.get(name, "")


def store_url() -> str | None:
    """`LIGHTNINGRL_STORE`: see the table."""
    return os.environ.get("LIGHTNINGRL_STORE") or None


def record_store() -> str | None:
    """`LIGHTNINGRL_RECORD`: see the table."""
    return os.environ.get("LIGHTNINGRL_RECORD") or None


def record_sampling_rate() -> float:
    """`LIGHTNINGRL_RECORD_SAMPLING_RATE`: see the table."""
    text = os.environ.get("LIGHTNINGRL_RECORD_SAMPLING_RATE", "")
    try:
        rate = float(text or 1.0)
    except ValueError:
        rate = -1.0
    if not 0.0 <= rate <= 1.0:
        raise ConfigError(
            f"LIGHTNINGRL_RECORD_SAMPLING_RATE must be a number from 0 to 1, not {text!r}"
        )
    return rate


def cache_folder() -> Path:
    """`LIGHTNINGRL_CACHE`, else the user's cache folder of this platform."""
    given = os.environ.get("LIGHTNINGRL_CACHE")
    if given:
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lightningrl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "lightningrl"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightningrl"


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"{name} must be a number above 0, not {text!r}")
    return number


def _keys(name: str) -> tuple[str, ...]:
    """The keys of one variable, or of the file that `NAME_FILE` names; in the order given."""
    parts = _secret(name).replace(",", "\n").splitlines()
    return tuple(key for key in (part.strip() for part in parts) if key)


def _secret(name: str) -> str:
    """The text of one variable, or of the file that `NAME_FILE` names."""
    text, path = os.environ.get(name, ""), os.environ.get(f"{name}_FILE", "")
    if text and path:
        raise ConfigError(f"both {name} and {name}_FILE are set; set one of them")
    if path:
        text = _secret_file(f"{name}_FILE", Path(path))
        if not text.strip():
            raise ConfigError(f"the file {path!r}, which {name}_FILE names, holds no key")
    return text


def _secret_file(variable: str, path: Path) -> str:
    """A file's text.

    Raises:
        ConfigError: it can't be read, or every user of the machine can read it.
    """
    try:
        if os.name == "posix" and path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigError(
                f"every user of this machine can use the file {str(path)!r}, which {variable} names;"
                f" chmod o= it"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the file {str(path)!r}, which {variable} names, can't be read: {error.strerror}"
        ) from error
