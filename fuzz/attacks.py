"""Writes the attacks that we thought of into fuzz/corpus/TARGET/NAME: python fuzz/attacks.py

Each is a file of a few KB that is whole but for one thing, which its name says. `whole` is the one without. What a fuzzer
found and we fixed stands in corpus/TARGET/found-* and is not written here. Standard library alone.
"""

import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent / "corpus"


def write(target, name, data):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


# GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

U8, I32, U32, F32, TEXT, LIST, U64 = 0, 5, 4, 6, 8, 9, 10
FORMS = {U8: "B", I32: "i", U32: "I", F32: "f", U64: "Q"}
KINDS = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "q4_k": 12}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, content):
    if kind == TEXT:
        return text(content)
    if kind == LIST:
        inner, items = content
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, item) for item in items)
    return struct.pack("<" + FORMS[kind], content)


PAIRS = {
    "general.architecture": (TEXT, "qwen3"),
    "qwen3.context_length": (U32, 16),
    "qwen3.embedding_length": (U32, 4),
    "qwen3.block_count": (U32, 1),
    "qwen3.feed_forward_length": (U32, 4),
    "qwen3.attention.head_count": (U32, 1),
    "qwen3.attention.head_count_kv": (U32, 1),
    "qwen3.attention.key_length": (U32, 4),
    "qwen3.rope.freq_base": (F32, 10000.0),
    "tokenizer.ggml.model": (TEXT, "gpt2"),
    "tokenizer.ggml.pre": (TEXT, "gpt-2"),
    "tokenizer.ggml.tokens": (LIST, (TEXT, ["a", "b", "ab", "<|im_end|>"])),
    "tokenizer.ggml.token_type": (LIST, (I32, [1, 1, 1, 3])),
    "tokenizer.ggml.merges": (LIST, (TEXT, ["a b"])),
    "tokenizer.ggml.eos_token_id": (U32, 3),
}
SHAPES = {
    "token_embd.weight": [4, 4],
    "output_norm.weight": [4],
    "blk.0.attn_norm.weight": [4],
    "blk.0.ffn_norm.weight": [4],
    "blk.0.attn_q_norm.weight": [4],
    "blk.0.attn_k_norm.weight": [4],
    **{f"blk.0.attn_{part}.weight": [4, 4] for part in ("q", "k", "v", "output")},
    **{f"blk.0.ffn_{part}.weight": [4, 4] for part in ("gate", "up", "down")},
}


def gguf(pairs=None, shapes=None, *, tensors=None, count=None, kinds=None, offsets=None, cut=None, raw=b"", version=3, magic=b"GGUF"):
    """A whole file, with what is given instead; `raw` stands after the metadata, `cut` is where the file ends."""
    pairs = {key: pair for key, pair in {**PAIRS, **(pairs or {})}.items() if pair}
    shapes = [(name, shape) for name, shape in {**SHAPES, **(shapes or {})}.items() if shape is not None]
    head = magic + struct.pack("<IQQ", version, len(shapes) if tensors is None else tensors, len(pairs) if count is None else count)
    head += b"".join(text(key) + struct.pack("<I", kind) + value(kind, content) for key, (kind, content) in pairs.items()) + raw
    at, data = 0, b""
    for name, shape in shapes:
        size = 4
        for side in shape:
            size *= side
        kind = (kinds or {}).get(name, "f32")
        offset = (offsets or {}).get(name, at)
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", side) for side in shape)
        head += struct.pack("<IQ", KINDS.get(kind, kind), offset)
        if 0 < size < 4096:
            data += struct.pack(f"<{size // 4}f", *[0.5] * (size // 4)) + bytes(-size % 32)
            at = len(data)
    return (head + bytes(-len(head) % 32) + data)[:cut]


def ggufs():
    yield "whole", gguf()
    yield "llama", gguf({key.replace("qwen3", "llama"): pair for key, pair in PAIRS.items()} | {key: None for key in PAIRS if key.startswith("qwen3")} | {"general.architecture": (TEXT, "llama")}, {"blk.0.attn_q_norm.weight": None, "blk.0.attn_k_norm.weight": None})
    yield "empty", b""
    yield "magic-only", b"GGUF"
    yield "other-magic", gguf(magic=b"GGML")
    yield "version-1", gguf(version=1)
    yield "big-endian", gguf(version=3 << 24)
    yield "pairs-without-end", gguf(count=2**64 - 1)
    yield "tensors-without-end", gguf(tensors=2**63)
    yield "key-without-end", gguf(count=len(PAIRS) + 1, raw=struct.pack("<Q", 2**62))
    yield "text-without-end", gguf(count=len(PAIRS) + 1, raw=text("a") + struct.pack("<IQ", TEXT, 2**63 - 1))
    yield "list-without-end", gguf(count=len(PAIRS) + 1, raw=text("a") + struct.pack("<IIQ", LIST, U8, 2**60))
    yield "list-of-empty-lists", gguf(count=len(PAIRS) + 1, raw=text("a") + struct.pack("<IIQ", LIST, LIST, 300) + struct.pack("<IQ", U8, 0) * 300)
    yield "lists-in-lists", gguf(count=len(PAIRS) + 1, raw=text("a") + struct.pack("<I", LIST) + struct.pack("<IQ", LIST, 1) * 300)
    yield "list-of-bytes", gguf({"a": (LIST, (U8, [7] * 4000))})
    yield "type-99", gguf(count=len(PAIRS) + 1, raw=text("a") + struct.pack("<I", 99))
    yield "key-is-no-text", gguf(count=len(PAIRS) + 1, raw=text(b"\xff\xfe") + struct.pack("<I", U8) + b"\0")
    yield "alignment-0", gguf({"general.alignment": (U32, 0)})
    yield "alignment-without-end", gguf({"general.alignment": (U64, 2**63)})
    yield "alignment-3", gguf({"general.alignment": (U32, 3)})
    yield "architecture-unknown", gguf({"general.architecture": (TEXT, "x" * 1000)})
    yield "architecture-is-a-number", gguf({"general.architecture": (U32, 7)})
    for key, pairs in {
        "no-layers": {"qwen3.block_count": (U32, 0)},
        "layers-without-end": {"qwen3.block_count": (U64, 2**63)},
        "many-layers": {"qwen3.block_count": (U32, 2**31)},
        "no-heads": {"qwen3.attention.head_count": (U32, 0)},
        "heads-without-end": {"qwen3.attention.head_count": (U32, 2**31), "qwen3.attention.head_count_kv": (U32, 2**31), "qwen3.attention.key_length": (U32, 2**31)},
        "odd-heads": {"qwen3.attention.key_length": (U32, 3)},
        "heads-of-nothing": {"qwen3.attention.key_length": (U32, 0)},
        "wide": {"qwen3.embedding_length": (U32, 2**31)},
        "no-context": {"qwen3.context_length": (U32, 0)},
        "theta-0": {"qwen3.rope.freq_base": (F32, 0.0)},
        "theta-nan": {"qwen3.rope.freq_base": (F32, float("nan"))},
        "epsilon-nan": {"qwen3.attention.layer_norm_rms_epsilon": (F32, float("nan"))},
        "negative-layers": {"qwen3.block_count": (I32, -1)},
        "no-tokens": {"tokenizer.ggml.tokens": (LIST, (TEXT, [])), "tokenizer.ggml.token_type": (LIST, (I32, []))},
        "token-twice": {"tokenizer.ggml.tokens": (LIST, (TEXT, ["a", "b", "a", "c"]))},
        "tokens-are-numbers": {"tokenizer.ggml.tokens": (LIST, (U32, [1, 2, 3, 4]))},
        "empty-tokens": {"tokenizer.ggml.tokens": (LIST, (TEXT, ["", "a", "b", "ab"]))},
        "types-too-few": {"tokenizer.ggml.token_type": (LIST, (I32, [1]))},
        "types-are-texts": {"tokenizer.ggml.token_type": (LIST, (TEXT, ["1", "2", "3", "4"]))},
        "merge-without-a-space": {"tokenizer.ggml.merges": (LIST, (TEXT, ["ab"]))},
        "merge-of-unknown-tokens": {"tokenizer.ggml.merges": (LIST, (TEXT, ["x y"]))},
        "merge-into-an-unknown-token": {"tokenizer.ggml.merges": (LIST, (TEXT, ["b a"]))},
        "end-token-out-of-range": {"tokenizer.ggml.eos_token_id": (U32, 2**32 - 1)},
        "begin-token-with-a-strange-name": {"tokenizer.ggml.tokens": (LIST, (TEXT, ["a", "b", "ab", "$A:0 $"])), "tokenizer.ggml.bos_token_id": (U32, 3), "tokenizer.ggml.add_bos_token": (7, True)},
        "endless-template": {"tokenizer.chat_template": (TEXT, "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}")},
        "template-is-a-number": {"tokenizer.chat_template": (U32, 1)},
    }.items():
        FORMS[7] = "?"
        yield key, gguf(pairs)
    embedding = "token_embd.weight"
    yield "no-embedding", gguf(shapes={embedding: None})
    yield "embedding-of-one-side", gguf(shapes={embedding: [16]})
    yield "five-sides", gguf(shapes={embedding: [2, 2, 2, 2, 2]})
    yield "sides-overflow", gguf(shapes={embedding: [2**33, 2**33]})
    yield "side-of-2-64", gguf(shapes={embedding: [2**64 - 1, 4]})
    yield "side-of-0", gguf(shapes={embedding: [4, 0]})
    yield "both-sides-0", gguf(shapes={embedding: [0, 0]})
    yield "big-embedding", gguf(shapes={embedding: [4, 2**28]})
    yield "query-of-no-rows", gguf(shapes={"blk.0.attn_q.weight": [4, 0]})
    yield "offset-past-the-end", gguf(offsets={embedding: 2**40})
    yield "offset-overflows", gguf(offsets={embedding: 2**64 - 1})
    yield "tensors-on-one-another", gguf(shapes={f"more.{number}": [4, 32] for number in range(20)}, offsets={f"more.{number}": 0 for number in range(20)})
    yield "tensor-left-over", gguf(shapes={"more": [4]})
    yield "tensor-type-unknown", gguf(kinds={embedding: 77})
    yield "blocks-not-filled", gguf(kinds={embedding: "q4_k"})
    yield "a-block-across-rows", gguf(kinds={embedding: "q8_0"}, shapes={embedding: [4, 8]})
    yield "half-floats", gguf(kinds={name: "f16" for name in SHAPES})
    yield "no-data", gguf(cut=1200)
    twice = gguf(raw=b"")
    yield "tensor-twice", twice.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight")


# Safetensors: eight bytes of the header's length, the header in JSON, the data.


def safetensors(header, data=b"\0" * 16, length=None):
    raw = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(**more):
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **more}}


def safetensors_files():
    yield "whole", safetensors(one())
    yield "empty", b""
    yield "length-only", struct.pack("<Q", 8)
    yield "length-without-end", safetensors(one(), length=2**64 - 1)
    yield "length-past-the-end", safetensors(one(), length=4000)
    yield "length-0", safetensors("", length=0)
    yield "no-json", safetensors("x" * 40)
    yield "a-list", safetensors("[1, 2]")
    yield "deep", safetensors('{"a":' * 1000)
    yield "deep-metadata", safetensors('{"__metadata__":' + "[" * 1000)
    yield "no-text", safetensors('{"\udc80"}'.encode("utf-8", "surrogateescape").decode("latin1"))
    yield "offsets-past-the-end", safetensors(one(data_offsets=[0, 2**40], shape=[2**38]))
    yield "offsets-backwards", safetensors(one(data_offsets=[16, 0]))
    yield "offsets-negative", safetensors(one(data_offsets=[-16, 0]))
    yield "offsets-overflow", safetensors(one(data_offsets=[0, 2**64 - 1]))
    yield "sides-overflow", safetensors(one(shape=[2**33, 2**33]))
    yield "sides-do-not-fit", safetensors(one(shape=[5]))
    yield "side-of-0", safetensors(one(shape=[0, 2**63], data_offsets=[0, 0]), b"")
    yield "many-sides", safetensors(one(shape=[1] * 3000 + [4]))
    yield "no-sides", safetensors(one(shape=[], data_offsets=[0, 4]), b"\0" * 4)
    yield "type-unknown", safetensors(one(dtype="F1024"))
    yield "type-of-others", safetensors(one(dtype="I64", shape=[2]))
    yield "half-bytes", safetensors(one(dtype="F4", shape=[32]))
    yield "tensors-on-one-another", safetensors({**one(), "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, b"\0" * 24)
    yield "a-hole", safetensors({**one(), "b": {"dtype": "F32", "shape": [4], "data_offsets": [32, 48]}}, b"\0" * 48)
    yield "bytes-left-over", safetensors(one(), b"\0" * 17)
    yield "name-twice", safetensors('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}')
    yield "fields-missing", safetensors({"a": {}})
    yield "many-empty-tensors", safetensors({f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(60)}, b"")


CONFIG = {
    "model_type": "qwen3", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 16, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
}


def configs():
    def other(**more):
        return json.dumps({**CONFIG, **more})

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    yield "whole", other()
    yield "empty", ""
    yield "a-list", "[]"
    yield "deep", '{"a":' * 1000
    yield "deep-list", '{"a":' + "[" * 1000
    yield "no-text", b'{"model_type": "\xff"}'
    yield "lone-surrogate", '{"model_type": "\\ud800"}'
    yield "name-twice", other()[:-1] + ', "hidden_size": 0}'
    for name, more in {
        "no-width": {"hidden_size": 0}, "negative-width": {"hidden_size": -8}, "half-a-width": {"hidden_size": 8.5},
        "width-is-text": {"hidden_size": "8"}, "width-without-end": {"hidden_size": 2**64}, "wide": {"hidden_size": 2**31, "head_dim": 2**31},
        "no-heads": {"num_attention_heads": 0}, "many-heads": {"num_attention_heads": 2**31, "num_key_value_heads": 2**31, "head_dim": None},
        "heads-of-nothing": {"num_attention_heads": 16, "head_dim": None, "num_key_value_heads": 16}, "odd-heads": {"head_dim": 3},
        "heads-do-not-divide": {"num_attention_heads": 3, "num_key_value_heads": 2}, "more-keys-than-heads": {"num_key_value_heads": 4},
        "many-layers": {"num_hidden_layers": 2**31}, "many-tokens": {"vocab_size": 2**31}, "no-tokens": {"vocab_size": 0},
        "positions-without-end": {"max_position_embeddings": 2**63}, "epsilon-0": {"rms_norm_eps": 0}, "theta-negative": {"rope_theta": -1.0},
        "rope-is-a-list": {"rope_parameters": [1]}, "rope-unknown": {"rope_scaling": {"type": "yarn"}}, "rope-of-llama-3": {"rope_parameters": scaling},
        "factor-0": {"rope_parameters": {**scaling, "factor": 0}}, "one-factor-for-all": {"rope_parameters": {**scaling, "high_freq_factor": 1.0}},
        "family-unknown": {"model_type": "x" * 2000}, "family-is-null": {"model_type": None}, "family-is-a-list": {"model_type": [[[[]]]]},
        "quantised": {"quantization_config": {}}, "flag-is-text": {"tie_word_embeddings": "yes"}, "no-window": {"model_type": "mistral", "sliding_window": 0},
    }.items():
        yield name, other(**more)
    yield "theta-beyond-numbers", other()[:-1] + ', "rope_theta": 1e999}'
    yield "digits-without-end", other()[:-1] + ', "rope_theta": 1' + "0" * 4000 + "}"


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
BPE = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}


def added(content, number, **more):
    return {"id": number, "content": content, "special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, **more}


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [added("<|im_end|>", 3, special=True)],
    "normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL, "model": BPE,
}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def tokenizers():
    def other(**more):
        return json.dumps({**TOKENIZER, **more})

    def model(**more):
        return other(model={**BPE, **more})

    yield "whole", other()
    yield "empty", ""
    yield "a-list", "[]"
    yield "deep", '{"a":' * 1000
    yield "no-text", b'{"version": "\xff"}'
    yield "nothing", "{}"
    yield "no-model", json.dumps({key: part for key, part in TOKENIZER.items() if key != "model"})
    yield "model-unknown", model(type="Oracle")
    yield "no-tokens", model(vocab={}, merges=[])
    yield "ids-with-a-gap", model(vocab={"a": 0, "b": 1, "ab": 5})
    yield "id-of-2-32", model(vocab={"a": 0, "b": 1, "ab": 2**32 - 1})
    yield "id-of-2-64", model(vocab={"a": 0, "b": 1, "ab": 2**64})
    yield "id-negative", model(vocab={"a": 0, "b": 1, "ab": -1})
    yield "ids-twice", model(vocab={"a": 0, "b": 0, "ab": 0})
    yield "merge-of-unknown-tokens", model(merges=["x y"])
    yield "merge-without-a-space", model(merges=["ab"])
    yield "merges-in-circles", model(vocab={"a": 0, "aa": 1, "aaa": 2}, merges=["a a", "aa a", "a aa"])
    yield "dropout-beyond-1", model(dropout=7.0)
    yield "dropout-1", model(dropout=1.0)
    yield "unknown-token-unknown", model(unk_token="<unk>", byte_fallback=True)
    yield "no-decoder", other(decoder=None)
    yield "no-pre-tokenizer", other(pre_tokenizer=None)
    yield "added-token-without-text", other(added_tokens=[added("", 3)])
    yield "added-token-far-away", other(added_tokens=[added("<|im_end|>", 2**32 - 2)])
    yield "added-token-on-another", other(added_tokens=[added("<|im_end|>", 0)])
    yield "added-token-is-all-there-is", other(added_tokens=[added("a", 3), added("b", 4)], model={**BPE, "vocab": {}, "merges": []})
    yield "added-tokens-overlap", other(added_tokens=[added("<|im_end|>", 3), added("<|im", 4), added("|>", 5)])
    yield "added-token-of-a-kilobyte", other(added_tokens=[added("x" * 1024, 3)])
    yield "added-tokens-strip", other(added_tokens=[added("<|im_end|>", 3, lstrip=True, rstrip=True, single_word=True, normalized=True)])
    yield "padding-without-end", other(padding={"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"})
    yield "truncation-to-nothing", other(truncation={"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9})
    yield "regex-broken", other(pre_tokenizer=split("(("))
    yield "regex-that-backtracks", other(pre_tokenizer=split("(a+)+$(?!b)"))
    yield "regex-that-matches-nothing", other(pre_tokenizer=split(""))
    yield "regex-of-a-billion", other(pre_tokenizer=split("(?:(?:(?:a{999}){999}){999})"))
    yield "regex-deep", other(pre_tokenizer=split("(" * 2000 + ")" * 2000))
    yield "steps-deep", '{"pre_tokenizer":' + '{"type":"Sequence","pretokenizers":[' * 300
    yield "steps-in-steps", other(pre_tokenizer=json.loads('{"type":"Sequence","pretokenizers":[' * 25 + json.dumps(BYTE_LEVEL) + "]}" * 25))
    yield "normalizer-that-grows", other(normalizer={"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 5})
    yield "normalizer-that-grows-without-end", other(normalizer={"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 200}] * 12})
    yield "prepends-without-text", other(normalizer={"type": "Prepend", "prepend": ""})
    for name, table in {"short": "AAAA", "empty": "", "offset-past-the-end": "////fwAA", "random": "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQ"}.items():
        yield f"character-map-{name}", other(normalizer={"type": "Precompiled", "precompiled_charsmap": table})
    yield "template-of-unknown-tokens", other(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "nobody", "type_id": 0}}], "pair": [], "special_tokens": {}})
    yield "bert-of-unknown-tokens", other(post_processor={"type": "BertProcessing", "sep": ["x", 99], "cls": ["y", 98]})
    yield "strip-beyond-the-text", other(decoder={"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40})
    yield "ctc", other(decoder={"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True})
    yield "word-level", other(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "nobody"})
    yield "word-piece", other(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "nobody", "continuing_subword_prefix": "", "max_input_chars_per_word": 0})
    yield "unigram-without-tokens", other(model={"type": "Unigram", "unk_id": 7, "vocab": []})
    yield "unigram-unknown-out-of-range", other(model={"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]})
    yield "unigram-no-unknown", other(model={"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]})
    yield "unigram-scores", other(model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e308], ["b", -1e308]]})


def rows():
    good = {"prompt": "Hello", "response": "Hi", "kind": "ordinary"}
    yield "whole", json.dumps(good) + "\n"
    yield "empty", ""
    yield "blank-lines", "\n\n \n"
    yield "no-object", "[1]\n"
    yield "second-line-broken", json.dumps(good) + '\n{"prompt": \n'
    yield "cut-off", json.dumps(good)[:-5]
    yield "deep", '{"prompt":' * 700
    yield "deep-list", '{"prompt":' + "[" * 1000 + "\n"
    yield "no-text", b'{"prompt": "\xff\xfe"}\n'
    yield "zeros", b"\0" * 300
    yield "mark-of-byte-order", b"\xef\xbb\xbf" + json.dumps(good).encode()
    yield "lone-surrogate", '{"prompt": "\\ud800"}\n'
    yield "carriage-returns", json.dumps(good) + "\r\r\n" + json.dumps(good) + "\r"
    yield "prompt-is-a-number", '{"prompt": 1e999}\n'
    yield "prompt-is-a-great-number", '{"prompt": ' + "9" * 4000 + "}\n"
    yield "prompt-is-null", '{"prompt": null}\n'
    yield "prompt-twice", '{"prompt": "a", "prompt": "b"}\n'
    yield "no-messages", '{"prompt": []}\n'
    yield "message-of-a-pirate", '{"prompt": [{"role": "pirate", "content": "Arr"}]}\n'
    yield "kind-unknown", '{"prompt": "a", "kind": "strange"}\n'
    yield "helpfulness-without-end", '{"prompt": "a", "response": "b", "helpfulness": 1e300}\n'
    yield "safety-is-a-list", '{"prompt": "a", "response": "b", "safety": [], "categories": "x", "refusal": 3}\n'
    yield "split-unknown", '{"prompt": "a", "split": "nowhere"}\n'
    yield "id-without-prompts", '{"id": "x", "response": "b"}\n'
    yield "many-fields", json.dumps({"prompt": "a", **{f"f{number}": number for number in range(400)}}) + "\n"


def templates():
    yield "whole", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    yield "empty", ""
    yield "no-text", b"\xff\xfe{{ messages }}"
    yield "loop", "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"
    yield "loop-without-output", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    yield "great-range", "{% for a in range(10 ** 18) %}x{% endfor %}"
    yield "doubling", "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
    yield "doubling-by-join", "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}"
    yield "doubling-by-replace", "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s | replace('x', 'xx') %}{% endfor %}"
    yield "doubling-by-method", "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s.replace('x', 'xx') %}{% endfor %}"
    yield "doubling-by-capture", "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}{% endfor %}"
    yield "doubling-by-json", "{% set n = namespace(s='\"') %}{% for i in range(64) %}{% set n.s = n.s | tojson %}{% endfor %}"
    yield "doubling-by-format", "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = '%s%s' | format(n.s, n.s) %}{% endfor %}"
    yield "doubling-of-a-message", "{% set n = namespace(s=messages[0].content) %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
    yield "doubling-by-upper", "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = (n.s ~ n.s).upper() %}{% endfor %}"
    yield "nesting-doubled", "{% set n = namespace(s=[]) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}"
    yield "nesting-doubled-to-json", "{% set n = namespace(s=[]) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}"
    shared = "{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    yield "great-constant", "{{ 'x' * 99999999 }}"
    yield "great-constants", "{% set x = [" + "'x' * 99999999, " * 100 + "] %}"
    yield "great-list", "{% set n = 99999999 %}{% set x = [1] * n %}{{ x | length }}"
    yield "great-list-constant", "{% set x = [1] * 99999999 %}{{ x | length }}"
    yield "great-list-joined", "{% set x = [1] * 9999 * 9999" + " + [1]" * 40 + " %}{{ x | length }}"
    yield "great-lists-compared", "{{ 1 in [0] * 10 ** 8 and [1] * 10 ** 8 == [1] * 10 ** 8 }}"
    yield "list-joined-to-itself", "{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s | length }}"
    yield "deep", "{% set n = namespace(s=[]) %}{% for i in range(60000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s ~ '' }}"
    yield "deep-by-batch", "{% set n = namespace(s=[1]) %}{% for i in range(60000) %}{% set n.s = n.s | batch(1) %}{% endfor %}"
    yield "deep-namespaces", "{% set n = namespace(s=1) %}" + "{% set n = namespace(s=n) %}" * 500 + "{{ n }}"
    yield "deep-macros", "{% macro f() %}{% endmacro %}" + "{% macro f(g=f) %}{{ g() }}{% endmacro %}" * 500 + "{{ f }}"
    yield "shared-to-text", shared + "{% set x = n.s ~ '' %}"
    yield "shared-to-string", shared + "{{ n.s | string | length }}"
    yield "shared-to-lower", shared + "{{ n.s | lower | length }}"
    yield "shared-joined", shared + "{{ [n.s, 1] | join(',') | length }}"
    yield "shared-formatted", shared + "{{ '{}'.format(n.s) | length }}{{ '%s' | format(n.s) | length }}"
    yield "shared-compared", shared + "{% set m = n.s %}" + shared + "{{ n.s == m }}"
    yield "shared-as-key", shared + "{{ {n.s: 1} | length }}{{ messages[0][n.s] }}"
    yield "shared-raised", shared + "{{ raise_exception(n.s) }}"
    yield "shared-by-dict", "{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = dict(a=n.s, b=n.s) %}{% endfor %}{{ n.s }}"
    yield "shared-by-zip", "{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = n.s | zip(n.s) | list %}{% endfor %}{{ n.s ~ '' }}"
    yield "shared-by-sets", "{% set a = [1] %}" + "{% set a = [a, a] %}" * 40 + "{{ a ~ '' }}"
    yield "shared-by-macro", "{% macro f(n, s) %}{% if n %}{{ f(n - 1, [s, s]) }}{% else %}{{ s ~ '' }}{% endif %}{% endmacro %}{{ f(40, 1) }}"
    yield "shared-by-loop", "{% for s in [[1]] recursive %}{{ loop([[s, s]]) }}{% endfor %}"
    yield "shared-by-with", "{% with a = [1] %}" + "{% with a = [a, a] %}" * 40 + "{{ a ~ '' }}" + "{% endwith %}" * 41
    yield "format-often", "{% set s = 'x' * 999999 %}{{ ('%s' * 9999) | format(s) }}{{ ('{0}' * 9999).format(s) }}"
    yield "state", "{% set s = 'x' * 999999 %}{{ debug() }}"
    yield "itself-to-text", "{% set n = namespace() %}{% set n.s = n %}{{ n ~ '' }}"
    yield "itself-by-two", "{% set n = namespace() %}{% set m = namespace(n=n) %}{% set n.m = m %}{{ n ~ '' }}"
    yield "itself", "{% set n = namespace() %}{% set n.s = n %}{{ n }}"
    yield "power", "{{ 9 ** 9 ** 9 ** 9 }}"
    yield "indent", "{{ 'x\ny' | indent(10 ** 12) }}"
    yield "indent-json", "{{ {'a': 1} | tojson(indent=10 ** 12) }}"
    yield "centre", "{{ 'x' | center(10 ** 12) }}{{ 'x'.center(10 ** 12) }}"
    yield "pad-left", "{{ 'x'.ljust(10 ** 12) }}{{ 'x'.zfill(10 ** 12) }}"
    yield "format-wide", "{{ '%999999999999d' | format(1) }}"
    yield "format-wide-method", "{{ '{:>999999999999}'.format(1) }}"
    yield "batch", "{{ [1] | batch(10 ** 12, 'x') | list | length }}"
    yield "slice", "{{ [1] | slice(10 ** 12) | list | length }}"
    yield "expand-tabs", "{{ '\\t'.expandtabs(10 ** 12) }}"
    yield "word-wrap", "{{ 'x' | wordwrap(0) }}"
    yield "truncate", "{{ 'x' | truncate(-1, true, '', 0) }}"
    yield "round", "{{ 1.5 | round(10 ** 12) }}"
    yield "macro-in-itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    yield "macros-doubling", "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    yield "loop-in-itself", "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}"
    yield "includes-itself", "{% include 'chat_template' %}"
    yield "imports-itself", "{% import 'chat_template' as t %}{{ t }}"
    yield "extends-itself", "{% extends 'chat_template' %}"
    yield "includes-a-file", "{% include '/etc/passwd' %}"
    yield "brackets", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"
    yield "lists", "{{ " + "[" * 1000 + "]" * 5000 + " }}"
    yield "minuses", "{{ " + "-" * 4000 + "1 }}"
    yield "nots", "{{ " + "not " * 1500 + "true }}"
    yield "filters", "{{ 'x'" + " | upper" * 700 + " }}"
    yield "dots", "{{ x" + ".y" * 4000 + " }}"
    yield "calls", "{{ x" + "()" * 4000 + " }}"
    yield "sums", "{{ 1" + " + 1" * 1500 + " }}"
    yield "concatenations", "{{ 'a'" + " ~ 'a'" * 1500 + " }}"
    yield "choices", "{{ 1" + " if 1 else 1" * 500 + " }}"
    yield "conditions", "{% if 1 %}" * 400 + "{% endif %}" * 400
    yield "conditions-open", "{% if 1 %}" * 500
    yield "alternatives", "{% if 0 %}" + "{% elif 0 %}" * 500 + "{% endif %}"
    yield "comment-open", "{#" * 4000
    yield "time", "{{ strftime_now('%') }}{{ strftime_now('%Q%!%999999d%-%_%:::::z') }}"
    yield "time-without-end", "{{ strftime_now('%c' * 1000000) }}"
    yield "raises", "{{ raise_exception('x' * 100000) }}"
    yield "slices", "{{ messages[::0] }}{{ 'x'[9 ** 18:-9 ** 18:-1] }}"
    yield "great-index", "{{ messages[99999999999999999999999] }}"
    yield "divide", "{{ 1 // 0 }}{{ 1 % 0 }}{{ (-9223372036854775808) // -1 }}"
    yield "marks", "{{ messages[0].content[0:1] }}{{ messages[0].content | list }}{{ messages[0].content | reverse }}"
    yield "sort-all", "{{ range(99999) | sort | unique | list | length }}" * 50


def requests():
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}

    def other(**more):
        return json.dumps({**chat, **more})

    yield "chat", other()
    yield "completion", json.dumps({"prompt": [1, 2], "max_tokens": 4})
    yield "response", json.dumps({"input": "Hello", "max_output_tokens": 4})
    yield "reward", json.dumps({"items": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]})
    yield "detokenize", json.dumps({"tokens": [1, 2]})
    yield "empty", ""
    yield "nothing", "{}"
    yield "a-list", "[]"
    yield "deep", '{"messages":' + "[" * 1500
    yield "deep-object", '{"messages":' * 700
    yield "no-text", b'{"messages": [{"role": "user", "content": "\xff"}]}'
    yield "lone-surrogate", '{"messages": [{"role": "user", "content": "\\udc00"}]}'
    yield "field-twice", '{"prompt": "a", "prompt": "b"}'
    yield "two-bodies", other() + other()
    schema = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}

    def shaped(schema):
        return other(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})

    for name, more in {
        "no-messages": {"messages": []}, "many-messages": {"messages": chat["messages"] * 200}, "long": {"messages": [{"role": "user", "content": "x" * 4000}]},
        "content-of-nothing": {"messages": [{"role": "user", "content": [{}]}]}, "content-null": {"messages": [{"role": "user", "content": None}]},
        "role-unknown": {"messages": [{"role": "pirate", "content": "Arr"}]}, "only-the-assistant": {"messages": [{"role": "assistant", "content": ""}]},
        "calls-broken": {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "n-0": {"n": 0}, "n-great": {"n": 2**63}, "n-100": {"n": 100}, "tokens-0": {"max_tokens": 0}, "tokens-great": {"max_tokens": 2**63}, "tokens-negative": {"max_tokens": -1},
        "temperature-negative": {"temperature": -1}, "temperature-great": {"temperature": 1e300}, "temperature-small": {"temperature": 1e-300},
        "top-p-0": {"top_p": 0}, "top-p-2": {"top_p": 2}, "top-k-great": {"top_k": 2**63}, "min-p-1": {"min_p": 1}, "seed-negative": {"seed": -1}, "seed-great": {"seed": 2**64},
        "penalty-0": {"repetition_penalty": 0}, "penalty-great": {"repetition_penalty": 1e300, "presence_penalty": 2, "frequency_penalty": -2},
        "bias-of-nobody": {"logit_bias": {"4294967295": 1}}, "bias-is-text": {"logit_bias": {"x": "y"}}, "bias-great": {"logit_bias": {str(number): -100 for number in range(320)}},
        "bias-beyond": {"logit_bias": {"1": 1e300}}, "stop-empty": {"stop": ""}, "stops": {"stop": ["x"] * 500}, "stop-long": {"stop": "x" * 5000}, "stop-part-of-a-character": {"stop": "\u00e9"},
        "bytes-that-are-no-text": {"logit_bias": {"255": 100}, "max_tokens": 200, "logprobs": True}, "likeliest": {"logprobs": True, "top_logprobs": 2**40},
        "budget-great": {"thinking_budget": 2**63}, "budget-0": {"thinking_budget": 0}, "stream": {"stream": True, "stream_options": {"include_usage": True}},
        "stream-is-text": {"stream": "yes"}, "model-unknown": {"model": "x" * 3000}, "model-null": {"model": None}, "field-unknown": {"x" * 3000: 1},
        "tools-without-names": {"tools": [{"type": "function", "function": {}}]}, "tool-choice-unknown": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool-forced": {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}], "tool_choice": "required"},
        "format-unknown": {"response_format": {"type": "poem"}}, "format-object": {"response_format": {"type": "json_object"}}, "template-arguments": {"chat_template_kwargs": {"enable_thinking": [1]}},
    }.items():
        yield name, other(**more)
    yield "schema-in-circles", shaped(schema)
    yield "schema-of-itself", shaped({"$ref": "#"})
    yield "schema-of-nothing", shaped({"enum": []})
    yield "schema-false", shaped(False)
    yield "schema-elsewhere", shaped({"$ref": "http://127.0.0.1:1/x"})
    yield "schema-great", shaped({"type": "string", "minLength": 2**40})
    yield "schema-regex", shaped({"type": "string", "pattern": "(a{1,999}){1,999}"})
    yield "schema-regex-broken", shaped({"type": "string", "pattern": "(("})
    yield "schema-many-choices", shaped({"anyOf": [{"type": "object", "properties": {f"p{number}": {"type": "string"}}, "required": [f"p{number}"]} for number in range(60)]})
    yield "schema-deep", shaped(json.loads('{"items":' * 60 + "{}" + "}" * 60))
    yield "schema-many-items", shaped({"type": "array", "items": {"type": "integer"}, "minItems": 10**9})
    yield "tokens-of-nobody", json.dumps({"prompt": [2**32 - 1], "tokens": [2**32 - 1]})
    yield "tokens-negative-ids", json.dumps({"prompt": [-1], "tokens": [-1]})
    yield "prompts", json.dumps({"prompt": ["a"] * 500})
    yield "no-items", json.dumps({"items": [], "input": [], "query": [], "data": [], "text": []})
    yield "items-of-nothing", json.dumps({"items": [{}], "input": [{}], "query": [""], "data": [{}], "text": [None]})
    yield "items-without-end", json.dumps({"items": [{"messages": []}] * 520, "query": ["a"] * 520})
    yield "slime", json.dumps({"prompt": "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", "response": "y", "label": None})
    yield "openrlhf", json.dumps({"query": ["<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny"], "prompts": ["x"], "labels": [""]})
    yield "openrlhf-lengths", json.dumps({"query": ["a", "b"], "prompts": ["x"], "labels": []})


for target, attacks in {
    "gguf": ggufs(), "safetensors": safetensors_files(), "config": configs(), "tokenizer": tokenizers(), "rows": rows(),
    "template": templates(), "request": requests(),
}.items():
    for name, data in attacks:
        write(target, name, data)
