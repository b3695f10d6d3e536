"""Check and measure log-probs, updates, generation and weight swaps on one device.

Builds a randomly initialised model (Qwen2.5-0.5B's shape, or a tiny one), so nothing is downloaded.
Fails if the trainer's or the engine's fp32 log-probs differ from a plain transformers forward pass by more
than 1e-4, if engine and trainer disagree after a swap, or if a weight swap changes nothing. Everything else is reported: a
table on the terminal, and rows of {case, system, metric, value, unit, runs, spread} as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lightningrl.credit import broadcast
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Mode,
    NewRollout,
    Rollout,
    RolloutId,
    RolloutState,
    StepId,
    StepKind,
    group_id,
    rollout_id,
)
from lightningrl.trajectory import Row, merge, with_credit
from lightningrl.transition import Group, Trace, Transition
from lightningrl_verl.backend import VerlBackend
from lightningrl_verl.backend_config import BackendConfig
from lightningrl_verl.engine import Completion, SamplingParams, TorchEngine
from lightningrl_verl.probe import probe

FP32_TOLERANCE = 1e-4
"""Nats between two fp32 forward passes of the same weights."""

HALF_TOLERANCE = 0.2
"""Nats between two bf16 forward passes; the measured gap is reported."""


@dataclass(frozen=True)
class Size:
    """A model and a load."""

    shape: dict[str, int]
    prompts: int
    prompt_tokens: int
    answer_tokens: int
    micro_batch_tokens: int
    runs: int


# Qwen2.5-0.5B's config.json.
QWEN_HALF_B = Size(
    shape={
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    prompts=64,
    prompt_tokens=256,
    answer_tokens=256,
    micro_batch_tokens=8192,
    runs=3,
)
TINY = Size(
    shape={
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    prompts=4,
    prompt_tokens=8,
    answer_tokens=8,
    micro_batch_tokens=256,
    runs=1,
)


class Report:
    """Measured rows, and the device's peak memory of what is measured."""

    def __init__(self, device: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self._device = device

    def add(self, case: str, metric: str, unit: str, values: Sequence[float]) -> None:
        """The median of `values`, with the distance between the extremes."""
        self.rows.append(
            {
                "case": case,
                "system": "lightningrl",
                "metric": metric,
                "value": statistics.median(values),
                "unit": unit,
                "runs": len(values),
                "spread": max(values) - min(values),
            }
        )

    def rate(self, case: str, tokens: int, runs: int, work: Callable[[], object]) -> None:
        """Tokens per second of `work`, after one run to warm up, and its peak memory."""
        work()
        rates: list[float] = []
        with self.peak_memory(case):
            for _ in range(runs):
                started = time.perf_counter()
                work()
                self._finish()
                rates.append(tokens / (time.perf_counter() - started))
        self.add(case, "throughput", "tokens/s", rates)

    @contextmanager
    def peak_memory(self, case: str) -> Iterator[None]:
        """Report the most device memory held meanwhile; nothing on a CPU."""
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield
        if self._device == "cuda":
            self.add(case, "peak_memory", "GiB", [torch.cuda.max_memory_allocated() / 2**30])

    def _finish(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def print(self) -> None:
        """The rows as a table."""
        print(f"{'case':<14}{'metric':<26}{'value':>14}  unit")
        for row in self.rows:
            print(f"{row['case']:<14}{row['metric']:<26}{row['value']:>14.6g}  {row['unit']}")


def build_model(folder: Path, size: Size) -> None:
    """Write a random model and a tokenizer of its vocabulary to `folder`."""
    torch.manual_seed(0)
    vocabulary = size.shape["vocab_size"]
    words = {f"w{i}": i for i in range(vocabulary - 1)} | {"<end>": vocabulary - 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="<end>"
    )
    tokenizer.pad_token = "<end>"
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        **size.shape,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def backend_config(folder: Path, device: Any, dtype: Any, size: Size) -> BackendConfig:
    """The same training in either precision."""
    return BackendConfig(
        model_path=str(folder),
        device=device,
        dtype=dtype,
        learning_rate=1e-4,
        total_iterations=100,
        max_tokens_per_micro_batch=size.micro_batch_tokens,
    )


def random_rows(size: Size, count: int) -> list[Row]:
    """Rows of random tokens whose second half is trained."""
    draw = np.random.default_rng(0)
    length = size.prompt_tokens + size.answer_tokens
    mask = np.arange(length) >= size.prompt_tokens
    ids = draw.integers(0, size.shape["vocab_size"], (count, length)).astype(np.int32)
    weights = mask.astype(np.float32) / length
    return [
        Row(RolloutId(f"random-{i}"), one, mask, np.zeros(length, np.float32), weights, ())
        for i, one in enumerate(ids)
    ]


def rows_of(prompts: Sequence[list[int]], answers: Sequence[Completion]) -> list[Row]:
    """The answers through core's own layers: transitions, broadcast credit, merged rows, weights.

    All answers form one group, in which every second one is rewarded.
    """
    now = datetime.now(UTC)
    group = group_id("gpu-check", Mode.TRAIN, 1, "task")
    traces: list[Trace] = []
    for member, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        name = rollout_id(group, member)
        spec = NewRollout(
            id=name,
            run="gpu-check",
            mode=Mode.TRAIN,
            iteration=1,
            task_id="task",
            group_id=group,
            member=member,
            task={},
        )
        reward = float(member % 2)
        rollout = Rollout(spec, RolloutState.SUCCEEDED, 1, reward, now, now)
        attempt = Attempt(
            AttemptId(name), name, 1, AttemptState.SUCCEEDED, "check", now, now, now, None, None
        )
        step = Transition(
            step_id=StepId(name),
            rollout_id=name,
            attempt_id=attempt.id,
            kind=StepKind.LLM,
            name="policy",
            agent=None,
            parent_id=None,
            started_at=now,
            prompt_ids=np.array(prompt, np.int32),
            token_ids=np.array(answer.token_ids, np.int32),
            logprobs=np.array(answer.logprobs, np.float32),
        )
        traces.append(Trace(rollout, attempt, (step,), reward))
    (credit,) = broadcast([Group(group, tuple(traces))])
    return [
        row
        for trace, credit_T in zip(traces, credit, strict=True)
        for row in with_credit(merge(trace.transitions).rows, credit_T, len(traces))
    ]


def check_log_probs(report: Report, folder: Path, device: str, size: Size) -> None:
    """Compare the trainer's log-probs with a plain forward pass in fp32, in both precisions."""
    rows = random_rows(size, 4)
    plain = plain_log_probs(folder, device, rows)
    check_engine(report, folder, device, rows, plain)
    for dtype in ("fp32", "bf16"):
        backend = VerlBackend(backend_config(folder, device, dtype, size))
        scored = backend.log_probs(rows)
        gap = max(float(np.abs(a - b).max()) for a, b in zip(scored, plain, strict=True))
        backend.close()
        report.add(f"trainer {dtype}", "max_log_prob_difference", "nats", [gap])
        if dtype == "fp32" and not gap <= FP32_TOLERANCE:
            raise SystemExit(f"fp32 log-probs differ from transformers' by {gap:.3g} nats")


def check_engine(
    report: Report,
    folder: Path,
    device: str,
    rows: Sequence[Row],
    plain: Sequence[NDArray[np.float32]],
) -> None:
    """The same for the engine, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    longest = max(64, *(len(row.token_ids) for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = TorchEngine(model, tokenizer, slots=1, max_model_len=longest)
    engine.start()
    try:
        gaps: list[float] = []
        for row, expected in zip(rows, plain, strict=True):
            start = int(row.mask.argmax())
            scored = engine.score(row.token_ids[:start].tolist(), row.token_ids[start:].tolist())
            gaps.append(float(np.abs(np.array(scored) - expected[start:]).max()))
    finally:
        engine.close()
    report.add("engine fp32", "max_log_prob_difference", "nats", [max(gaps)])
    if not max(gaps) <= FP32_TOLERANCE:
        raise SystemExit(
            f"the engine's fp32 log-probs differ from transformers' by {max(gaps):.3g}"
        )


def plain_log_probs(folder: Path, device: str, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
    """Per row (T,), from transformers alone, 0 where not masked."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    found: list[NDArray[np.float32]] = []
    for row in rows:
        ids = torch.tensor(row.token_ids[None].astype(np.int64), device=device)
        with torch.no_grad():
            scores = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        chosen = scores.gather(-1, ids[0, 1:, None])[:, 0].cpu().numpy()
        found.append(np.where(row.mask, np.concatenate([[0], chosen]), 0).astype(np.float32))
    return found


def measure(report: Report, folder: Path, device: str, size: Size) -> None:
    """Generate, score, update and swap, in bf16 on a GPU and in fp32 on a CPU."""
    dtype = "bf16" if device == "cuda" else "fp32"
    tolerance = HALF_TOLERANCE if device == "cuda" else FP32_TOLERANCE
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
        attn_implementation="sdpa",
    )
    engine = TorchEngine(
        model.to(device),
        AutoTokenizer.from_pretrained(folder),
        slots=size.prompts,
        max_model_len=max(64, size.prompt_tokens + size.answer_tokens),
    )
    engine.start()
    backend = VerlBackend(backend_config(folder, device, dtype, size))
    try:
        rows, old = measure_generation(report, engine, size)
        tokens = sum(len(row.token_ids) for row in rows)
        report.rate("log_probs", tokens, size.runs, lambda: backend.log_probs(rows))
        scored = backend.log_probs(rows)
        gap = max(float(np.abs(a - b).max()) for a, b in zip(scored, old, strict=True))
        report.add("generation", "max_log_prob_difference", "nats", [gap])
        report.rate("update", tokens, size.runs, lambda: backend.update(rows, scored))
        measure_swap(report, engine, backend, tolerance)
    finally:
        engine.close()
        backend.close()


def measure_generation(
    report: Report, engine: TorchEngine, size: Size
) -> tuple[list[Row], list[NDArray[np.float32]]]:
    """Answer all prompts at once; the answers as rows, with the engine's log-probs."""
    prompts = [
        row.token_ids[: size.prompt_tokens].tolist() for row in random_rows(size, size.prompts)
    ]
    params = SamplingParams(max_tokens=size.answer_tokens)

    async def answer_all() -> list[Completion]:
        return list(await asyncio.gather(*(engine.generate(one, params) for one in prompts)))

    asyncio.run(answer_all())
    with report.peak_memory("generation"):
        started = time.perf_counter()
        answers = asyncio.run(answer_all())
        seconds = time.perf_counter() - started
    sampled = sum(len(answer.token_ids) for answer in answers)
    report.add("generation", "throughput", "tokens/s", [sampled / seconds])
    rows = rows_of(prompts, answers)
    return rows, [row.logprobs for row in rows]


def measure_swap(
    report: Report, engine: TorchEngine, backend: VerlBackend, tolerance: float
) -> None:
    """Give the engine the updated weights, and check that it serves them."""
    prompt, answer = [1, 2, 3, 4], [5, 6, 7, 8]
    before = engine.score(prompt, answer)
    with report.peak_memory("weight_swap"):
        started = time.perf_counter()
        engine.swap_weights(backend.named_parameters(), 1)
        report.add("weight_swap", "duration", "s", [time.perf_counter() - started])
    if engine.score(prompt, answer) == before:
        raise SystemExit("the engine scores as before the swap: it serves stale weights")
    result = probe(engine.score, backend, tolerance=tolerance)
    report.add("weight_swap", "max_log_prob_difference", "nats", [result.max_abs_difference])


def main() -> None:
    """Run all checks and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try this script out")
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else QWEN_HALF_B
    report = Report(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder), size)
        check_log_probs(report, Path(folder), arguments.device, size)
        measure(report, Path(folder), arguments.device, size)
    report.print()
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(report.rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
