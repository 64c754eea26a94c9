"""Judged pairs a second and latency of a reward service: many clients at once beside one client that asks one by one.

    saferl serve --reward recipes/reward.toml --port 8010
    python integrations/load.py http://127.0.0.1:8010 --clients 32 --items 256

Exits 1 where a pair was not judged.
"""

import argparse
import collections
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

WORDS = "bread river winter letter garden engine window teacher music harbour".split()


def item(number):
    """A prompt and a reply that no other number has, so that the cache does not answer."""
    reply = " ".join(WORDS[(number // 7**place + place) % len(WORDS)] for place in range(40))
    prompt = f"Write something about {WORDS[number % len(WORDS)]}, take {number} of {time.time_ns()}."
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"{number} {reply}."}]}


def judge(url, number):
    """Why the service did not judge a pair, or None; and how often it said that it is busy."""
    body, rejected = json.dumps({"items": [item(number)]}).encode(), 0
    while True:
        request = urllib.request.Request(url + "/v1/reward", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)["items"][0].get("error"), rejected
        except urllib.error.HTTPError as error:
            if error.code != 429:
                return f"status {error.code}: {error.read()[:200].decode(errors='replace')}", rejected
            rejected += 1
            time.sleep(float(error.headers.get("Retry-After", 1)))
        except (OSError, http.client.HTTPException) as error:
            return repr(error), rejected


def run(url, clients, items):
    def timed(number):
        started = time.perf_counter()
        return *judge(url, number), time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(timed, range(items)))
    took = time.perf_counter() - started
    failed = collections.Counter(error for error, _, _ in answers if error)
    seconds = sorted(seconds for error, _, seconds in answers if not error)
    at = lambda share: round(seconds[min(len(seconds) - 1, int(share * len(seconds)))] * 1000) if seconds else None
    # Speed and latency are those of pairs that were judged; the others are told apart.
    return {
        "clients": clients, "items": items, "pairs_per_s": round(len(seconds) / took, 2), "p50_ms": at(0.5),
        "p95_ms": at(0.95), "p99_ms": at(0.99), "rejected": sum(rejected for _, rejected, _ in answers), "failed": failed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--items", type=int, default=256)
    arguments = parser.parse_args()
    run(arguments.url, 1, 2)
    figures = [run(arguments.url, clients, arguments.items) for clients in (1, arguments.clients)]
    print(*map(json.dumps, figures), sep="\n")
    sys.exit(any(figure["failed"] for figure in figures))
