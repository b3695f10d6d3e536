from strands import Agent, tool
from strands.models.anthropic import AnthropicModel
from strands.models.openai import OpenAIModel
from strands.models.openai_responses import OpenAIResponsesModel


@tool
def multiply(a: int, b: int) -> int:
    """Multiply."""
    return a * b


MODELS = {
    "chat": OpenAIModel(model_id="gpt-4o"),
    "Responses": OpenAIResponsesModel(model_id="gpt-4o"),
    "messages": AnthropicModel(model_id="claude-sonnet-4-5", max_tokens=500),
}
for name, model in MODELS.items():
    agent = Agent(model=model, tools=[multiply], callback_handler=None)
    result = agent("What is 1234567 times 7?")
    usage = result.metrics.accumulated_usage
    tokens = usage["inputTokens"], usage["outputTokens"]
    print(f"{name} with a tool, streamed", str(result).strip(), *tokens, sep="\t")
