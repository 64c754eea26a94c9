// The Vercel AI SDK against a live `saferl serve smollm2-135m tiny-qwen3`.
//
//     npm install ai @ai-sdk/openai-compatible && node ai_sdk_client.mjs http://127.0.0.1:8000/v1

import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const local = createOpenAICompatible({ name: "saferl", baseURL: process.argv[2] });
const request = { prompt: "Say hello in one short sentence.", maxOutputTokens: 24, seed: 1, maxRetries: 0 };

const whole = await generateText({ model: local("smollm2-135m"), ...request });
let streamed = "";
for await (const piece of streamText({ model: local("smollm2-135m"), ...request }).textStream) streamed += piece;
console.log(JSON.stringify(whole.text), whole.usage.totalTokens);
assert.ok(whole.text);
assert.equal(streamed, whole.text);

// A model that does not come to the end of its thought in 24 tokens: all of it is reasoning.
const thought = await generateText({ model: local("tiny-qwen3"), ...request });
assert.ok(thought.reasoningText);
assert.equal(thought.text, "");

await assert.rejects(generateText({ model: local("smollm2-135m"), ...request, temperature: -3 }), /temperature/);
