"""Token ids as text, by the tokenizer that a run's folder keeps.

Invariant: pieces put together are the text of all tokens; a token that ends no character has an empty piece.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from lightningrl.lessons import tokenizer_path


class TokenReader:
    """Reads the token ids of one policy."""

    def __init__(self, run_folder: Path | None, policy: str) -> None:
        path = None if run_folder is None else tokenizer_path(run_folder, policy)
        known = path is not None and path.is_file()
        self._tokenizer = _load(path, path.stat().st_mtime_ns) if path and known else None

    @property
    def known(self) -> bool:
        """Whether there is a tokenizer; without one ids stand for their text."""
        return self._tokenizer is not None

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds."""
        if self._tokenizer is None:
            return [f"⟨{one}⟩" for one in ids]
        # Only now: most screens read no token.
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self._tokenizer, one) or "" for one in ids]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens that stand together."""
        return "".join(self.pieces(ids))


@functools.lru_cache(maxsize=4)
def _load(path: Path, changed_ns: int):
    from tokenizers import Tokenizer

    del changed_ns  # of the file: what the cache knows it by
    return Tokenizer.from_file(str(path))
