"""A vLLM server of this environment: it is started here, and asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "served"


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        address: `http://host:port`.
        process: its first process.
    """

    address: str
    process: subprocess.Popen[bytes]

    def is_healthy(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.address}/health", timeout=10).status == 200
        except OSError:
            return False

    def metric(self, name: str) -> float:
        """The largest value of a metric that the server reports."""
        text = urllib.request.urlopen(f"{self.address}/metrics", timeout=10).read().decode()
        return max(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def open(self, body: dict[str, Any], timeout: float = 600) -> Any:
        """Send a chat completion; the response, to be read.

        Raises:
            urllib.error.HTTPError: the server refuses it.
        """
        request = urllib.request.Request(
            f"{self.address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=timeout)

    def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status of a chat completion, and what came back."""
        try:
            with self.open(body) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")


@contextlib.contextmanager
def serving(model: Path | str, *arguments: str, log: Path, patience: float = 900) -> Iterator[Server]:
    """A server of this model, under the name `NAME`, which lives as long as the block.

    Args:
        model: a checkpoint.
        arguments: more of the server's.
        log: where it prints.
        patience: seconds until it has to answer.

    Raises:
        RuntimeError: it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the module, because a vLLM for CPUs brings no command
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", NAME,
        "--host", "127.0.0.1", "--port", str(port), *arguments,
    ]  # fmt: skip
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, env=environment)
    server = Server(f"http://127.0.0.1:{port}", process)
    end = time.monotonic() + patience
    try:
        while not server.is_healthy():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-6000:]}")
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
