"""Figures of one device, and the two ways of taking them: by the clock, and by its peak memory."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch

from harness.results import OURS, Results


class CheckFailed(Exception):
    """What was measured is wrong."""


class Report:
    """Measured rows of one device."""

    def __init__(self, results: Results, device: str, *, save: bool) -> None:
        self._results = results
        self._save = save
        """Whether the results are written after each part."""
        self.device = device
        self.failed: list[str] = []
        """Parts that broke off."""
        self.matrix_flops: float | None = None
        """Of a matrix product, a second; what a share of the chip is a share of."""

    def add(self, case: str, metric: str, unit: str, values: list[float]) -> None:
        """The median of `values`."""
        self._results.add(case, OURS, metric, values, unit)

    def part(self, name: str, work: Callable[[], None]) -> None:
        """Run one part; if it breaks off, say so, and let the others have their turn."""
        print(name, file=sys.stderr, flush=True)
        started = time.perf_counter()
        try:
            work()
        except Exception as error:  # noqa: BLE001 # whatever it is, it is reported, and the check fails
            traceback.print_exc()
            self._results.missing(name, OURS, f"{type(error).__name__}: {error}"[:200])
            self.failed.append(name)
        if self._save:
            self._results.write()
        print(f"  {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)

    def time(self, runs: int, work: Callable[[], object]) -> list[float]:
        """Seconds of each run, after one to warm up."""
        work()
        seconds: list[float] = []
        for _ in range(runs):
            self.finish()
            started = time.perf_counter()
            work()
            self.finish()
            seconds.append(time.perf_counter() - started)
        return seconds

    def rate(
        self, case: str, tokens: int, flops: float, runs: int, work: Callable[[], object]
    ) -> None:
        """Tokens and floating-point operations per second of `work`, and its peak memory."""
        with self.peak_memory(case):
            seconds = self.time(runs, work)
        self.add(case, "throughput", "tokens/s", [tokens / one for one in seconds])
        if self.matrix_flops is not None:
            shares = [flops / one / self.matrix_flops for one in seconds]
            self.add(case, "mfu", "share of matrix rate", shares)

    @contextmanager
    def peak_memory(self, case: str) -> Generator[None]:
        """Report the most device memory held meanwhile; nothing on a CPU."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.device == "cuda":
            self.add(case, "peak memory", "GiB", [torch.cuda.max_memory_allocated() / 2**30])

    def finish(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
