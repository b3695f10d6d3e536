import { Agent, tool } from "@strands-agents/sdk";
import { OpenAIModel } from "@strands-agents/sdk/models/openai";
import { z } from "zod";

const multiply = tool({
  name: "multiply",
  description: "Multiply.",
  inputSchema: z.object({ a: z.number(), b: z.number() }),
  callback: ({ a, b }) => String(a * b),
});
const agent = new Agent({
  model: new OpenAIModel({ modelId: "gpt-4o" }),
  tools: [multiply],
  printer: false,
});
const result = await agent.invoke("What is 1234567 times 7?");
console.log(["an agent with a tool, streamed", result.toString()].join("\t"));
