"""One policy through verl's own worker, against plain forward passes and by hand."""

import contextlib
import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tiny_rows import VOCAB, Sequence, sequences, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from warm_process import WarmProcess

from lightningrl.errors import ConfigError, RunError
from lightningrl.recipe import Optimiser
from lightningrl_verl.engine import SamplingParams
from lightningrl_verl.engine.load import EngineSettings, load_engine
from lightningrl_verl.serving.probe import WeightMismatch, check_digests, held, probe
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.export import FROZEN

# More threads than free cores spin, and make these tests ten times slower.
torch.set_num_threads(1)

OPTIMISER = Optimiser(learning_rate=1e-3, warmup=2, min_lr_ratio=0.0, clip_high=0.2)
CONFIG = BackendConfig(
    model_path="", optimiser=OPTIMISER, total_iterations=4, max_tokens_per_micro_batch=64
)


def optimiser(**changes) -> Optimiser:
    return msgspec.structs.replace(OPTIMISER, **changes)


def weights(backend: VerlBackend) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backend.named_parameters()}


def without_effect(backend: VerlBackend, rows: list[Sequence]) -> dict[str, float]:
    """Loss and gradient of an update, measured on a copy so that `backend` stays as it is."""
    before = weights(backend)
    metrics = backend.update(rows, backend.log_probs(rows))
    state = dict(backend.ranks._rank._engine.module.named_parameters())
    with torch.no_grad():
        for name, tensor in before.items():
            if name in state:
                state[name].to_local().copy_(tensor)
    return metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture(scope="module")
def backend(model: Path):
    one = VerlBackend(replace(CONFIG, model_path=str(model)))
    yield one
    one.close()


def plain_log_probs(model: Path, rows: list[Sequence], temperature: float) -> list[np.ndarray]:
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    out = []
    for row in rows:
        ids = torch.tensor(row.token_ids[None].astype(np.int64))
        with torch.no_grad():
            logits = reference(ids).logits[0, :-1] / temperature
        chosen = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]
        out.append(np.where(row.mask, np.concatenate([[0], chosen.numpy()]), 0))
    return out


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_plain_forward_pass(backend, model, temperature):
    rows = sequences(7)
    scored = backend.log_probs(rows, temperature)
    for ours, plain in zip(scored, plain_log_probs(model, rows, temperature), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, plain, atol=1e-4)


def test_a_row_longer_than_a_micro_batch_is_scored_whole(backend, model):
    long = Sequence(
        np.arange(60, dtype=np.int32) % VOCAB, np.arange(60) >= 1, np.zeros(60, np.float32)
    )
    short = replace(CONFIG, model_path=str(model), max_tokens_per_micro_batch=16)
    np.testing.assert_allclose(
        VerlBackend(short).log_probs([long])[0], backend.log_probs([long])[0], atol=1e-5
    )


def test_splitting_a_rollout_in_two_rows_changes_neither_loss_nor_gradient(backend):
    """The second row repeats the first one's tokens as context and trains the rest of them."""
    rows = sequences(3)
    whole = rows[0]
    early, late = whole.mask.copy(), whole.mask.copy()
    early[9:] = late[:9] = False
    parts = [
        replace(whole, mask=part, advantages=np.where(part, whole.advantages, 0).astype(np.float32))
        for part in (early, late)
    ]
    one = without_effect(backend, rows)
    two = without_effect(backend, [*parts, *rows[1:]])
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_the_loss_is_the_token_sum_of_negative_advantages_when_on_policy(backend):
    # The ratio is 1 everywhere, so the loss is minus the sum of all advantages.
    rows = sequences(5)
    expected = -sum(float(row.advantages.sum()) for row in rows)
    assert without_effect(backend, rows)["loss"] == pytest.approx(expected, abs=1e-5)


def test_an_update_moves_log_probs_in_the_advantages_direction(model):
    one = VerlBackend(replace(CONFIG, model_path=str(model)))
    rows = sequences(6)
    before = one.log_probs(rows)
    metrics = one.update(rows, before)
    after = one.log_probs(rows)
    for row, old, new in zip(rows, before, after, strict=True):
        assert np.sign((new - old).sum()) == np.sign(row.advantages.sum())
    # The first of two updates of warm-up.
    assert metrics["lr"] == pytest.approx(0.5e-3)
    assert metrics["ppo_kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["pg_clipfrac"] == 0


def rows_of_a_group(count: int, *, longer: int = 0) -> list[Sequence]:
    """Rows with a prompt of 20 tokens in common, and one that goes on where another one ends."""
    prompt = np.arange(20, dtype=np.int32)
    rows = [
        replace(
            row,
            token_ids=np.concatenate([prompt, row.token_ids]),
            mask=np.concatenate([np.zeros(20, bool), row.mask]),
            advantages=np.concatenate([np.zeros(20, np.float32), row.advantages]),
        )
        for row in sequences(count)
    ]
    for row in rows[:longer]:
        ids = np.concatenate([row.token_ids, np.full(5, 3, np.int32)])
        mask = np.arange(len(ids)) >= len(ids) - 4
        advantages = np.where(mask, 0.1, 0).astype(np.float32)
        rows.append(Sequence(ids, mask, advantages, f"{row.rollout_id}-longer"))
    return rows


@pytest.fixture
def as_verl_does(backend: VerlBackend):
    """The same backend by verl's own forward pass, inside the block."""

    @contextmanager
    def padded():
        engine = backend.ranks._rank._engine
        engine._packs = False
        before = engine.module.config._attn_implementation
        engine.module.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            engine._packs = True
            engine.module.set_attn_implementation(before)

    return padded


def test_what_rows_share_is_computed_once_with_the_same_log_probs(backend, model):
    rows = rows_of_a_group(5, longer=2)
    assert backend.ranks._rank._engine._packs
    for temperature in (1.0, 0.7):
        scored = backend.log_probs(rows, temperature)
        for ours, plain in zip(scored, plain_log_probs(model, rows, temperature), strict=True):
            np.testing.assert_allclose(ours, plain, atol=1e-4)


def test_an_update_of_packed_rows_is_that_of_verl_s_own_forward_pass(backend, as_verl_does):
    rows = rows_of_a_group(6, longer=3)
    packed = without_effect(backend, rows)
    with as_verl_does():
        padded = without_effect(backend, rows)
    del packed["lr"], padded["lr"]  # each update has its own
    assert packed == pytest.approx(padded, rel=1e-4, abs=1e-6)


def test_only_the_last_layers_are_trained_saved_and_restored(model, tmp_path: Path):
    config = replace(CONFIG, model_path=str(model), train_last=1)
    one = VerlBackend(config)
    before = weights(one)
    rows = sequences(4)
    one.update(rows, one.log_probs(rows))
    changed = {name for name, now in weights(one).items() if not torch.equal(now, before[name])}
    last = {name for name in before if name.startswith("model.layers.1.")}
    assert changed == last | {"model.norm.weight"}
    state = one.ranks._rank._engine.optimizer.state_dict()["state"]
    assert len(state) == len(changed)
    one.save(tmp_path / "first")
    one.update(rows, one.log_probs(rows))
    one.save(tmp_path / "second", tmp_path / "first")
    frozen = [tmp_path / name / "huggingface" / FROZEN for name in ("first", "second")]
    assert frozen[0].samefile(frozen[1])
    two = VerlBackend(config)
    assert two.load(tmp_path / "second")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "second" / "huggingface")
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, atol=0, rtol=0)
        torch.testing.assert_close(exported.state_dict()[name], tensor, atol=0, rtol=0)
    old = one.log_probs(rows)
    assert two.update(rows, old) == pytest.approx(one.update(rows, old), abs=1e-6)


def test_as_many_layers_as_there_are_train_everything_and_more_are_refused(model):
    one = VerlBackend(replace(CONFIG, model_path=str(model), train_last=2))
    before = weights(one)
    rows = sequences(4)
    one.update(rows, one.log_probs(rows))
    assert not any(torch.equal(now, before[name]) for name, now in weights(one).items())
    with pytest.raises(ConfigError, match="'last 3' of a model with 2 layers"):
        VerlBackend(replace(CONFIG, model_path=str(model), train_last=3))


def test_in_bf16_log_probs_are_those_of_fp32_but_for_the_hidden_states(model):
    """Logits of bf16 would be off by up to 2^-8 of their size, which is 10 here and more."""
    one = VerlBackend(replace(CONFIG, model_path=str(model), dtype="bf16"))
    rows = rows_of_a_group(4)
    scored = one.log_probs(rows)
    for ours, plain in zip(scored, plain_log_probs(model, rows, 1.0), strict=True):
        np.testing.assert_allclose(ours, plain, atol=0.3)
        # Numbers of bf16 have 8 bits: such log-probs would be multiples of 2^-7 from 1 on.
        large = ours[ours < -1] * 2**7
        assert (large != np.round(large)).any()
    assert np.isfinite(one.update(rows, scored)["loss"])
    assert all(tensor.dtype == torch.float32 for tensor in weights(one).values())


def test_an_update_says_what_log_probs_were_before_it(model):
    one = VerlBackend(replace(CONFIG, model_path=str(model)))
    rows = rows_of_a_group(5, longer=2)
    before = one.log_probs(rows)
    assert one.scores_in_update
    metrics, scored = one.update_and_score(rows, before)
    assert np.isfinite(metrics["loss"])
    for ours, expected in zip(scored, before, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    several = replace(CONFIG, model_path=str(model), optimiser=optimiser(mini_batches=2))
    assert not VerlBackend(several).scores_in_update


def test_a_resumed_run_goes_on_as_if_uninterrupted(model, tmp_path: Path):
    config = replace(
        CONFIG, model_path=str(model), optimiser=optimiser(ppo_epochs=2, mini_batches=2)
    )
    first = VerlBackend(config)
    for seed in (1, 2):
        rows = sequences(5, seed)
        first.update(rows, first.log_probs(rows))
    first.save(tmp_path / "checkpoint")

    second = VerlBackend(config)
    second.load(tmp_path / "checkpoint")
    rates = []
    for seed in (3, 4):
        rows = sequences(5, seed)
        old = first.log_probs(rows)
        np.testing.assert_array_equal(np.concatenate(old), np.concatenate(second.log_probs(rows)))
        metrics = second.update(rows, old)
        assert metrics == pytest.approx(first.update(rows, old), abs=1e-6)
        rates.append(metrics["lr"])
    # Two updates of warm-up to 1e-3, then linearly to 0 after the fourth: 0.5, 1, 1, 0.5.
    assert rates == pytest.approx([1e-3, 0.5e-3])
    resumed = weights(second)
    for name, tensor in weights(first).items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=0)


def test_loading_from_a_folder_without_a_checkpoint_names_it(backend, tmp_path: Path):
    with pytest.raises(RunError, match="no checkpoint in"):
        backend.load(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_an_export_loads_in_transformers_with_the_same_weights(tied, tmp_path: Path):
    folder = write_model(tmp_path / "model", tied=tied)
    one = VerlBackend(replace(CONFIG, model_path=str(folder)))
    rows = sequences(2)
    one.update(rows, one.log_probs(rows))
    one.save(tmp_path / "checkpoint")
    export = tmp_path / "checkpoint" / "huggingface"
    exported = AutoModelForCausalLM.from_pretrained(export)
    state = exported.state_dict()
    trained = weights(one)
    assert state.keys() == trained.keys()
    for name, tensor in trained.items():
        assert state[name].dtype == torch.float32
        torch.testing.assert_close(state[name], tensor, atol=0, rtol=0)
    assert AutoTokenizer.from_pretrained(export).eos_token == "<end>"


def with_second_end(folder: Path, end: int, *, told_in: str) -> None:
    """Let a second token end answers, as one file of the model's says."""
    generation = folder / "generation_config.json"
    if told_in == "config.json":
        generation.unlink()
    told = json.loads((folder / told_in).read_text())
    (folder / told_in).write_text(json.dumps(told | {"eos_token_id": [VOCAB - 1, end]}))


@pytest.mark.parametrize("told_in", ["config.json", "generation_config.json"])
async def test_an_export_ends_its_answers_where_training_did(told_in: str, tmp_path: Path):
    folder = write_model(tmp_path / "model", tied=True)
    prompt = [3, 1, 4]
    one = VerlBackend(replace(CONFIG, model_path=str(folder)))
    one.save(tmp_path / "first")
    endless = greedy(tmp_path / "first" / "huggingface", prompt)
    # The end token that training knew is one that the model's answer holds, and not the tokenizer's.
    end = next(token for token in endless[3:] if token not in {*endless[:3], VOCAB - 1})
    with_second_end(folder, end, told_in=told_in)
    one.save(tmp_path / "checkpoint")
    export = tmp_path / "checkpoint" / "huggingface"
    settings = EngineSettings(slots=1, threads=1, max_model_len=64, device="cpu", dtype="fp32")
    answers = [greedy(export, prompt)]
    for served in (folder, export):
        with contextlib.closing(load_engine(served, settings, version=0)) as engine:
            engine.start()
            params = SamplingParams(temperature=0, max_tokens=len(endless))
            answer = await engine.generate(prompt, params)
            assert answer.finish_reason == "stop"
            answers.append(list(answer.token_ids))
    assert answers == [endless[: endless.index(end) + 1]] * 3
    names = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    for name in (path.name for path in folder.iterdir() if path.name in names):
        assert (export / name).read_bytes() == (folder / name).read_bytes()
    before, after = (json.loads((one / "config.json").read_text()) for one in (folder, export))
    assert {**before, "dtype": "float32"} == after


def greedy(model: Path, prompt: list[int]) -> list[int]:
    """The answer by transformers alone, of up to 24 tokens."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    answer = loaded.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
    return answer[0, len(prompt) :].tolist()


def test_kl_and_entropy_are_token_means_beside_the_policys_token_sum(model):
    config = replace(
        CONFIG,
        model_path=str(model),
        optimiser=optimiser(kl_coeff=0.5, kl_estimator="k1", entropy_coeff=0.25),
        max_tokens_per_micro_batch=32,
    )
    one = VerlBackend(config)
    start = sequences(4)
    reference = one.log_probs(start)
    one.update(start, reference)
    # Now the policy differs from the reference: k1 is the mean of log p - log p_ref.
    rows = sequences(4)
    old = one.log_probs(rows)
    tokens = sum(int(row.mask.sum()) for row in rows)
    gap = sum(float((a - b).sum()) for a, b in zip(old, reference, strict=True)) / tokens
    metrics = one.update(rows, old)
    assert metrics["kl"] == pytest.approx(gap, abs=1e-5)
    advantages = sum(float(row.advantages.sum()) for row in rows)
    expected = -advantages + 0.5 * gap - 0.25 * metrics["entropy"]
    assert metrics["loss"] == pytest.approx(expected, abs=1e-5)
    assert 0 < metrics["entropy"] < np.log(VOCAB)


@pytest.mark.parametrize("packed", [False, True])
def test_any_number_of_rows_in_any_number_of_mini_batches_is_one_update(model, packed):
    config = replace(
        CONFIG,
        model_path=str(model),
        optimiser=optimiser(mini_batches=4),
        overrides={"model.use_remove_padding": packed},
    )
    one = VerlBackend(config)
    # 5 rows in at most 4 mini-batches: rows of 2, 2, 1 and a filler, then fewer rows than batches.
    for count in (5, 3, 1):
        rows = sequences(count)
        assert np.isfinite(one.update(rows, one.log_probs(rows))["loss"])


def test_a_diverged_update_is_an_error(model):
    one = VerlBackend(replace(CONFIG, model_path=str(model)))
    rows = sequences(2)
    one.update(rows, one.log_probs(rows))
    bad = [replace(row, advantages=np.where(row.mask, np.inf, 0).astype("f4")) for row in rows]
    with pytest.raises(RunError, match="the update diverged"):
        one.update(bad, one.log_probs(rows))


def test_a_probe_passes_on_the_same_weights_and_fails_on_stale_ones(model):
    one = VerlBackend(replace(CONFIG, model_path=str(model)))
    engine = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def score(prompt, tokens):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            log_probs = torch.log_softmax(engine(ids).logits[0, len(prompt) - 1 : -1], -1)
        return log_probs.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()

    result = probe(score, one, tolerance=1e-4)
    assert result.tokens == 4 * 24
    assert result.max_abs_difference <= 1e-4
    rows = sequences(2)
    one.update(rows, one.log_probs(rows))
    with pytest.raises(WeightMismatch, match="does not hold the trainer's weights"):
        probe(score, one, tolerance=1e-4)


def test_weights_one_update_old_are_noticed_in_bf16(model):
    """Their log-probs differ by less than the usual tolerance."""
    slow = optimiser(learning_rate=1e-5)
    one = VerlBackend(replace(CONFIG, model_path=str(model), dtype="bf16", optimiser=slow))
    engine = load_engine(model, EngineSettings(2, 1, 64, "cpu", "bf16"), 0)
    engine.start()

    def check() -> None:
        holds = held(one.named_parameters(), torch.bfloat16)
        check_digests(holds, [engine.digest(holds.names)])

    check()
    probe(engine.score, one, tolerance=0.1)
    rows = sequences(2)
    one.update(rows, one.log_probs(rows))
    probe(engine.score, one, tolerance=0.1)
    with pytest.raises(WeightMismatch, match="their digests differ"):
        check()
    engine.swap_weights(one.named_parameters(), 1)
    check()
    engine.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_is_refused(model):
    with pytest.raises(ConfigError, match="device 'cuda' was asked for"):
        VerlBackend(replace(CONFIG, model_path=str(model), device="cuda"))


def test_a_backend_leaves_terminal_environment_and_logging_as_they_were(model, tmp_path):
    """In a warm process: build, train, save; nothing is printed, nothing leaks, nor did it while that was loaded.

    That a command whose imports are not done prints nothing either is what `test_chatter.py` shows.
    """
    program = f"""
import logging, os
before = dict(os.environ)
import __main__
import numpy as np
from dataclasses import make_dataclass
from pathlib import Path
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.export import FROZEN
from lightningrl.recipe import Optimiser
Row = make_dataclass("Row", ["token_ids", "mask", "advantages", "rollout_id"])
one = VerlBackend(BackendConfig(model_path={str(model)!r}, optimiser=Optimiser(learning_rate=1.0)))
row = Row(np.arange(9, dtype=np.int32), np.arange(9) > 3, np.ones(9, np.float32), "r")
one.update([row], one.log_probs([row]))
one.save(Path("saved"))
one.close()
ours = {{name for name in os.environ.keys() - before.keys()}} | __main__.added_by_imports
assert not any(n.startswith("VERL") or n in ("RANK", "WORLD_SIZE", "MASTER_PORT") for n in ours), ours
assert not logging.getLogger().handlers
"""
    said = tmp_path / "said.txt"
    process = WarmProcess(
        program, [], folder=tmp_path, environment=os.environ, outputs=(said, said)
    )
    try:
        assert process.wait(200) == 0, said.read_text()
    finally:
        process.kill_all()
    assert said.read_text() == ""
