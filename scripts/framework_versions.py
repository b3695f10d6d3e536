"""Prove what adapters claim: the contract on the oldest version of each framework, and on the newest there is.

`oldest` fails where a claim doesn't hold. `latest` reports, and fails only if nothing could be tried: a newer
framework may break what nobody promised. Each adapter gets an environment of its own under `.cache/`, from the
wheels of a registry, with nothing of this workspace but core, testkit and the adapter.

What whole runs said is kept in `framework_versions.json`, from which `make docs` writes the table of adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lightningrl.capture.adapter import Adapter
from lightningrl.capture.adapters import find_adapters

ROOT = Path(__file__).resolve().parent.parent
TRIED = ROOT / "scripts" / "framework_versions.json"
"""Adapter -> `oldest` or `latest` -> what its last whole run said."""
CACHE = ROOT / ".cache" / "frameworks"
WITH = {
    "agent-framework": ("agent-framework-openai",),
    "autogen": ("autogen-ext[openai]",),
    "langchain": ("langchain>=1.3", "langchain-openai", "langgraph"),
    "openai-agents": (),
}
"""What the contract's agents are made of beside the framework itself; the resolver finds versions that fit."""
OLDEST_WITH = {
    # The first whose `create_agent` says which runs are an agent's; its own oldest langchain-core is this one.
    "langchain": ("langchain==1.3.0",),
}
"""What else holds beside an oldest version."""
TOOLS = ("pytest>=9", "pytest-asyncio>=1.3", "pytest-timeout>=2.4")
QUICK = "joined_step or same_steps or unknown_tool or handoff or retrieval or uninstall"
"""Claims that fail where a hook has moved; the others are about what is built on the hooks."""
_LOCAL_UV = ROOT / ".uv" / "bin" / "uv"


@dataclass(frozen=True)
class Outcome:
    """What one adapter's contract said."""

    framework: str
    version: str
    passed: bool
    said: str
    seconds: float


def main() -> int:
    """Run, print a table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("oldest", "latest"))
    parser.add_argument("--only", choices=sorted(WITH), help="one adapter")
    parser.add_argument("--quick", action="store_true", help="the claims that show each hook alone")
    options = parser.parse_args()
    adapters = [one for one in find_adapters() if options.only in (None, one.name)]
    unknown = {one.name for one in adapters} - set(WITH)
    if unknown:
        sys.exit(f"scripts/framework_versions.py doesn't know what {sorted(unknown)} need")
    outcomes = [try_one(one, options.which, quick=options.quick) for one in adapters]
    if not options.quick:
        keep(options.which, dict(zip((one.name for one in adapters), outcomes, strict=True)))
    for one in outcomes:
        verdict = "passed" if one.passed else "FAILED"
        print(f"{one.framework} {one.version}: {verdict} in {one.seconds:.0f} s: {one.said}")
    if options.which == "latest":
        return 0 if any(one.version != "?" for one in outcomes) else 1
    return 0 if all(one.passed for one in outcomes) else 1


def keep(which: str, outcomes: dict[str, Outcome]) -> None:
    """Put outcomes, by adapter, in the place of former ones."""
    tried = json.loads(TRIED.read_text(encoding="utf-8")) if TRIED.is_file() else {}
    today = datetime.now(UTC).date().isoformat()
    for name, one in outcomes.items():
        said = re.sub(r" in [\d.]+s.*", "", one.said)  # that depends on the machine
        found = {"version": one.version, "passed": one.passed, "said": said, "on": today}
        tried.setdefault(name, {})[which] = found
    TRIED.write_text(json.dumps(tried, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def try_one(adapter: Adapter, which: str, *, quick: bool) -> Outcome:
    """Install and test one adapter."""
    began = time.monotonic()
    environment = CACHE / f"{which}-{adapter.name}"
    python = environment / "bin" / "python"
    failed = install(adapter, environment, oldest=which == "oldest")
    if failed is not None:
        said = f"can't be installed: {_last(failed)}"
        return Outcome(adapter.framework, "?", False, said, time.monotonic() - began)
    asked = f"from importlib.metadata import version; print(version({adapter.framework!r}))"
    installed = run([str(python), "-c", asked]).stdout.strip()
    [contract] = (ROOT / "packages" / f"adapter-{adapter.name}").glob("tests/test_*_contract.py")
    done = run(
        [
            *(str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            # The framework's own warnings of another time are no breach.
            *("-o", "filterwarnings=default", "--disable-warnings", str(contract)),
            *(("-k", QUICK) if quick else ()),
        ]
    )
    passed = done.returncode == 0
    if not passed:
        sys.stderr.write(done.stdout[-6000:] + done.stderr[-2000:])
    said = _last(done.stdout or done.stderr)
    return Outcome(adapter.framework, installed, passed, said, time.monotonic() - began)


def install(adapter: Adapter, environment: Path, *, oldest: bool) -> str | None:
    """Install an adapter with its framework; what the installer said if it failed."""
    python = str(environment / "bin" / "python")
    pin = f"=={adapter.versions[0]}" if oldest else ""
    beside = OLDEST_WITH.get(adapter.name, ()) if oldest else ()
    members = ("core", "testkit", f"adapter-{adapter.name}")
    ours = [part for one in members for part in ("-e", f"packages/{one}")]
    wanted = [f"{adapter.framework}{pin}", *WITH[adapter.name], *beside, *TOOLS]
    # The newest there is, also where the adapter's own package says that it doesn't know it.
    overrides = environment.with_suffix(".txt")
    overrides.parent.mkdir(parents=True, exist_ok=True)
    overrides.write_text("" if oldest else f"{adapter.framework}\n", encoding="utf-8")
    quietly = ("--quiet", "--python")
    steps = [
        ["venv", "--allow-existing", *quietly, sys.executable, str(environment)],
        [
            *("pip", "install", "--upgrade", *quietly, python),
            *("--overrides", str(overrides), *ours, *wanted),
        ],
    ]
    for step in steps:
        done = run([uv(), *step])
        if done.returncode != 0:
            return done.stderr
    return None


def uv() -> str:
    """The installer, as `make` finds it."""
    return shutil.which("uv") or str(_LOCAL_UV)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root, outside its environment."""
    environment = {name: text for name, text in os.environ.items() if name != "VIRTUAL_ENV"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


if __name__ == "__main__":
    sys.exit(main())
