"""Writes checkpoints.json: what transformers and peft make of the checkpoints that this program saves.

    SAFERL_CHECKPOINTS=/tmp/checkpoints cargo test -p model --test logits write_checkpoints
    python goldens/logits/checkpoints.py /tmp/checkpoints

`merged` is loaded by transformers alone; `peft` is the adapter on `base`. crates/model/tests/logits.rs compares.
"""

import pathlib
import sys

import peft
import torch
import transformers

import logits

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, folder / "peft").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Grüß Gott"}], add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    facts = {
        "merged": logits.facts(merged),
        "peft": logits.facts(adapted),
        "rendered": {"text": text, "ids": tokenizer(text)["input_ids"]},
    }
    logits.VERSIONS["peft"] = peft.__version__
    logits.write("checkpoints.json", facts)
