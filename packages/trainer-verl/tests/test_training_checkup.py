"""What a run that trains is told of its rollouts: each kind once."""

from __future__ import annotations

from lightningrl.experience.trainable import TrainableCalls
from lightningrl.recipe import parse_recipe
from lightningrl_verl.training.checkup import Checkup

RECIPE = parse_recipe({"name": "run", "agent": "m:f"})


def test_a_kind_is_said_once_in_a_start() -> None:
    said: list[str] = []
    checkup = Checkup(RECIPE, said.append)
    few = TrainableCalls(trainable=1, lost={"a grammar": 3}, left_out={})
    enough = TrainableCalls(trainable=3, lost={"a grammar": 3}, left_out={"the policy's": 9})
    for counted in (enough, few, few):
        checkup.calls(counted)
    (line,) = said
    assert line.startswith("✗ untrainable calls: only 25% of the 4 model calls could be trained")
    assert "\n  → " in line


def test_calls_that_nobody_could_place_are_said_in_whichever_iteration_they_come() -> None:
    said: list[str] = []
    checkup = Checkup(RECIPE, said.append)
    for unidentified in (0, 2, 5):
        checkup.rollouts((), unidentified={"child": unidentified})
    (line,) = said
    assert line.startswith("✗ refused requests: 2 model calls came without a rollout")
