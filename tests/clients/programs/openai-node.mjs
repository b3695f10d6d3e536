import OpenAI from "openai";

const client = new OpenAI();
const QUESTION = "What is 1234567 times 7?";
const FUNCTION = {
  name: "multiply",
  description: "Multiply.",
  parameters: {
    type: "object",
    properties: { a: { type: "integer" }, b: { type: "integer" } },
  },
};
const multiply = ({ a, b }) => String(a * b);

const runner = client.chat.completions.runTools({
  model: "gpt-4o",
  stream: true,
  messages: [{ role: "user", content: QUESTION }],
  tools: [
    { type: "function", function: { ...FUNCTION, function: multiply, parse: JSON.parse } },
  ],
});
const said = await runner.finalContent();
const { prompt_tokens, completion_tokens } = await runner.totalUsage();
console.log(["chat, `runTools` streamed", said, prompt_tokens, completion_tokens].join("\t"));

const tools = [{ type: "function", ...FUNCTION, strict: false }];
let input = QUESTION;
let previous_response_id;
for (;;) {
  const stream = client.responses.stream({
    model: "gpt-4o",
    input,
    tools,
    ...(previous_response_id && { previous_response_id }),
  });
  const reply = await stream.finalResponse();
  const calls = reply.output.filter((item) => item.type === "function_call");
  if (calls.length === 0) {
    const { input_tokens, output_tokens } = reply.usage;
    const what = "Responses streamed, with a tool and `previous_response_id`";
    console.log([what, reply.output_text, input_tokens, output_tokens].join("\t"));
    break;
  }
  previous_response_id = reply.id;
  input = calls.map((call) => ({
    type: "function_call_output",
    call_id: call.call_id,
    output: multiply(JSON.parse(call.arguments)),
  }));
}
