"""What is said of what users do is what the table in the reference says, and every kind has its case."""

from pathlib import Path

import pytest
from check_cases import CASES, Case, examine_case, row

from lightningrl.checks import CHECKS, Place

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/checks.md"
IN_OPERATION = {"no runner", "expired lease", "engine down", "gateway held"}
"""Kinds of a run under way: `packages/core/tests/test_doctor.py`."""
OF_ADAPTERS = {"unjoined calls"}
"""A kind that no framework is known for: `packages/core/tests/test_checks.py`."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.did}")
async def test_the_table_says_what_is_said(case: Case, tmp_path: Path) -> None:
    said = await examine_case(case, tmp_path)
    assert row(case, said) in PAGE.read_text(encoding="utf-8").splitlines(), (
        "run: python scripts/checks_reference.py"
    )


def test_every_kind_has_a_case() -> None:
    assert {case.kind for case in CASES} == {
        check.kind for check in CHECKS
    } - IN_OPERATION - OF_ADAPTERS


FRAMEWORKS = ("LangChain", "LangGraph", "OpenAI Agents SDK", "the same by LangChain")
"""How the cases of real frameworks begin."""


def test_every_kind_has_a_scripted_agent_and_one_of_a_real_framework() -> None:
    real = {case.kind for case in CASES if case.did.startswith(FRAMEWORKS)}
    scripted = {case.kind for case in CASES if not case.did.startswith(FRAMEWORKS)}
    assert real == scripted


def test_every_kind_of_an_agent_is_said_by_all_three() -> None:
    for kind in {check.kind for check in CHECKS} - IN_OPERATION:
        asked = [place for check in CHECKS if check.kind == kind for place in check.places]
        assert sorted(asked) == sorted(Place), kind
