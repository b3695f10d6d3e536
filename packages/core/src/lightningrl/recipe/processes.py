"""The keys of the processes of a run: trainer, engine, runners, gateway."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from lightningrl.errors import ConfigError
from lightningrl.recipe.section import Section
from lightningrl.schema import RetryPolicy

_LAST = re.compile(r"last ([1-9][0-9]*)")


class Trainer(Section, frozen=True):
    """Where and how the trainer runs."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["fp32", "bf16", "auto"] = "fp32"
    """Of what the trainer and `torch` engines compute; weights and moments are fp32, and so is the output head of a
    `torch` engine and of a trainer on a CPU. `auto`: bf16 where the machine multiplies faster in it, which is measured
    at the start, else fp32."""
    train_layers: str | None = None
    """`last N`: only the last N layers are trained, with the norm behind them; everything else keeps its initial
    weights, and has no gradients and moments. N is all layers: everything is trained. `None`: so too."""
    threads: int = 1
    """Torch threads of the update (of each rank) and of a tiny policy's warm start, on a CPU."""
    ranks: int = 1
    """Processes that train together, each with a shard of every policy; more than one needs a `cluster`."""
    nodes: int = 1
    """Machines that the ranks are spread over evenly."""
    max_tokens_per_micro_batch: int = 2048
    """Tokens of one forward and backward pass of a rank, padding included."""
    keep_checkpoints: int = 2
    """Of the newest; the one that validation scored highest stays too."""
    keep_lessons: int = 100
    """Of the newest iterations: credit and its parts, and log-probs of trained tokens, as
    `lesson/iteration-NNNNNN.parquet`. 0: none."""
    probe_tolerance: float | None = None
    """Largest allowed difference between the engine's and the trainer's log-probs after a sync, in
    nats. `None`: 1e-3 for fp32, 0.1 for bf16."""

    def __post_init__(self) -> None:
        """Check what types can't say."""
        if self.train_layers is not None and _LAST.fullmatch(self.train_layers) is None:
            raise ConfigError(
                f"trainer.train_layers: {self.train_layers!r} is not of the form 'last N', such as 'last 15'"
            )

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """`dtype`, where `auto` has been settled."""
        assert self.dtype != "auto", "it is settled when a run starts"
        return self.dtype

    @property
    def train_last(self) -> int | None:
        """N of `train_layers`."""
        found = _LAST.fullmatch(self.train_layers or "")
        return int(found[1]) if found else None


class Engine(Section, frozen=True):
    """The engines that the run starts to serve its policies."""

    backend: Literal["torch", "vllm"] = "torch"
    """`torch`: the embedded engine; `vllm`: vLLM, started by verl in a Ray cluster."""
    placement: Literal["local", "colocated", "separate"] = "local"
    """`local`: on the trainer's machine, in its own process or beside it. With `cluster: ray` verl may manage
    them: `colocated`, on the ranks' devices, asleep while those train; `separate`, on devices of their own."""
    replicas: int = 1
    """Engines per policy. Of `local` ones one runs in the trainer's process, several in processes of their own;
    `colocated` ones times `tensor_parallel` are as many as `trainer.ranks`."""
    tensor_parallel: int = 1
    """GPUs of one vLLM engine."""
    gpu_memory_share: float = 0.5
    """Of each GPU's memory, what a vLLM engine takes while it is awake: weights, keys and values."""
    slots: int = 64
    """Requests of one engine that decode together."""
    threads: int | None = 1
    """Torch's threads in a `torch` engine. `None`: as torch has them."""
    vllm: dict[str, Any] = msgspec.field(default_factory=dict)
    """Further arguments of vLLM's engines by vLLM's names, such as `enforce_eager: true`; vLLM checks them."""

    @property
    def managed(self) -> bool:
        """Whether verl starts them, in a Ray cluster."""
        return self.placement != "local"


class Retry(RetryPolicy, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a rollout is tried, and from where on."""

    replay: bool = True
    """Whether an attempt that was lost, or that failed by infrastructure, is tried again with the answers that it had got, as
    far as its requests are the same and the answers young enough to be trained. The second such failure at the same
    call samples that one anew."""

    @property
    def policy(self) -> RetryPolicy:
        """How often it is tried."""
        return RetryPolicy(
            max_attempts=self.max_attempts,
            retry_agent_errors=self.retry_agent_errors,
            max_infrastructure_failures=self.max_infrastructure_failures,
        )


class Runner(Section, frozen=True):
    """The processes that run agents."""

    processes: int = 1
    concurrency: int = 32
    """Attempts at a time per process."""
    timeout_seconds: float = 600.0
    """Longest time for one attempt."""
    lease_seconds: float = 30.0
    retry: Retry = Retry()
    python: str | None = None
    """Interpreter of the agent's own environment, such as `.venv/bin/python`: a path is relative to the recipe. That environment
    needs `lightningrl` and the adapter of the agent's framework. `None`: this one."""
    event_loop: Literal["asyncio", "uvloop"] = "asyncio"
    """What agents run on. `uvloop` takes 0.02 ms less for a call, and breaks what needs Python's own loop
    (`nest_asyncio`, loops within loops)."""


class GatewayRecipe(Section, frozen=True):
    """The server on this machine."""

    host: str = "127.0.0.1"
    """Address that it listens on. `0.0.0.0`: all of this machine's, so that other machines reach it."""
    port: int = 0
    """0 picks a free one."""
    hold_seconds: float = 60.0
    """Lease of a hold. The trainer renews it for as long as it has weights to bring; when it dies, calls that wait
    are refused after this time. At least 1.5 times `drain_seconds`."""
    drain_seconds: float = 20.0
    """After this, running calls are aborted and sent again under the new version."""
    unknown_fields: Literal["accept", "refuse"] = "accept"
    """Requests with a field that nobody here knows, as clients newer than this version send: `accept` leaves the field
    out of what the engine gets, and says so in the attempt's log; `refuse` answers 400."""
    hosted_tools: Literal["refuse", "drop"] = "refuse"
    """Tools that the real service would run (web search, code interpreter), and nobody does here: `refuse` answers 400
    with the harness's switch; `drop` leaves them out of what the engine gets, and says so in the attempt's log."""
    reasoning: Literal["restore", "as_sent"] = "restore"
    """Answers that a client sends back without the model's reasoning: `restore` puts it back from the record, where the
    conversation goes on as it was and the policy's chat template reads it; `as_sent` leaves them so."""
    pin: tuple[str, ...] = ()
    """Regular expressions of what changes from call to call though it says the same, such as the time or a nonce in a
    system prompt. Before a conversation's first answer, each text that matches stays in all of an agent's calls
    of an attempt as it was first sent, so that the next prompt continues the last one."""
