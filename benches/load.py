"""Servers under load: ours beside llama.cpp's, a soak, kill and restart, and the reward service.

    python benches/load.py serve   [--model NAME --dtype f32,bf16] [--gguf FILE,... --llama FOLDER] [--vllm PROGRAM --checkpoint FOLDER]
                                   [--requests N] [--rounds N]
    python benches/load.py soak    [--model NAME] [--requests 10000] [--share 0.3] [--growth 0.1]
    python benches/load.py restart [--model NAME] [--kills 3] [--seconds 10]
    python benches/load.py reward  [--recipe recipes/reward.toml] [--requests 512] [--rounds N]

Every work also takes --saferl PROGRAM, --threads N (of each server) and --clients (how many at once). It starts each
server itself, on loopback and a free port, and kills it at the end. `serve` drives our server on NAME in each type, the
`llama-server` in FOLDER on each FILE, and `vllm` in bf16 on the CPU (its build for the CPU) on a Hugging Face folder. All figures are taken from the clients' side, all clients being threads of this
process, with a new connection for each request. Exits 1 where something failed, or what `soak` and `restart` are to
show does not hold. Standard library alone; needs /proc.
"""

import argparse
import collections
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from against_peers import kind, machine

TASKS = ("Tell me a long story about", "Explain to a child", "Write a letter to a friend about", "Write a poem about")
TOPICS = ("the keeper of a lighthouse.", "the bees in a hive.", "how bread is baked.", "a river from its spring to the sea.")
PROMPTS = [f"{task} {topic}" for task in TASKS for topic in TOPICS]
OURS = {"model": "smollm2-135m", "dtype": "f32"}
# The options of each work and what they are where nothing is said.
OPTIONS = {
    "serve": {**OURS, "gguf": "", "llama": "", "vllm": "", "checkpoint": "", "clients": "1,8,32", "requests": 4, "tokens": 64, "rounds": 3},
    "soak": {**OURS, "clients": "16", "requests": 10_000, "share": 0.3, "growth": 0.1},
    "restart": {**OURS, "clients": "8", "tokens": 64, "kills": 3, "seconds": 10.0},
    "reward": {"recipe": "recipes/reward.toml", "clients": "1,8,64", "requests": 512, "rounds": 3},
}
# How long a server may take until it answers /health, and for one reply.
START_S, REPLY_S = 300, 600


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = parser.add_subparsers(dest="work", required=True)
    for name, options in OPTIONS.items():
        work = works.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for option, default in {"saferl": "target/release/saferl", "threads": os.cpu_count(), **options}.items():
            work.add_argument(f"--{option}", default=default, type=type(default), help=" ")
    arguments = parser.parse_args(namespace=argparse.Namespace(clock="wall"))
    arguments.clients = [int(clients) for clients in arguments.clients.split(",")]
    return {"serve": serve, "soak": soak, "restart": restart, "reward": reward}[arguments.work](arguments)


class Server:
    """A server's process: started on entry and answering, killed on exit, whatever happens in between."""

    def __init__(self, arguments, command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        # Ours has no option for threads; its kernels ask rayon. A key would only be in the way.
        self.environment = {**os.environ, "RAYON_NUM_THREADS": str(arguments.threads), "SAFERL_API_KEY": ""}
        # vLLM sizes its room for keys and values by the machine, and asks its makers' host how it is used, where it is let.
        self.environment |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = tempfile.TemporaryFile()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, env=self.environment, start_new_session=True)
        try:
            end = time.perf_counter() + START_S
            while not self.healthy():
                if self.process.poll() is not None or time.perf_counter() > end:
                    self.log.seek(0)
                    said = self.log.read().decode(errors="replace")[-1000:]
                    raise OSError(f"`{' '.join(self.command)}` does not serve; it said: {said}")
                time.sleep(0.02)
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    __enter__, __exit__ = start, kill

    def healthy(self):
        with contextlib.suppress(OSError, http.client.HTTPException), self.ask("/health") as response:
            return response.status == 200
        return False

    @contextlib.contextmanager
    def ask(self, path, body=None):
        """The response to a POST of the body, or to a GET where there is none; its connection is closed at the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REPLY_S)
        try:
            connection.request("POST" if body else "GET", path, body and json.dumps(body), {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def metric(self, name):
        """The sum over its labels."""
        with self.ask("/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((name + " ", name + "{")))

    def memory_mb(self, key="VmRSS"):
        """Resident memory of the server and its processes, mapped files included; with `VmHWM` the most it was of each."""
        total, todo = 0, [self.process.pid]
        while todo:
            folder = f"/proc/{todo.pop()}"
            with open(f"{folder}/status", encoding="utf-8") as status:
                total += next((int(line.split()[1]) for line in status if line.startswith(key)), 0)
            for thread in os.listdir(f"{folder}/task"):
                with open(f"{folder}/task/{thread}/children", encoding="utf-8") as children:
                    todo += children.read().split()
        return total / 1024


def chat(server, text, tokens, leave_after=None):
    """What a client sees of a streamed completion at temperature 0; after `leave_after` pieces of text it hangs up."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    reply, start, pieces = SimpleNamespace(text="", tokens=0, first=0, outcome="cut off"), time.perf_counter(), 0
    try:
        with server.ask("/v1/chat/completions", body) as response:
            if response.status != 200:
                reply.outcome = f"status {response.status}"
                return reply
            # A line without an end is one that the server's death cut off.
            while pieces != leave_after and (line := response.readline()).endswith(b"\n"):
                if line.startswith(b"data: [DONE]"):
                    reply.outcome = "whole"
                    return reply
                chunk = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if "error" in chunk:
                    reply.outcome = f"error in the stream: {chunk['error']}"
                    return reply
                reply.tokens = (chunk.get("usage") or {}).get("completion_tokens", reply.tokens)
                delta = chunk["choices"][0]["delta"] if chunk.get("choices") else {}
                if piece := (delta.get("reasoning_content") or "") + (delta.get("content") or ""):
                    reply.first = reply.first or time.perf_counter() - start
                    reply.text += piece
                    pieces += 1
            reply.outcome = "hung up" if pieces == leave_after else reply.outcome
    except (OSError, http.client.HTTPException) as error:
        reply.outcome = type(error).__name__
    return reply


def drive(clients, todo, work):
    """As many threads as clients work off the list; the results, and the seconds it took."""
    start, pool = time.perf_counter(), ThreadPoolExecutor(clients)
    try:
        return list(pool.map(work, todo)), time.perf_counter() - start
    finally:
        # Without waiting: after an interruption, it is the server's end that ends those under way.
        pool.shutdown(wait=False, cancel_futures=True)


def show(*cells):
    print("| " + " | ".join(map(str, cells)) + " |")


def cells(speeds, seconds, *shares):
    """Median and spread of the speeds, and percentiles of the seconds, as a table has them."""
    speed, ordered = statistics.median(speeds), sorted(seconds)
    percentiles = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in shares]
    return f"{speed:.2f}", f"{(max(speeds) - min(speeds)) / speed:.0%}", *(f"{each * 1000:.0f} ms" for each in percentiles)


def contenders(arguments):
    """Names and commands: ours for each type, llama.cpp's for each file, vLLM's."""
    for dtype in arguments.dtype.split(","):
        yield f"saferl {dtype}", [arguments.saferl, "serve", arguments.model, "--dtype", dtype]
    threads, slots = str(arguments.threads), max(arguments.clients)
    for gguf in filter(None, arguments.gguf.split(",")):
        # Every client has a slot of 512 tokens. Every prompt is new, so that a store of old ones would only take memory.
        command = [os.path.join(arguments.llama, "llama-server"), "-m", gguf, "-np", str(slots), "-c", str(512 * slots)]
        yield f"llama.cpp {kind(gguf)}", [*command, "-t", threads, "-tb", threads, "-cram", "0", "--no-webui"]
    if arguments.vllm:
        command = [arguments.vllm, "serve", arguments.checkpoint, "--served-model-name", "default", "--dtype", "bfloat16"]
        yield "vLLM bf16", [*command, "--max-model-len", "512", "--max-num-seqs", str(slots)]


def serve(arguments):
    """Rounds go over all servers in turn, so that whatever else the machine does falls on everybody."""
    found, failed = {clients: {} for clients in arguments.clients}, collections.Counter()
    for number in range(arguments.rounds):
        for name, command in contenders(arguments):
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            try:
                with Server(arguments, command) as server:
                    chat(server, PROMPTS[0], 8)
                    for clients in found:
                        measure(arguments, number, server, clients, found[clients].setdefault(name, collections.defaultdict(list)))
            except OSError as error:
                failed[f"{name}: {error}"] += 1
    failed.update(f"{name}, {outcome}" for by in found.values() for name in by for outcome in by[name]["failed"])
    print(machine(arguments), "Ratios above 1: ours is faster.\n")
    serve_table(found)
    print(*(f"\nFailed: {what} ({times} x)" for what, times in sorted(failed.items())), sep="\n")
    return bool(failed)


def measure(arguments, number, server, clients, figures):
    # The same prompts for every server, and none twice: numbers in front keep the prefix caches out of it.
    texts = [f"Task {number}.{clients}.{take}: {PROMPTS[take % len(PROMPTS)]}" for take in range(clients * arguments.requests)]
    replies, seconds = drive(clients, texts, lambda text: chat(server, text, arguments.tokens))
    whole = [reply for reply in replies if reply.outcome == "whole"]
    figures["failed"] += [f"{clients} clients: {reply.outcome}" for reply in replies if reply.outcome != "whole"]
    figures["speed"] += [sum(reply.tokens for reply in whole) / seconds] if whole else []
    figures["tokens"] += [reply.tokens for reply in whole]
    figures["first"] += [reply.first for reply in whole]
    figures["memory"].append(server.memory_mb("VmHWM"))


def serve_table(found):
    own = list(dict.fromkeys(name for by_name in found.values() for name in by_name if name.startswith("saferl")))
    heads = ["clients", "server", "tokens/s", "spread", "first token, median", "p95", "tokens a reply", "peak RSS"]
    show(*heads, *(f"{name} is x: tokens/s, first token" for name in own))
    show(*["---"] * (len(heads) + len(own)))
    for clients, by_name in found.items():
        by_name = {name: figures for name, figures in by_name.items() if figures["first"]}
        middle = {name: [statistics.median(by_name[name][what]) for what in ("speed", "first")] for name in by_name}
        for name, figures in by_name.items():
            sizes = f"{statistics.mean(figures['tokens']):.1f}", f"{max(figures['memory']):.0f} MiB"
            row = [clients, name, *cells(figures["speed"], figures["first"], 0.5, 0.95), *sizes]
            (speed, first), compared = middle[name], [middle.get(other) if name not in own else None for other in own]
            show(*row, *(f"{other[0] / speed:.2f}, {first / other[1]:.2f}" if other else "" for other in compared))


def soak(arguments):
    """Many short requests, some of whose clients hang up at any time: memory is to stay, and nothing to be left."""
    outcomes, memory, lock = collections.Counter(), [], threading.Lock()
    quarters = {arguments.requests * quarter // 4 for quarter in (1, 2, 3)}

    def mark():
        memory.append(server.memory_mb())
        print(f"after {outcomes.total()} requests: {memory[-1]:.1f} MiB", flush=True)

    def request(number):
        choice = random.Random(number)
        leave_after = choice.randrange(8) if choice.random() < arguments.share else None
        # Who hangs up has asked for more, so that there is something left to cancel.
        tokens = 8 if leave_after is None else 64
        reply = chat(server, f"Task {number}: {PROMPTS[number % len(PROMPTS)]}", tokens, leave_after)
        with lock:
            outcomes[reply.outcome] += 1
            if outcomes.total() in quarters:
                mark()

    with Server(arguments, next(contenders(arguments))[1]) as server:
        chat(server, PROMPTS[0], 8)
        mark()
        _, seconds = drive(arguments.clients[0], range(arguments.requests), request)
        end = time.perf_counter() + 30
        while (left := server.metric("saferl_requests_open")) and time.perf_counter() < end:
            time.sleep(0.1)
        time.sleep(1)
        mark()
        healthy, cancelled = server.healthy(), server.metric("saferl_cancelled_total")
        print(f"{seconds:.0f} s, {dict(outcomes)}; server cancelled {cancelled:.0f}, peak {server.memory_mb('VmHWM'):.1f} MiB")
    growth = memory[-1] / memory[1] - 1
    print(f"afterwards: healthy {healthy}, requests open {left:.0f}, memory since the first quarter {growth:+.1%}")
    return not (set(outcomes) <= {"whole", "hung up", "status 429"} and healthy and not left and growth <= arguments.growth)


def restart(arguments):
    """Kills the server under load: clients see errors and cut replies, and not one that is another than before."""
    outcomes, wrong, stop, lock = collections.Counter(), [], threading.Event(), threading.Lock()

    def client(number):
        choice = random.Random(number)
        while not stop.is_set():
            text = choice.choice(PROMPTS)
            reply = chat(server, text, arguments.tokens)
            whole = reply.outcome == "whole"
            right = reply.text == before[text] if whole else before[text].startswith(reply.text)
            where = " in mid-reply" if reply.text and not whole else ""
            with lock:
                outcomes[reply.outcome + where + ("" if right else ", WRONG")] += 1
                wrong.extend([] if right else [(text, reply.text)])
            stop.wait(0 if whole else 0.05)

    with ThreadPoolExecutor(arguments.clients[0]) as pool, Server(arguments, next(contenders(arguments))[1]) as server:
        recorded = [chat(server, text, arguments.tokens) for text in PROMPTS]
        before = {text: reply.text for text, reply in zip(PROMPTS, recorded)}
        clients = [pool.submit(client, number) for number in range(arguments.clients[0])]
        try:
            for _ in range(arguments.kills):
                time.sleep(arguments.seconds)
                killed = time.perf_counter()
                server.kill()
                server.start()
                healthy = time.perf_counter() - killed
                reply = chat(server, PROMPTS[0], arguments.tokens)
                print(f"killed: healthy after {healthy:.2f} s, first text of a {reply.outcome} reply {reply.first:.2f} s later", flush=True)
            time.sleep(arguments.seconds)
        finally:
            stop.set()
        # A client's own error is to be seen.
        _ = [thread.result() for thread in clients]
    print("; ".join(f"{times} x {what}" for what, times in sorted(outcomes.items())))
    for text, reply in wrong[:5]:
        at = len(os.path.commonprefix([reply, before[text]]))
        others = [other for other in PROMPTS if other != text and before[other].startswith(reply[:20])]
        print(f"{text}: from character {at} {reply[at:at + 40]!r}, not {before[text][at:at + 40]!r}; begins as {others}")
    return bool(wrong) or not outcomes["whole"] or {reply.outcome for reply in recorded} != {"whole"}


def reward(arguments):
    """Judged pairs a second and latency: many clients beside one that asks one by one. One pair a request."""
    found, outcomes = {clients: ([], []) for clients in arguments.clients}, collections.Counter()

    def judge(number):
        # No other number has this pair, so that the cache does not answer.
        words = random.Random(number).choices(" ".join(PROMPTS).split(), k=40)
        turns = [("user", f"Request {number}: {PROMPTS[number % len(PROMPTS)]}"), ("assistant", " ".join(words))]
        body = {"items": [{"messages": [{"role": role, "content": content} for role, content in turns]}]}
        start = time.perf_counter()
        try:
            with server.ask("/v1/reward", body) as response:
                text = response.read().decode()
            judged = response.status == 200 and "reward" in json.loads(text)["items"][0]
            outcome = "judged" if judged else f"status {response.status}: {text[:200]}"
        except (OSError, http.client.HTTPException) as error:
            outcome = type(error).__name__
        return time.perf_counter() - start, outcome

    with Server(arguments, [arguments.saferl, "serve", "--reward", arguments.recipe]) as server:
        judge(-1)
        for _ in range(arguments.rounds):
            for clients, (speeds, latencies) in found.items():
                taken = outcomes.total()
                answers, seconds = drive(clients, range(taken, taken + arguments.requests), judge)
                outcomes.update(outcome for _, outcome in answers)
                # What was not judged is no speed, and its latency no service's; it is told at the end.
                judged = [latency for latency, outcome in answers if outcome == "judged"]
                speeds.append(len(judged) / seconds)
                latencies += judged
        peak = server.memory_mb("VmHWM")
    print(machine(arguments), end="\n\n")
    show("clients", "pairs/s", "spread", "median", "p95", "p99", "pairs/s, x the first row's")
    show(*["---"] * 7)
    for clients, (speeds, latencies) in found.items():
        if not all(speeds + found[arguments.clients[0]][0]):
            continue
        ratio = statistics.median(speeds) / statistics.median(found[arguments.clients[0]][0])
        show(clients, *cells(speeds, latencies, 0.5, 0.95, 0.99), f"{ratio:.2f}")
    print(f"\n{dict(outcomes)}; peak RSS {peak:.0f} MiB.")
    return set(outcomes) != {"judged"}


if __name__ == "__main__":
    sys.exit(main())
