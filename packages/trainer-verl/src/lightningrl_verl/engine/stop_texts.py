"""Texts that end an answer, looked for in what its tokens say.

Invariant: token ids stay as sampled; the text of the answer alone is cut.
"""

from collections.abc import Callable, Sequence

_SPARE = 8
"""Tokens decoded beyond the longest text: the first ones of a window may be halves of characters."""


class StopTexts:
    """Those of one request."""

    def __init__(self, texts: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        """`texts` are not empty; `decode` gives the text of token ids, special tokens kept."""
        self._texts = tuple(texts)
        self._decode = decode
        self._window = max(len(text.encode()) for text in texts) + _SPARE

    def found(self, token_ids: Sequence[int]) -> str | None:
        """The first of them, as listed, that the newest token completed. `None`: none.

        A token has at least one byte, so as many tokens as the longest text has bytes hold it.
        """
        text = self._decode(token_ids[-self._window :])
        return next((stop for stop in self._texts if stop in text), None)


def cut_at(text: str, stop: str, *, keep: bool) -> str:
    """The text up to `stop`, and with it if `keep`."""
    before, found, _ = text.partition(stop)
    return before + found if keep else before
