from anthropic import Anthropic, beta_tool

client = Anthropic()
ASKED = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 500,
    "messages": [{"role": "user", "content": "What is 1234567 times 7?"}],
}
TOOL = {
    "name": "multiply",
    "description": "Multiply.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    },
}


def messages(stream):
    asked = {**ASKED, "tools": [TOOL], "system": "You multiply."}
    while True:
        if stream:
            with client.messages.stream(**asked) as events:
                for _ in events:
                    pass
                reply = events.get_final_message()
        else:
            reply = client.messages.create(**asked)
        if reply.stop_reason != "tool_use":
            return reply.content[0].text, reply.usage.input_tokens, reply.usage.output_tokens
        results = [
            {
                "type": "tool_result",
                "tool_use_id": block.id,
                "content": str(block.input["a"] * block.input["b"]),
            }
            for block in reply.content
            if block.type == "tool_use"
        ]
        turns = [
            {"role": "assistant", "content": reply.content},
            {"role": "user", "content": results},
        ]
        asked["messages"] = [*asked["messages"], *turns]


@beta_tool
def multiply(a: int, b: int) -> str:
    """Multiply.

    Args:
        a: One factor.
        b: The other.
    """
    return str(a * b)


print("messages with a tool", *messages(stream=False), sep="\t")
print("messages streamed", *messages(stream=True), sep="\t")
runner = client.beta.messages.tool_runner(tools=[multiply], **ASKED)
print("`tool_runner`", runner.until_done().content[0].text, sep="\t")
