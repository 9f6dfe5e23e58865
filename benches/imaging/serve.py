"""Measures the cost of an image in the whole server, compared with a bare loop over sharp.

Starts `safelight serve` on a free port with a temporary data directory and uploads one photograph
repeatedly, each time with other bytes at its end so that no upload equals another. The CPU time of
the server and of all its children counts: it decodes in child processes.
"""

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from corpus import Picture
from engines import ROOT, Fleet, Variant, request_for
from results import Served

SERVER = ROOT / "target/release/safelight"
UPLOADS = 40
WARM_UP = 4
IDLE_S = 4.0
# After the last task the server still cleans up; that is part of the cost of the images.
SETTLE_S = 1.0
READY_S = 30
TASK_S = 120
RENDITIONS = 3

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PEERS = (Variant("sharp", "usual"), Variant("sharp", "best"))


class ServeError(Exception):
    """The server could not be measured; the second argument is a hint."""


def measure(photo: Picture, folder: Path, *, optimize: bool) -> Served:
    """Raises ServeError."""
    if not SERVER.is_file():
        raise ServeError(
            f"no {SERVER.relative_to(ROOT)}", "cargo build --release --workspace --bins"
        )
    # Half of sharp's loop runs before the server and half after it, so that a change of the machine's
    # speed affects both.
    loops = {peer: [sharp_ms(photo, peer, folder, optimize)] for peer in PEERS}
    with running_server(folder) as (pid, client):
        served_ms, idle = measure_uploads(photo.path.read_bytes(), pid, client)
    for peer in PEERS:
        loops[peer].append(sharp_ms(photo, peer, folder, optimize))
    peers = {str(peer): sum(halves) / len(halves) for peer, halves in loops.items()}
    ratios = {name: cpu_ms / served_ms for name, cpu_ms in peers.items()}
    return Served(photo.name, UPLOADS, idle, {"served": served_ms, **peers}, ratios)


def sharp_ms(photo: Picture, peer: Variant, folder: Path, optimize: bool) -> float:
    """The mean over half as many renderings as uploads, in a warm process."""
    with Fleet([peer], folder / "engines.log") as fleet:
        for repeat in (WARM_UP, UPLOADS // 2):
            request = request_for(photo, peer.mode, optimize=optimize, out=None, repeat=repeat)
            answer = fleet.ask(peer, request)
            if error := answer.get("error"):
                raise ServeError(
                    f"{peer} cannot render {photo.name}: {error}", "name another photograph"
                )
    return sum(answer["cpu_ms"]) / len(answer["cpu_ms"])


def measure_uploads(photo: bytes, pid: int, client: "Client") -> tuple[float, float]:
    """CPU ms per image, and CPU ms per second of the idle server."""
    for _ in range(WARM_UP):
        client.upload(photo)
    time.sleep(SETTLE_S)

    before, started = tree_cpu_ms(pid), time.monotonic()
    time.sleep(IDLE_S)
    idle_per_s = (tree_cpu_ms(pid) - before) / (time.monotonic() - started)

    before, started = tree_cpu_ms(pid), time.monotonic()
    for _ in range(UPLOADS):
        client.upload(photo)
    time.sleep(SETTLE_S)
    spent = tree_cpu_ms(pid) - before
    drift = idle_per_s * (time.monotonic() - started)
    return (spent - drift) / UPLOADS, idle_per_s


@contextlib.contextmanager
def running_server(
    folder: Path, program: Path = SERVER, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[int, "Client"]]:
    """A temporary server with `settings` beside the defaults; its data are deleted at the end."""
    port = free_port()
    log_path = folder / "serve.log"
    with tempfile.TemporaryDirectory(prefix="safelight-bench-") as data, log_path.open("w") as log:
        # With the defaults, not with the user's configuration.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SAFELIGHT_")}
        environment |= {"SAFELIGHT_LISTEN": f"127.0.0.1:{port}", "SAFELIGHT_DATA_DIR": data}
        environment |= settings or {}
        server = subprocess.Popen(
            [program, "serve"], env=environment, cwd=data, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            client = Client(port, log_path)
            client.wait_until_ready(server)
            yield server.pid, client
        finally:
            end(server)


def end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Client:
    """Uploads over one keep-alive connection, and waits for the end of each task."""

    def __init__(self, port: int, log: Path) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
        self.log = log

    def wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/readyz")[0] == 200:
                    return
            self.connection.close()
            time.sleep(0.1)
        raise ServeError("the server did not become ready", f"look at {self.log.relative_to(ROOT)}")

    def upload(self, photo: bytes) -> None:
        """Uploads the photograph, and returns when its renditions are made."""
        # A JPEG may have any bytes after its end marker.
        body = photo + secrets.token_bytes(16)
        status, task = self.call("POST", "/v1/images", body)
        if status != 202:
            raise ServeError(f"the upload was answered {status}: {task}", self._look())
        deadline = time.monotonic() + TASK_S
        while task["status"] in {"queued", "running"}:
            if time.monotonic() > deadline:
                raise ServeError(f"a task was not done after {TASK_S} s", self._look())
            _, task = self.call("GET", f"/v1/tasks/{task['id']}")
        if task["status"] != "succeeded":
            raise ServeError(f"a task ended as {task['status']}: {task['error']}", self._look())
        if len(task["image"]["renditions"]) != RENDITIONS:
            raise ServeError("a task ended without its three renditions", self._look())

    def call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        # A rejected upload is answered before it is complete; the answer is there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.request(method, path, body, {"Prefer": "wait=30"})
        with self.connection.getresponse() as response:
            content = response.read()
        is_json = "json" in (response.getheader("Content-Type") or "")
        return response.status, json.loads(content) if is_json else content

    def _look(self) -> str:
        return f"look at {self.log.relative_to(ROOT)}"


def tree_cpu_ms(root: int) -> float:
    """User and system time of a process, its live descendants, and its ended descendants.

    An ended process that was waited for counts in the child times of its parent.
    """
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # It may end while it is read.
            with contextlib.suppress(OSError):
                # The second field, a name in brackets, may hold spaces; the third is behind it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                ticks[int(entry.name)] = sum(map(int, fields[11:15]))

    def descends(pid: int | None) -> bool:
        while pid and pid != root:
            pid = parents.get(pid)
        return pid == root

    return sum(t for pid, t in ticks.items() if descends(pid)) * 1e3 / TICKS_PER_S
