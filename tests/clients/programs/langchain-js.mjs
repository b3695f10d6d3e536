import { ChatOpenAI } from "@langchain/openai";
import { createAgent, tool } from "langchain";
import { z } from "zod";

const multiply = tool(async ({ a, b }) => String(a * b), {
  name: "multiply",
  description: "Multiply.",
  schema: z.object({ a: z.number(), b: z.number() }),
});
const question = { messages: [{ role: "user", content: "What is 1234567 times 7?" }] };

const models = {
  chat: new ChatOpenAI({ model: "gpt-4o" }),
  Responses: new ChatOpenAI({ model: "gpt-4o", useResponsesApi: true }),
};
for (const [name, model] of Object.entries(models)) {
  const agent = createAgent({ model, tools: [multiply] });
  const { messages } = await agent.invoke(question);
  const { text, usage_metadata } = messages.at(-1);
  const { input_tokens, output_tokens } = usage_metadata;
  console.log([`${name}, \`createAgent\` with a tool`, text, input_tokens, output_tokens].join("\t"));
  let streamed = "";
  for await (const [part] of await agent.stream(question, { streamMode: "messages" })) {
    if (part.getType() === "ai") streamed += part.text;
  }
  console.log([`${name} streamed`, streamed].join("\t"));
}
