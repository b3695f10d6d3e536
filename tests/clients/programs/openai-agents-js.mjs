import { Agent, run, setOpenAIAPI, tool } from "@openai/agents";
import { z } from "zod";

const multiply = tool({
  name: "multiply",
  description: "Multiply.",
  parameters: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ a, b }) => String(a * b),
});
const maths = new Agent({ name: "maths", model: "gpt-4o", tools: [multiply] });
const desk = new Agent({ name: "desk", model: "gpt-4o", handoffs: [maths] });

for (const [name, api] of [["Responses", "responses"], ["chat", "chat_completions"]]) {
  setOpenAIAPI(api);
  const { finalOutput } = await run(desk, "What is 1234567 times 7?");
  console.log([`${name}, a handoff and a tool`, finalOutput].join("\t"));
  const streamed = await run(desk, "What is 1234567 times 7?", { stream: true });
  for await (const _ of streamed);
  console.log([`${name} streamed`, streamed.finalOutput].join("\t"));
}
