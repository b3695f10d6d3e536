import { anthropic } from "@ai-sdk/anthropic";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const multiply = tool({
  description: "Multiply.",
  inputSchema: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ a, b }) => a * b,
});
const asked = {
  model: anthropic("claude-sonnet-4-5"),
  prompt: "What is 1234567 times 7?",
  tools: { multiply },
  stopWhen: stepCountIs(5),
};

const { text, totalUsage } = await generateText(asked);
const { inputTokens, outputTokens } = totalUsage;
console.log(["`generateText` with a tool", text, inputTokens, outputTokens].join("\t"));
console.log(["`streamText`", await streamText(asked).text].join("\t"));
