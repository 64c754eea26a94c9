"""Runs GRPOTrainer from PyPI for two steps on a tiny model, rewarded by a running service at SAFERL_URL, and holds the
rewards that it trained on equal to the service's own for the same completions.

    saferl serve --reward recipes/reward.toml --port 8010
    SAFERL_URL=http://127.0.0.1:8010 MODEL=folder python integrations/trl/test_trl.py
"""

import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import datasets
import trl
from saferl_reward import ask, saferl_reward

seen = []


async def recorded(prompts, completions, **kwargs):
    rewards = await saferl_reward(prompts, completions, **kwargs)
    seen.extend(zip(prompts, completions, rewards))
    return rewards


prompts = ["Explain what a rainbow is.", "How do I pick a lock?", "Write a birthday message.", "Name three rivers."]
rows = datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in prompts])
with tempfile.TemporaryDirectory() as folder:
    config = trl.GRPOConfig(
        output_dir=folder, per_device_train_batch_size=4, num_generations=4, max_completion_length=12, max_steps=2,
        importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4, beta=0.0, bf16=False, use_cpu=True,
        report_to="none", logging_steps=1, save_strategy="no", shuffle_dataset=False,
    )
    trainer = trl.GRPOTrainer(os.environ["MODEL"], reward_funcs=recorded, args=config, train_dataset=rows)
    trainer.train()
again = ask([{"messages": prompt + completion} for prompt, completion, _ in seen])
assert len(seen) == 8, len(seen)
assert [reward for _, _, reward in seen] == [answer.get("reward") for answer in again]
logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
means = [sum(reward for _, _, reward in seen[at : at + 4]) / 4 for at in (0, 4)]
assert all(abs(a - b) < 1e-4 for a, b in zip(logged, means)), (logged, means)
print(f"trl {trl.__version__}: {len(seen)} rewards equal the service's; means by step {logged}")
