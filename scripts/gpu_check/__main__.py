"""Check and measure the trainer and the embedded engine on one device, with nothing downloaded.

Builds random models of Qwen2.5's shapes. Fails if the trainer's or the engine's fp32 log-probs differ from a
plain transformers forward pass by more than 1e-4, if merged rows have another gradient than rows per
call, if engine and trainer disagree after a weight swap, or if a swap changes nothing. The rest is
reported: a table on the terminal, and a results file with its about file beside it, written after each part.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from loop import Loop, measure_loop, measure_vllm_loop
from report import Report
from serving import check_engine, measure_serving
from sizes import QWEN, TINY, Shape, Size, build_model
from training import (
    check_log_probs,
    measure_matrix_rate,
    measure_merging,
    measure_training,
    profile_update,
)
from vllm_server import find_vllm

from harness.results import Results


def main() -> None:
    """Run all checks and print what was measured; exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this script out")
    parser.add_argument("--output", type=Path, help="write results to this folder")
    parser.add_argument("--only", default="", metavar="PREFIX", help="parts whose name begins so")
    parser.add_argument("--profile", action="store_true", help="print what an update is spent on")
    parser.add_argument("--loop", type=int, metavar="N", help="train the math benchmark as well")
    parser.add_argument(
        "--vllm",
        nargs="?",
        const="",
        metavar="COMMAND",
        help="with --loop: once more with vLLM, of this environment or by its command",
    )
    parser.add_argument(
        "--phase-seconds",
        type=float,
        default=180,
        metavar="S",
        help="with --loop: longest time of one phase of it",
    )
    arguments = parser.parse_args()
    if arguments.vllm is not None and arguments.loop is None:
        parser.error("--vllm needs --loop N")
    size = TINY if arguments.tiny else QWEN
    results = Results("gpu", arguments.output or Path(), about=environment(arguments.device))
    report = Report(results, arguments.device, save=arguments.output is not None)
    report.part("matrix product", lambda: measure_matrix_rate(report, size))
    with tempfile.TemporaryDirectory() as name:
        folders = {shape: Path(name) / shape.name for shape in size.shapes}
        parts = parts_of(report, folders, size, profile=arguments.profile)
        if arguments.loop is not None:
            parts |= loops(report, arguments.output or Path(name), arguments)
        for part, work in parts.items():
            if part.startswith(arguments.only):
                report.part(part, work)
    results.show()
    if report.failed:
        raise SystemExit(f"failed: {', '.join(report.failed)}")


def parts_of(
    report: Report, folders: Mapping[Shape, Path], size: Size, *, profile: bool
) -> dict[str, Callable[[], None]]:
    """Name -> what it does: in bf16 on a GPU, in fp32 on a CPU; models are built when first needed."""
    device, dtype = report.device, "bf16" if report.device == "cuda" else "fp32"

    def model(shape: Shape) -> Path:
        if not folders[shape].exists():
            build_model(folders[shape], shape, device)
        return folders[shape]

    first = size.shapes[0]
    parts: dict[str, Callable[[], None]] = {
        "log-probs": lambda: check_log_probs(report, model(first), first, size),
        "engine": lambda: check_engine(report, model(first), first, size),
        "merging": lambda: measure_merging(report, model(first), first, size, dtype),
        "serving": lambda: measure_serving(report, model(first), first, size, dtype),
    }
    for shape in size.shapes:
        parts[f"training {shape.name}"] = lambda shape=shape: measure_training(
            report, model(shape), shape, size, dtype
        )
    if profile:
        parts["profile"] = lambda: profile_update(model(first), device, first, size, dtype)
    return parts


def loops(
    report: Report, folder: Path, arguments: argparse.Namespace
) -> dict[str, Callable[[], None]]:
    """The runs of the whole loop: their logs stay in `folder`, whatever becomes of them."""
    folder.mkdir(parents=True, exist_ok=True)

    def loop() -> Loop:
        own = Path(tempfile.mkdtemp(prefix="loop-", dir=folder))
        return Loop(own, arguments.loop, arguments.phase_seconds, small=arguments.tiny)

    parts: dict[str, Callable[[], None]] = {"loop": lambda: measure_loop(report, loop())}
    if arguments.vllm is not None:
        parts["loop with vLLM"] = lambda: measure_vllm_loop(
            report, find_vllm(arguments.vllm), loop()
        )
    return parts


def environment(device: str) -> dict[str, str]:
    """What the figures depend on beside the code."""
    packages = ("torch", "verl", "transformers", "tensordict", "flash-attn", "vllm")
    found = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
