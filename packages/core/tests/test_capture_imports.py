"""`import lightningrl` is light, and its public names are pinned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lightningrl

PUBLIC = [
    "Reward",
    "bind",
    "environment",
    "feedback",
    "final_reward",
    "load_recipe",
    "record",
    "redact_texts",
    "replaying",
    "resource",
    "reward",
    "rollout",
    "state",
    "step",
]

HEAVY = ("aiohttp", "anthropic", "apsw", "numpy", "openai", "uvicorn", "yaml")


def run(program: str, cwd: Path | None = None) -> str:
    """What `program` prints in a fresh interpreter, which looks for modules in `cwd` first."""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=cwd
    )
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    """Heavy modules in a fresh interpreter after `statement`."""
    program = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    return set(run(program).split())


def test_the_public_names_are_sorted_and_pinned() -> None:
    assert lightningrl.__all__ == PUBLIC == sorted(PUBLIC)


def test_every_public_name_exists_and_an_unknown_one_is_an_attribute_error() -> None:
    for name in PUBLIC:
        assert callable(getattr(lightningrl, name))
    assert not hasattr(lightningrl, "unknown")
    assert set(PUBLIC) <= set(dir(lightningrl))


def test_what_an_agent_imports_loads_nothing_heavy() -> None:
    assert loaded_by("import lightningrl") == set()
    assert loaded_by("from lightningrl import Reward, bind, final_reward, reward, step") == set()


def test_what_an_adapter_imports_loads_nothing_heavy() -> None:
    modules = (
        "adapter",
        "adapters",
        "carrying",
        "client",
        "client_calls",
        "context",
        "patching",
        "rewards",
        "sink",
        "state",
        "variables",
    )
    imports = "; ".join(f"import lightningrl.capture.{one}" for one in modules)
    assert loaded_by(imports) == set()


INSTALL = "from lightningrl.capture.client import install_client_patch; install_client_patch()"


def test_clients_are_patched_when_the_agent_imports_them_and_not_before() -> None:
    assert loaded_by(INSTALL) == set()
    said = run(
        f"""{INSTALL}
import sys, inspect, openai
method = openai._base_client.BaseClient._build_request
print(hasattr(method, "_lightningrl_original"), "anthropic" in sys.modules)
# Who looks at the module finds it as it is without us.
print(type(openai._base_client.__spec__.loader).__name__, "class" in inspect.getsource(openai._base_client))
"""
    )
    assert said.split() == ["True", "False", "SourceFileLoader", "True"]


def test_a_client_is_found_by_all_who_wait_for_it() -> None:
    said = run(
        f"""{INSTALL}
from lightningrl.capture.client_calls import record_client_calls
record_client_calls()
import openai
base = openai._base_client
print(hasattr(base.BaseClient._build_request, "_lightningrl_original"))
print(hasattr(base.SyncAPIClient.request, "_lightningrl_wrapper"))
print(type(base.__spec__.loader).__name__)
"""
    )
    assert said.split() == ["True", "True", "SourceFileLoader"]


def test_clients_that_were_imported_before_are_patched_at_once() -> None:
    said = run(
        f"""import openai
{INSTALL}
print(hasattr(openai._base_client.BaseClient._build_request, "_lightningrl_original"))
"""
    )
    assert said.split() == ["True"]


def test_a_client_of_another_form_fails_its_own_import(tmp_path: Path) -> None:
    package = tmp_path / "anthropic"
    package.mkdir()
    (package / "__init__.py").write_text("from anthropic import _base_client")
    (package / "_version.py").write_text("__version__ = '0.1'")
    (package / "_base_client.py").write_text(
        "class BaseClient:\n    def _build_request(self, options): ..."
    )
    said = run(
        f"""{INSTALL}
from lightningrl.errors import ConfigError
try:
    import anthropic
except ConfigError as error:
    print(error)
import openai
""",
        cwd=tmp_path,
    )
    assert said.startswith("anthropic 0.1 builds requests by ['self', 'options'] instead of")
