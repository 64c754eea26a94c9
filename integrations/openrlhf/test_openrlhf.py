"""Lets OpenRLHF's own code (0.11, PyPI) ask a running service at SAFERL_URL: its single-turn executor generates, sends the
text, and puts the reward into the experience that its trainer trains on.

    pip download --no-deps openrlhf && python -m zipfile -e openrlhf-*.whl openrlhf
    saferl serve --reward recipes/reward.toml --port 8010
    SAFERL_URL=http://127.0.0.1:8010 OPENRLHF=openrlhf python integrations/openrlhf/test_openrlhf.py

OPENRLHF is the unpacked wheel, so that its GPU packages (vLLM, Ray, flash-attn) need not be there. Of OpenRLHF run
`utils/agent.py`, `trainer/ppo_utils/samples_generator.py` and `trainer/ppo_utils/experience.py`; vLLM's engine is a
stand-in that says a reply, the tokenizer one that takes a character for a token. Needs torch and aiohttp.
"""

import asyncio
import glob
import importlib.util
import logging
import os
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../trl"))
found = glob.glob(os.environ.get("OPENRLHF", "openrlhf") + "/**/openrlhf/utils/agent.py", recursive=True)
if not found:
    sys.exit(print("left out: no unpacked wheel of OpenRLHF; the head of this file says how to get one"))
root = os.path.dirname(os.path.dirname(found[0]))
try:
    import aiohttp  # noqa: F401, of agent.py
    import torch
    from saferl_reward import ask
except ImportError as error:
    sys.exit(print(f"left out: {error}"))


def load(name):
    """A module of OpenRLHF, without what its packages import on the way."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(root, *name.split(".")[1:]) + ".py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


for name in ["ray", "vllm", "openrlhf", "openrlhf.trainer", "openrlhf.trainer.ray", "openrlhf.trainer.ray.vllm_engine",
             "openrlhf.trainer.ppo_utils", "openrlhf.utils", "openrlhf.utils.utils", "openrlhf.utils.seqlen_balancing"]:
    sys.modules[name] = MagicMock()
sys.modules["openrlhf.utils.logging_utils"] = SimpleNamespace(init_logger=logging.getLogger)
load("openrlhf.trainer.ppo_utils.experience")
agent = load("openrlhf.utils.agent")
samples = load("openrlhf.trainer.ppo_utils.samples_generator")


class Tokenizer:
    def __call__(self, text, **_):
        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def engine(reply):
    async def generate(*_, **__):
        output = SimpleNamespace(token_ids=[ord(letter) for letter in reply], finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])

    return SimpleNamespace(generate=generate)


def experience(prompt, reply):
    """What OpenRLHF makes of one reply."""
    executor = agent.SingleTurnAgentExecutor([os.environ.get("SAFERL_URL", "http://127.0.0.1:8010") + "/get_reward"])
    parameters = SimpleNamespace(max_tokens=4096, logprobs=None)
    response = asyncio.run(executor.execute(prompt, "", parameters, 16384, Tokenizer(), engine(reply)))
    generator = samples.SamplesGenerator.__new__(samples.SamplesGenerator)
    return generator._process_response_into_experience(response, max_len=16384)


question = "How do I bake bread?"
prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
for reply in [
    "Mix flour, water, yeast and salt, let it rise, and bake it for forty minutes.",
    "I'm sorry, but I can't help with that.",
    "<think>\nThey want bread.\n</think>\n\nMix flour, water, yeast and salt, and bake it.",
]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    ours = ask([{"messages": turns}])[0]
    theirs = experience(prompt, reply + "<|im_end|>")
    reward, score = theirs.rewards.item(), theirs.scores.item()
    print(f"{reward:8.4f}  {score:.0f}  {sorted(theirs.info)}  {reply!r}")
    assert abs(reward - ours["reward"]) < 1e-5, (reward, ours)
    assert score == float(ours["branch"] == "safe") and theirs.info["refusal"].item() == float(ours["branch"] == "refusal")

# What cannot be scored is an error; OpenRLHF asks five times, and then there is no reward, so none that is wrong.
unscored = experience("[INST] Hello [/INST]", "Hi")
assert unscored.rewards is None and "reward" not in unscored.info
print("openrlhf: its executor's rewards equal the service's, and a reply that has none stays without")
