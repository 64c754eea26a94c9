"""Many requests, a third of which hang up in the middle, against a live `saferl serve`; then memory and metrics.

    saferl serve tiny-qwen3 --port 8000 & python tests/clients/soak.py http://127.0.0.1:8000 PID [REQUESTS]

Prints the server's resident memory as it goes. Exits 1 if a request fails otherwise than by a 429, if requests stay open,
or if memory grows by more than a tenth after the first fifth of the requests. Standard library alone.
"""

import concurrent.futures
import http.client
import json
import random
import re
import sys
import time
import urllib.parse

url = urllib.parse.urlparse(sys.argv[1])
pid = int(sys.argv[2])
count = int(sys.argv[3]) if len(sys.argv) > 3 else 10_000


def memory_mb():
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024


def request(index):
    choice = random.Random(index)
    hangs_up = choice.random() < 1 / 3
    body = {
        "messages": [{"role": "user", "content": "word " * choice.randrange(1, 60)}],
        "max_tokens": choice.randrange(1, 60),
        "n": choice.choice([1, 1, 1, 2, 4]),
        "seed": index,
        "stream": hangs_up or choice.random() < 0.5,
    }
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=120)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        if hangs_up and choice.random() < 0.3:
            return "hung up"
        response = connection.getresponse()
        if response.status != 200:
            return str(response.status)
        if hangs_up:
            response.read(choice.randrange(1, 2000))
            return "hung up"
        text = response.read().decode()
        whole = text.rstrip().endswith("data: [DONE]") if body["stream"] else "usage" in json.loads(text)
        return "done" if whole else "cut off"
    finally:
        connection.close()


outcomes = {}
marks = []
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for start in range(0, count, max(1, count // 10)):
        end = min(count, start + max(1, count // 10))
        for outcome in pool.map(request, range(start, end)):
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        marks.append(memory_mb())
        print(f"{end} requests, {marks[-1]:.1f} MB", flush=True)

time.sleep(2)
# A request more, so that the engine looks around once again and drops whoever hung up last.
request(0)
connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
connection.request("GET", "/metrics")
metrics = connection.getresponse().read().decode()
still_open = re.findall(r"^saferl_requests_open\{.*\} (\S+)$", metrics, re.M)
print(outcomes, "open:", still_open)
fine = set(outcomes) <= {"done", "hung up", "429"} and all(float(n) == 0 for n in still_open)
sys.exit(not (fine and marks[-1] <= marks[1] * 1.1))
