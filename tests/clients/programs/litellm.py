import json

import litellm

QUESTION = {"role": "user", "content": "What is 1234567 times 7?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "multiply",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}


def loop(model):
    messages = [QUESTION]
    while True:
        reply = litellm.completion(model=model, messages=messages, tools=[TOOL])
        message = reply.choices[0].message
        if not message.tool_calls:
            return message.content, reply.usage.prompt_tokens, reply.usage.completion_tokens
        messages.append(message)
        for call in message.tool_calls:
            given = json.loads(call.function.arguments)
            result = str(given["a"] * given["b"])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


print("`openai/` with a tool", *loop("openai/gpt-4o"), sep="\t")
print("`anthropic/` with a tool", *loop("anthropic/claude-sonnet-4-5"), sep="\t")
parts = litellm.completion(model="openai/gpt-4o", messages=[QUESTION], stream=True)
print("streamed", "".join(part.choices[0].delta.content or "" for part in parts), sep="\t")
reply = litellm.responses(model="openai/gpt-4o", input=QUESTION["content"])
print("`responses()`", reply.output[0].content[0].text, sep="\t")
