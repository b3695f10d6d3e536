"""Write docs/reference/clients.md from what `make test-clients` kept of its runs.

Invariant: a cell says what a run showed (`tests/clients/results.json`), or what the table of clients says of it.

Run it with `python scripts/clients_reference.py`.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "clients"
PAGE = ROOT / "docs" / "reference" / "clients.md"

HEADER = """\
<!-- Written by scripts/clients_reference.py; edit tests/clients/clients.toml and run `make test-clients` instead. -->
# Clients

```bash
make test-clients                      # all of them; needs Node 20, npm and the package registries
make test-clients ARGS="-k pydantic"   # some
```

These third-party clients and frameworks were tried, each by its real package in an environment of its own. A small program, written as the client's users
write it, gets a rollout's environment and nothing else: `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY` and their
[other names](../how-to/train-your-own-agent.md#what-an-agent-may-be). It runs against a real gateway and store, with a scripted model behind them. The
programs are in `tests/clients/programs/`.

In each run this was checked:

- Every call that the model server got is in the rollout, once, answered, with token ids and log-probs.
- The agent's tool ran, and the model saw its result.
- The text came through, also where it was streamed.
- Token counts that the client reports are the engine's.

A call *under a grammar* works, and is not trained, since the answer was forced: [how to train such agents](../how-to/train-typed-answers.md).

"Line" is what a program needs beside the environment. Most need nothing.

| client | version | what runs | calls | line | what does not, and why | tried on |
|---|---|---|---|---|---|---|
"""
DIALECTS = {"chat": "chat", "responses": "Responses", "anthropic": "messages"}


def render() -> str:
    """The whole page."""
    table = tomllib.loads((FOLDER / "clients.toml").read_text("utf-8"))
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    rows = [_row(table[name], results[name]) for name in sorted(results)]
    unmodified = sum("line" not in row for row in table.values())
    after = [
        "",
        f"{len(results)} clients, {unmodified} of them with no line of their own.",
        "",
        "Calls that work and are not trained, by the reason that the record gives:",
        "",
        *_untrained(results),
        "",
        "Fields that clients sent, nobody here knows, and [the engine did not get](gateway-fields.md):",
        "",
        *_unknown(results),
        "",
        "Not in the table: Claude Code; SDKs of Go, Java, Rust and Ruby; clients that download something beside their packages",
        "before their first call (CAMEL 0.2.90 does: a tokenizer).",
        "",
    ]
    return HEADER + "\n".join([*rows, *after])


def _row(client: dict[str, Any], result: dict[str, Any]) -> str:
    beside = ", ".join(f"{name} {version}" for name, version in result["beside"].items())
    version = f"{result['version']} ({beside})" if beside else result["version"]
    calls = ", ".join(f"{count} {DIALECTS[name]}" for name, count in result["calls"].items())
    streamed = f", {result['streamed']} streamed" if result["streamed"] else ""
    runs = "; ".join(result["tries"]) + ("; token counts" if result["usage"] else "")
    name = f"`{result['package']}`" + (" (Node)" if client["language"] == "node" else "")
    cells = [
        name,
        version,
        runs,
        calls + streamed,
        client.get("line", ""),
        client.get("without", ""),
        result["on"],
    ]
    return f"| {' | '.join(cells)} |"


def _untrained(results: dict[str, Any]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, result in sorted(results.items()):
        for reason, calls in result["untrainable"].items():
            reasons.setdefault(reason, []).append(f"{name} ({calls} of {_all(result)})")
    return [f"- {reason}: {', '.join(names)}" for reason, names in sorted(reasons.items())]


def _unknown(results: dict[str, Any]) -> list[str]:
    fields = [(name, one) for name, result in results.items() for one in result["unknown_fields"]]
    return [f"- {name}: {one}" for name, one in sorted(fields)] or ["- none"]


def _all(result: dict[str, Any]) -> int:
    return sum(result["calls"].values())


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


if __name__ == "__main__":
    main()
