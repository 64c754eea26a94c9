"""The saferl reward for TRL's GRPOTrainer (1.16 or later), asked of `saferl serve --reward RECIPE`.

    trainer = GRPOTrainer(model, reward_funcs=saferl_reward, ...)      or      reward_funcs: [saferl_reward.saferl_reward]

SAFERL_URL is the service's address, SAFERL_API_KEY its key. A completion that could not be scored gets None, which TRL
leaves out of its group's mean and gradient (before 1.16 it made a 0 of it); what the service cannot answer is an error.
"""

import asyncio
import json
import os
import time
import urllib.error
import urllib.request


def ask(items, attempts=8):
    """The service's answer to items, asked again while it is busy or away."""
    url = os.environ.get("SAFERL_URL", "http://127.0.0.1:8010") + "/v1/reward"
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("SAFERL_API_KEY", "")}
    request = urllib.request.Request(url, json.dumps({"items": items}).encode(), headers)
    for attempt in range(attempts):
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)["items"]
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            passing = getattr(error, "code", 503) in (429, 502, 503, 504)
            if not passing or attempt + 1 == attempts:
                raise
            retry_after = getattr(error, "headers", None) and error.headers.get("Retry-After")
            time.sleep(float(retry_after or 2**attempt))


async def saferl_reward(prompts, completions, messages=None, log_metric=None, **_):
    """The reward of each completion; `messages`, a column of the data set, says what a templated prompt was made of."""
    turns = lambda text, role: [{"role": role, "content": text}] if isinstance(text, str) else list(text)
    pairs = zip(messages or prompts, completions, strict=True)
    items = [{"messages": turns(prompt, "user") + turns(completion, "assistant")} for prompt, completion in pairs]
    answers = await asyncio.to_thread(ask, items)
    if log_metric:
        log_metric("saferl/unscorable", sum("error" in answer for answer in answers) / max(1, len(answers)))
    return [answer.get("reward") for answer in answers]
