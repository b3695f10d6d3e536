"""Where model calls come from that are of no rollout."""

from enum import StrEnum


class Origin(StrEnum):
    """Where a call was made that named no attempt."""

    THREAD = "thread"
    """In a runner's process, in a thread that no rollout started."""
    ENDED = "ended"
    """There, by work of an attempt that has ended."""
    REWARD = "reward"
    """There, by the reward function."""
    MAIN = "main"
    """There, in the main thread: while a module was imported, or by a task that no rollout started."""
    CHILD = "child"
    """In a child process of a runner's, by openai's or anthropic's package."""
    LIBRARY = "library"
    """By another client, in a runner's process or a child of it."""
    ELSEWHERE = "elsewhere"
    """By whoever has no key, or one that is not valid."""
