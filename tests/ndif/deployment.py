"""A real NDIF on the loopback address: redis, an object store, Ray, the controller, the API and a CPU model actor.

    python -m tests.ndif.deployment install FOLDER      make the server's environment (about 2 GB)
    python -m tests.ndif.deployment serve FOLDER        start everything, print the address, stop on Ctrl-C

`redis-server` comes from the system's packages. Nothing of this package is installed on the server's side.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).parent / "server"
REDIS, STORE, RAY, RAY_CLIENT, API = 6390, 9000, 6385, 10001, 8001
RESOURCES = '{"CPU":4,"GPU":1,"cuda_memory_bytes":8589934592,"cpu_memory_bytes":8589934592,"head":10}'
"""What Ray believes the machine has: NDIF places models by accelerators, and its CPU actor needs none."""


def install(folder: Path) -> None:
    """Makes the server's environment; NDIF itself without its dependencies, which ask for a newer Python."""
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", HERE / "requirements.txt"], check=True)
    subprocess.run([*pip, "--no-deps", "--ignore-requires-python", "ndif==0.1.2"], check=True)


@dataclass
class Deployment:
    """The services, from start to stop.

    Attributes:
        folder: Holds the environment (`venv`), logs and Ray's files.
        settings: More variables of the environment, such as an API's requirement of keys.
    """

    folder: Path
    settings: dict[str, str]

    def __post_init__(self) -> None:
        self._services: list[subprocess.Popen[bytes]] = []
        self._logs = self.folder / "logs"
        self._bin = self.folder / "venv" / "bin"

    @property
    def address(self) -> str:
        """Where the API answers."""
        return f"http://127.0.0.1:{API}"

    def start(self, patience: float = 180) -> None:
        """Starts everything, and returns when the API is connected to the controller."""
        shutil.rmtree(self.folder / "ray", ignore_errors=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        self._begin("redis", "redis-server", "--port", str(REDIS), "--bind", "127.0.0.1", "--save", "")
        self._begin("store", self._bin / "moto_server", "-H", "127.0.0.1", "-p", str(STORE))
        self._run(
            "ray",
            self._bin / "ray", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={RAY}",
            "--object-manager-port=8076", "--dashboard-host=127.0.0.1", "--dashboard-port=8265",
            "--dashboard-agent-grpc-port=52366", "--metrics-export-port=8080",
            f"--ray-client-server-port={RAY_CLIENT}", "--object-store-memory=200000000",
            f"--temp-dir={self.folder / 'ray'}",
        )  # fmt: skip
        controller = "ndif.services.ray.deployments.controller.controller"
        self._run("controller", self._bin / "python", "-m", controller, RAY_ADDRESS=f"127.0.0.1:{RAY}")
        self.start_api()
        self.wait(patience)

    def start_api(self) -> None:
        """Starts the API alone, after `stop_api`."""
        self._begin(
            "api",
            self._bin / "gunicorn",
            "--config", "python:ndif.services.api.gunicorn_conf", "--bind", f"127.0.0.1:{API}",
            "ndif.services.api.app:app",
            NNSIGHT_CONFIG=str(HERE / "nnsight.yaml"),
        )  # fmt: skip

    def stop_api(self) -> None:
        """Ends the API, as when a deployment restarts."""
        _end(self._services.pop())

    def kill_actor(self) -> None:
        """Ends the process that holds a model, as when a machine fails."""
        for process in psutil.process_iter(["cmdline"]):
            if "ray::CPUActor" in " ".join(process.info["cmdline"] or ()):
                process.kill()

    def wait(self, patience: float = 60) -> None:
        """Returns when the API is connected.

        Raises:
            TimeoutError: It is not within so many seconds.
        """
        until = time.monotonic() + patience
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/connected", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.5)
        raise TimeoutError(f"NDIF did not come up within {patience:g} s: see {self._logs}")

    def stop(self) -> None:
        """Ends everything that was started."""
        while self._services:
            _end(self._services.pop())
        self._run("ray-stop", self._bin / "ray", "stop", "--force", "--grace-period", "5")

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        own = {
            "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(HERE),
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_OVERRIDE_RESOURCES": RESOURCES,
            "RAY_raylet_start_wait_time_s": "120",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "OMP_NUM_THREADS": "1",
            "NDIF_HOME": str(self.folder / "home"),
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{REDIS}",
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{STORE}",
            "NDIF_API_URL": self.address,
            "NDIF_API_PORT": str(API),
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{RAY_CLIENT}",
            "NDIF_RAY_HEAD_PORT": str(RAY),
            "NDIF_RAY_TEMP_DIR": str(self.folder / "ray"),
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "cpu_actor.CPUActor",
            "NDIF_CONTROLLER_IMPORT_PATH": "controller.ControllerActor",
            "NDIF_DEFAULT_DTYPE": "float32",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NDIF_", "RAY_", "CUDA_"))}
        return kept | own | self.settings | more

    def _begin(self, name: str, *command: str | Path, **more: str) -> None:
        with (self._logs / f"{name}.log").open("wb") as log:
            self._services.append(
                subprocess.Popen(command, env=self._environment(more), stdout=log, stderr=log, start_new_session=True)
            )

    def _run(self, name: str, *command: str | Path, **more: str) -> None:
        with (self._logs / f"{name}.log").open("wb") as log:
            subprocess.run(command, env=self._environment(more), stdout=log, stderr=log, check=True)


def _end(service: subprocess.Popen[bytes]) -> None:
    """Ends a service and what it started, which share a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(service.pid, signal.SIGTERM)
    try:
        service.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()


@contextlib.contextmanager
def deployed(folder: Path, **settings: str) -> Generator[Deployment]:
    """A deployment that is stopped at the end, whatever happens."""
    deployment = Deployment(folder.resolve(), settings)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


def main() -> None:
    """Installs or serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["install", "serve"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.action == "install":
        install(options.folder)
        return
    begun = time.monotonic()
    with deployed(options.folder) as deployment:
        print(f"{deployment.address} (up in {time.monotonic() - begun:.0f} s); Ctrl-C stops it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            signal.pause()


if __name__ == "__main__":
    main()
