import instructor
from pydantic import BaseModel


class Product(BaseModel):
    product: int


ASKED = {
    "messages": [{"role": "user", "content": "What is 8641969 times 1?"}],
    "response_model": Product,
}
tools = instructor.from_provider("openai/gpt-4o")
print("by a tool", tools.create(**ASKED).product, sep="\t")
as_json = instructor.from_provider("openai/gpt-4o", mode=instructor.Mode.JSON)
print("by `response_format`", as_json.create(**ASKED).product, sep="\t")
*_, last = tools.create_partial(**ASKED)
print("in parts, streamed", last.product, sep="\t")
claude = instructor.from_provider("anthropic/claude-sonnet-4-5")
print("messages by a tool", claude.create(max_tokens=500, **ASKED).product, sep="\t")
