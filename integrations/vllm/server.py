"""Servers for the tests beside this file: where the programs are, and a server that lives as long as a block. Standard library alone."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

saferl = os.environ.get("SAFERL") or shutil.which("saferl")
vllm = os.path.join(os.path.dirname(sys.executable), "vllm")
if not saferl or not os.path.exists(vllm):
    sys.exit(print("left out: no `saferl` on the path and none in SAFERL, or no `vllm` beside this Python"))
ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
               "SAFERL_API_KEY": ""}


@contextlib.contextmanager
def server(command):
    """A server, by its address, once it answers /health; killed at the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=os.environ | ENVIRONMENT, stdout=log,
                                   stderr=log, start_new_session=True)
        try:
            for _ in range(300):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command[:3]} ended: {log.read().decode()[-2000:]}")
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
