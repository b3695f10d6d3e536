"""Published files become task rows; a bad line is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightningrl_bench_math.loaders import DataError, load_calcx, load_gsm8k
from lightningrl_bench_math.reward import exact_match

SAMPLES = Path(__file__).parent / "samples"


def test_gsm8k_answers_and_calculations_are_read() -> None:
    first, second = load_gsm8k(SAMPLES / "gsm8k.jsonl")
    assert first["id"] == "gsm8k-gsm8k-1"
    assert first["question"].startswith("A baker fills 14 trays")
    assert first["answer"] == "42"
    assert first["calculations"] == ["14*6", "84/2"]
    assert second["answer"] == "1350"


def test_calcx_results_and_calculations_are_read() -> None:
    first, second = load_calcx(SAMPLES / "calcx.jsonl")
    assert first["id"] == "sample__aa01"
    assert first["answer"] == "42"
    assert first["calculations"] == ["14 * 6", "84 / 2"]
    assert exact_match(second, "1,350", None) == 1.0


def test_parquet_gives_the_same_rows_as_json_lines(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = (SAMPLES / "calcx.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "calcx.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in lines]), path)
    assert load_calcx(path) == load_calcx(SAMPLES / "calcx.jsonl")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", ":2: not JSON"),
        ("[1]", ":2: expected an object"),
        ('{"answer": "#### 1"}', ":2: field 'question' must be text, found None"),
        ('{"question": "q", "answer": "42"}', ":2: expected one line '#### number', found 0"),
    ],
)
def test_a_bad_gsm8k_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "q", "answer": "#### 1"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        load_gsm8k(path)


def test_a_bad_calcx_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "question": "q", "chain": "", "result": "1"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:1: field 'chain' must be text"):
        load_calcx(path)
