"""Holds what `saferl export gguf` writes against llama.cpp's own program, through llama-cpp-python 0.3.36.

    CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install llama-cpp-python==0.3.36
    python goldens/gguf/check.py SAFERL MODEL FOLDER TEXT [TYPE ...]

SAFERL is the program, MODEL any model it knows, FOLDER where the files go (kept), TEXT a text file for perplexity. For
every type (default: all) it prints
- tokens: whether llama.cpp splits TEXT into the tokens that `saferl render` gives for it;
- types: tensors whose type is not what llama.cpp's quantiser gives, from our f32 file to the type of the same name;
- perplexity of our file and of llama.cpp's own file of that type, over at most 2,048 tokens of TEXT in windows of 512,
  the first half of each only read;
and for f32 how many of 64 greedy tokens after a chat prompt are those of `saferl generate --dtype f32`.
The windows and the perplexities go to FOLDER/perplexity.json, which crates/model/tests/export.rs holds our own against:
    SAFERL_GGUF=FOLDER cargo test --release -p model --test export perplexity -- --nocapture
Exits with 1 where tokens, types or greedy tokens differ. Nothing here is needed to run the program.
"""

import ctypes
import json
import math
import pathlib
import struct
import subprocess
import sys

import llama_cpp
import numpy

# llama_ftype of llama.cpp, by our name.
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_k_m": 15, "q6_k": 18}
WINDOW, MOST = 512, 2048


def run(program, *arguments):
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def tensor_types(path):
    """Tensor names and type numbers, by the file's own header."""
    data = pathlib.Path(path).read_bytes()
    at = 24
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def number(form):
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def text():
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length : at].decode(errors="replace")

    def skip(kind):
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = number("I"), number("Q")
            for _ in range(count):
                skip(inner)
        else:
            at += sizes[kind]

    tensors, pairs = struct.unpack_from("<QQ", data, 8)
    for _ in range(pairs):
        text()
        skip(number("I"))
    types = {}
    for _ in range(tensors):
        name = text()
        rank = number("I")
        at += 8 * rank
        types[name] = number("I")
        number("Q")
    return types


def quantize(source, target, file_type):
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = 1
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert code == 0, f"llama_model_quantize: {code}"


def load(path):
    # Keys and values in f32, as ours are.
    return llama_cpp.Llama(
        str(path), n_ctx=WINDOW * 2, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False
    )


def windows_of(ids):
    return [ids[start : start + WINDOW] for start in range(0, min(len(ids), MOST) - WINDOW + 1, WINDOW)]


def perplexity(model, ids):
    total, count = 0.0, 0
    for window in windows_of(ids):
        model.reset()
        model.eval(window)
        rows = numpy.array(model.scores[WINDOW // 2 - 1 : WINDOW - 1], dtype=numpy.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[numpy.arange(len(rows)), window[WINDOW // 2 :]]
        total += (numpy.log(numpy.exp(rows).sum(axis=1)) - chosen).sum()
        count += len(rows)
    return math.exp(total / count)


def greedy(model, ids, count):
    model.reset()
    model.eval(ids)
    found = []
    for _ in range(count):
        found.append(int(numpy.argmax(model.scores[model.n_tokens - 1])))
        model.eval(found[-1:])
    return found


def main(program, model, folder, text_file, *types):
    folder, failed = pathlib.Path(folder), False
    folder.mkdir(parents=True, exist_ok=True)
    text = pathlib.Path(text_file).read_text()[:20_000]
    messages = folder / "messages.json"
    messages.write_text(json.dumps([{"role": "user", "content": text}]))
    rendered = json.loads(run(program, "render", model, "--messages", str(messages), "--json"))
    whole = folder / "f32.gguf"
    perplexities = {}
    for name in ["f32", *[name for name in types or FILE_TYPES if name != "f32"]]:
        path = folder / f"{name}.gguf"
        if not path.exists():
            run(program, "export", "gguf", model, str(path), "--type", name)
        peer = load(path)
        ids = peer.tokenize(text.encode(), add_bos=False, special=False)
        if name == "f32":
            same = peer.tokenize(rendered["text"].encode(), add_bos=False, special=True) == rendered["ids"]
            arguments = ["--prompt", "Tell me a long story about a fox and a river.", "--temperature", "0", "--max-tokens", "64"]
            reply = json.loads(run(program, "generate", model, *arguments, "--dtype", "f32", "--json"))
            found = greedy(peer, reply["prompt_ids"], len(reply["token_ids"]))
            equal = sum(a == b for a, b in zip(found, reply["token_ids"]))
            print(f"f32: tokens {'equal' if same else 'DIFFER'}; greedy {equal} of {len(found)} equal")
            failed |= not same or equal != len(found)
        perplexities[name] = perplexity(peer, ids)
        line = f"{name}: {path.stat().st_size / 1e6:.1f} MB, perplexity {perplexities[name]:.4f}"
        if name != "f32":
            own = folder / f"llama-{name}.gguf"
            quantize(whole, own, FILE_TYPES[name])
            ours, theirs = tensor_types(path), tensor_types(own)
            differ = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            line += f"; llama.cpp's own {perplexity(load(own), ids):.4f}; types differ: {differ or 'none'}"
            failed |= bool(differ)
            own.unlink()
        print(line, flush=True)
    facts = {"windows": windows_of(ids), "perplexity": perplexities}
    (folder / "perplexity.json").write_text(json.dumps(facts))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
