import { openAI } from "@genkit-ai/compat-oai/openai";
import { genkit, z } from "genkit";

const ai = genkit({ plugins: [openAI()] });
const multiply = ai.defineTool(
  {
    name: "multiply",
    description: "Multiply.",
    inputSchema: z.object({ a: z.number(), b: z.number() }),
    outputSchema: z.number(),
  },
  async ({ a, b }) => a * b,
);
const asked = {
  model: openAI.model("gpt-4o"),
  prompt: "What is 1234567 times 7?",
  tools: [multiply],
};

const { text, usage } = await ai.generate(asked);
console.log(["a generation with a tool", text, usage.inputTokens, usage.outputTokens].join("\t"));
const { stream, response } = ai.generateStream(asked);
for await (const _ of stream);
console.log(["streamed", (await response).text].join("\t"));
