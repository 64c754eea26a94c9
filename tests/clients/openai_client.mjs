// The official openai client for JavaScript against a live `saferl serve`.
//
//     npm install openai && node openai_client.mjs http://127.0.0.1:8000/v1

import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] ?? "http://127.0.0.1:8000/v1", apiKey: "none", maxRetries: 0 });
let failed = false;
const check = (what, holds, found = "") => {
  console.log(holds ? "ok    " : "FAILED", what, found);
  failed ||= !holds;
};

const model = (await client.models.list()).data[0].id;
const request = {
  model, messages: [{ role: "user", content: "Say hello in one short sentence." }], max_tokens: 24, seed: 1,
};
const text = message => (message.reasoning ?? "") + (message.content ?? "");

const whole = await client.chat.completions.create(request);
check("a chat completion has text", text(whole.choices[0].message) !== "", JSON.stringify(whole.choices[0].message));

let streamed = "", usage = null;
const stream = await client.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  for (const choice of chunk.choices) streamed += text(choice.delta);
  usage = chunk.usage ?? usage;
}
check("a stream says what the whole says", streamed === text(whole.choices[0].message));
check("the last chunk tells the usage", usage.total_tokens === whole.usage.total_tokens);

// It adds up what it knows, which is the content.
const helper = client.chat.completions.stream(request);
const added = (await helper.finalChatCompletion()).choices[0].message.content ?? "";
check("the client's own accumulator agrees", added === (whole.choices[0].message.content ?? ""), added);

try {
  await client.chat.completions.create({ ...request, top_p: 7 });
  check("a field out of range is refused", false);
} catch (error) {
  check("a field out of range is refused by name", error.status === 400 && error.param === "top_p", error.message);
}

const response = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 16, enable_thinking: false });
check("a response has text", response.output_text !== "", JSON.stringify(response.output_text));
let delta = "";
for await (const event of await client.responses.create({
  model, input: "Say hello.", max_output_tokens: 16, seed: 1, stream: true, enable_thinking: false,
})) {
  if (event.type === "response.output_text.delta") delta += event.delta;
}
check("a response streams", delta !== "");
process.exit(failed ? 1 : 0);
