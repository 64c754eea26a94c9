"""Renders conversations.json with transformers: the text and token ids that saferl must give.

    python render.py QWEN3_TOKENIZER_FOLDER qwen3.json --qwen3
    python render.py SMOLLM2_FOLDER smollm2.json --digits

Without --qwen3, conversations marked qwen3_only are left out: they spell tokens that only Qwen3's template handles.
SMOLLM2_FOLDER is what transformers makes of the GGUF file. That conversion does not know the file's pre-tokenizer
(tokenizer.ggml.pre = smollm), by which every digit is a word of its own; --digits puts it back.
Conversations with "plain_ids": false hold control tokens typed by a speaker. transformers turns those into control
tokens, saferl must not: they get a text and no ids.
"""

import argparse
import hashlib
import json
import pathlib
import platform

import tokenizers
import transformers
from tokenizers import pre_tokenizers


def render(tokenizer, conversation):
    options = {key: conversation[key] for key in ("enable_thinking", "tools") if key in conversation}
    options["add_generation_prompt"] = conversation.get("add_generation_prompt", True)
    text = tokenizer.apply_chat_template(conversation["messages"], tokenize=False, **options)
    golden = {"name": conversation["name"], "text": text}
    if conversation.get("plain_ids", True):
        encoded = tokenizer.apply_chat_template(conversation["messages"], tokenize=True, return_dict=True, **options)
        golden["ids"] = encoded["input_ids"]
    return golden


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--qwen3", action="store_true")
    parser.add_argument("--digits", action="store_true")
    arguments = parser.parse_args()
    conversations = json.loads(pathlib.Path(__file__).with_name("conversations.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    if arguments.digits:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    golden = {
        "made_by": {
            "python": platform.python_version(),
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "tokenizer_json_sha256": hashlib.sha256((arguments.tokenizer / "tokenizer.json").read_bytes()).hexdigest(),
            "chat_template_sha256": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        },
        "conversations": [
            render(tokenizer, conversation)
            for conversation in conversations
            if arguments.qwen3 or not conversation.get("qwen3_only")
        ],
    }
    lines = [json.dumps(entry, ensure_ascii=False) for entry in golden["conversations"]]
    made_by = json.dumps(golden["made_by"])
    arguments.output.write_text('{"made_by": %s,\n"conversations": [\n%s\n]}\n' % (made_by, ",\n".join(lines)))


if __name__ == "__main__":
    main()
