"""Attempt keys open one attempt, until they expire, and say nothing more."""

from datetime import UTC, datetime, timedelta

import pytest

from lightningrl.errors import AuthError
from lightningrl.keys import check_attempt_key, sign_attempt_key
from lightningrl.schema import AttemptId

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=60)
ATTEMPT = AttemptId("a-1")
SECRET = b"secret of this store"


def test_a_key_names_the_attempt_it_was_signed_for() -> None:
    key = sign_attempt_key(SECRET, ATTEMPT, LATER)
    assert check_attempt_key(SECRET, key) == ("a-1", LATER.timestamp())


def test_a_key_is_made_of_its_prefix_the_attempt_the_expiry_and_a_signature() -> None:
    key = sign_attempt_key(SECRET, ATTEMPT, LATER)
    prefix, attempt, expiry, signature = key.split(".")
    assert (prefix, attempt) == ("lrk1", "a-1")
    assert int(expiry) == 1767268860  # 2026-01-01T12:01:00Z
    assert len(signature) == 43  # 32 bytes in base64 without padding


def test_a_key_holds_until_its_expiry_and_not_a_second_longer() -> None:
    key = sign_attempt_key(SECRET, ATTEMPT, LATER)
    checked = check_attempt_key(SECRET, key)
    checked.refuse_expired(LATER)
    with pytest.raises(AuthError, match=r"'a-1' has expired"):
        checked.refuse_expired(LATER + timedelta(seconds=1))


def test_a_key_of_another_store_is_refused() -> None:
    key = sign_attempt_key(b"another store", ATTEMPT, LATER)
    with pytest.raises(AuthError, match="not signed by this store"):
        check_attempt_key(SECRET, key)


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_key_with_any_part_changed_is_refused(part: int) -> None:
    parts = sign_attempt_key(SECRET, ATTEMPT, LATER).split(".")
    parts[part] = {1: "a-2", 2: str(int(parts[2]) + 9999), 3: "A" * 43}[part]
    with pytest.raises(AuthError, match="not signed by this store"):
        check_attempt_key(SECRET, ".".join(parts))


@pytest.mark.parametrize("text", ["", "sk-äbc", "lrk1.a-1.1", "lrk2.a-1.1.s", "lrk1.a.b.1.s"])
def test_what_is_no_attempt_key_is_refused(text: str) -> None:
    with pytest.raises(AuthError, match="not an attempt key"):
        check_attempt_key(SECRET, text)


def test_no_refusal_repeats_the_key() -> None:
    key = sign_attempt_key(b"another store", ATTEMPT, LATER)
    for text in (key, "sk-very-private"):
        with pytest.raises(AuthError) as refused:
            check_attempt_key(SECRET, text)
        assert text not in str(refused.value)
        assert key.rsplit(".", 1)[1] not in str(refused.value)


@pytest.mark.parametrize("signature", ["é", "\ud800"])
def test_a_signature_beyond_ascii_is_refused_as_any_other(signature: str) -> None:
    with pytest.raises(AuthError, match="not signed by this store"):
        check_attempt_key(SECRET, f"lrk1.a-1.1.{signature}")
