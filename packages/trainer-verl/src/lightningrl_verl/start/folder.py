"""A run's folder: what is where, one writer at a time, and never two recipes in one run.

recipe.yaml     the resolved recipe
run.json        commit, versions, when and from which file it was started, what its policies began with; each start,
                and how it ended
metrics.jsonl   one line per iteration
curve.png       train and validation reward
store.db        the LightningStore
drift.json      what was not trained or did not merge, and why: sums of the run and of each iteration
drift/          the same of each rollout, a file per iteration
lesson/         what an iteration was trained on, for people: a file for each of the newest ones
tokenizer/      ALIAS.json: how token ids of a policy are read, for whoever looks at the run without its models
serving/        ALIAS.json: how a policy's requests are brought to its model, for whoever serves it later
checkpoints/    iteration-NNNNNN, each whole or absent
trackers/       what TensorBoard, W&B and MLflow are given, where the recipe names them
logs/           what the server, the runners and engines print, and when the trainer's phases began
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import yaml

from lightningrl.cli.stored_run import BEGAN_WITH
from lightningrl.errors import ConfigError, StoreLocked
from lightningrl.lessons import tokenizer_path
from lightningrl.machine.durable import write_text
from lightningrl.recipe import (
    Data,
    DataSource,
    LoadedRecipe,
    Recipe,
    changed_keys,
    dump_recipe,
    parse_recipe,
)
from lightningrl_verl.machine.built_folder import file_digest, weights_digest
from lightningrl_verl.training.batches import Splits, Task
from lightningrl_verl.training.files import RunFiles
from lightningrl_verl.training.metrics import MetricsLog

_CHANGEABLE = (
    "guards",
    "cluster",
    "trainer.ranks",
    "trainer.nodes",
    "engine.backend",
    "engine.gpu_memory_share",
    "engine.placement",
    "engine.replicas",
    "engine.tensor_parallel",
    "engine.vllm",
    "gateway.host",
    "gateway.port",
    "live.key",
)
"""Keys of a recipe, and what is below them, that a run may change when it goes on."""

_ITERATIONS = "algorithm.iterations"
"""May change too, to no fewer than the run has."""

_SERVERS = re.compile(r"policies\..+\.(vllm\.(urls|key|folder)|url|url_key)")
"""As `_CHANGEABLE`: where servers of others are, which may move."""


@dataclass(frozen=True)
class RunFolder(RunFiles):
    """The folder of one run."""

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def info(self) -> Path:
        """Where the run came from."""
        return self.path / "run.json"

    @property
    def store(self) -> Path:
        """The LightningStore."""
        return self.path / "store.db"

    @property
    def trackers(self) -> Path:
        """What trackers write, unless the environment sends it elsewhere."""
        return self.path / "trackers"

    @property
    def engines(self) -> Path:
        """Weights that engine processes serve, while they do."""
        return self.path / "engines"

    @property
    def logs(self) -> Path:
        """Output of the child processes."""
        return self.path / "logs"

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Hold the folder for this process.

        Raises:
            StoreLocked: another trainer works in it; the message has its process id.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise StoreLocked(
                    f"process {lock.read().strip() or '?'} is training in {str(self.path)!r};"
                    " wait for it, or give this run another 'name'"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def adopt(self, loaded: LoadedRecipe) -> None:
        """Write the recipe into a new folder, or check it against the one that is there.

        Guards may change, how many iterations there are, and the processes that train and serve, and how they
        are reached: nothing of what is trained.

        Raises:
            ConfigError: the folder belongs to a run of another recipe; the message names the keys.
        """
        self.refuse_another(loaded)
        if not self.recipe.exists():
            write_text(self.info, json.dumps(_origin(loaded), indent=2) + "\n")
        write_text(self.recipe, dump_recipe(loaded.recipe))

    def refuse_another(self, loaded: LoadedRecipe) -> None:
        """Check a recipe against the one that is there, if one is; cheap, and of use before what is not.

        Raises:
            ConfigError: see `adopt`.
        """
        if not self.recipe.exists():
            return
        there = parse_recipe(
            yaml.safe_load(self.recipe.read_text(encoding="utf-8")), where=str(self.recipe)
        )
        changed = [
            key
            for key in changed_keys(there, loaded.recipe)
            if not key.startswith(_CHANGEABLE)
            and _SERVERS.fullmatch(key) is None
            and not (key == _ITERATIONS and self._may_end_after(loaded.recipe))
        ]
        if changed:
            raise ConfigError(
                f"{str(self.path)!r} holds a run of another recipe: {', '.join(changed)} differ."
                " Undo the change to resume it, or give the new run another 'name'"
            )

    def _may_end_after(self, recipe: Recipe) -> bool:
        """Whether the run has no more iterations than a recipe wants."""
        wanted = recipe.algorithm
        return wanted is not None and MetricsLog(self.metrics).last_iteration <= wanted.iterations

    def check_tasks(self, data: Data, splits: Splits) -> list[str]:
        """Remember the tasks of each split, or check that they are still the same.

        Returns:
            What is to be said: the splits whose function gives other tasks now. They may be drawn anew each time.

        Raises:
            ConfigError: a file has other tasks than when the run began; the message names it.
        """
        origin = json.loads(self.info.read_text(encoding="utf-8"))
        known: dict[str, str] = origin.setdefault("tasks", {})
        said: list[str] = []
        for split in ("train", "val", "test"):
            source: DataSource | None = getattr(data, split)
            digest = _tasks_digest(getattr(splits, split))
            if source is None or known.setdefault(split, digest) == digest:
                continue
            told = (
                f"data.{split}: {source.source!r} has other tasks than when the run in"
                f" {str(self.path)!r} began (digest {digest[:12]}, then {known[split][:12]})"
            )
            if source.source.endswith(".jsonl"):
                raise ConfigError(f"{told}; bring those back, or give the new run another 'name'")
            said.append(f"{told}; what is trained on from here on are these")
            known[split] = digest
        write_text(self.info, json.dumps(origin, indent=2) + "\n")
        return said

    def check_base(self, models: Mapping[str, Path]) -> None:
        """Remember the weights and chat templates that the run starts from, or check that they are still the same.

        Args:
            models: alias of each trained policy -> Hugging Face folder.

        Raises:
            ConfigError: the folder's run started from other weights, which would be a second set
                under version 0, or with another chat template.
        """
        origin = json.loads(self.info.read_text(encoding="utf-8"))
        origin[BEGAN_WITH] = {
            **origin.get(BEGAN_WITH, {}),
            **{alias: str(model.resolve()) for alias, model in models.items()},
        }
        known: dict[str, str] = origin.setdefault("base_weights", {})
        templates: dict[str, str] = origin.setdefault("chat_templates", {})
        for alias, model in models.items():
            digest = weights_digest(model)
            if known.setdefault(alias, digest) != digest:
                raise ConfigError(
                    f"{str(self.path)!r} holds a run whose policy {alias!r} started from other weights"
                    f" than those in {str(model)!r}; bring those back, or give the new run another"
                    " 'name'"
                )
            template = _template_digest(model)
            if templates.setdefault(alias, template) != template:
                raise ConfigError(
                    f"{str(self.path)!r} holds a run whose policy {alias!r} started with another chat template"
                    f" than that of {str(model)!r}; bring it back, or give the new run another 'name'"
                )
        write_text(self.info, json.dumps(origin, indent=2) + "\n")

    def keep_tokenizers(self, models: Mapping[str, Path]) -> None:
        """Copy each policy's tokenizer, in place of that of an earlier start.

        Args:
            models: alias -> Hugging Face folder; one without a `tokenizer.json` is left out.
        """
        for alias, model in models.items():
            if (model / "tokenizer.json").is_file():
                path = tokenizer_path(self.path, alias)
                path.parent.mkdir(exist_ok=True)
                write_text(path, (model / "tokenizer.json").read_text(encoding="utf-8"))

    def check_material(self, alias: str, digest: str) -> None:
        """Remember what a policy's fine-tuning learns from, or check that it is still the same.

        Args:
            alias: the policy's.
            digest: of its rows.

        Raises:
            ConfigError: the run in the folder began on other rows.
        """
        origin = json.loads(self.info.read_text(encoding="utf-8"))
        known: dict[str, str] = origin.setdefault("material", {})
        if known.setdefault(alias, digest) != digest:
            raise ConfigError(
                f"{str(self.path)!r} holds a run of other demonstrations of policy {alias!r}, or of the same"
                " ones under another chat template; bring those back, or give the new run another 'name'"
            )
        write_text(self.info, json.dumps(origin, indent=2) + "\n")


def _tasks_digest(tasks: Sequence[Task]) -> str:
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(msgspec.json.encode(task, order="deterministic") + b"\n")
    return digest.hexdigest()


def _template_digest(model: Path) -> str:
    template = model / "chat_template.jinja"
    if template.is_file():
        return file_digest(template)
    # Where folders of earlier versions of transformers keep it.
    settings = model / "tokenizer_config.json"
    told = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return hashlib.sha256(json.dumps(told.get("chat_template")).encode()).hexdigest()


def _origin(loaded: LoadedRecipe) -> dict[str, object]:
    return {
        "name": loaded.recipe.name,
        "recipe_path": str(loaded.path),
        "commit": _commit(loaded.folder),
        "started_at": datetime.now(UTC).isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            name: version(name) for name in ("lightningrl", "verl", "torch", "transformers")
        },
    }


def _commit(folder: Path) -> str | None:
    """The git commit of the recipe's repository, with `+changes` if files differ from it."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
