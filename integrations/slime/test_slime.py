"""Lets slime's own reward hub (`slime/rollout/rm_hub/__init__.py`) ask a running service at SAFERL_URL, as its rollouts do.

    git clone https://github.com/THUDM/slime          # it is not on PyPI; the package of that name there is another one
    saferl serve --reward recipes/reward.toml --port 8010
    SAFERL_URL=http://127.0.0.1:8010 SLIME=slime python integrations/slime/test_slime.py

Of slime runs that one file; what it imports of slime, a sample and the rule-based rewards, are stand-ins. Needs aiohttp.
"""

import asyncio
import importlib.util
import os
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../trl"))
path = os.path.join(os.environ.get("SLIME", "slime"), "slime/rollout/rm_hub/__init__.py")
if not os.path.isfile(path):
    sys.exit(print("left out: no checkout of slime; the head of this file says how to get one"))
try:
    import aiohttp
    from saferl_reward import ask
except ImportError as error:
    sys.exit(print(f"left out: {error}"))
for name in ["slime", "slime.utils", "slime.utils.misc", "slime.utils.types"]:
    sys.modules[name] = MagicMock()
for name in ["deepscaler", "f1", "gpqa", "math_dapo_utils", "math_utils", "opencua_click"]:
    sys.modules[f"rm_hub.{name}"] = MagicMock()
spec = importlib.util.spec_from_file_location("rm_hub", path, submodule_search_locations=[])
rm_hub = importlib.util.module_from_spec(spec)
sys.modules["rm_hub"] = rm_hub
spec.loader.exec_module(rm_hub)

question = [{"role": "user", "content": "How do I bake bread?"}]
templated = "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n"
replies = [
    "Mix flour, water, yeast and salt, let it rise, and bake it for forty minutes.",
    "I'm sorry, but I can't help with that.",
]
service = os.environ.get("SAFERL_URL", "http://127.0.0.1:8010")


def sample(prompt, reply):
    return SimpleNamespace(prompt=prompt, response=reply, label=None, metadata={}, custom_rm_path=None)


async def main():
    ours = [answer["reward"] for answer in ask([{"messages": [*question, {"role": "assistant", "content": reply}]} for reply in replies])]
    # With --apply-chat-template a sample's prompt is text, without it the messages.
    for prompt in (templated, question):
        samples = [sample(prompt, reply) for reply in replies]
        for path, part in [("/slime", lambda reward: reward), ("/slime/parts", lambda reward: reward["reward"])]:
            arguments = SimpleNamespace(rm_type="remote_rm", rm_url=service + path, custom_rm_path=None)
            rewards = [part(reward) for reward in await rm_hub.batched_async_rm(arguments, samples)]
            assert max(abs(theirs - reward) for theirs, reward in zip(rewards, ours, strict=True)) < 1e-5, (rewards, ours)
            print(f"{path:13} {rewards}")
    # What cannot be scored is an error to slime too, once it has tried as often as it is told.
    arguments = SimpleNamespace(rm_url=service + "/slime")
    try:
        reward = await rm_hub.remote_rm(arguments, sample("[INST] Hello [/INST]", "Hi"), max_retries=2)
    except aiohttp.ClientResponseError as error:
        assert error.status == 503, error
    else:
        raise AssertionError(f"expected no reward, found {reward}")
    await rm_hub._get_shared_session().close()
    print("slime: its reward hub's rewards equal the service's, and a reply that has none is an error")


asyncio.run(main())
