"""Generated questions: deterministic, answerable by search, and disjoint between the splits."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise

import pytest

from lightningrl_bench_rag.baselines import guess, measure, oracle, search_once
from lightningrl_bench_rag.search import TOP, index_of
from lightningrl_bench_rag.tasks import HOPS, Level, chains, draw, generate
from lightningrl_bench_rag.world import RELATIONS, Split, read, world

SPLITS: tuple[Split, ...] = ("train", "val", "test")
LEVELS: tuple[Level, ...] = (1, 2, 3)
KINDS = {"The", "College", "Motors", "Foods", "Mills", "Films", "Tools", "Wines"}


def test_the_same_arguments_give_the_same_rows_and_another_seed_gives_another_corpus() -> None:
    assert generate("train", 20, 7) == generate("train", 20, 7)
    assert generate("val", 30, 0)[:10] == generate("val", 10, 0)
    one, other = (set(world("train", seed).passages) for seed in (7, 8))
    assert len(one) == len(other) == sum(len(world("train", 7).entities[kind]) * len(found) for kind, found in RELATIONS.items())  # fmt: skip
    assert len(one & other) < 10


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", LEVELS)
def test_each_hop_is_found_among_the_best_passages_and_leads_to_the_answer(
    split: Split, level: Level
) -> None:
    rows = generate(split, 100, 1, level)
    assert json.loads(json.dumps(rows)) == rows
    assert len({row["question"] for row in rows}) == len({row["id"] for row in rows}) == 100
    assert {len(row["hops"]) for row in rows} == set(HOPS[level])
    for row in rows:
        for hop in row["hops"]:
            found = index_of(row["corpus"]).search(hop["query"])
            assert len(found) == TOP
            # One passage is the fact, the others say something else.
            values = [read(passage, hop["query"]) for passage in found]
            assert [value for value in values if value is not None] == [hop["answer"]]
        assert row["hops"][-1]["answer"] == row["answer"]
        assert row["answer"] not in row["question"]


def test_the_best_passage_is_often_a_distractor() -> None:
    hops = [
        (row["corpus"], hop)
        for row in generate("train", 200, 0, 2)
        for hop in row["hops"]
    ]  # fmt: skip
    first = sum(read(index_of(c).search(h["query"])[0], h["query"]) is not None for c, h in hops)
    assert 0.7 < first / len(hops) < 0.95


def test_a_question_can_be_solved_with_a_pencil() -> None:
    rng = random.Random(0)
    question = next(
        q
        for q in iter(lambda: draw("train", 0, 1, rng), None)
        if q.chain == ("publisher", "founder")
    )
    match = re.fullmatch(r"Who is the founder of the publisher of (The \w+)\?", question.text)
    assert match is not None
    passages = world("train", 0).passages
    company = next(v for one in passages if (v := read(one, f"publisher of {match[1]}")))
    assert question.entities == (match[1], company, question.entities[2])
    assert read(f"{question.entities[2]} is the founder of {company}.", f"founder of {company}")
    assert any(read(one, f"founder of {company}") == question.entities[2] for one in passages)


def test_no_word_of_a_name_is_shared_between_splits() -> None:
    words = {
        split: {
            word
            for seed in range(3)
            for names in world(split, seed).entities.values()
            for name in names
            for word in name.split()
        }
        - KINDS
        for split in SPLITS
    }
    assert all(len(found) > 200 for found in words.values())
    for split in SPLITS:
        others = set().union(*(words[other] for other in SPLITS if other != split))
        assert not words[split] & others


@pytest.mark.parametrize("hops", [2, 3, 4])
def test_no_chain_is_shared_and_training_chains_have_no_pair_of_another_split(hops: int) -> None:
    found = {split: {chain for _, chain in chains(split, hops)} for split in SPLITS}
    pairs = {split: {chain for _, chain in chains(split, 2)} for split in SPLITS}
    assert {len(one) > 0 for one in found.values()} == {True}
    assert len(set().union(*found.values())) == sum(map(len, found.values()))
    for split in SPLITS:
        for chain in found[split]:
            owned = set(pairwise(chain))
            assert owned <= pairs["train"] | pairs[split]
            assert owned & pairs[split]


def test_at_two_hops_each_relation_is_trained_in_the_place_where_it_is_tested() -> None:
    found = {split: {chain for _, chain in chains(split, 2)} for split in SPLITS}
    for place in (0, 1):
        trained = {chain[place] for chain in found["train"]}
        assert {chain[place] for chain in found["val"] | found["test"]} <= trained


def test_the_oracle_is_always_right_and_guesses_hardly_ever() -> None:
    assert measure(oracle, 2, count=60) == (1.0, 1.0)
    for policy in (guess, search_once):
        assert measure(policy, 2, count=60)[0] < 0.1


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train, val, test"):
        generate("dev", 1, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown level 4"):
        generate("val", 1, 0, 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        generate("val", -1, 0)
    with pytest.raises(ValueError, match="split 'test' has no more than about"):
        generate("test", 1000, 0)
    assert generate("val", 0, 0) == []
