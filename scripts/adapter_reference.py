"""Write docs/reference/adapters.md from the contract classes in the adapters' tests.

Invariant: a cell says what the tests show. Every claim is tested for every adapter, and a gap is what an
adapter's contract class declares, where it is expected to fail, strictly.

Run it with `python scripts/adapter_reference.py`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, NamedTuple

from lightningrl.capture.adapter import GROUP, Adapter
from lightningrl_testkit.adapter import AdapterContract, claims

ROOT = Path(__file__).resolve().parent.parent
TRIED = ROOT / "scripts" / "framework_versions.json"
PAGE = ROOT / "docs" / "reference" / "adapters.md"

HEADER = """\
<!-- Written by scripts/adapter_reference.py; edit the contract classes of the adapters' tests instead. -->
# Adapters

An adapter records agent names, tools and steps of one framework: [LangChain and LangGraph](../how-to/use-langchain.md),
[OpenAI Agents SDK](../how-to/use-openai-agents.md), [AutoGen](../how-to/use-autogen.md),
[Microsoft Agent Framework](../how-to/use-agent-framework.md).

Each adapter passes the same tests, `lightningrl_testkit.adapter.AdapterContract`, on agents of its real framework with a real gateway and store. A *gap*
is a claim that can't hold for the framework. Its test must then fail, so a gap that closes is noticed.

| command | runs them on |
|---|---|
| `make test` | the version in `uv.lock` |
| `make test-oldest` | the first version that an adapter claims |
| `make test-latest` | the newest in the registry |

The last two columns have what whole runs said of the oldest and the newest, with gaps as `xfailed`.

| pip name | framework | from | below | locked | on the oldest | on the newest |
|---|---|---|---|---|---|---|
"""


class Tested(NamedTuple):
    """One adapter of this repository."""

    package: str
    adapter: type[Adapter]
    contracts: tuple[type[AdapterContract], ...]

    def gaps(self, claim: str) -> list[str]:
        """Why a claim does not hold, for all or some of the adapter's contract classes."""
        found = [(one, one.gaps[claim]) for one in self.contracts if claim in one.gaps]
        everywhere = len(found) == len(self.contracts)
        reasons = [
            reason if everywhere else f"{one.__name__.removeprefix('Test')}: {reason}"
            for one, reason in found
        ]
        return list(dict.fromkeys(reasons))


def adapters() -> list[Tested]:
    """The adapters of this repository, by pip name."""
    registered = {entry.name: entry for entry in entry_points(group=GROUP)}
    found: list[Tested] = []
    for path in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        names = project.get("entry-points", {}).get(GROUP, {})
        for adapter in dict.fromkeys(registered[name].load() for name in names):
            contracts = tuple(_contracts(path.parent / "tests"))
            found.append(Tested(project["name"], adapter, contracts))
    return found


def _contracts(folder: Path) -> Iterator[type[AdapterContract]]:
    """The contract classes that pytest collects in a folder of tests."""
    for path in sorted(folder.glob("test_*_contract.py")):
        name = f"_contract_of_{folder.parent.name.replace('-', '_')}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and annotations look their module up
        spec.loader.exec_module(module)
        for value in vars(module).values():
            kind = isinstance(value, type) and issubclass(value, AdapterContract)
            if kind and value.__name__.startswith("Test"):
                yield value


def render() -> str:
    """The whole page."""
    tested = adapters()
    tried = json.loads(TRIED.read_text(encoding="utf-8"))
    lines = [HEADER.rstrip()]
    for one in tested:
        first, last = one.adapter.versions
        framework = one.adapter.framework
        runs = [_run(tried.get(one.adapter.name, {}).get(which)) for which in ("oldest", "latest")]
        cells = [f"`{one.package}`", framework, first, last, version(framework), *runs]
        lines.append(f"| {' | '.join(cells)} |")
    names = " | ".join(one.adapter.name for one in tested)
    lines += ["", f"| claim | {names} |", "|---" * (len(tested) + 1) + "|"]
    notes: list[str] = []
    for claim in claims():
        cells = [_cell(one.gaps(claim), one.adapter.name, notes) for one in tested]
        lines.append(f"| {claim.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += ["", "Gaps:", ""] if notes else []
    lines += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def _run(outcome: dict[str, Any] | None) -> str:
    """What a run of `scripts/framework_versions.py` said."""
    if outcome is None:
        return "not tried"
    verdict = "" if outcome["passed"] else "**failed**, "
    return f"{outcome['version']}: {verdict}{outcome['said']} ({outcome['on']})"


def _cell(reasons: list[str], adapter: str, notes: list[str]) -> str:
    if not reasons:
        return "yes"
    numbers: list[str] = []
    for reason in reasons:
        note = f"{adapter}: {reason}."
        if note not in notes:
            notes.append(note)
        numbers.append(str(notes.index(note) + 1))
    return f"no ({', '.join(numbers)})"


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


if __name__ == "__main__":
    main()
