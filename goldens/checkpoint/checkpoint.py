"""Greedy tokens of transformers and peft from checkpoints that saferl wrote, for crates/train/tests/checkpoint.rs.

    cargo test -p train --test checkpoint -- --ignored     writes base/, full/ and lora/ beside this file
    python checkpoint.py > checkpoint.json                 prints the tokens, and the versions to standard error

`full/` is loaded by AutoModelForCausalLM as it is, `lora/` by PeftModel onto `base/`, the tiny seeded Qwen3 (which is not
committed: its formula is). The tokenizers of both must agree with the base's.
"""

import importlib.metadata
import json
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
PROMPTS = ["Hello", "abc", "What is 7 x 6?", "\n", "the quick brown fox"]
NEW_TOKENS = 24


def greedy(model, prompt):
    ids = torch.tensor([prompt])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
    return out[0, len(prompt):].tolist()


def main():
    load = lambda name: AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32)
    full, lora = load("full"), PeftModel.from_pretrained(load("base"), HERE / "lora")
    tokenizers = [AutoTokenizer.from_pretrained(HERE / name) for name in ["base", "full", "lora"]]
    chat = [{"role": "user", "content": "Hello <|im_end|>"}]
    rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for tokenizer in tokenizers]
    assert rendered[0] == rendered[1] == rendered[2], rendered
    cases = []
    for text in PROMPTS:
        prompts = [tokenizer(text)["input_ids"] for tokenizer in tokenizers]
        assert prompts[0] == prompts[1] == prompts[2], prompts
        cases.append({"prompt": prompts[0], "full": greedy(full, prompts[0]), "lora": greedy(lora, prompts[0])})
    print(json.dumps(cases))
    for name in ["transformers", "peft", "torch"]:
        print(name, importlib.metadata.version(name), file=sys.stderr)


main()
