"""The reward service as a resources server of NeMo-Gym (0.7): becomes `saferl serve --reward RECIPE` at the host and port
that NeMo-Gym chose, which answers /seed_session, /verify and /aggregate_metrics. `saferl` must be on the path.
"""

import os

from nemo_gym.global_config import get_first_server_config_dict, get_global_config_dict

name = os.environ["NEMO_GYM_CONFIG_PATH"]
config = get_first_server_config_dict(get_global_config_dict(), name)
address = ["--host", config.host, "--port", str(config.port)]
os.execvp("saferl", ["saferl", "serve", "--reward", config.recipe, *address])
