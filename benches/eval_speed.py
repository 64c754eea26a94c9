"""`saferl eval` beside lm-evaluation-harness: the same model, prompts and number of new tokens, in turn; one table of ratios.

    python benches/eval_speed.py --model CHECKPOINT --prompts FILE.csv [--saferl PROGRAM] [--dtype bf16] [--batches 1,8,16] [--rounds N]

CHECKPOINT is a Hugging Face folder, FILE a CSV with a column `prompt` (XSTest's, say) whose first --count rows are asked. Run it
with a Python that has lm_eval and torch; it starts itself again for each of lm_eval's runs. Both sides apply the chat template,
decode greedily, stop at --tokens new tokens or at the end of the reply, and score by something that costs nothing (the opening
phrases of refusals; an exact match). Two times: the replies alone (ours: the seconds in its log; lm_eval's: in `generate_until`), and
the whole command with loading, which is also told in the processor time of all its threads: on a machine that others use too, that is
the figure to believe. How many replies are the same text on both sides stands beside them.

Left out: log-likelihood tasks, which ours has none of (its multiple choice reads a letter out of a reply); machines without /proc.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

from against_peers import machine

NAMES = {"bf16": "bfloat16", "f32": "float32"}
# How often a run is done that other programs disturb.
TRIES = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face checkpoint")
    parser.add_argument("--prompts", required=True, help="a CSV file with a column `prompt`")
    parser.add_argument("--saferl", default="target/release/saferl", help="this program")
    parser.add_argument("--dtype", default="bf16,f32", help="with commas")
    parser.add_argument("--batches", default="1,8,16", help="lm_eval's batch sizes, with commas; ours has no such option")
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--tokens", type=int, default=64, help="most new tokens of a reply")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    arguments = parser.parse_args(namespace=argparse.Namespace(clock="wall"))
    if arguments.batch:
        return lm_eval_run(arguments)
    with open(arguments.prompts, encoding="utf-8", newline="") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)][: arguments.count]
    runs = {}
    for number in range(arguments.rounds):
        for dtype in arguments.dtype.split(","):
            contenders = [("saferl", lambda d=dtype: saferl(arguments, prompts, d))]
            contenders += [
                (f"lm_eval, batch {size}", lambda d=dtype, s=size: lm_eval(arguments, prompts, d, s))
                for size in arguments.batches.split(",")
            ]
            for name, run in contenders:
                print(f"round {number + 1} of {arguments.rounds}: {name}, {dtype}", file=sys.stderr, flush=True)
                found = undisturbed(run)
                runs.setdefault(dtype, {}).setdefault(name, []).append(found)
    print(table(arguments, len(prompts), runs))


def undisturbed(run):
    """What a run gives, with its whole time and the share of the machine that other programs took; above 5% it is done again."""
    for _ in range(TRIES):
        start, busy, own = time.perf_counter(), busy_s(), own_s()
        found = run()
        found["whole_s"] = time.perf_counter() - start
        found["processor_s"] = own_s() - own
        found["others"] = max(0.0, (busy_s() - busy - found["processor_s"]) / found["whole_s"] / os.cpu_count())
        told = f"{found['seconds']:.1f} s, {found['whole_s']:.1f} s in all, {found['processor_s']:.1f} s of processors; "
        told += f"others took {found['others']:.0%} of the machine"
        print(f"  {told}", file=sys.stderr, flush=True)
        if found["others"] < 0.05:
            break
    return found


def busy_s():
    """Processor seconds that all programs have taken so far."""
    with open("/proc/stat", encoding="utf-8") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_s():
    """Those of the programs that this one started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def saferl(arguments, prompts, dtype):
    with tempfile.TemporaryDirectory() as folder:
        rows(folder, prompts)
        recipe = os.path.join(folder, "recipe.toml")
        with open(recipe, "w", encoding="utf-8") as file:
            file.write(
                f"run = 'speed'\nruns_dir = '{folder}'\ndata = '{folder}'\n[sampling.no-think]\ntemperature = 0.0\n"
                f"presence_penalty = 0.0\nmax_new_tokens = {arguments.tokens}\n[[model]]\nname = 'm'\n"
                f"source = '{os.path.abspath(arguments.model)}'\ndtype = '{dtype}'\n[[judge]]\nname = 'phrases'\nkind = 'phrases'\n"
                "[[task]]\nname = 't'\nkind = 'custom'\ndata = ['rows.jsonl']\njudges = ['phrases']\n"
            )
        environment = {**os.environ, "RAYON_NUM_THREADS": str(arguments.threads)}
        run([arguments.saferl, "eval", recipe], environment)
        replies, seconds, tokens = {}, 0.0, 0
        with open(os.path.join(folder, "speed", "logs", "t", "m.no-think.jsonl"), encoding="utf-8") as file:
            for line in map(json.loads, file):
                if line["event"] == "reply":
                    reply = line["reply"]
                    replies[line["id"]] = reply["reply"]
                    seconds += reply["seconds"]
                    tokens += reply["tokens"]
    return {"seconds": seconds, "tokens": tokens, "replies": [replies[str(index)] for index in range(len(prompts))]}


def lm_eval(arguments, prompts, dtype, batch):
    with tempfile.TemporaryDirectory() as folder:
        data = rows(folder, prompts)
        command = [sys.executable, __file__, "--model", arguments.model, "--prompts", data, "--dtype", dtype, "--batch", batch]
        command += ["--tokens", str(arguments.tokens), "--threads", str(arguments.threads)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder, "OMP_NUM_THREADS": str(arguments.threads)}
        # Libraries may print before it.
        return json.loads(run(command, environment).splitlines()[-1])


def rows(folder, prompts):
    path = os.path.join(folder, "rows.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for index, prompt in enumerate(prompts):
            file.write(json.dumps({"id": str(index), "prompt": prompt, "label": "harmful"}) + "\n")
    return path


def run(command, environment):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` failed; it said: {done.stderr[-2000:]}")
    return done.stdout


def lm_eval_run(arguments):
    """One of lm_eval's runs, in a process of its own: prints seconds, tokens and replies."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(arguments.threads)
    task = {
        "task": "speed", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": arguments.prompts}}, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": arguments.tokens},
    }
    model = HFLM(pretrained=arguments.model, device="cpu", dtype=NAMES[arguments.dtype], batch_size=arguments.batch)
    generate, times = model.generate_until, []

    def timed(*given, **named):
        start = time.perf_counter()
        replies = generate(*given, **named)
        times.append(time.perf_counter() - start)
        return replies

    model.generate_until = timed
    # Its own hundreds of tasks are not wanted: looking through them takes longer than the replies.
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=[task], task_manager=manager, apply_chat_template=True, log_samples=True, bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["speed"], key=lambda sample: int(sample["doc"]["id"]))
    replies = [sample["resps"][0][0] for sample in samples]
    tokens = sum(len(model.tokenizer(reply, add_special_tokens=False)["input_ids"]) for reply in replies)
    print(json.dumps({"seconds": sum(times), "tokens": tokens, "replies": replies}))


def table(arguments, count, runs):
    others = max(one["others"] for by_name in runs.values() for found in by_name.values() for one in found)
    name = (
        f"{machine(arguments)} lm_eval {version('lm_eval')}; {count} prompts, at most {arguments.tokens} new tokens each, greedy; "
        f"other programs took at most {others:.0%} of the machine."
    )
    lines = [name, ""]
    heads = ["", "prompts/s, replies alone", "spread", "saferl is x", "whole command, s", "saferl is x"]
    heads += ["its processor time, s", "saferl is x", "new tokens", "same replies as saferl"]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for dtype, by_name in runs.items():
        keys = ("seconds", "whole_s", "processor_s")
        of = {name: [statistics.median(one[key] for one in found) for key in keys] for name, found in by_name.items()}
        ours = by_name["saferl"][0]["replies"]
        for name, found in by_name.items():
            seconds, whole, processors = of[name]
            times = [one["seconds"] for one in found]
            spread = f"{(max(times) - min(times)) / seconds:.0%}"
            peer = name != "saferl"
            ratios = [f"{own / of['saferl'][index]:.2f}" if peer else "" for index, own in enumerate(of[name])]
            same = sum(a.strip() == b.strip() for a, b in zip(ours, found[0]["replies"]))
            cells = [f"{name}, {dtype}", f"{count / seconds:.2f}", spread, ratios[0], f"{whole:.1f}", ratios[1]]
            cells += [f"{processors:.1f}", ratios[2]]
            lines.append("| " + " | ".join(cells + [str(found[0]["tokens"]), f"{same} of {count}" if peer else ""]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
