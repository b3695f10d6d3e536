"""Which slots prompts are given, and what they need not compute."""

from __future__ import annotations

from lightningrl_verl.engine.prompt_slots import Seat, SlotPool

SYSTEM = list(range(100, 140))
"""40 tokens that every prompt begins with; less than 16 are not worth a copy."""


def take(pool: SlotPool, *prompts: list[int]) -> list[Seat]:
    """Seats in the order of the prompts."""
    placed = dict(pool.take(prompts))
    return [placed[index] for index in range(len(prompts))]


def test_a_group_s_prompt_is_computed_once_and_its_last_token_by_each_member() -> None:
    prompt = [*SYSTEM, 1, 2]
    first, second, third = take(SlotPool(4), prompt, prompt, prompt)
    assert first == Seat(slot=0, start=0)
    # Of 42 tokens 41 are copied, and the last ones computed together.
    assert second == Seat(slot=1, start=41, source=0, wave=1)
    assert third == Seat(slot=2, start=41, source=0, wave=1)


def test_prompts_of_several_groups_share_what_they_begin_with() -> None:
    seats = take(SlotPool(4), [*SYSTEM, 2, 0], [*SYSTEM, 1, 0], [1] * 30)
    # In order: [1, 1, ...], [.., 1, 0], [.., 2, 0].
    assert seats[2] == Seat(slot=0, start=0)
    assert seats[1] == Seat(slot=1, start=0)
    assert seats[0] == Seat(slot=2, start=40, source=1, wave=1)


def test_a_conversation_goes_on_in_its_slot_whatever_else_is_admitted() -> None:
    pool = SlotPool(2)
    take(pool, [*SYSTEM, 1], [*SYSTEM, 2])
    pool.give(0, [*SYSTEM, 1, 7])
    pool.give(1, [*SYSTEM, 2, 8])
    # The slot free for longest holds the conversation of the second prompt.
    other, same = take(pool, [5] * 20, [*SYSTEM, 1, 7, 9])
    assert same == Seat(slot=0, start=42)
    assert other == Seat(slot=1, start=0)


def test_what_an_active_request_or_a_free_slot_holds_is_copied() -> None:
    pool = SlotPool(3)
    take(pool, [*SYSTEM, 1])
    (seat,) = take(pool, [*SYSTEM, 2])
    assert seat == Seat(slot=1, start=40, source=0)
    pool.give(0, [*SYSTEM, 1, 5, 6])
    # Slot 2 is free for longest; slot 0 holds 42 of the prompt's tokens, and one more.
    (seat,) = take(pool, [*SYSTEM, 1, 5, 9])
    assert seat == Seat(slot=2, start=42, source=0)


def test_a_slot_s_own_beginning_stays_where_it_is() -> None:
    pool = SlotPool(1)
    take(pool, [*SYSTEM, 1])
    pool.give(0, [*SYSTEM, 1, 5, 6])
    assert take(pool, [*SYSTEM, 3, 4]) == [Seat(slot=0, start=40)]


def test_short_beginnings_are_not_copied() -> None:
    # 15 of 16 tokens are alike.
    same, other = [*SYSTEM[:15], 1], [*SYSTEM[:15], 2]
    assert take(SlotPool(2), same, other) == [Seat(0, 0), Seat(1, 0)]


def test_what_former_weights_computed_is_forgotten() -> None:
    pool = SlotPool(3)
    take(pool, [*SYSTEM, 1], [*SYSTEM, 2])
    pool.give(0, [*SYSTEM, 1])
    pool.forget()
    assert take(pool, [*SYSTEM, 1, 3]) == [Seat(slot=2, start=0)]
