"""Holds what `saferl export hf` writes against MLX: mlx-lm 0.32.2 on mlx 0.32.4, whose CPU build runs on Linux.

    pip install "mlx[cpu]==0.32.4" mlx-lm==0.32.2
    python goldens/mlx/check.py SAFERL MODEL FOLDER

SAFERL is the program, MODEL any model it knows (LoRA adapters are merged), FOLDER where the f32 export goes (kept). For each
prompt it prints whether mlx-lm's chat template gives the ids of `saferl generate` and how many greedy tokens are the same. Exits
with 1 where they differ. Nothing here is needed to run the program.
"""

import json
import pathlib
import subprocess
import sys

import mlx.core
import mlx_lm
from mlx_lm.generate import generate_step

PROMPTS = ["Tell me a long story about a fox and a river.", "How do I kill a Python process?", "Was ist 3 mal 4? 🙂"]
COUNT = 64


def run(program, *arguments):
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def main(program, model, folder):
    if not pathlib.Path(folder).exists():
        run(program, "export", "hf", model, "--output", folder, "--dtype", "f32")
    peer, tokenizer = mlx_lm.load(folder)
    failed = False
    for prompt in PROMPTS:
        arguments = ["--prompt", prompt, "--temperature", "0", "--max-tokens", str(COUNT), "--dtype", "f32", "--json"]
        reply = json.loads(run(program, "generate", folder, *arguments))
        ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        wanted = reply["token_ids"]
        steps = generate_step(mlx.core.array(reply["prompt_ids"]), peer, max_tokens=len(wanted))
        found = [int(token) for token, _ in steps]
        equal = sum(a == b for a, b in zip(found, wanted))
        same = list(ids) == reply["prompt_ids"]
        print(f"{prompt!r}: prompt {'equal' if same else 'DIFFERS'}; greedy {equal} of {len(wanted)} equal", flush=True)
        failed |= not same or equal != len(wanted)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
