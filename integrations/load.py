"""Judged pairs a second and latency of a reward service: many clients at once beside one client that asks one by one.

    saferl serve --reward recipes/reward.toml --port 8010
    python integrations/load.py http://127.0.0.1:8010 --clients 32 --items 256
"""

import argparse
import json
import threading
import time
import urllib.error
import urllib.request

WORDS = "bread river winter letter garden engine window teacher music harbour".split()


def item(number):
    """A prompt and a reply that no other number has, so that the cache does not answer."""
    reply = " ".join(WORDS[(number // 7**place + place) % len(WORDS)] for place in range(40))
    prompt = f"Write something about {WORDS[number % len(WORDS)]}, take {number} of {time.time_ns()}."
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"{number} {reply}."}]}


def run(url, clients, items):
    todo, lock, seconds, rejected, errors = list(range(items)), threading.Lock(), [], [0], [0]

    def client():
        while True:
            with lock:
                if not todo:
                    return
                number = todo.pop()
            body = json.dumps({"items": [item(number)]}).encode()
            started = time.perf_counter()
            while True:
                request = urllib.request.Request(url + "/v1/reward", body, {"Content-Type": "application/json"})
                try:
                    with urllib.request.urlopen(request, timeout=600) as answer:
                        errors[0] += "error" in json.load(answer)["items"][0]
                    break
                except urllib.error.HTTPError as error:
                    if error.code != 429:
                        raise
                    rejected[0] += 1
                    time.sleep(float(error.headers["Retry-After"]))
            seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    seconds.sort()
    at = lambda share: seconds[min(len(seconds) - 1, int(share * len(seconds)))] * 1000
    return {
        "clients": clients, "items": items, "pairs_per_s": round(items / took, 2), "p50_ms": round(at(0.5)),
        "p95_ms": round(at(0.95)), "p99_ms": round(at(0.99)), "rejected": rejected[0], "errors": errors[0],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--items", type=int, default=256)
    arguments = parser.parse_args()
    run(arguments.url, 1, 2)
    for clients in (1, arguments.clients):
        print(json.dumps(run(arguments.url, clients, arguments.items)))
