import { Agent } from "@mastra/core/agent";
import { createTool } from "@mastra/core/tools";
import { z } from "zod";

const multiply = createTool({
  id: "multiply",
  description: "Multiply.",
  inputSchema: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ context: { a, b } }) => ({ product: a * b }),
});
const agent = new Agent({
  id: "maths",
  name: "maths",
  instructions: "You multiply.",
  model: "openai/gpt-4o",
  tools: { multiply },
});

const { text, totalUsage } = await agent.generate("What is 1234567 times 7?");
const { inputTokens, outputTokens } = totalUsage;
console.log(["an agent with a tool", text, inputTokens, outputTokens].join("\t"));
const stream = await agent.stream("What is 1234567 times 7?");
console.log(["streamed", await stream.text].join("\t"));
process.exit(0);
