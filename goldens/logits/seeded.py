"""Tiny models with weights from integer hashes: crates/model/src/seeded.rs says how, and this must give the same."""

import numpy
import torch
import transformers

FAMILIES = ["qwen3", "qwen2", "llama", "mistral"]


def config(family, tied, **changed):
    fields = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "vocab_size": 320,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
    }
    if family in ("qwen3", "mistral"):
        fields["head_dim"] = 16
    if family == "mistral":
        fields["sliding_window"] = None
    return transformers.AutoConfig.for_model(family, **fields | changed)


def model(config):
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor(name, parameter.shape))
    return model


def tensor(name, shape):
    if name.endswith("norm.weight"):
        centre, scale = 1.0, 0.1
    elif len(shape) == 2 and name != "model.embed_tokens.weight":
        centre, scale = 0.0, (3.0 / shape[1]) ** 0.5
    else:
        centre, scale = 0.0, 0.1
    index = numpy.arange(numpy.prod(shape), dtype=numpy.uint32)
    bits = mix(numpy.uint32(fnv1a(name)) + index * numpy.uint32(0x9E3779B9)) >> 8
    values = centre + scale * (bits.astype(numpy.float64) / 8_388_608.0 - 1.0)
    return torch.from_numpy(values.astype(numpy.float32).reshape(shape))


def fnv1a(name):
    hash = 0x811C9DC5
    for byte in name.encode():
        hash = (hash ^ byte) * 0x01000193 % 2**32
    return hash


def mix(hash):
    hash = (hash ^ (hash >> 16)) * numpy.uint32(0x7FEB352D)
    hash = (hash ^ (hash >> 15)) * numpy.uint32(0x846CA68B)
    return hash ^ (hash >> 16)
