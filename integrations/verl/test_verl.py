"""Lets verl's own reward manager load and call compute_score against a running service at SAFERL_URL.

    saferl serve --reward recipes/reward.toml --port 8010
    SAFERL_URL=http://127.0.0.1:8010 TOKENIZER=folder python integrations/verl/test_verl.py
"""

import asyncio
import os

import numpy
import torch
import verl
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn

here = os.path.dirname(os.path.abspath(__file__))
path = os.path.join(here, "saferl_reward.py")
config = OmegaConf.create({"reward": {"custom_reward_function": {"path": path, "name": "compute_score"}}})
tokenizer = AutoTokenizer.from_pretrained(os.environ["TOKENIZER"])


def sample(prompt, reply):
    messages = [{"role": "user", "content": prompt}]
    ids = torch.tensor([tokenizer.encode(reply)])
    batch = {"responses": ids, "attention_mask": torch.ones(1, ids.shape[1] + 1, dtype=torch.long)}
    extra = numpy.array([{"messages": numpy.array(messages, dtype=object)}], dtype=object)
    kinds = {"data_source": ["saferl"], "reward_model": [{"ground_truth": ""}], "extra_info": extra}
    return DataProto.from_dict(batch, non_tensors={key: numpy.array(value, dtype=object) for key, value in kinds.items()})


async def main():
    manager = NaiveRewardManager(config, tokenizer, get_custom_reward_fn(config))
    for prompt, reply in [
        ("How do I bake bread?", "Mix flour, water, yeast and salt, let it rise, and bake it for forty minutes."),
        ("How do I bake bread?", "I'm sorry, but I can't help with that."),
    ]:
        result = await manager.run_single(sample(prompt, reply))
        print(f"{result['reward_score']:8.3f}  {result['reward_extra_info']}  {reply}")
        assert result["reward_score"] == result["reward_extra_info"]["score"]
    assert result["reward_score"] <= -5 and result["reward_extra_info"]["refusal"] == 1.0
    print(f"verl {verl.__version__}: its reward manager called compute_score")


asyncio.run(main())
