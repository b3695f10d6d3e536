"""The torch engine against plain forwards of the same models."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lightningrl_verl.engine import (
    EngineAsleepError,
    EngineClosedError,
    EngineDiedError,
    EngineError,
    NonFiniteLogitsError,
    PromptTooLongError,
    SamplingError,
    SamplingParams,
    TorchEngine,
    UnsupportedModelError,
    WeightSpan,
    WeightSwapError,
)

VOCAB, EOS = 60, 59
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "eos_token_id": EOS,
    "bos_token_id": None,
    "pad_token_id": None,
}
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def build(kind: str = "llama", *, seed: int = 0, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(seed)
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied)).eval()
        case _:
            return Qwen3ForCausalLM(
                Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=tied)
            ).eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices on several threads wait for one another more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_endless() -> PreTrainedModel:
    """A model whose greedy answer never ends: the end token's logit is 0, another's is above."""
    model = build()
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS] = 0
    return model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {f"t{index}": index for index in range(VOCAB - 1)} | {"<end>": EOS}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="t0")), eos_token="<end>"
    )


@asynccontextmanager
async def running(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    slots: int = 8,
    max_model_len: int = 96,
) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(model, tokenizer, slots=slots, max_model_len=max_model_len, threads=1)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def reference(
    model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """Log-probs of `tokens` after `prompt` by one plain forward of `model`."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.log_softmax(logits / temperature, -1)
    return chosen.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def prompts(count: int, *, seed: int = 1) -> list[list[int]]:
    """Ragged prompts of 1 to 20 tokens, none of which ends a text."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 21, (count,), generator=generator).tolist()
    return [torch.randint(EOS, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
async def test_logprobs_equal_a_plain_forward_over_ragged_concurrent_multi_turn_requests(
    kind: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(kind)

    async def conversation(engine: TorchEngine, prompt: list[int], temperature: float) -> None:
        for turn in range(3):
            params = SamplingParams(temperature=temperature, max_tokens=4 + turn)
            out = await engine.generate(prompt, params)
            expected = reference(model, prompt, out.token_ids, temperature)
            assert out.logprobs == pytest.approx(expected, abs=1e-4)
            prompt = [*prompt, *out.token_ids, turn, 7]

    async with running(model, tokenizer, slots=8) as engine:
        temperatures = [1.0, 0.7, 1.5]
        # 30 conversations over 8 slots: more requests than slots.
        await asyncio.gather(
            *(conversation(engine, p, temperatures[i % 3]) for i, p in enumerate(prompts(30)))
        )
        stats = engine.stats()
    assert (stats.finished, stats.active, stats.queued) == (90, 0, 0)


async def test_kept_keys_and_values_are_reused_by_the_next_turn(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = build()
    async with running(model, tokenizer) as engine:
        params = SamplingParams(max_tokens=3, seed=3)
        first = await engine.generate([1, 2, 3, 4], params)
        prompt = [1, 2, 3, 4, *first.token_ids, 5, 6]
        second = await engine.generate(prompt, params)
        stats = engine.stats()
    held = 4 + len(first.token_ids) - 1  # the last token drawn was never fed back
    assert stats.reused_tokens == held
    assert stats.prefill_tokens == 4 + len(prompt) - held
    assert second.logprobs == pytest.approx(reference(model, prompt, second.token_ids), abs=1e-4)


async def test_prompts_of_a_group_are_computed_once_and_answered_as_if_each_were_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Three groups of four that begin alike, one of them of a single token more, while others decode."""
    model = build()
    system = [(3 * i) % EOS for i in range(24)]
    groups = [[*system, 7, 8, 9], [*system, 7, 8], [*system, 4]]
    requests = [(prompt, member) for prompt in groups for member in range(4)]
    params = [SamplingParams(max_tokens=6, seed=seed) for seed in range(len(requests))]
    alone = []
    for (prompt, _), one in zip(requests, params, strict=True):
        async with running(model, tokenizer, slots=1) as engine:
            alone.append(await engine.generate(prompt, one))
    async with running(model, tokenizer, slots=10) as engine:
        outs = await asyncio.gather(
            *(engine.generate(p, one) for (p, _), one in zip(requests, params, strict=True))
        )
        stats = engine.stats()
    for (prompt, _), out, single in zip(requests, outs, alone, strict=True):
        assert out.token_ids == single.token_ids
        assert out.logprobs == pytest.approx(single.logprobs, abs=1e-5)
        assert out.logprobs == pytest.approx(reference(model, prompt, out.token_ids), abs=1e-4)
    # 12 prompts of 27, 26 and 25 tokens: computed are one of 25, a token of each of the 11 others, and the
    # tokens by which another group's first prompt goes on.
    assert stats.prefill_tokens + stats.reused_tokens == 4 * (27 + 26 + 25)
    assert stats.prefill_tokens <= 25 + 11 + 3


async def test_in_bf16_logits_are_fp32_and_those_of_the_weights_in_use(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def expected(model: PreTrainedModel, tokens: Sequence[int]) -> list[float]:
        with torch.no_grad():
            states = model.get_decoder()(torch.tensor([[1, 2, 3, *tokens]])).last_hidden_state
            logits = states[0, 2:-1].float() @ model.get_output_embeddings().weight.float().T
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()

    old, new = (build(seed=seed).to(torch.bfloat16) for seed in (0, 1))
    async with running(old, tokenizer) as engine:
        for version, model in enumerate((old, new)):
            engine.swap_weights(model.named_parameters(), version)
            out = await engine.generate([1, 2, 3], SamplingParams(max_tokens=8, seed=version))
            # Hidden states of a token by itself and of all at once differ by their last bits.
            assert out.logprobs == pytest.approx(expected(model, out.token_ids), abs=0.1)
            scored = engine.score([1, 2, 3], out.token_ids)
            assert scored == pytest.approx(expected(model, out.token_ids), abs=1e-4)


async def test_columns_of_an_active_request_that_former_weights_computed_are_not_copied(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    new, prompt = build(seed=1), [(5 * i) % EOS for i in range(30)]
    async with running(build_endless(), tokenizer, max_model_len=4096) as engine:
        under_way = asyncio.create_task(engine.generate(prompt, SamplingParams(temperature=0)))
        await until_active(engine, 1)
        engine.swap_weights(new.named_parameters(), version=1)
        out = await engine.generate(prompt, GREEDY)
        assert engine.stats().reused_tokens == 0
        under_way.cancel()
    assert out.logprobs == pytest.approx(reference(new, prompt, out.token_ids), abs=1e-4)


async def test_idle_slots_keep_what_they_hold_while_others_decode(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = build_endless()
    async with running(model, tokenizer, slots=2) as engine:
        short, long = SamplingParams(temperature=0, max_tokens=2), GREEDY
        # The first request leaves slot 0 after 2 tokens; the second goes on in slot 1 for 10 more.
        first, _ = await asyncio.gather(
            engine.generate([1, 2, 3], short), engine.generate([4, 5, 6], long)
        )
        prompt = [1, 2, 3, *first.token_ids, 7]
        second = await engine.generate(prompt, long)
        assert engine.stats().reused_tokens == 3 + 1
    assert second.logprobs == pytest.approx(reference(model, prompt, second.token_ids), abs=1e-4)


async def test_keys_and_values_of_former_weights_are_never_reused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    new = build(seed=1)
    async with running(build_endless(), tokenizer) as engine:
        first = await engine.generate([1, 2, 3], GREEDY)
        engine.swap_weights(new.named_parameters(), version=1)
        prompt = [1, 2, 3, *first.token_ids, 7]
        second = await engine.generate(prompt, GREEDY)
        assert engine.stats().reused_tokens == 0
    assert second.logprobs == pytest.approx(reference(new, prompt, second.token_ids), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
async def test_greedy_equals_hugging_face_generate(
    kind: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(kind)
    async with running(model, tokenizer) as engine:
        outs = await asyncio.gather(*(engine.generate(p, GREEDY) for p in prompts(6)))
    for prompt, out in zip(prompts(6), outs, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        assert list(out.token_ids) == expected[0, len(prompt) :].tolist()
        assert out.finish_reason == ("stop" if out.token_ids[-1] == EOS else "length")
        assert out.logprobs == pytest.approx(reference(model, prompt, out.token_ids), abs=1e-4)


async def test_seeded_request_is_the_same_alone_and_in_any_company(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    seeded = SamplingParams(max_tokens=10, seed=42, temperature=1.2, top_p=0.9)
    async with running(build(), tokenizer) as engine:
        alone = await engine.generate([3, 1, 4], seeded)
        others = [engine.generate(p, SamplingParams(max_tokens=9)) for p in prompts(11)]
        crowded, *_ = await asyncio.gather(engine.generate([3, 1, 4], seeded), *others)
        differently = await engine.generate(
            [3, 1, 4], SamplingParams(max_tokens=10, seed=43, temperature=1.2, top_p=0.9)
        )
    assert crowded.token_ids == alone.token_ids
    assert crowded.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    assert differently.token_ids != alone.token_ids


async def test_samples_follow_the_model_s_distribution(tokenizer: PreTrainedTokenizerFast) -> None:
    model, draws = build(), 2000
    async with running(model, tokenizer, slots=64) as engine:
        one = [SamplingParams(max_tokens=1, seed=seed) for seed in range(draws)]
        outs = await asyncio.gather(*(engine.generate([5, 6], params) for params in one))
    drawn = torch.bincount(torch.tensor([out.token_ids[0] for out in outs]), minlength=VOCAB)
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6]])).logits[0, -1].softmax(-1)
    # Five standard deviations of a binomial count, for every token at once.
    bound = 5 * (draws * expected * (1 - expected)).sqrt() + 1
    assert ((drawn - draws * expected).abs() <= bound).all()


async def test_swap_serves_the_new_model_and_stamps_its_version(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    old, new = build(seed=0, tied=False), build(seed=1, tied=False)
    async with running(old, tokenizer) as engine:
        before = await engine.generate([1, 2, 3], GREEDY)
        milliseconds = engine.swap_weights(new.named_parameters(), version=1)
        after = await engine.generate([1, 2, 3], GREEDY)
        scored = engine.score([1, 2, 3], after.token_ids)
    assert milliseconds > 0
    assert (before.version_start, before.version_end) == (0, 0)
    assert after.spans == (WeightSpan(version=1, start=0, end=len(after.token_ids)),)
    assert after.logprobs == pytest.approx(reference(new, [1, 2, 3], after.token_ids), abs=1e-4)
    assert scored == pytest.approx(reference(new, [1, 2, 3], after.token_ids), abs=1e-4)
    assert after.token_ids != before.token_ids


@pytest.mark.parametrize("names", ["deduplicated", "all"])
async def test_swap_of_a_tied_model_replaces_the_head_too(
    names: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    new = build(seed=1, tied=True)
    weights = new.named_parameters(remove_duplicate=names == "deduplicated")
    async with running(build(seed=0, tied=True), tokenizer) as engine:
        engine.swap_weights(weights, version=1)
        out = await engine.generate([9, 8], GREEDY)
    assert out.logprobs == pytest.approx(reference(new, [9, 8], out.token_ids), abs=1e-4)


async def test_engine_keeps_its_own_copy_of_the_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    model, new = build(seed=0), build(seed=1)
    async with running(model, tokenizer) as engine:
        out = await engine.generate([1, 2], GREEDY)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        engine.swap_weights(build(seed=0).named_parameters(), version=0)  # equal: nothing changes
        assert (await engine.generate([1, 2], GREEDY)).token_ids == out.token_ids
        engine.swap_weights(new.named_parameters(), version=1)
        swapped = await engine.generate([1, 2], GREEDY)
        with torch.no_grad():
            for parameter in new.parameters():
                parameter.zero_()
        assert (await engine.generate([1, 2], GREEDY)).token_ids == swapped.token_ids


async def test_an_engine_that_slept_serves_the_weights_that_it_is_given(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A tied head and the slots' keys and values included; a call under way is refused, not lost."""
    async with running(build_endless(), tokenizer) as engine:
        endless = SamplingParams(temperature=0, max_tokens=100)
        under_way = asyncio.create_task(engine.generate([1, 2], endless))
        await asyncio.sleep(0)  # it has asked now
        await asyncio.to_thread(engine.sleep)
        with pytest.raises(EngineAsleepError):
            await under_way
        with pytest.raises(EngineAsleepError):
            await engine.generate([1, 2], GREEDY)
        with pytest.raises(EngineAsleepError):
            engine.score([1], [2])
        engine.check_alive()
        engine.allocate_weights()
        with pytest.raises(EngineError, match="has no weights yet"):
            engine.wake_up()
        new = build(seed=1)
        # The version of before, since these may be the weights of before.
        engine.swap_weights(new.named_parameters(), version=0)
        engine.wake_up()
        async with running(new, tokenizer) as other:
            for prompt in ([1, 2], [5, 6, 7]):
                answer = await engine.generate(prompt, GREEDY)
                assert answer.token_ids == (await other.generate(prompt, GREEDY)).token_ids
        with pytest.raises(WeightSwapError, match="version 0 is in use"):
            engine.swap_weights(build(seed=2).named_parameters(), version=0)


async def test_refused_swap_leaves_the_old_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    new = build(seed=1, tied=False)
    good = dict(new.named_parameters())
    head = "lm_head.weight"
    bad = [
        ({k: v for k, v in good.items() if k != head}, 1, "missing weights: 'lm_head.weight'"),
        (good | {"extra": torch.zeros(1)}, 1, "unknown weights: 'extra'"),
        (good | {head: torch.zeros(3, 3)}, 1, r"'lm_head.weight' has shape \(3, 3\)"),
        (good, 0, "version 0 was refused"),
        (good, -1, "version -1 was refused"),
    ]
    async with running(build(seed=0, tied=False), tokenizer) as engine:
        before = await engine.generate([1, 2, 3], GREEDY)
        for weights, version, message in bad:
            with pytest.raises(WeightSwapError, match=message):
                engine.swap_weights(weights.items(), version)
        after = await engine.generate([1, 2, 3], GREEDY)
    assert (after.token_ids, after.version_end) == (before.token_ids, 0)


async def test_tied_names_with_different_values_are_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    weights = dict(build(seed=1).named_parameters())
    weights["lm_head.weight"] = torch.zeros(VOCAB, SIZES["hidden_size"])
    async with running(build(), tokenizer) as engine:
        with pytest.raises(WeightSwapError, match="tied but their values differ"):
            engine.swap_weights(weights.items(), version=1)


async def until_active(engine: TorchEngine, count: int) -> None:
    while engine.stats().active < count:  # noqa: ASYNC110  the worker thread signals only endings
        await asyncio.sleep(0)


async def test_answer_that_spans_a_swap_says_which_tokens_are_of_which_version(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    loud = build(seed=1)
    async with running(build_endless(), tokenizer, max_model_len=2048) as engine:
        greedy = SamplingParams(temperature=0, max_tokens=1500)
        task = asyncio.create_task(engine.generate([1, 2], greedy))
        await until_active(engine, 1)
        engine.swap_weights(loud.named_parameters(), version=5)
        out = await task
        fresh = await engine.generate([1, 2, *out.token_ids, 3], GREEDY)
    first, second = out.spans
    assert (out.version_start, out.version_end) == (0, 5)
    assert (first.start, first.end, second.end) == (0, second.start, len(out.token_ids))
    # Nor are keys and values reused that former weights computed in part.
    expected = reference(loud, [1, 2, *out.token_ids, 3], fresh.token_ids)
    assert fresh.logprobs == pytest.approx(expected, abs=1e-4)


async def test_cancelled_request_frees_its_slot(tokenizer: PreTrainedTokenizerFast) -> None:
    async with running(build_endless(), tokenizer, slots=1, max_model_len=4096) as engine:
        greedy = SamplingParams(temperature=0)
        running_task = asyncio.create_task(engine.generate([1], greedy))
        queued_task = asyncio.create_task(engine.generate([2], greedy))
        await until_active(engine, 1)
        running_task.cancel()
        queued_task.cancel()
        # The only slot is taken by the third request, so both others are gone.
        out = await engine.generate([3], SamplingParams(temperature=0, max_tokens=2))
        assert (engine.stats().finished, engine.stats().queued) == (1, 0)
    assert len(out.token_ids) == 2
    assert running_task.cancelled()
    assert queued_task.cancelled()


async def test_context_and_token_limits(tokenizer: PreTrainedTokenizerFast) -> None:
    async with running(build_endless(), tokenizer, max_model_len=16) as engine:
        with pytest.raises(PromptTooLongError, match="has 16 tokens, and max_model_len=16"):
            await engine.generate([1] * 16, GREEDY)
        with pytest.raises(EngineError, match="prompt is empty"):
            await engine.generate([], GREEDY)
        with pytest.raises(EngineError, match=r"outside 0\.\.59"):
            await engine.generate([60], GREEDY)
        full = await engine.generate([1] * 10, SamplingParams(temperature=0))
        last = await engine.generate([1] * 15, SamplingParams(temperature=0, max_tokens=5))
    assert (len(full.token_ids), full.finish_reason) == (6, "length")
    assert (len(last.token_ids), last.finish_reason) == (1, "length")
    assert full.logprobs == pytest.approx(
        reference(build_endless(), [1] * 10, full.token_ids), abs=1e-4
    )


async def test_stop_token_ends_the_answer_and_is_part_of_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with running(build(), tokenizer) as engine:
        whole = await engine.generate([1, 2], GREEDY)
        stop = whole.token_ids[2]
        first = whole.token_ids.index(stop)
        cut = await engine.generate(
            [1, 2], SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(stop,))
        )
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert cut.finish_reason == "stop"


async def test_crash_of_the_worker_reaches_all_who_wait_and_all_who_come_later(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    greedy = SamplingParams(temperature=0)
    async with running(build_endless(), tokenizer, slots=1, max_model_len=4096) as engine:
        tasks = [asyncio.create_task(engine.generate([1], greedy)) for _ in range(3)]
        await until_active(engine, 1)
        # An unforeseen error: weights that the plan accepts but that cannot be copied.
        broken = {name: p.to("meta") for name, p in build(seed=1).named_parameters()}
        with pytest.raises(NotImplementedError):
            engine.swap_weights(broken.items(), version=1)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, EngineDiedError)
            assert isinstance(outcome.__cause__, NotImplementedError)
        with pytest.raises(EngineDiedError, match="create a new engine"):
            await engine.generate([1], GREEDY)
        with pytest.raises(EngineDiedError):
            engine.score([1], [2])


async def test_closing_fails_requests_under_way(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = TorchEngine(build_endless(), tokenizer, slots=1, max_model_len=4096)
    with pytest.raises(EngineClosedError, match="call start"):
        await engine.generate([1], GREEDY)
    engine.start()
    greedy = SamplingParams(temperature=0)
    waiting = [asyncio.create_task(engine.generate([1], greedy)) for _ in range(3)]
    await until_active(engine, 1)
    engine.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineClosedError] * 3
    with pytest.raises(EngineClosedError):
        await engine.generate([1], GREEDY)


async def test_weights_with_nan_fail_the_request_and_not_the_engine(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    good = build(seed=1)
    nan = {name: torch.full_like(p, float("nan")) for name, p in good.named_parameters()}
    async with running(build(), tokenizer) as engine:
        engine.swap_weights(nan.items(), version=1)
        with pytest.raises(NonFiniteLogitsError, match="policy version 1"):
            await engine.generate([1, 2], GREEDY)
        engine.swap_weights(good.named_parameters(), version=2)
        out = await engine.generate([1, 2], GREEDY)
    assert out.logprobs == pytest.approx(reference(good, [1, 2], out.token_ids), abs=1e-4)


def test_sliding_windows_are_refused_at_construction(tokenizer: PreTrainedTokenizerFast) -> None:
    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    with pytest.raises(UnsupportedModelError, match=r"MistralForCausalLM .*`sliding_window`=8"):
        TorchEngine(model, tokenizer, max_model_len=64)


def test_threads_of_the_worker_leave_the_process_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.set_num_threads(2)  # `one_thread` puts it back
    engine = TorchEngine(build(), tokenizer, max_model_len=64, threads=1)
    engine.start()
    engine.close()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1e-9},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"max_tokens": 0},
        {"presence_penalty": 3.0},
        {"frequency_penalty": float("inf")},
    ],
)
def test_sampling_parameter_out_of_range_is_refused_by_name(field: dict[str, float]) -> None:
    with pytest.raises(SamplingError, match=next(iter(field))):
        SamplingParams(**field)  # pyright: ignore[reportArgumentType]  the point of the test
