import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic();
const messages = [{ role: "user", content: "What is 1234567 times 7?" }];
const tools = [
  {
    name: "multiply",
    description: "Multiply.",
    input_schema: {
      type: "object",
      properties: { a: { type: "integer" }, b: { type: "integer" } },
    },
  },
];

for (;;) {
  const stream = client.messages.stream({
    model: "claude-sonnet-4-5",
    max_tokens: 500,
    messages,
    tools,
  });
  const reply = await stream.finalMessage();
  const uses = reply.content.filter((block) => block.type === "tool_use");
  if (uses.length === 0) {
    const { input_tokens, output_tokens } = reply.usage;
    console.log(["messages streamed, with a tool", reply.content[0].text, input_tokens, output_tokens].join("\t"));
    break;
  }
  messages.push({ role: "assistant", content: reply.content });
  messages.push({
    role: "user",
    content: uses.map(({ id, input: { a, b } }) => ({
      type: "tool_result",
      tool_use_id: id,
      content: String(a * b),
    })),
  });
}
