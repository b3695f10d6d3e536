"""A policy's rules in words, for those who serve the model without them."""

from __future__ import annotations

import json

from lightningrl.schema import RewriteRules


def told(rules: RewriteRules) -> list[str]:
    """One sentence for each rewrite that the gateway of training did and a bare engine does not."""
    said = [
        f"Messages of role `{role}` were sent as `{name}`, a role that the chat template has."
        for role, name in rules.roles.items()
    ]
    if rules.merge_instructions:
        said.append(
            "Several system messages at the beginning were sent as one: the chat template reads one alone."
        )
    if rules.alone_as_user:
        said.append("A system message that no user's message follows was sent as the user's.")
    if rules.later_as_user:
        said.append("A system message after the first turn was sent as the user's.")
    if rules.thinks:
        said.append(
            "Requests of Anthropic's clients without `thinking` were sent with `enable_thinking: false`."
        )
    if rules.put_back:
        said.append(
            "Reasoning that a client left out of earlier answers was put back from the record."
        )
    if rules.variables:
        said.append(
            f"Requests were sent with `chat_template_kwargs` {json.dumps(rules.variables)}."
        )
    if rules.free:
        said.append(
            "JSON formats were asked for at the end of the system message and forced calls of tools were free: an"
            " engine that forces them by a grammar samples otherwise."
        )
    if rules.drop_hosted:
        said.append("Tools that a service would run itself (web search) were left out.")
    said += [f"Texts that match `{one}` were held still over an attempt." for one in rules.pin]
    return said
