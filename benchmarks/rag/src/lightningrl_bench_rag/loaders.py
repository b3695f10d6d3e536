"""Published data sets of questions over several paragraphs, read from local files into the benchmark's task rows.

MuSiQue (Trivedi et al. 2022, arXiv:2108.00573): JSON lines with `id`, `question`, `answer`, `answer_aliases`, `answerable`,
and `paragraphs` with `title` and `paragraph_text`. HotpotQA (Yang et al. 2018, arXiv:1809.09600) and 2WikiMultihopQA (Ho et
al. 2020, arXiv:2011.01060): a JSON list with `_id`, `question`, `answer`, `type`, and `context`, a list of pairs of a title
and its sentences.

Invariant: every question of the file becomes one task row, or the call fails with a `DataError` that names file and question;
nothing is skipped, but for MuSiQue's questions that are marked as having no answer.

`write_corpus` makes a corpus of such files' paragraphs; tasks name it, and the agent searches it:

    python -m lightningrl_bench_rag.loaders corpus.jsonl musique_ans_v1.0_train.jsonl musique_ans_v1.0_dev.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast


class DataError(ValueError):
    """A data file can't be read as what it is said to be."""


def load_musique(path: str, corpus: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the answerable questions of a MuSiQue file as task rows, at most `limit` of them.

    Args:
        path: the file.
        corpus: what is searched: the path of a file that `write_corpus` made.
        limit: `None`: all.

    Raises:
        DataError: naming file and question.
        OSError: the file can't be read.
    """
    rows = (
        _row(record, place, corpus, "id", record.get("answer_aliases") or ())
        for place, record in _records(path)
        if record.get("answerable", True)
    )
    return list(islice(rows, limit))


def load_hotpotqa(path: str, corpus: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the questions of a HotpotQA file; as `load_musique`."""
    rows = (_row(record, place, corpus, "_id", ()) for place, record in _records(path))
    return list(islice(rows, limit))


def load_2wiki(path: str, corpus: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the questions of a 2WikiMultihopQA file, which has HotpotQA's form; as `load_musique`.

    Its aliases of answers stand in a file of their own, which is not read.
    """
    return load_hotpotqa(path, corpus, limit)


def write_corpus(target: str, paths: Sequence[str]) -> int:
    """Write the paragraphs of such files to `target`, each once, and return how many there are.

    Raises:
        DataError: naming file and question.
        OSError: a file can't be read or written.
    """
    found = {
        passage: None
        for path in paths
        for place, record in _records(path)
        for passage in _passages(record, place)
    }
    with Path(target).open("w", encoding="utf-8") as lines:
        for title, text in found:
            lines.write(json.dumps({"title": title, "text": text}, ensure_ascii=False) + "\n")
    return len(found)


def _row(
    record: Mapping[str, Any], place: str, corpus: str, key: str, aliases: Sequence[str]
) -> dict[str, Any]:
    return {
        "id": _text(record, key, place),
        "question": _text(record, "question", place),
        "answer": _text(record, "answer", place),
        "aliases": list(aliases),
        "kind": str(record.get("type") or _text(record, key, place).split("__")[0]),
        "corpus": corpus,
    }


def _passages(record: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """Title and text of a question's paragraphs, in either form."""
    try:
        if "paragraphs" in record:
            for one in record["paragraphs"]:
                yield str(one["title"]), str(one["paragraph_text"])
        else:
            for title, sentences in record["context"]:
                yield str(title), " ".join(str(one).strip() for one in sentences)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place}: its paragraphs can't be read: {error!r}") from error


def _records(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield place and object of each question: of JSON lines, or of a file that is one list."""
    text = Path(path).read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        for number, record in enumerate(cast("list[Any]", _json(text, path)), start=1):
            yield _object(record, f"{path}: question {number}")
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield _object(_json(line, place), place)


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error}") from error


def _object(record: Any, place: str) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected an object, found {str(record)[:40]!r}")
    return place, cast("dict[str, Any]", record)


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    """Return a field that must be non-empty text."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: field {field!r} must be text, found {value!r}")
    return value


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m lightningrl_bench_rag.loaders CORPUS.jsonl DATA...")
    print(write_corpus(sys.argv[1], sys.argv[2:]), "passages")  # noqa: T201 - a command
