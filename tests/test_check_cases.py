"""What is said of what users do is what the table in the reference says, and every kind has its case."""

from pathlib import Path

import pytest
from check_cases import CASES, Case, examine_case, row
from check_troubles import HEAD, UNJOINED, happened, operational, remedied, section

from lightningrl.checks import CHECKS, SYMPTOMS, Place

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "reference" / "checks.md"
TROUBLES = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
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
    part = TROUBLES.split(f"## {SYMPTOMS[case.kind]}\n")[1].split("\n## ")[0].splitlines()
    assert happened(case) in part
    for finding in said.values():
        assert remedied(finding) in part


async def test_the_page_of_troubles_has_what_no_case_shows(tmp_path: Path) -> None:
    unjoined = (UNJOINED, await examine_case(UNJOINED, tmp_path))
    for one in (unjoined, *operational()):
        assert section(one[0].kind, [one]) in TROUBLES, "run: python scripts/checks_reference.py"


def test_the_page_of_troubles_has_every_kind_in_the_order_of_the_checks() -> None:
    headings = [line[3:] for line in TROUBLES.splitlines() if line.startswith("## ")]
    assert headings == [SYMPTOMS[kind] for kind in dict.fromkeys(one.kind for one in CHECKS)]
    assert SYMPTOMS.keys() == {one.kind for one in CHECKS}
    assert TROUBLES.startswith(HEAD)


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
