"""Guards, by lines of metrics written by hand."""

from typing import Any

import pytest

from lightningrl.errors import GuardTripped
from lightningrl.guards import _GUARDS, check_guards, guard_readings
from lightningrl.recipe import Guards


def lines(**values: list[float | None]) -> list[dict[str, Any]]:
    """Iteration 0, then one line per value; `a__b` stands for the metric `a/b`."""
    count = max(map(len, values.values()))
    trained = [
        {"iteration": i + 1}
        | {name.replace("__", "/"): of[i] for name, of in values.items() if i < len(of)}
        for i in range(count)
    ]
    return [{"iteration": 0}, *trained]


def test_a_limit_is_broken_after_so_many_iterations_in_a_row() -> None:
    guards = Guards(patience=2, max_ppo_kl=0.5)
    check_guards(lines(actor__ppo_kl=[0.6]), guards)
    check_guards(lines(actor__ppo_kl=[0.6, 0.4, 0.6]), guards)
    with pytest.raises(GuardTripped) as caught:
        check_guards(lines(actor__ppo_kl=[0.4, 0.6, -0.7]), guards)
    said = str(caught.value)
    assert said.startswith("stopped after iteration 3: actor/ppo_kl was 0.6, -0.7")
    assert "'guards.max_ppo_kl' allows at most 0.5" in said
    assert "guards.max_ppo_kl=null" in said
    assert caught.value.exit_code == 3


def test_null_switches_a_guard_off() -> None:
    check_guards(lines(actor__ppo_kl=[9.0]), Guards(patience=1, max_ppo_kl=None))


def test_a_relative_limit_is_a_share_of_the_first_iterations_value() -> None:
    guards = Guards(patience=1, min_tool_calls=0.5)
    check_guards(lines(train__tool_calls_per_rollout=[2.0, 1.0]), guards)
    with pytest.raises(GuardTripped, match=r"0\.9 .*at least 0\.5 of the first iteration's"):
        check_guards(lines(train__tool_calls_per_rollout=[2.0, 0.9]), guards)
    # An agent without tools has none to lose.
    check_guards(lines(train__tool_calls_per_rollout=[0.0, 0.0]), guards)


def test_a_missing_metric_passes() -> None:
    check_guards(lines(actor__kl=[None], train__reward=[0.5]), Guards(patience=1))


def test_each_policy_of_several_is_guarded() -> None:
    with pytest.raises(GuardTripped, match="actor/writer/kl was 6"):
        check_guards(lines(actor__writer__kl=[6.0], actor__reader__kl=[0.1]), Guards(patience=1))


@pytest.mark.parametrize("guard", _GUARDS, ids=lambda one: one.key)
def test_every_guard_trips_beyond_its_limit(guard: Any) -> None:
    limit = 0.5 if guard.side == "least" else 2.0
    beyond = 0.4 if guard.side == "least" else 2.1
    guards = Guards(**{field: None for field in Guards.__struct_fields__ if field != "patience"})
    guards = type(guards)(**{"patience": 2} | {guard.key: limit})
    first = 1.0 if guard.relative else beyond
    name = guard.metric.replace("/", "__")
    with pytest.raises(GuardTripped, match=f"guards.{guard.key}=null"):
        check_guards(lines(**{name: [first, beyond, beyond]}), guards)


@pytest.mark.parametrize("name", ["train__flat_groups", "train__entropy"])
def test_a_solved_run_is_not_a_collapsed_one(name: str) -> None:
    value = {"train__flat_groups": 1.0, "train__entropy": 0.0}[name]
    guards = Guards(patience=2)
    with pytest.raises(GuardTripped):
        check_guards(lines(**{name: [value] * 2}, train__solved_groups=[0.5, 0.5]), guards)
    check_guards(lines(**{name: [value] * 2}, train__solved_groups=[0.5, 0.75]), guards)


def test_a_reading_says_how_near_a_guard_is_and_for_how_long() -> None:
    guards = Guards(patience=3, max_ppo_kl=0.5, min_tool_calls=0.5)
    read = {
        one.key: one
        for one in guard_readings(
            lines(actor__ppo_kl=[0.1, 0.6, -0.75], train__tool_calls_per_rollout=[4.0, 4.0, 2.5]),
            guards,
        )
    }
    assert (read["max_ppo_kl"].nearness, read["max_ppo_kl"].beyond) == (1.5, 2)
    # at least half of the first iteration's 4 calls: 2 of 2.5
    assert (read["min_tool_calls"].bound, read["min_tool_calls"].nearness) == (2.0, 0.8)
    assert read["min_tool_calls"].beyond == 0
    assert guard_readings(lines(actor__ppo_kl=[0.1])[:1], guards) == []
