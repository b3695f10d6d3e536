import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const openai = createOpenAI();
const compatible = createOpenAICompatible({
  name: "any",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
});
const multiply = tool({
  description: "Multiply.",
  inputSchema: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ a, b }) => a * b,
});
const asked = {
  prompt: "What is 1234567 times 7?",
  tools: { multiply },
  stopWhen: stepCountIs(5),
};

const models = {
  Responses: openai("gpt-4o"),
  chat: openai.chat("gpt-4o"),
  "`openai-compatible`": compatible("any"),
};
for (const [name, model] of Object.entries(models)) {
  const { text, totalUsage } = await generateText({ model, ...asked });
  const { inputTokens, outputTokens } = totalUsage;
  console.log([`${name}, \`generateText\` with a tool`, text, inputTokens, outputTokens].join("\t"));
  const stream = streamText({ model, ...asked });
  console.log([`${name}, \`streamText\``, await stream.text].join("\t"));
}
const { object } = await generateObject({
  model: models.chat,
  prompt: "What is 8641969 times 1?",
  schema: z.object({ product: z.number() }),
});
console.log(["`generateObject`", object.product].join("\t"));
