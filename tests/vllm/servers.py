"""`vllm serve` in processes of its own, on one host or on two that are network namespaces of this one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VLLM = Path(sys.executable).with_name("vllm")
START_SECONDS = 400
ASK = Path(__file__).with_name("ask.py")


class Node:
    """A process of vLLM, its log, and how to run commands where it runs."""

    def __init__(self, arguments: list[str], log: Path, prefix: list[str], environment: dict[str, str]) -> None:
        self.log, self.prefix = log, prefix
        self.environment = os.environ | {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        self.environment |= environment
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*prefix, str(VLLM), "serve", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*self.prefix, *command], env=self.environment, capture_output=True, **options)

    def stop(self) -> None:
        """Its workers too: they are of the same session."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, signum)
            except ProcessLookupError:
                break
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()


class Server:
    def __init__(self, node: Node, host: str, port: int) -> None:
        self.node, self.url, self.host, self.port = node, f"http://{host}:{port}", host, port

    def ask(self, path: str, body: Any = None) -> Any:
        """The answer to a request from the server's own host, parsed if it is JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        result = self.node.run([sys.executable, str(ASK), self.url + path], input=data)
        if result.returncode:
            raise ConnectionError(result.stderr.decode()[-2000:])
        return json.loads(result.stdout) if result.stdout else None

    def wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ask("/health")
                return
            except ConnectionError:
                if self.node.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"vllm serve has not started:\n{self.node.log.read_text()[-6000:]}") from None
                time.sleep(2)

    def answers(self, model: Path, prompts: list[list[int]], tokens: int = 24) -> list[list[int]]:
        """Greedy, all prompts at the same time."""

        def answer(prompt: list[int]) -> list[int]:
            body = {"model": str(model), "prompt": prompt, "max_tokens": tokens, "temperature": 0}
            body |= {"ignore_eos": True, "return_token_ids": True}
            return self.ask("/v1/completions", body)["choices"][0]["token_ids"]

        with ThreadPoolExecutor(len(prompts)) as threads:
            return list(threads.map(answer, prompts))


@contextmanager
def serving(model: Path, log: Path, *options: str, port: int = 8123, **environment: str) -> Iterator[Server]:
    node = Node([str(model), "--host", "127.0.0.1", "--port", str(port), *options], log, [], environment)
    try:
        server = Server(node, "127.0.0.1", port)
        server.wait()
        yield server
    finally:
        node.stop()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Names of two network namespaces with a cable between them: 10.77.0.1 and 10.77.0.2. Needs root."""
    names = ["pagemill0", "pagemill1"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "pm-a", "netns", names[0], "type", "veth", "peer", "name", "pm-b", "netns", names[1])
        for i, (name, device) in enumerate(zip(names, ("pm-a", "pm-b"), strict=True)):
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def serving_from_two_hosts(model: Path, folder: Path, *options: str) -> Iterator[tuple[Server, list[Path]]]:
    """The server on the first host, and both logs."""
    logs = [folder / "node0.log", folder / "node1.log"]
    with two_hosts() as hosts:
        nodes = []
        try:
            for rank, (host, device) in enumerate(zip(hosts, ("pm-a", "pm-b"), strict=True)):
                here = {
                    "VLLM_HOST_IP": f"10.77.0.{rank + 1}",
                    "GLOO_SOCKET_IFNAME": device,
                    "VLLM_CPU_OMP_THREADS_BIND": str(rank % (os.cpu_count() or 1)),
                }
                arguments = [str(model), "--nnodes", "2", "--node-rank", str(rank), "--master-addr", "10.77.0.1"]
                arguments += ["--host", "10.77.0.1", "--port", "8123"] if rank == 0 else ["--headless"]
                nodes.append(Node([*arguments, *options], logs[rank], ["ip", "netns", "exec", host], here))
            server = Server(nodes[0], "10.77.0.1", 8123)
            server.wait()
            yield server, logs
        finally:
            for node in reversed(nodes):
                node.stop()
