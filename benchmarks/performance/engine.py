"""Tokens per second of a language model: prefill, decode and update: `make bench-engine`.

The embedded engine beside `transformers.generate`, and the trainer's update, of the same model in the same run. CPU
seconds are those of this process, all threads together; beside them stands which share of the machine's matrix rate,
measured first, the model's own arithmetic (two operations per weight and token, and three times that where gradients
are computed) makes use of. Without `--model` a model of random weights is built, of the shape of a published one of
135 million parameters.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is loaded, as `lightningrl train` does.
from lightningrl_verl.machine.environment import prepare_process

prepare_process()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from harness.results import OURS, Results  # noqa: E402
from lightningrl.recipe import Optimiser  # noqa: E402
from lightningrl_verl.engine import SamplingParams, TorchEngine  # noqa: E402

_RESULTS = Path(__file__).parent / "results"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PROMPT, _SHORT, _ANSWER = 200, 32, 16
"""Tokens of a prompt whose prefill is measured, of one that is decoded after, and of an answer."""

_PER_CPU = "tokens_per_cpu_second"
_PREFILLED = 8
"""Prompts of a prefill."""
_SIZES: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class _Spent:
    cpu: float
    wall: float

    def __sub__(self, other: _Spent) -> _Spent:
        return _Spent(self.cpu - other.cpu, self.wall - other.wall)


def spent(work: Callable[[], Any]) -> _Spent:
    """Seconds that a piece of work takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return _Spent(time.process_time() - cpu, time.perf_counter() - wall)


class Bench:
    """One model's measurements."""

    def __init__(self, options: argparse.Namespace, folder: Path, results: Results) -> None:
        self.options = options
        self.folder = folder
        self.results = results
        self.dtype = _DTYPES[options.dtype]
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=self.dtype
        )
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.vocabulary = int(self.model.config.vocab_size)
        self.weights = sum(one.numel() for one in self.model.parameters())
        self.draw = np.random.default_rng(0)
        self.rate = self._matrix_rate()
        results.add("matrix product", "direct", "per_cpu_second", [self.rate / 1e9], "GFLOP")

    def prompts(self, count: int, tokens: int) -> list[list[int]]:
        """Prompts that have nothing in common."""
        return self.draw.integers(0, self.vocabulary, (count, tokens)).tolist()

    def tell(
        self, case: str, system: str, tokens: int, runs: list[_Spent], passes: float, **more: int
    ) -> None:
        """Add a case's rows; `passes`: forward passes that the arithmetic of a token is worth."""
        self.results.add(
            case,
            system,
            "tokens_per_cpu_second",
            [tokens / one.cpu for one in runs],
            "tokens",
            **more,
        )
        self.results.add(
            case, system, "tokens_per_second", [tokens / one.wall for one in runs], "tokens", **more
        )
        weights = self.weights
        if case.startswith("prefill"):  # whose logits are those of a prompt's last token
            weights -= self.model.get_output_embeddings().weight.numel()
        operations = 2 * weights * tokens * passes
        shares = [operations / one.cpu / self.rate for one in runs]
        self.results.add(case, system, "share_of_matrix_rate", shares, "1", **more)

    def engine(self) -> None:
        """Prefill and decode by the embedded engine."""
        engine = TorchEngine(
            self.model, self.tokenizer, slots=64, max_model_len=512, threads=self.options.threads
        )
        engine.start()

        def ask(prompts: list[list[int]], tokens: int) -> None:
            async def all_at_once() -> None:
                params = SamplingParams(max_tokens=tokens)
                await asyncio.gather(*(engine.generate(one, params) for one in prompts))

            asyncio.run(all_at_once())

        ask(self.prompts(2, _SHORT), 2)
        rounds = range(self.options.rounds)
        prefills = [spent(partial(ask, self.prompts(_PREFILLED, _PROMPT), 1)) for _ in rounds]
        self.tell("prefill", OURS, _PREFILLED * _PROMPT, prefills, 1)
        groups = [spent(partial(ask, self.prompts(1, _PROMPT) * _PREFILLED, 1)) for _ in rounds]
        self.tell("prefill, one group", OURS, _PREFILLED * _PROMPT, groups, 1)
        for clients in self.options.clients:
            decodes: list[_Spent] = []
            for _ in rounds:
                prompts = self.prompts(clients, _SHORT)
                ask(prompts, 1)  # their keys and values stay
                before = spent(partial(ask, prompts, 1))
                decodes.append(spent(partial(ask, prompts, 1 + _ANSWER)) - before)
            self.tell("decode", OURS, clients * _ANSWER, decodes, 1, clients=clients)
        engine.close()

    def generate(self) -> None:
        """The same by transformers."""
        name = f"transformers {transformers.__version__}"
        self.model.generation_config.eos_token_id = None

        def ask(ids: torch.Tensor, tokens: int) -> None:
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
            )

        rounds = range(self.options.rounds)
        ids = torch.tensor(self.prompts(_PREFILLED, _PROMPT))
        prefills = [spent(partial(ask, ids, 1)) for _ in rounds]
        self.tell("prefill", name, _PREFILLED * _PROMPT, prefills, 1)
        for clients in self.options.clients:
            ids = torch.tensor(self.prompts(clients, _SHORT))
            decodes = [
                spent(partial(ask, ids, 1 + _ANSWER)) - spent(partial(ask, ids, 1)) for _ in rounds
            ]
            self.tell("decode", name, clients * _ANSWER, decodes, 1, clients=clients)

    def compare(self) -> None:
        """Say how many times as many tokens as transformers the engine makes per CPU second."""
        of_peer = {
            (row.case, row.clients): row.value
            for row in self.results.rows
            if row.system != OURS and row.metric == _PER_CPU
        }
        for row in list(self.results.rows):
            peer = of_peer.get((row.case, row.clients))
            if row.system == OURS and row.metric == _PER_CPU and peer and row.value:
                self.results.add(
                    row.case,
                    OURS,
                    "times_transformers",
                    [row.value / peer],
                    "1",
                    clients=row.clients,
                )

    def update(self, last: int | None) -> None:
        """One update of a group of eight rows, 200 tokens of prompt and 140 that follow, 56 of them trained."""
        from lightningrl_verl.worker.backend import VerlBackend
        from lightningrl_verl.worker.backend_config import BackendConfig

        backend = VerlBackend(
            BackendConfig(
                model_path=str(self.folder),
                optimiser=Optimiser(learning_rate=1e-5),
                dtype=self.options.dtype,
                train_last=last,
            )
        )
        case = "update" if last is None else f"update, last {last} layers"
        rounds = range(self.options.rounds)
        rows = self._rows()
        tokens = sum(len(row.token_ids) for row in rows)
        scored = backend.log_probs(rows)
        if last is None:
            scores = [spent(partial(backend.log_probs, rows)) for _ in rounds]
            self.tell("log-probs", OURS, tokens, scores, 1)
        updates = [spent(partial(backend.update, rows, scored)) for _ in rounds]
        self.tell(case, OURS, tokens, updates, 3)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            saved = spent(lambda: backend.save(path))
            size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
        self.results.add(f"checkpoint of {case}", OURS, "seconds", [saved.wall], "s")
        self.results.add(f"checkpoint of {case}", OURS, "size", [size / 1e6], "MB")
        backend.close()

    def _rows(self) -> list[_Row]:
        prompt = self.draw.integers(0, self.vocabulary, _PROMPT)
        mask = np.zeros(_PROMPT + 140, bool)
        mask[_PROMPT : _PROMPT + 28] = mask[-28:] = True
        return [
            _Row(
                np.concatenate([prompt, self.draw.integers(0, self.vocabulary, 140)]).astype("i4"),
                mask,
                np.where(mask, (-1) ** member / 1e3, 0).astype("f4"),
                str(member),
            )
            for member in range(8)
        ]

    def _matrix_rate(self) -> float:
        """Operations per CPU second of a product of the model's usual shape."""
        left = torch.randn(512, 576).to(self.dtype)
        right = torch.randn(1536, 576).to(self.dtype)
        work = lambda: [torch.nn.functional.linear(left, right) for _ in range(40)]  # noqa: E731
        work()
        return 40 * 2 * 512 * 576 * 1536 / min(spent(work).cpu for _ in range(5))


@dataclass(frozen=True)
class _Row:
    token_ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    advantages: NDArray[np.float32]
    rollout_id: str


def build(folder: Path, layers: int) -> None:
    """Write a model of random weights with so many layers, and a tokenizer of as many words as it has tokens."""
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(_SIZES["vocab_size"])}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w2"
    )
    tokenizer.pad_token = "w2"
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        **_SIZES, num_hidden_layers=layers, eos_token_id=2, pad_token_id=2, bos_token_id=None
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="Hugging Face folder")
    parser.add_argument("--layers", type=int, default=30, help="of the model of random weights")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["engine", "generate", "update"])
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    results = Results("engine", options.results, {"dtype": options.dtype})
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as made:
        folder = options.model or Path(made)
        if options.model is None:
            build(folder, options.layers)
        bench = Bench(options, folder, results)
        if "engine" in options.parts:
            bench.engine()
        if "generate" in options.parts:
            bench.generate()
            bench.compare()
        del bench.model
        if "update" in options.parts:
            bench.update(None)
            bench.update(
                int(transformers.AutoConfig.from_pretrained(folder).num_hidden_layers) // 2
            )
    results.show()
    print(f"written to {results.write()}")


if __name__ == "__main__":
    main()
