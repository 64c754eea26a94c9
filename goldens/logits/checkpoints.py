"""Writes checkpoints.json: what transformers and peft make of the checkpoints that this program saves.

    SAFERL_CHECKPOINTS=/tmp/checkpoints cargo test -p model --test logits write_checkpoints
    python goldens/logits/checkpoints.py /tmp/checkpoints

`merged` is loaded by transformers alone; `peft` is the adapter on `base`. crates/model/tests/logits.rs compares. Where
the folder holds SmolLM2 too (the GGUF file saved as a Hugging Face folder), it must still be what smollm2.json says.
"""

import json
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
    if (folder / "smollm2").exists():
        known = json.loads((logits.FOLDER / "smollm2.json").read_text())
        smollm2 = transformers.AutoModelForCausalLM.from_pretrained(folder / "smollm2", dtype=torch.float32).eval()
        assert logits.greedy(smollm2, known["ids"], 64) == known["greedy"]
