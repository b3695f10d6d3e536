"""Published files become task rows and a corpus; a bad question is an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightningrl_bench_rag.loaders import (
    DataError,
    load_2wiki,
    load_hotpotqa,
    load_musique,
    write_corpus,
)
from lightningrl_bench_rag.reward import exact_match
from lightningrl_bench_rag.search import CorpusError, index_of

SAMPLES = Path(__file__).parent / "samples"
MUSIQUE, HOTPOTQA, WIKI = (
    str(SAMPLES / name) for name in ("musique.jsonl", "hotpotqa.json", "2wiki.json")
)


def test_musiques_answerable_questions_are_read_with_their_aliases() -> None:
    first, second = load_musique(MUSIQUE, "corpus.jsonl")
    assert first == {
        "id": "2hop__101_202",
        "question": "Where was the person who built Harrow Mill born?",
        "answer": "Tarnby",
        "aliases": ["the village of Tarnby"],
        "kind": "2hop",
        "corpus": "corpus.jsonl",
    }
    assert second["kind"] == "3hop1"
    assert exact_match(first, "Village of Tarnby.", None)["final"] == 1.0
    assert load_musique(MUSIQUE, "corpus.jsonl", limit=1) == [first]


def test_hotpotqa_and_2wiki_are_read() -> None:
    bridge, comparison = load_hotpotqa(HOTPOTQA, "c")
    assert (bridge["id"], bridge["answer"]) == ("5a00000000000000000000a1", "Tarnby")
    assert (comparison["kind"], comparison["answer"]) == ("comparison", "yes")
    (only,) = load_2wiki(WIKI, "c")
    assert (only["kind"], only["answer"]) == ("compositional", "Mara Falk")


def test_the_paragraphs_of_all_files_become_one_corpus_that_is_searched(tmp_path: Path) -> None:
    target = str(tmp_path / "corpus.jsonl")
    # Tarnby's paragraph stands twice in MuSiQue's sample, and Harrow Mill's twice in HotpotQA's.
    assert write_corpus(target, [MUSIQUE, HOTPOTQA, WIKI]) == 4 + 3 + 2
    found = index_of(target).search("Who directed the film The Long Quay?")
    assert found[0] == "The Long Quay: The Long Quay is a film by Ines Falk."
    assert index_of(target).answer("zzz") == index_of(target).answer("") == "nothing found"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", ":1: not JSON"),
        ("3", ":1: expected an object"),
        ('{"question": "q", "answer": "a"}', ":1: field 'id' must be text, found None"),
        ('{"id": "a", "question": "q", "answer": ""}', ":1: field 'answer' must be text"),
    ],
)
def test_a_bad_question_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        load_musique(str(path), "c")


def test_paragraphs_in_another_form_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('[{"context": [["title"]]}]', encoding="utf-8")
    with pytest.raises(DataError, match="question 1: its paragraphs can't be read"):
        write_corpus(str(tmp_path / "corpus.jsonl"), [str(path)])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", ":1: not JSON"), ('{"title": "t"}', ":1: expected an object with 'text'"), ("", "no passage")],
)  # fmt: skip
def test_a_bad_corpus_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=complaint):
        index_of(str(path))


def test_a_generated_corpus_of_no_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'generated/dev/1' names no corpus"):
        index_of("generated/dev/1")
