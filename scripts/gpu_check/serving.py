"""The embedded engine: answers, weight swaps, and whether it holds the trainer's weights."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

import numpy as np
import torch
from report import CheckFailed, Report
from rows import answered_rows, random_rows
from sizes import Shape, Size
from training import FP32_TOLERANCE, plain_log_probs, trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightningrl_verl.engine import Completion, SamplingParams, TorchEngine
from lightningrl_verl.serving.probe import probe
from lightningrl_verl.worker.backend import VerlBackend

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

PROBE_TOLERANCE = {"fp32": FP32_TOLERANCE, "bf16": 0.1}
"""Nats; for bf16 the trainer's own default."""


def load_engine(folder: Path, device: str, dtype: str, slots: int, longest: int) -> TorchEngine:
    """A running engine."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=_DTYPES[dtype], attn_implementation="sdpa"
    )
    model.to(torch.device(device))  # pyright: ignore[reportArgumentType] - transformers' wrapper hides `self`
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = TorchEngine(model, tokenizer, slots=slots, max_model_len=max(64, longest))
    engine.start()
    return engine


def check_engine(report: Report, folder: Path, shape: Shape, size: Size) -> None:
    """Compare the engine's fp32 log-probs with a plain forward pass.

    Raises:
        CheckFailed: they differ.
    """
    rows = random_rows(shape, [size.row_tokens // 2] * 4)
    plain = plain_log_probs(folder, report.device, rows)
    engine = load_engine(folder, report.device, "fp32", 1, size.row_tokens)
    try:
        gaps: list[float] = []
        for row, expected in zip(rows, plain, strict=True):
            start = int(row.mask.argmax())
            scored = engine.score(row.token_ids[:start].tolist(), row.token_ids[start:].tolist())
            gaps.append(float(np.abs(np.array(scored) - expected[start:]).max()))
    finally:
        engine.close()
    report.add("engine fp32", "max log-prob difference", "nats", [max(gaps)])
    if not max(gaps) <= FP32_TOLERANCE:
        raise CheckFailed(
            f"the engine's fp32 log-probs differ from transformers' by {max(gaps):.3g}"
        )


def measure_serving(report: Report, folder: Path, shape: Shape, size: Size, dtype: str) -> None:
    """Answer many prompts at once, score the answers with the trainer, train on them, swap the weights in.

    Raises:
        CheckFailed: the swap changed nothing.
        WeightMismatch: the engine does not hold the trainer's weights afterwards.
    """
    with trainer(folder, report.device, dtype, size) as backend:
        for slots in size.slots:
            longest = size.first_tokens + size.answer_tokens
            engine = load_engine(folder, report.device, dtype, slots, longest)
            try:
                rows = _answer(report, engine, shape, size, slots)
                scored = backend.log_probs(rows)
                gaps = np.concatenate(
                    [
                        np.abs(a - row.logprobs)[row.mask]
                        for a, row in zip(scored, rows, strict=True)
                    ]
                )
                case = f"{shape.name} answers, {slots} at once"
                report.add(case, "max log-prob difference", "nats", [float(gaps.max())])
                report.add(case, "mean log-prob difference", "nats", [float(gaps.mean())])
                if slots == size.slots[-1]:
                    backend.update(rows, [row.logprobs for row in rows])
                    _swap(report, engine, backend, shape, dtype)
            finally:
                engine.close()
                del engine
                gc.collect()


def _answer(report: Report, engine: TorchEngine, shape: Shape, size: Size, slots: int):
    prompts = [row.token_ids.tolist() for row in random_rows(shape, [size.first_tokens] * slots)]
    params = SamplingParams(max_tokens=size.answer_tokens)

    async def answer_all() -> list[Completion]:
        return list(await asyncio.gather(*(engine.generate(one, params) for one in prompts)))

    case = f"{shape.name} answers, {slots} at once"
    asyncio.run(answer_all())
    with report.peak_memory(case):
        started = time.perf_counter()
        answers = asyncio.run(answer_all())
        seconds = time.perf_counter() - started
    sampled = sum(len(answer.token_ids) for answer in answers)
    report.add(case, "throughput", "tokens/s", [sampled / seconds])
    return answered_rows(
        prompts, [one.token_ids for one in answers], [one.logprobs for one in answers]
    )


def _swap(
    report: Report, engine: TorchEngine, backend: VerlBackend, shape: Shape, dtype: str
) -> None:
    case = f"{shape.name} weight swap"
    prompt, answer = [1, 2, 3, 4], [5, 6, 7, 8]
    before = engine.score(prompt, answer)
    with report.peak_memory(case):
        started = time.perf_counter()
        engine.swap_weights(backend.named_parameters(), 1)
        report.finish()
        report.add(case, "duration", "s", [time.perf_counter() - started])
    if engine.score(prompt, answer) == before:
        raise CheckFailed("the engine scores as before the swap: it serves stale weights")
    result = probe(engine.score, backend, tolerance=PROBE_TOLERANCE[dtype])
    report.add(case, "max log-prob difference", "nats", [result.max_abs_difference])
