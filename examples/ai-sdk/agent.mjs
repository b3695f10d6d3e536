import { readFileSync, writeFileSync } from "node:fs";
import { anthropic } from "@ai-sdk/anthropic";
import { openai } from "@ai-sdk/openai";
import { generateText, stepCountIs, tool } from "ai";
import { z } from "zod";

const models = { anthropic: anthropic("claude-sonnet-4-5"), openai: openai("gpt-4o") };
const { question } = JSON.parse(readFileSync(process.env.LIGHTNINGRL_TASK_FILE));

const { text } = await generateText({
  model: models[process.argv[2]],
  prompt: question,
  stopWhen: stepCountIs(5),
  tools: {
    multiply: tool({
      description: "Multiply two numbers.",
      inputSchema: z.object({ a: z.number(), b: z.number() }),
      execute: async ({ a, b }) => a * b,
    }),
  },
});
writeFileSync(process.env.LIGHTNINGRL_OUTPUT_FILE, text);
