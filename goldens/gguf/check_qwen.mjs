// Holds the program against llama.cpp on a real Qwen2.5: token ids of templated chats, then greedy text.
//
//   npm install node-llama-cpp@3            # carries llama.cpp built for this machine
//   saferl pull qwen2.5-coder-0.5b          # prints the file
//   node check_qwen.mjs PATH/TO/saferl FILE.gguf
//
// llama.cpp rounds activations to 8 bits, so greedy text may part where two tokens are near a tie; ids may not.
import { execFileSync } from "node:child_process";
import { getLlama } from "node-llama-cpp";

const [saferl, file] = process.argv.slice(2);
const user = (content) => ({ role: "user", content });
const chats = [
  [user("What is the capital of France, and why is it famous?")],
  [{ role: "system", content: "You answer briefly." }, user("Write a Rust function that adds two numbers.")],
  [user("Hi"), { role: "assistant", content: "Hello! How can I help?" }, user("Tell me about tides in three sentences.")],
  [user("如何煮米饭?")],
  [user("Schreib einen Satz über Zürich 🏔️ und 123,45 €.")],
  [user("def f(x):\n    return x**2\n\nWhat does f(12345) give?")],
  [user("مرحبا، كيف حالك؟")],
  [user("How do I stay safe when cycling at night?")],
];
const ask = (args, input) => JSON.parse(execFileSync(saferl, [...args, "--json"], { input, encoding: "utf8" }));

const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 2 });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: 1024, threads: 1, batchSize: 256 });
const sequence = context.getSequence();
let wrong = 0;
for (const chat of chats) {
  const { text, ids } = ask(["render", file, "--messages", "-"], JSON.stringify(chat));
  const theirs = model.tokenize(text, true).map(Number);
  const same = JSON.stringify(ids) === JSON.stringify(theirs);
  wrong += !same;
  const options = ["--prompt-tokens", ids.join(), "--temperature", "0", "--max-tokens", "48"];
  const ours = ask(["generate", file, ...options]).token_ids;
  await sequence.clearHistory();
  const greedy = [];
  for await (const token of sequence.evaluate(theirs, { temperature: 0, yieldEogToken: true })) {
    greedy.push(Number(token));
    if (greedy.length >= ours.length || model.isEogToken(token)) break;
  }
  const parts = ours.findIndex((token, place) => token !== greedy[place]);
  console.log(`ids ${same ? "equal" : "DIFFER"}; greedy ${parts < 0 ? "equal" : `equal for ${parts}`} of ${ours.length}`);
}
process.exit(wrong ? 1 : 0);
