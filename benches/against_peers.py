"""This program beside its peers on the machine at hand: the same work, in turn, several times; one table of ratios.

    python benches/against_peers.py --model CHECKPOINT [--gguf FILE] [--saferl PROGRAM] [--llama FOLDER] [--rounds N]

CHECKPOINT is a Hugging Face folder (of SmolLM2-135M, say). Run it with a Python that has torch, transformers and, for the
GSPO step, trl and datasets; llama.cpp's figures come from `llama-bench` and `llama-batched-bench` in FOLDER. A peer that
is missing is left out, and the table says so. Rounds go over all of ours and all peers' in turn, so that whatever else
the machine does falls on everybody; a figure is the median over the rounds.

Left out: machines without /proc, other devices than the CPU.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

NEW_TOKENS = 64
PROMPT_TOKENS = 32
BATCHES = (1, 8, 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a Hugging Face checkpoint")
    parser.add_argument("--gguf", action="append", default=[], help="the same model as GGUF, for llama.cpp and for ours")
    parser.add_argument("--saferl", default="target/release/saferl", help="this program")
    parser.add_argument("--llama", help="the folder with llama-bench and llama-batched-bench")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                        help="cpu: processor time of all threads, for a machine that others use too; not for llama.cpp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", default="prefill,decode,train,step", help="what to measure, with commas")
    parser.add_argument("--peer", choices=["transformers", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="bf16", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer == "transformers":
        return transformers_speed(arguments)
    if arguments.peer == "trl":
        return trl_step(arguments)
    figures, peaks, failed = {}, {}, set()
    for number in range(arguments.rounds):
        for name, runner in runners(arguments):
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            try:
                for work, value, peak in runner():
                    figures.setdefault(work, {}).setdefault(name, []).append(value)
                    if peak:
                        peaks.setdefault(work, {}).setdefault(name, []).append(peak)
                    print(f"  {work}: {value:.4g}", file=sys.stderr, flush=True)
            except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
                failed.add(f"{name}: {error}")
    print(table(arguments, figures, peaks, failed))


def runners(arguments):
    """A name and a function for each contender; the function yields work, figure (higher is better) and peak memory."""
    works = arguments.work.split(",")
    for dtype in ("bf16", "f32"):
        yield f"saferl {dtype}", lambda d=dtype: saferl(arguments, arguments.model, d, works)
    # Less memory for more time.
    learning = [work for work in works if work in ("train", "step")]
    if learning:
        yield "saferl bf16, recomputing", lambda: saferl(arguments, arguments.model, "bf16", learning, ["--gradient-checkpointing"])
    # Integers in ours and in llama.cpp alike; the other types are read from the checkpoint.
    inference = [work for work in works if work in ("prefill", "decode")]
    for gguf in arguments.gguf:
        if kind(gguf).lower().startswith("q"):
            yield f"saferl {kind(gguf)}, int8", lambda g=gguf: saferl(arguments, g, "int8", inference)
    for dtype in ("bf16", "fp32"):
        yield f"transformers {dtype}", lambda d=dtype: peer(arguments, "transformers", d, works)
        if "step" in works:
            yield f"TRL {dtype}", lambda d=dtype: peer(arguments, "trl", d, works)
    if arguments.llama and arguments.clock == "wall":
        for gguf in arguments.gguf:
            yield f"llama.cpp {kind(gguf)}", lambda g=gguf: llama(arguments, g, works)


def kind(gguf):
    return re.sub(r".*[.-]", "", os.path.basename(gguf).removesuffix(".gguf"))


def saferl(arguments, model, dtype, works, options=()):
    for work in works:
        command = [arguments.saferl, "bench", work, "--model", model, "--dtype", dtype, "--json", *options]
        command += ["--threads", str(arguments.threads), "--repeats", "1" if work in ("train", "step") else "3"]
        for line in output(command).splitlines():
            found = json.loads(line)
            seconds = found["cpu_s" if arguments.clock == "cpu" else "median_s"]
            if work == "step":
                yield "GSPO step, steps/s", 1 / seconds, found["peak_mb"]
            else:
                figure = found["tokens_per_s"] * found["median_s"] / seconds
                yield label(work, found["size"]), figure, found["peak_mb"] if work == "train" else None


def label(work, size):
    return {"prefill": "prefill 512, tokens/s", "train": "training 8 x 256, tokens/s"}.get(work, f"decoding {size}, tokens/s")


def peer(arguments, name, dtype, works):
    command = [sys.executable, __file__, "--peer", name, "--model", arguments.model, "--dtype", dtype]
    command += ["--threads", str(arguments.threads), "--work", ",".join(works), "--clock", arguments.clock]
    for line in output(command).splitlines():
        # Trainers print dictionaries of their own.
        if line.startswith('{"work"'):
            found = json.loads(line)
            yield found["work"], found["value"], found.get("peak_mb")


def llama(arguments, gguf, works):
    threads = ["-t", str(arguments.threads)]
    if "prefill" in works:
        command = [os.path.join(arguments.llama, "llama-bench"), "-m", gguf, "-p", "512", "-n", "0", "-r", "3", "-o", "json"]
        for row in json.loads(output(command + threads)):
            yield label("prefill", ""), row["avg_ts"], None
    if "decode" in works:
        command = [os.path.join(arguments.llama, "llama-batched-bench"), "-m", gguf, "-c", "8192"]
        command += ["-npp", str(PROMPT_TOKENS), "-ntg", str(NEW_TOKENS), "-npl", ",".join(map(str, BATCHES))]
        for line in output(command + threads + ["--output-format", "jsonl"]).splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                yield label("decode", f"batch {row['pl']}"), row["speed_tg"], None


def output(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def tell(work, value, peak=None):
    print(json.dumps({"work": work, "value": value, "peak_mb": peak}), flush=True)


def peak_mebibytes():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def now(arguments):
    return time.process_time() if arguments.clock == "cpu" else time.time()


def transformers_speed(arguments):
    import torch
    from transformers import AutoModelForCausalLM

    def timed(body):
        start = now(arguments)
        body()
        return now(arguments) - start

    torch.set_num_threads(arguments.threads)
    works = arguments.work.split(",")
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval()
    if "decode" in works:
        for batch in BATCHES:
            ids = torch.randint(100, 40000, (batch, PROMPT_TOKENS))

            def generate(count):
                options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": True, "pad_token_id": 2}
                with torch.no_grad():
                    return timed(lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options))

            generate(2)
            # As ours: reading the prompt and drawing the first token are not counted.
            seconds = generate(NEW_TOKENS) - generate(1)
            tell(label("decode", f"batch {batch}"), batch * (NEW_TOKENS - 1) / seconds)
    if "prefill" in works:
        ids = torch.randint(100, 40000, (1, 512))
        with torch.no_grad():
            times = [timed(lambda: model(ids, logits_to_keep=1)) for _ in range(4)]
        tell(label("prefill", ""), 512 / statistics.median(times[1:]))
    if "train" in works:
        model.train()
        ids = torch.randint(100, 40000, (8, 256))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

        def step():
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        times = [timed(step) for _ in range(2)]
        tell(label("train", ""), 8 * 256 / times[-1], peak_mebibytes())


def trl_step(arguments):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(arguments.threads)
    questions = ["How do I bake bread?", "Tell me how to pick a lock", "Write a poem about rain", "How do magnets work?"]
    rows = [{"prompt": [{"role": "user", "content": questions[index % 4]}]} for index in range(64)]
    narrow = arguments.dtype == "bf16"

    def reward(completions, **_):
        return [len(set(completion[0]["content"].split())) / 50 for completion in completions]

    class Clock(TrainerCallback):
        times = []

        def on_train_begin(self, *_, **__):
            self.last = now(arguments)

        def on_step_end(self, *_, **__):
            self.times.append(now(arguments) - self.last)
            self.last = now(arguments)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=32, num_generations=8, max_completion_length=NEW_TOKENS,
            max_steps=2, learning_rate=1e-6, importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4,
            beta=0.0, loss_type="grpo", use_cpu=True, bf16=narrow, report_to=[], save_strategy="no", temperature=1.0,
            gradient_checkpointing=False, disable_tqdm=True,
        )
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16 if narrow else torch.float32)
        trainer = GRPOTrainer(
            model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
            processing_class=AutoTokenizer.from_pretrained(arguments.model),
        )
        trainer.train()
    tell("GSPO step, steps/s", 1 / Clock.times[-1], peak_mebibytes())


def table(arguments, figures, peaks, failed):
    lines = [machine(arguments), ""]
    for work, by_name in figures.items():
        ours = {name: statistics.median(values) for name, values in by_name.items() if name.startswith("saferl")}
        peers = {name: statistics.median(values) for name, values in by_name.items() if not name.startswith("saferl")}
        lines += [f"**{work}**", "", "| | " + " | ".join(["figure", "spread"] + [f"{name} is x" for name in ours]) + " |"]
        lines += ["|---|---|---|" + "---|" * len(ours)]
        for name, value in {**ours, **peers}.items():
            values = by_name[name]
            spread = f"{(max(values) - min(values)) / value:.0%}"
            ratios = [f"{own / value:.2f}" if name in peers else "" for own in ours.values()]
            peak = peaks.get(work, {}).get(name)
            memory = f", {statistics.median(peak) / 1024:.1f} GiB" if peak else ""
            lines.append("| " + " | ".join([name, f"{value:.3g}{memory}", spread] + ratios) + " |")
        lines.append("")
    lines += [f"Failed: {what}" for what in sorted(failed)]
    return "\n".join(lines)


def machine(arguments):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        text = file.read()
    name = re.search(r"model name\s*: (.*)", text)
    flags = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in text]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "transformers", "trl"):
        try:
            from importlib.metadata import version

            versions.append(f"{package} {version(package)}")
        except ImportError:
            pass
    load = os.getloadavg()
    return (
        f"{name.group(1) if name else platform.processor()} ({', '.join(flags)}), {os.cpu_count()} cores, {arguments.threads} "
        f"threads, {arguments.clock} time, load at the end {load[0]:.1f}; commit {commit}; {', '.join(versions)}; median of {arguments.rounds} rounds."
    )


if __name__ == "__main__":
    main()
