"""Writes tiny.json and, given the path of the SmolLM2 GGUF, smollm2.json: logits and greedy tokens by transformers.

    python goldens/logits/logits.py [SmolLM2-135M-Instruct.Q4_1.gguf]

Everything is f32, dequantised weights too. crates/model/tests/logits.rs holds the decoder against the files.
"""

import json
import pathlib
import sys

import torch
import transformers

import seeded

FOLDER = pathlib.Path(__file__).parent
VERSIONS = {"transformers": transformers.__version__, "torch": torch.__version__}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@torch.no_grad()
def greedy(model, ids, count):
    ids, margins = list(ids), []
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits[0, -1]
        best = torch.topk(logits, 2).values
        margins.append(float(best[0] - best[1]))
        ids.append(int(logits.argmax()))
    print(f"  smallest margin of a greedy choice {min(margins):.2e}, distinct tokens {len(set(ids[-count:]))}")
    return ids[-count:]


@torch.no_grad()
def facts(model):
    ids = [(37 * index + 11) % 320 for index in range(12)]
    logits = model(torch.tensor([ids])).logits[0]
    return {
        "ids": ids,
        "first_row": logits[0].tolist()[:8],
        "last_row": logits[-1].tolist(),
        "greedy": greedy(model, ids, 64),
    }


@torch.no_grad()
def heads():
    """The reward head of Qwen2ForRewardModel and the classifier heads of Qwen3Guard-Stream, as published."""
    ids = [(37 * index + 11) % 320 for index in range(12)]

    def last_hidden(family):
        model = seeded.model(seeded.config(family, True))
        return model.model(torch.tensor([ids])).last_hidden_state[0, -1]

    def weight(name, *shape):
        return seeded.tensor(name, shape)

    hidden = last_hidden("qwen2")
    inner = torch.relu(weight("score.0.weight", 32, 32) @ hidden + weight("score.0.bias", 32))
    reward = weight("score.2.weight", 1, 32) @ inner + weight("score.2.bias", 1)
    hidden = last_hidden("qwen3")
    classes = {}
    for prefix, categories in [("", 8), ("query_", 9)]:
        inner = weight(f"{prefix}risk_level_category_pre.weight", 24, 32) @ hidden
        inner = inner * torch.rsqrt(inner.pow(2).mean() + 1e-6)
        inner = inner * weight(f"{prefix}risk_level_category_layernorm.weight", 24)
        for name, count in [("risk_level", 3), ("category", categories)]:
            classes[prefix + name] = (weight(f"{prefix}{name}_head.weight", count, 24) @ inner).tolist()
    return {"ids": ids, "reward": float(reward), "classes": classes}


@torch.no_grad()
def smollm2(path):
    arguments = {"gguf_file": path.name, "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **arguments).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    messages = [{"role": "user", "content": "Name three things that float on water, and say why."}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    top = torch.topk(model(torch.tensor([ids])).logits[0, -1], 20)
    return {
        "text": text,
        "ids": ids,
        "top_ids": top.indices.tolist(),
        "top_logits": top.values.tolist(),
        "greedy": greedy(model, ids, 64),
    }


def rounded(facts):
    """Floats to six decimals, two below the tolerance of the test."""
    if isinstance(facts, dict):
        return {key: rounded(value) for key, value in facts.items()}
    if isinstance(facts, list):
        return [rounded(value) for value in facts]
    return round(facts, 6) if isinstance(facts, float) else facts


def write(name, facts):
    lines = [f"{json.dumps(key)}: {json.dumps(rounded(value))}" for key, value in ({"versions": VERSIONS} | facts).items()]
    (FOLDER / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    models = {}
    for family in seeded.FAMILIES:
        for tied in (True, False):
            name = f"{family}-{'tied' if tied else 'untied'}"
            print(name)
            models[name] = facts(seeded.model(seeded.config(family, tied)))
    print("llama3-rope")
    models["llama3-rope"] = facts(seeded.model(seeded.config("llama", True, rope_parameters=LLAMA3_ROPE)))
    write("tiny.json", {"heads": heads()} | models)
    for path in sys.argv[1:]:
        print(path)
        write("smollm2.json", smollm2(pathlib.Path(path)))
