import json

from openai import OpenAI

client = OpenAI()
QUESTION = "What is 1234567 times 7?"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
FUNCTION = {"name": "multiply", "description": "Multiply.", "parameters": SCHEMA}


def multiply(arguments):
    given = json.loads(arguments)
    return str(given["a"] * given["b"])


def chat():
    messages = [{"role": "user", "content": QUESTION}]
    tools = [{"type": "function", "function": FUNCTION}]
    while True:
        reply = client.chat.completions.create(model="gpt-4o", messages=messages, tools=tools)
        message = reply.choices[0].message
        if not message.tool_calls:
            return message.content, reply.usage.prompt_tokens, reply.usage.completion_tokens
        messages.append(message)
        for call in message.tool_calls:
            result = multiply(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def chat_streamed():
    messages = [{"role": "user", "content": QUESTION}]
    with client.chat.completions.stream(model="gpt-4o", messages=messages) as stream:
        for _ in stream:
            pass
        reply = stream.get_final_completion()
    usage = reply.usage
    return reply.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens


def responses(stream):
    tools = [{"type": "function", **FUNCTION}]
    given, before = QUESTION, None
    while True:
        asked = {"model": "gpt-4o", "input": given, "tools": tools, "previous_response_id": before}
        if stream:
            with client.responses.stream(**asked) as events:
                for _ in events:
                    pass
                reply = events.get_final_response()
        else:
            reply = client.responses.create(**asked)
        calls = [item for item in reply.output if item.type == "function_call"]
        if not calls:
            return reply.output_text, reply.usage.input_tokens, reply.usage.output_tokens
        before = reply.id
        given = [
            {
                "type": "function_call_output",
                "call_id": call.call_id,
                "output": multiply(call.arguments),
            }
            for call in calls
        ]


print("chat with a tool", *chat(), sep="\t")
print("chat streamed", *chat_streamed(), sep="\t")
print("Responses with a tool and `previous_response_id`", *responses(stream=False), sep="\t")
print("Responses streamed", *responses(stream=True), sep="\t")
