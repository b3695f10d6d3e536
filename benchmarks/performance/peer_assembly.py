"""Agent Lightning's way from stored events to training tensors; run by `assembly.py`, not by hand.

It begins with events in memory, where that server keeps them: triplets of prompt, answer and log-probs as the server
makes them, their way to the trainer as JSON, completed rollouts, and the trainer's padded tensors. The HTTP between
is left out. torch and verl are this environment's, the rest is the peer's.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_LONGEST = 2048
"""Tokens that a prompt, and an answer, are padded to."""


def main() -> None:
    """Print one JSON object: case -> CPU seconds of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", required=True, help="the peer's site-packages")
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--shape", type=int, nargs=4, required=True)
    options = parser.parse_args()
    sys.path.append(options.packages)  # behind our own, so that torch and verl are found first
    found = {
        case: list(_rounds(case, options.rollouts, options.rounds, options.shape))
        for case in ("linear", "branchy")
    }
    print(json.dumps(found))


def _rounds(case: str, rollouts: int, rounds: int, shape: list[int]) -> Iterator[float]:
    # Here, and not above: the peer's packages are found only once `main` has named their folder.
    from agentlightning.schemas import Event  # pyright: ignore[reportMissingImports] - the peer's
    from agentlightning.server.routes import events as server  # pyright: ignore[reportMissingImports]

    train_data = _trainer()
    events = [_events(Event, case, f"r{number}", shape, number) for number in range(rollouts)]
    for _ in range(rounds):
        gc.collect()
        began = time.process_time()
        served = [
            server._dedupe_model_requests_by_prompt_token_ids(
                [server._to_triplet_format(one) for one in of_rollout]
            )
            for of_rollout in events
        ]
        texts = [
            "[" + ",".join(one.model_dump_json() for one in of_rollout) + "]"
            for of_rollout in served
        ]
        train_data([[Event.model_validate(one) for one in json.loads(text)] for text in texts])
        yield time.process_time() - began


def _trainer() -> Callable[[list[Any]], None]:
    """What its trainer does with the events of a step's rollouts."""
    import torch
    from agentlightning import schemas  # pyright: ignore[reportMissingImports]
    from agentlightning.verl import (  # pyright: ignore[reportMissingImports]
        agl_rollout_manager,
        rollout_adapter,
    )

    torch.set_num_threads(1)
    status = schemas.RolloutLifecycleStatus(
        state=schemas.RolloutState.SUCCEEDED, created_at=0, updated_at=0
    )
    adapter = rollout_adapter.RolloutAdapter(
        max_prompt_length=_LONGEST,
        max_response_length=_LONGEST,
        device=torch.device("cpu"),
        pad_token_id=0,
        trace_aggregator_level="trajectory",
    )

    def train_data(events: list[Any]) -> None:
        # It would fetch them over HTTP.
        manager = object.__new__(agl_rollout_manager.AglRolloutManagerBase)
        manager._fetch_rollout_events = lambda rollout_id: ([], events[int(rollout_id[1:])])
        completed = [
            manager._build_completed_rollout(
                agl_rollout_manager.EnqueuedRollout(
                    data_id=f"d{number // 8}",
                    rollout_id=f"r{number}",
                    step=0,
                    sample_idx_in_step=number // 8,
                    enqueue_time=0.0,
                ),
                schemas.Rollout(
                    rollout_id=f"r{number}",
                    input={},
                    config=schemas.RolloutConfig(),
                    status=status,
                ),
            )
            for number in range(len(events))
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            adapter.get_train_data_batch(completed)

    return train_data


def _events(
    kind: Callable[..., Any], case: str, rollout: str, shape: list[int], seed: int
) -> list[Any]:
    """One rollout's calls and reward; `shape` is turns, first prompt, further prompt, answer."""
    turns, first, further, sampled = shape
    rng = np.random.default_rng(seed)

    def ids(count: int) -> list[int]:
        return rng.integers(1_000, 150_000, count).tolist()

    def event(name: str, data: dict[str, Any]) -> Any:
        return kind(event_type=name, rollout_id=rollout, attempt_id="0", timestamp=0.0, data=data)

    token = {"token": "t", "logprob": -0.5, "bytes": [1], "top_logprobs": []}
    prompt, made = ids(first), []
    for turn in range(turns):
        answer = ids(sampled)
        choice = {"token_ids": answer, "logprobs": {"content": [token] * sampled}}
        response = {"prompt_token_ids": prompt, "choices": [choice]}
        call = {
            "model": "m",
            "request": {"messages": []},
            "response": response,
            "server": {"model": "m", "version": 0},
            "http_status": 200,
            "status": "ok",
        }
        made.append(event("model_request", call))
        length = first + (turn + 1) * (sampled + further)
        prompt = [*prompt, *answer, *ids(further)] if case == "linear" else ids(length)
    return [*made, event("reward", {"value": 1.0})]


if __name__ == "__main__":
    main()
