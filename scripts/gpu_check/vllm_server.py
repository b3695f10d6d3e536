"""A vLLM server of the loop's policy, from this environment or another."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from report import CheckFailed
from watched import PYTHON, end, say, show_end

_PAUSE_SECONDS = 1.0


def find_vllm(command: str) -> list[str]:
    """The command line of vLLM.

    Args:
        command: where it is. "": in this environment, or on the path.

    Raises:
        CheckFailed: it is not there.
    """
    if not command and importlib.util.find_spec("vllm") is not None:
        return [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    found = shutil.which(command or "vllm")
    if found is None:
        where = (
            f"no command {command!r}" if command else "neither in this environment nor a command"
        )
        raise CheckFailed(
            f"vLLM is not installed here: {where}. `pip install vllm` and `pip install --no-deps"
            " lightningrl-verl` into an environment, and give --vllm its bin/vllm"
        )
    return [found]


@contextmanager
def served(
    vllm: Sequence[str], model: Path, device: str, folder: Path, seconds: float
) -> Generator[str]:
    """Serve a model as `policy`; yields the server's URL, without `/v1`.

    Raises:
        CheckFailed: it ended, or was not ready in time; its log is `vllm.log` in `folder`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_device = {
        "cuda": ("--dtype", "bfloat16", "--gpu-memory-utilization", "0.3"),
        "cpu": ("--dtype", "float32", "--enforce-eager"),
    }
    command = [
        *(*vllm, "serve", str(model), "--served-model-name", "policy"),
        *("--host", "127.0.0.1", "--port", str(port), *of_device[device]),
        *(
            "--max-model-len",
            "256",
            "--max-num-seqs",
            "64",
            "--logprobs-mode",
            "processed_logprobs",
        ),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--weight-transfer-config", '{"backend": "lightningrl_files"}'),
    ]
    environment = {
        **os.environ,
        **PYTHON,
        # vLLM starts tools of its own environment, such as ninja.
        "PATH": f"{Path(vllm[0]).parent}{os.pathsep}{os.environ['PATH']}",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if vllm[0] != sys.executable:
        for name in ("VIRTUAL_ENV", "PYTHONPATH"):
            environment.pop(name, None)
    log = folder / "vllm.log"
    say(f"starting vLLM; its log: {log}")
    with log.open("wb") as stream:
        server = psutil.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        _await_health(f"http://127.0.0.1:{port}", server, log, seconds)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(server)


def _await_health(url: str, server: psutil.Popen, log: Path, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_PAUSE_SECONDS)
    if server.poll() is None:
        end(server, with_stacks=True)
        what = f"was not ready within {seconds:g} s"
    else:
        what = f"ended with {server.returncode}"
    show_end(log)
    raise CheckFailed(f"vLLM {what}; its log: {log}")
