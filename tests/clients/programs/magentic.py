from magentic import OpenaiChatModel, StreamedStr, prompt, prompt_chain


def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


@prompt_chain("What is {a} times {b}?", functions=[multiply], model=OpenaiChatModel("gpt-4o"))
def product(a: int, b: int) -> str: ...


@prompt("What is {a} times {b}?", model=OpenaiChatModel("gpt-4o"))
def spoken(a: int, b: int) -> StreamedStr: ...


print("a prompt chain with a tool", product(1234567, 7), sep="\t")
print("streamed", "".join(spoken(1234567, 7)), sep="\t")
