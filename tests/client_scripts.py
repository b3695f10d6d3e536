"""What the model says to third-party agents that are asked "What is A times B?": it has their tool multiply, and repeats it.

Invariant: a pure function of the request, so that a call which is sent again is answered the same. The product stands in
no question and in no call that the model makes: a prompt that holds it shows that the agent's tool ran.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from lightningrl_testkit.model_server import Answer, Script, ToolCall

_ASKED = re.compile(r"(\d+) times (\d+)")


def factors(request: Mapping[str, Any]) -> dict[str, int]:
    """The arguments of `multiply` that the question, the last that was asked, is about."""
    first, second = _ASKED.findall(json.dumps(request["messages"]))[-1]
    return {"a": int(first), "b": int(second)}


def product(request: Mapping[str, Any]) -> int:
    """What the question is about."""
    return math.prod(factors(request).values())


def said(request: Mapping[str, Any]) -> str:
    """The answer in words."""
    return f"It is {product(request)}."


def ran(request: Mapping[str, Any]) -> bool:
    """Whether a tool's result is in the prompt."""
    return str(product(request)) in json.dumps(request["messages"]).replace(",", "")


def agent(request: dict[str, Any]) -> Answer:
    """Call `multiply` where it is offered, until its result is there; hold to a schema where one is asked for."""
    tools = {one["function"]["name"]: one["function"] for one in request.get("tools") or ()}
    has_run = ran(request)
    multiply = next((name for name in tools if name.endswith("multiply")), None)
    if multiply is not None and not has_run and request.get("tool_choice") != "none":
        return call(multiply, factors(request))
    schema = _schema(request.get("response_format"))
    if schema is not None:
        return Answer(json.dumps(filled(schema, product(request))))
    forced = _forced(request.get("tool_choice"), [name for name in tools if name != multiply])
    if forced is not None:
        return call(forced, filled(tools[forced].get("parameters") or {}, product(request)))
    return Answer(said(request))


def code_agent(request: dict[str, Any]) -> Answer:
    """Write Python for smolagents' `CodeAgent`, which calls the tool and ends."""
    if ran(request):
        return Answer(f"Thought: I know it.\n<code>\nfinal_answer({said(request)!r})\n</code>")
    a, b = factors(request).values()
    return Answer(f"Thought: I multiply.\n<code>\nprint(multiply(a={a}, b={b}))\n</code>")


def shell_agent(request: dict[str, Any]) -> Answer:
    """Do it in the shell; then answer, or end as mini-swe-agent is told to, whose only tool is `bash`."""
    tools = {one["function"]["name"]: one["function"] for one in request["tools"]}
    a, b = factors(request).values()
    command = f"echo $(({a} * {b}))"
    name = next(one for one in ("bash", "exec_command", "shell_command") if one in tools)
    argument = next(iter(tools[name]["parameters"]["required"]))
    if not ran(request):
        return call(name, {argument: command})
    if name == "bash":
        ending = f"echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && {command}"
        return call(name, {argument: ending})
    return Answer(said(request))


def fields_agent(request: dict[str, Any]) -> Answer:
    """Fill the fields that DSPy's `ReAct` asks for in its text, and those of its answer."""
    if "next_tool_name" not in json.dumps(request["messages"][0]):
        return (
            agent(request)
            if request.get("response_format")
            else _fields(reasoning="", answer=said(request))
        )
    if ran(request):
        return _fields(next_thought="I know it.", next_tool_name="finish", next_tool_args="{}")
    arguments = json.dumps(factors(request))
    return _fields(next_thought="I multiply.", next_tool_name="multiply", next_tool_args=arguments)


def _fields(**values: str) -> Answer:
    parts = [f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()]
    return Answer("\n\n".join([*parts, "[[ ## completed ## ]]"]))


def handing_over(*names: str) -> Script:
    """The script whose first answers call these tools, each once in a conversation; then it is `agent`."""

    def script(request: dict[str, Any]) -> Answer:
        offered = {one["function"]["name"] for one in request.get("tools") or ()}
        asked = {
            one["function"]["name"]
            for message in request["messages"]
            for one in message.get("tool_calls") or ()
        }
        for name in names:
            if name in offered and name not in asked:
                return call(name, {})
        return agent(request)

    return script


def call(name: str, arguments: Mapping[str, Any]) -> Answer:
    """The answer that calls one tool."""
    return Answer(tool_calls=(ToolCall(f"call_{name}", name, json.dumps(arguments)),))


def filled(schema: Mapping[str, Any], number: int, whole: Mapping[str, Any] | None = None) -> Any:
    """A value of a JSON schema, as short as it may be, with `number` in each text and number."""
    whole = schema if whole is None else whole
    if "$ref" in schema:
        found: Any = whole
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return filled(found, number, whole)
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return filled(schema[choice][0], number, whole)
    if "enum" in schema:
        return schema["enum"][0]
    properties = schema.get("properties") or {}
    wanted = schema.get("required") or list(properties)
    makers: dict[str, Callable[[], Any]] = {
        "string": lambda: f"It is {number}.",
        "integer": lambda: number,
        "number": lambda: number,
        "boolean": lambda: True,
        "array": lambda: [filled(schema.get("items") or {"type": "string"}, number, whole)],
        "object": lambda: {name: filled(properties[name], number, whole) for name in wanted},
    }
    return makers[schema.get("type", "object" if properties else "string")]()


def _schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    form = response_format or {}
    if form.get("type") == "json_object":
        # Which fields are wanted stands in the prompt, if anywhere.
        names = {"answer": {"type": "string"}, "product": {"type": "integer"}}
        return {"type": "object", "properties": names}
    return form["json_schema"]["schema"] if form.get("type") == "json_schema" else None


def _forced(choice: Any, others: list[str]) -> str | None:
    """The tool that the request demands beside `multiply`."""
    if isinstance(choice, dict):
        return choice["function"]["name"]
    return others[-1] if choice == "required" and others else None


SCRIPTS: dict[str, Script] = {
    "agent": agent,
    "handoff": handing_over("transfer_to_maths"),
    "code_agent": code_agent,
    "fields_agent": fields_agent,
    "shell_agent": shell_agent,
}
