"""`import lightningrl` is light, and its public names are pinned."""

from __future__ import annotations

import subprocess
import sys

import lightningrl

PUBLIC = [
    "Reward",
    "bind",
    "final_reward",
    "load_recipe",
    "reward",
    "rollout",
    "step",
]

HEAVY = ("aiohttp", "apsw", "numpy", "openai", "uvicorn", "yaml")


def loaded_by(statement: str) -> set[str]:
    """Heavy modules in a fresh interpreter after `statement`."""
    program = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


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
    modules = ("adapter", "client", "context", "patching", "rewards", "sink")
    imports = "; ".join(f"import lightningrl.capture.{one}" for one in modules)
    assert loaded_by(imports) == set()
