"""Build what would be published, look at it, and use each package alone, as a stranger does: `make release-check`.

Each package is installed from its wheel into an empty environment, with what it declares, at the versions that `uv.lock`
names. Then it does one real thing there, against a scripted model on this machine.

Invariant: nothing of the workspace is imported in those environments; whatever is wrong is told, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lightningrl_testkit.model_server import Answer, ModelServer

ROOT = Path(__file__).resolve().parent.parent
MOST_KIB = {
    "lightningrl": 1000,
    "lightningrl-verl": 500,
    "lightningrl-ui": 200,
    "lightningrl-testkit": 200,
}
MOST_KIB_OF_OTHERS = 40
"""Most that a wheel or sdist may take: about half above what it takes now."""
UNWANTED = (
    "tests",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    "node_modules",
    "runs",
)
HEAVY = frozenset({"torch", "verl", "ray", "vllm", "transformers"})
FRAMEWORKS = frozenset({"autogen-core", "langchain-core", "openai-agents", "agent-framework-core"})
_RELATIVE_LINK = re.compile(r"\[[^\]]*\]\((?![a-z]+:|#)([^)\s]+)\)")
_FILE_BLOCK = re.compile(r"^<!-- file: (\S+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECONDS = 1800.0
"""Most that one command may take: a machine that does other work needs minutes to import a trainer."""


class ReleaseError(Exception):
    """A package can't be built, installed or used as it says."""


# -- what is in the files ------------------------------------------------------------------------


def metadata_problems(raw: bytes, name: str, version: str, ours: Collection[str]) -> list[str]:
    """What is wrong with the core metadata of one package; `ours` are the names of all that are released together."""
    try:
        found = Metadata.from_email(raw, validate=True)
    except ExceptionGroup as group:
        return [f"metadata: {one}" for one in _leaves(group)]
    wanted = {
        "name": (found.name, name),
        "version": (str(found.version), version),
        "licence expression": (found.license_expression, "MIT"),
        "licence files": (found.license_files, ["LICENSE"]),
    }
    problems = [
        f"{what}: {is_!r}, not {want!r}" for what, (is_, want) in wanted.items() if is_ != want
    ]
    if found.requires_python is None or "3.11" not in found.requires_python:
        problems.append(f"requires-python: {found.requires_python}, without 3.11")
    if not found.summary:
        problems.append("no summary")
    if found.description_content_type != "text/markdown" or not found.description:
        problems.append("no description in Markdown")
    problems += [
        f"the description links to {link!r}, which is nowhere on a package's page"
        for link in _RELATIVE_LINK.findall(found.description or "")
    ]
    problems += [
        f"the address of {label!r} is not https: {url}"
        for label, url in (found.project_urls or {}).items()
        if not url.startswith("https://")
    ]
    for one in found.requires_dist or []:
        problems += requirement_problems(one, version, ours)
    return problems


def requirement_problems(one: Requirement, version: str, ours: Collection[str]) -> list[str]:
    """A package of ours is wanted at this very version, and all others from some version on."""
    if canonicalize_name(one.name) in ours:
        return [] if str(one.specifier) == f"=={version}" else [f"needs {one}, not =={version}"]
    return [] if one.specifier else [f"needs {one} of any version"]


def _leaves(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(one)
        else:
            yield one


def content_problems(names: Collection[str]) -> list[str]:
    """Files that a wheel or an sdist should not hold, and those that it lacks."""
    paths = [PurePosixPath(name) for name in names]
    problems = [
        f"holds {path}"
        for path in paths
        if set(path.parts) & set(UNWANTED) or path.suffix == ".pyc"
    ]
    present = {path.name for path in paths}
    return problems + [f"lacks {name}" for name in ("LICENSE", "py.typed") if name not in present]


def size_problems(name: str, size: int) -> list[str]:
    """Whether a file of so many bytes is larger than expected of its package."""
    most = MOST_KIB.get(name, MOST_KIB_OF_OTHERS)
    return [f"takes {size / 1024:.0f} KiB, more than {most}"] if size > 1024 * most else []


def changelog_problems(text: str, version: str) -> list[str]:
    """Whether a version has a heading, and something below it."""
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if heading.split()[:1] == [version]:
            return [] if body.strip() else [f"CHANGELOG.md: nothing below the heading of {version}"]
    return [f"CHANGELOG.md: no heading for {version}"]


def file_blocks(page: str) -> dict[str, str]:
    """Name -> text of the files that a page of the documents shows."""
    return dict(_FILE_BLOCK.findall(page))


# -- what is built -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """One package as it would be published."""

    name: str
    version: str
    wheel: Path
    sdist: Path


def build(folder: Path) -> list[Built]:
    """Build the wheel, by way of the sdist, of each member in packages/."""
    built: list[Built] = []
    for path in sorted((ROOT / "packages").glob("*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        name, version = project["name"], project["version"]
        run(uv(), "build", "--quiet", "--package", name, "--out-dir", str(folder))
        stem = f"{name.replace('-', '_')}-{version}"
        built.append(
            Built(name, version, folder / f"{stem}-py3-none-any.whl", folder / f"{stem}.tar.gz")
        )
    return built


def look(one: Built, ours: Collection[str]) -> list[str]:
    """What is wrong with one package's two files."""
    problems: list[str] = []
    with ZipFile(one.wheel) as wheel, tarfile.open(one.sdist) as sdist:
        [place] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        problems += metadata_problems(wheel.read(place), one.name, one.version, ours)
        problems += [f"wheel {said}" for said in content_problems(wheel.namelist())]
        problems += [f"sdist {said}" for said in content_problems(sdist.getnames())]
    for path in (one.wheel, one.sdist):
        size = path.stat().st_size
        print(f"  {path.name}: {size / 1024:.0f} KiB")
        problems += [f"{path.name} {said}" for said in size_problems(one.name, size)]
    return problems


# -- where it is used ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """An environment with one package in it, and a folder to work in."""

    folder: Path
    python: Path
    model: str
    """Base URL of a scripted model that answers 42."""

    def do(self, *command: str) -> str:
        """Run a command of the environment to its end; what it printed."""
        return run(str(self.python.parent / command[0]), *command[1:], cwd=self.folder)

    def write(self, name: str, text: str) -> str:
        """Make a file in the folder."""
        (self.folder / name).write_text(text, encoding="utf-8")
        return name

    @contextmanager
    def running(self, *command: str) -> Generator[subprocess.Popen[str]]:
        """A program of the environment that serves until it is ended, by SIGTERM and well."""
        with subprocess.Popen(
            [str(self.python.parent / command[0]), *command[1:]],
            cwd=self.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.terminate()
                status = process.wait(60)
        expect(status in (0, -15), f"{' '.join(command)} ended with {status}")


@dataclass(frozen=True)
class Trial:
    """One package's trial."""

    package: str
    wanted: str
    """What is installed, as a user names it."""
    use: Callable[[Place], str]
    """The real thing; says what it did."""
    beside: tuple[str, ...] = ()
    """What the agent of the trial needs, and the package does not."""
    without: frozenset[str] = HEAVY | FRAMEWORKS
    """Distributions that installing it must not bring."""


def attempt(trial: Trial, built: Built, folder: Path, limits: Path, model: str) -> str:
    """Install one package alone, and use it; a line of figures."""
    began = time.monotonic()
    place = Place(folder, folder / "venv" / "bin" / "python", model)
    run(uv(), "venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    install = (uv(), "pip", "install", "--quiet", "--python", str(place.python), "--find-links",
               str(built.wheel.parent), "--constraints", str(limits))  # fmt: skip
    run(*install, f"{trial.wanted}=={built.version}")
    listed = json.loads(run(uv(), "pip", "list", "--python", str(place.python), "--format", "json"))
    names = {one["name"] for one in listed}
    expect(built.name in names or trial.package in names, f"{trial.wanted} is not installed")
    expect(not names & trial.without, f"brings {sorted(names & trial.without)}")
    run(uv(), "pip", "check", "--quiet", "--python", str(place.python))
    seconds = time.monotonic() - began
    if trial.beside:
        run(*install, *trial.beside)
    said = trial.use(place)
    total = time.monotonic() - began
    return f"{len(names)} distributions in {seconds:.0f} s; {said}; {total:.0f} s in all"


# -- one real thing with each --------------------------------------------------------------------

_SUM_RECIPE = """\
name: sums
agent: addition:solve
reward: addition:last_number_is_right
data: {train: {source: "addition:generate", args: {split: train, count: 8, seed: 1}}}
policies: {policy: {model: none, replaces: [gpt-4o-mini]}}
"""

_TINY_RECIPE = """\
name: sums
agent: addition:solve
reward: addition:last_number_is_right
data:
  train: {source: "addition:generate", args: {split: train, count: 8, seed: 1}}
  val: {source: "addition:generate", args: {split: val, count: 4, seed: 2}}
policies: {policy: {tiny: "tiny_policy:spec", max_model_len: 160, replaces: [gpt-4o-mini]}}
sampling: {train: {max_tokens: 8}, val: {max_tokens: 8}}
algorithm: {iterations: 2, tasks_per_iteration: 4, group_size: 2}
optimiser: {learning_rate: 1.0e-3}
"""

_TINY_POLICY = '''\
"""A policy that has seen a few sums."""

from addition import generate


def demonstration(rng):
    [row] = generate("train", 1, rng.random())
    return [(f"<user> {row['question']}<asst>", False), (f" {row['answer']}", True)]


def spec():
    return {"name": "sums", "words": (" What", " is", " plus", " Answer", " with", " the", " number", " only"), "demonstration": demonstration,
            "layers": 1, "updates": 20}
'''

_STORE_TEST = '''\
"""The contract of stores on the store that is there."""

import pytest_asyncio

from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.store import StoreContract


class TestSqliteStore(StoreContract):
    @pytest_asyncio.fixture
    async def store(self, tmp_path):
        store = SqliteStore.open(tmp_path / "store.db")
        yield store
        await store.close()
'''


def use_core(place: Place) -> str:
    """Its version, a recipe tried with a plain agent, a server started and asked."""
    version = place.do("lightningrl", "--version").strip()
    _copy_addition(place)
    wrong = place.write("wrong.yaml", _SUM_RECIPE.replace("reward:", "rewart:"))
    refused = run(
        str(place.python.parent / "lightningrl"), "try", wrong, "--policy", place.model,
        "--split", "train", cwd=place.folder, status=2,
    )  # fmt: skip
    expect("Did you mean 'reward'" in refused, f"a wrong key is not told: {refused}")
    tried = _try(place, place.write("sums.yaml", _SUM_RECIPE))
    expect(tried["joined"] == 4, f"4 rollouts, and joined are {tried['joined']}")
    return f"{version}; a recipe refused, one tried; /readyz {_serve(place)}"


def use_adapter(framework: str, agent: str) -> Callable[[Place], str]:
    """The program of the framework's own page, recorded with the name of its agent."""

    def use(place: Place) -> str:
        page = (ROOT / "docs" / "how-to" / f"use-{framework}.md").read_text(encoding="utf-8")
        files = file_blocks(page)
        for name, text in files.items():
            place.write(name, text)
        [recipe] = [name for name in files if name.endswith(".yaml")]
        expect(_try(place, recipe)["wired"], "not wired")
        shown = place.do("lightningrl", "try", recipe, "--policy", place.model, "--split", "train")
        expect(f"agent {agent}" in shown, f"no step of the agent {agent!r}:\n{shown}")
        return f"{recipe} of its page recorded, with the steps of {agent!r}"

    return use


def use_trainer(place: Place) -> str:
    """One iteration of a tiny policy: rollouts, update, checkpoint, sync."""
    _copy_addition(place)
    place.write("tiny_policy.py", _TINY_POLICY)
    recipe = place.write("sums.yaml", _TINY_RECIPE)
    shown = place.do("lightningrl", "train", recipe, "--rehearse")
    expect("One iteration of 8 rollouts" in shown, f"no rehearsal:\n{shown}")
    return next(line for line in shown.splitlines() if line.startswith("One iteration"))


def use_ui(place: Place) -> str:
    """A page of a store, fetched."""
    _serve(place)
    with place.running("lightningrl", "ui", "--no-browser", "--port", "0", "store.db") as page:
        assert page.stdout is not None
        line = page.stdout.readline()
        found = re.search(r"http://\S+", line)
        expect(found is not None, f"no address: {line!r}")
        assert found is not None
        with _direct().open(found[0], timeout=60) as answer:
            text = answer.read().decode()
    expect("LightningRL" in text, f"not the page: {text[:200]!r}")
    return f"its page has {len(text)} characters"


def use_testkit(place: Place) -> str:
    """The contract of stores, by pytest, on core's own store."""
    shown = place.do("pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto",
                     place.write("test_store.py", _STORE_TEST))  # fmt: skip
    return f"the stores' contract: {shown.strip().splitlines()[-1]}"


TRIALS = (
    Trial("lightningrl", "lightningrl", use_core, ("openai",)),
    Trial(
        "lightningrl-agent-framework", "lightningrl-agent-framework",
        use_adapter("agent-framework", "solver"), ("agent-framework-openai",), HEAVY,
    ),
    Trial(
        "lightningrl-autogen", "lightningrl-autogen",
        use_adapter("autogen", "writer"), ("autogen-ext[openai]",), HEAVY,
    ),
    Trial(
        "lightningrl-langchain", "lightningrl-langchain",
        use_adapter("langchain", "solver"), ("langchain", "langchain-openai"), HEAVY,
    ),
    Trial(
        "lightningrl-openai-agents", "lightningrl-openai-agents",
        use_adapter("openai-agents", "solver"), (), HEAVY,
    ),
    Trial("lightningrl-testkit", "lightningrl-testkit", use_testkit),
    Trial("lightningrl-ui", "lightningrl[ui]", use_ui),
    Trial("lightningrl-verl", "lightningrl-verl", use_trainer, ("openai",), FRAMEWORKS),
)  # fmt: skip


def _copy_addition(place: Place) -> None:
    shutil.copy(ROOT / "examples" / "addition" / "addition.py", place.folder)


def _try(place: Place, recipe: str) -> dict[str, object]:
    shown = place.do(
        "lightningrl", "try", recipe, "--policy", place.model, "--split", "train", "--json"
    )
    return json.loads(shown)


def _serve(place: Place) -> int:
    """Serve a new store for a moment, ask whether it is ready, and leave it behind; the status."""
    url = place.folder / "url.txt"
    with place.running(
        "lightningrl", "serve", "store.db", "--port", "0", "--url-file", str(url)
    ) as server:
        until = time.monotonic() + 60
        while not url.is_file():
            expect(server.poll() is None and time.monotonic() < until, "the server does not start")
            time.sleep(0.1)
        with _direct().open(f"{url.read_text().strip()}/readyz", timeout=60) as answer:
            return answer.status


def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


# -- the whole -----------------------------------------------------------------------------------


def uv() -> str:
    """The installer, as `make` finds it."""
    return shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")


def environment() -> dict[str, str]:
    """This process's environment without its Python's."""
    dropped = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    return {name: text for name, text in os.environ.items() if name not in dropped}


def run(*command: str, cwd: Path = ROOT, status: int = 0) -> str:
    """Run to the end; what it printed. Another exit status than expected is an error."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(), timeout=_SECONDS, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode != status:
        said = (done.stdout + done.stderr)[-3000:]
        raise ReleaseError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout if status == 0 else done.stdout + done.stderr


def expect(holds: object, otherwise: str) -> None:
    """Go on only if something holds."""
    if not holds:
        raise ReleaseError(otherwise)


def without_installing(core: Built) -> str:
    """Run the command line from the wheel, in an environment that uv makes and throws away."""
    return run(
        uv(), "tool", "run", "--quiet", "--from", str(core.wheel), "lightningrl", "--version"
    ).strip()


def check(folder: Path, only: str | None) -> list[str]:
    """Everything; what is wrong, by package."""
    dist = folder / "dist"
    built = {one.name: one for one in build(dist)}
    expect(
        built.keys() == {one.package for one in TRIALS},
        "a package has no trial, or a trial no package",
    )
    [version] = {one.version for one in built.values()}
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    problems = changelog_problems(changes, version)
    for one in built.values():
        print(one.name, version)
        problems += [f"{one.name}: {said}" for said in look(one, built)]
    limits = folder / "constraints.txt"
    limits.write_text(
        run(uv(), "export", "--quiet", "--frozen", "--all-packages", "--all-extras", "--no-hashes",
            "--no-emit-workspace", "--no-annotate", "--no-header")
    )  # fmt: skip
    with ModelServer(lambda _: Answer("42")) as model:
        for trial in TRIALS:
            if only not in (None, trial.package):
                continue
            place = folder / trial.package
            place.mkdir()
            try:
                said = attempt(trial, built[trial.package], place, limits, model.url)
                print(f"{trial.wanted}: {said}", flush=True)
            except ReleaseError as error:
                problems.append(f"{trial.wanted}: {error}")
                print(f"{trial.wanted}: FAILED", flush=True)
            shutil.rmtree(place)
    print(f"uvx --from WHEEL lightningrl --version: {without_installing(built['lightningrl'])}")
    return problems


def main() -> int:
    """Run, print, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[one.package for one in TRIALS], help="use one package")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = check(Path(folder), options.only)
    for one in problems:
        print(f"problem: {one}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
