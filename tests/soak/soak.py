"""The soak itself: a server, what is known of it, and its visitors."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serving import HttpServer, http, text
from tests.soak.cases import check_against_transformers, known_cases, reads_as
from tests.soak.tally import Load, Tally, report
from tests.soak.visitor import Visitor

_SETTINGS = {"max_requests_per_minute": 1_000_000, "reply_within": 2, "max_queue": 64, "batch_tokens": 64}


def soak(seconds: float, clients: int, folders: Mapping[str, Path], seed: int = 0) -> Tally:
    """Lets clients call for some seconds and prints what happened."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as data, http(data=data, runs=f"{data}/runs", **_SETTINGS) as server:
        with server.client() as quiet:
            for folder in folders.values():
                loaded = quiet.call("load_model", model=str(folder))
                while (loaded.structured_content or {}).get("state") == "loading":
                    loaded = quiet.call("load_model", model=str(folder))
                assert not loaded.is_error, text(loaded)
            cases = known_cases(quiet, list(folders))
            compared = check_against_transformers(cases, folders)
        print(f"{len(cases)} calls have known answers; {compared} probabilities agree with plain transformers")
        before, begun = Load.of(server.process), time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            visitors = [
                Visitor(server, ("http", "sse")[number % 2], cases, folders, tally, seed + number, number == 0)
                for number in range(clients)
            ]
            for visit in [pool.submit(visitor.stay, begun + seconds) for visitor in visitors]:
                visit.result()
        took = time.monotonic() - begun
        print(f"{took:.0f} s are over; reading {len(tally.finished)} finished runs back", flush=True)
        read_all(server, tally, clients)
        report(tally, took, clients, before, Load.of(server.process))
    return tally


def read_all(server: HttpServer, tally: Tally, clients: int) -> None:
    """Reads every run that was ever seen done, a share by each of some clients."""
    runs = list(tally.finished.items())
    with ThreadPoolExecutor(clients) as pool:
        list(
            pool.map(lambda share: read_back(server, tally, share), (runs[first::clients] for first in range(clients)))
        )


def read_back(server: HttpServer, tally: Tally, runs: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Counts each of some runs that no longer reads as it did."""
    with server.client() as client:
        for run_id, answer in runs:
            result = client.call("read_run", run_id=run_id)
            if not reads_as(result, answer):
                tally.count("lost runs", f"{run_id}: {text(result)}")


@contextmanager
def tiny_models(families: Sequence[str] = ("llama", "gpt2")) -> Iterator[dict[str, Path]]:
    """Folders of tiny models under their handles."""
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    with tempfile.TemporaryDirectory() as root:
        folders = {f"tiny-{family}": Path(root) / f"tiny-{family}" for family in families}
        for family, folder in zip(families, folders.values(), strict=True):
            tiny_model(family).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
        yield folders
