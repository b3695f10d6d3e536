"""A gap fails strictly, with its reason; a claim can't be overridden; an example can't be forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_pytest import LIGHT

from lightningrl_testkit.adapter import AdapterContract, claims

pytest_plugins = ["pytester"]

HEAD = """
import pytest
from lightningrl_testkit.adapter import AdapterContract
"""


def run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + body)
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    return pytester.runpytest_subprocess(*LIGHT, "-q")


def test_overriding_a_claim_fails_at_collection(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "class TestMine(AdapterContract):\n    async def test_a_handoff_is_a_step(self): pass\n",
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*TypeError: TestMine.test_a_handoff_is_a_step overrides a claim*"]
    )


def test_a_claim_is_overridden_by_no_other_class_either() -> None:
    name = "test_a_handoff_is_a_step"

    class Weaker:
        async def test_a_handoff_is_a_step(self) -> None: ...

    with pytest.raises(TypeError, match=f"TestMine.{name} overrides a claim"):
        type("TestMine", (Weaker, AdapterContract), {})
    with pytest.raises(TypeError, match="overrides a claim"):
        type("TestMine", (Weaker, AdapterContract), {"gaps": {name.removeprefix("test_"): "no"}})


def test_a_gap_of_the_class_above_is_declared_again() -> None:
    gaps = {"a_handoff_is_a_step": "has none"}
    above = type("TestAbove", (AdapterContract,), {"gaps": gaps})
    type("TestBelow", (above,), {})
    with pytest.raises(TypeError, match="overrides a claim"):
        type("TestBelow", (above,), {"gaps": {}})


def test_a_gap_needs_a_known_claim_and_a_reason() -> None:
    for gaps in ({"no_such_claim": "because"}, {"a_handoff_is_a_step": " "}):
        with pytest.raises(TypeError, match="a gap names a claim"):
            type("TestMine", (AdapterContract,), {"gaps": gaps})


def test_a_gap_is_marked_for_its_class_alone() -> None:
    name = "test_a_handoff_is_a_step"
    mine = type("TestMine", (AdapterContract,), {"gaps": {"a_handoff_is_a_step": "has none"}})
    [mark] = getattr(mine, name).pytestmark
    assert (mark.name, mark.kwargs) == ("xfail", {"reason": "has none", "strict": True})
    assert not hasattr(claims()["a_handoff_is_a_step"], "pytestmark")
    assert not hasattr(getattr(AdapterContract, name), "pytestmark")


def test_a_gap_that_closes_is_reported(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """The copy of a claim is that claim: one that holds, though it is declared a gap, fails the run."""
    result = run(
        pytester,
        """
from lightningrl_testkit.adapter import _expected_to_fail

async def holds() -> None:
    assert 1 + 1 == 2

test_closed = _expected_to_fail(holds, "once there was a reason")
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*once there was a reason*"])


def test_without_agents_every_claim_is_an_error_that_says_what_to_do(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, "class TestMine(AdapterContract): pass\n")
    result.assert_outcomes(errors=len(claims()))
    result.stdout.fnmatch_lines(["*TestMine must override the fixture `agents`*"])
