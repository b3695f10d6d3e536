"""Log-probs, updates and prefix merging, against the chip's own matrix rate."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from report import CheckFailed, Report
from rows import conversation_rows, mixed_lengths, random_rows
from sizes import Shape, Size
from transformers import AutoModelForCausalLM

from lightningrl.experience.trajectory import Row
from lightningrl.recipe import Optimiser
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import BackendConfig

FP32_TOLERANCE = 1e-4
"""Nats between two fp32 forward passes of the same weights."""

_RECOMPUTE = "model.enable_gradient_checkpointing"

GRADIENT_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative, between the gradient norms of merged and of unmerged rows."""


@contextmanager
def trainer(
    folder: Path, device: Any, dtype: Any, size: Size, **overrides: Any
) -> Generator[VerlBackend]:
    """A trainer of the model in `folder`; its memory is free afterwards."""
    backend = VerlBackend(
        BackendConfig(
            model_path=str(folder),
            device=device,
            dtype=dtype,
            optimiser=Optimiser(learning_rate=1e-6, schedule="constant"),
            total_iterations=1000,
            max_tokens_per_micro_batch=size.micro_batch_tokens,
            overrides=overrides,
        )
    )
    try:
        yield backend
    finally:
        backend.close()
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def measure_matrix_rate(report: Report, size: Size) -> None:
    """The chip's rate on one product of random bf16 matrices (fp32 on a CPU)."""
    dtype = torch.bfloat16 if report.device == "cuda" else torch.float32
    side = size.matrix
    left, right = torch.randn(2, side, side, device=report.device).to(dtype).unbind()
    report.time(3, lambda: left @ right)
    seconds = report.time(10, lambda: left @ right)
    rates = [2 * side**3 / one for one in seconds]
    report.matrix_flops = sorted(rates)[len(rates) // 2]
    report.add("matrix product", "rate", "TFLOP/s", [one / 1e12 for one in rates])


def check_log_probs(report: Report, folder: Path, shape: Shape, size: Size) -> None:
    """Compare the trainer's log-probs with a plain forward pass in fp32, in both precisions."""
    rows = random_rows(shape, [size.row_tokens // 2] * 4)
    plain = plain_log_probs(folder, report.device, rows)
    for dtype in ("fp32", "bf16"):
        with trainer(folder, report.device, dtype, size) as backend:
            scored = backend.log_probs(rows)
        gap = max(float(np.abs(a - b).max()) for a, b in zip(scored, plain, strict=True))
        report.add(f"trainer {dtype}", "max log-prob difference", "nats", [gap])
        if dtype == "fp32" and not gap <= FP32_TOLERANCE:
            raise CheckFailed(f"fp32 log-probs differ from transformers' by {gap:.3g} nats")


def plain_log_probs(folder: Path, device: str, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
    """Per row (T,), from transformers alone, 0 where not masked."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.to(torch.device(device))  # pyright: ignore[reportArgumentType] - transformers' wrapper hides `self`
    found: list[NDArray[np.float32]] = []
    for row in rows:
        ids = torch.tensor(row.token_ids[None].astype(np.int64), device=device)
        with torch.no_grad():
            scores = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        chosen = scores.gather(-1, ids[0, 1:, None])[:, 0].cpu().numpy()
        found.append(np.where(row.mask, np.concatenate([[0], chosen]), 0).astype(np.float32))
    return found


def measure_training(report: Report, folder: Path, shape: Shape, size: Size, dtype: str) -> None:
    """Score and update rows of one length, then of many: as the trainer does it by itself, and in other ways."""
    loads = {"even rows": [size.row_tokens] * size.rows, "mixed rows": mixed_lengths(size)}
    large = replace(size, micro_batch_tokens=2 * size.micro_batch_tokens)
    ways: dict[str, tuple[Size, dict[str, Any]]] = {
        "": (size, {}),
        ", no recomputation": (size, {_RECOMPUTE: False}),
        ", passes twice as large": (large, {}),
    }
    if importlib.util.find_spec("liger_kernel") is not None:
        ways[", passes twice as large, Liger kernels"] = (large, {"model.use_liger": True})
    for way, (of_size, overrides) in ways.items():
        with trainer(folder, report.device, dtype, of_size, **overrides) as backend:
            for load, lengths in loads.items():
                rows = random_rows(shape, lengths)
                flops, tokens = shape.forward_flops(lengths), sum(lengths)
                scored = backend.log_probs(rows)
                if not way:
                    score = partial(backend.log_probs, rows)
                    report.rate(f"{shape.name} log-probs, {load}", tokens, flops, size.runs, score)
                case = f"{shape.name} update, {load}{way}"
                report.rate(
                    case, tokens, 3 * flops, size.runs, partial(backend.update, rows, scored)
                )


def measure_merging(report: Report, folder: Path, shape: Shape, size: Size, dtype: str) -> None:
    """Train the same conversations as one row each, and as one row per call: equal gradients, unequal cost.

    Raises:
        CheckFailed: the gradients' norms differ.
    """
    norms: list[float] = []
    seconds: list[float] = []
    for merged in (True, False):
        rows = conversation_rows(shape, size, merged=merged)
        case = f"{shape.name} update, {'merged' if merged else 'a row per call'}"
        lengths = [len(row.token_ids) for row in rows]
        with trainer(folder, report.device, dtype, size) as backend:
            scored = backend.log_probs(rows)
            norms.append(backend.update(rows, scored)["grad_norm"])
            with report.peak_memory(case):
                runs = report.time(size.runs, lambda: backend.update(rows, scored))  # noqa: B023
        seconds.append(sorted(runs)[len(runs) // 2])
        report.add(case, "rows", "rows", [len(rows)])
        report.add(case, "tokens", "tokens", [sum(lengths)])
        report.add(case, "trained tokens", "tokens", [sum(row.trained_tokens for row in rows)])
        report.add(case, "duration", "s", runs)
    report.add("prefix merging", "speed-up of the update", "x", [seconds[1] / seconds[0]])
    difference = abs(norms[1] - norms[0]) / norms[0]
    report.add("prefix merging", "difference of gradient norms", "relative", [difference])
    if not difference <= GRADIENT_TOLERANCE[dtype]:
        raise CheckFailed(
            f"merged rows have a gradient of norm {norms[0]}, rows per call of {norms[1]}"
        )


def profile_update(folder: Path, device: str, shape: Shape, size: Size, dtype: str) -> None:
    """Print what the device spends an update of mixed rows on."""
    rows = random_rows(shape, mixed_lengths(size))
    with trainer(folder, device, dtype, size) as backend:
        scored = backend.log_probs(rows)
        backend.update(rows, scored)
        with torch.profiler.profile() as profiler:
            backend.update(rows, scored)
            if device == "cuda":
                torch.cuda.synchronize()
    by = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=70))
