from mirascope import llm


@llm.tool
def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


@llm.call("openai/gpt-4o", tools=[multiply])
def product():
    return "What is 1234567 times 7?"


reply = product()
while reply.tool_calls:
    reply = reply.resume(reply.execute_tools())
print("a call with a tool", reply.text(), sep="\t")
stream = product.stream()
stream.finish()
while stream.tool_calls:
    stream = stream.resume(stream.execute_tools())
    stream.finish()
print("streamed", stream.text(), sep="\t")
