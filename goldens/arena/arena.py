"""Makes goldens/arena/win_rates.json: win rates with style control, by Arena-Hard's own code.

    git clone https://github.com/lmarena/arena-hard-auto
    python goldens/arena/arena.py arena-hard-auto > goldens/arena/win_rates.json

The features are random numbers; what is held equal is the fit and the win rate that follows from it.
"""

import json
import random
import sys

sys.path.insert(0, sys.argv[1])
import torch
from utils.math_utils import fit_pairwise_model, one_hot_encode, to_winrate_probabilities


def case(seed, games, lean):
    draw = random.Random(seed)
    style = [[round(draw.gauss(0, 1), 4) for _ in range(4)] for _ in range(games)]
    outcome = [draw.choices([0.0, 0.5, 1.0], [1, 0.3, lean])[0] for _ in range(games)]
    strength, models = one_hot_encode(["model"] * games, baseline="o3-mini-2025-01-31")
    features = torch.cat([strength, torch.tensor(style)], dim=1)
    weights, _ = fit_pairwise_model(features, torch.tensor(outcome))
    rates = to_winrate_probabilities(weights[None, :-4], models)
    games = [{"style": row, "outcome": won} for row, won in zip(style, outcome)]
    return {"games": games, "win_rate": round(float(rates[0, models.index("model")]), 6)}


cases = [case(1, 40, 1.0), case(2, 60, 3.0), case(3, 60, 0.2)]
print(json.dumps({"versions": {"torch": torch.__version__, "arena-hard-auto": "a9e743c"}, "cases": cases}))
