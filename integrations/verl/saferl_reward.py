"""The saferl reward for verl's reward loop, asked of `saferl serve --reward RECIPE`.

    reward.custom_reward_function.path=integrations/verl/saferl_reward.py
    reward.custom_reward_function.name=compute_score

The data set's `extra_info` holds the conversation as `messages` (verl gives a reward function the reply alone).
SAFERL_URL is the service's address, SAFERL_API_KEY its key. verl has no place for a sample without a reward, so what
could not be scored after several attempts is an error and not a number.
"""

import asyncio
import json
import os
import urllib.error
import urllib.request


def ask(item):
    """The service's answer to one item."""
    url = os.environ.get("SAFERL_URL", "http://127.0.0.1:8010") + "/v1/reward"
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("SAFERL_API_KEY", "")}
    request = urllib.request.Request(url, json.dumps({"items": [item]}).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["items"][0]


async def compute_score(data_source, solution_str, ground_truth, extra_info=None, attempts=6, **_):
    """verl's score of one reply, with the parts of the reward beside."""
    messages = [dict(message) for message in extra_info["messages"]]
    item = {"messages": messages + [{"role": "assistant", "content": solution_str}]}
    for attempt in range(attempts):
        try:
            answer = await asyncio.to_thread(ask, item)
            if "reward" in answer:
                return {"score": answer["reward"], "safe": float(answer["branch"] != "unsafe"),
                        "refusal": float(answer["branch"] == "refusal")}
            cause = answer["error"]
        except urllib.error.HTTPError as error:
            cause = f"status {error.code}: {error.read().decode()[:300]}"
            if error.code not in (429, 502, 503, 504):
                break
        except OSError as error:
            cause = str(error)
        await asyncio.sleep(min(30, 2**attempt))
    raise RuntimeError(f"saferl could not score a reply: {cause}")
