"""Many pictures, or many trainings, on several ComfyUI servers: one graph for every line of a file, each server working through a queue of its own.

    python docs/scale/pictures_on_servers.py graph.json prompts.txt --into 6.text --seed 3.seed --server http://gpu1:8188 --server http://gpu2:8188

graph.json is a workflow saved by *Export (API)*; NODE.INPUT says where a line goes, and a seed that counts up. Each server is kept two graphs ahead,
so that a slow one gets fewer. What a server that has gone away held is given to the others. Files that the graphs save are fetched into --out.
Only Python's own library is needed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

AHEAD = 2  # graphs in a server's own queue: one that runs, one that waits for it
Graph = dict[str, Any]
Job = tuple[int, Graph]


class Gone(Exception):
    """A server that does not answer any more."""


class Server:
    """One ComfyUI by its HTTP interface: POST /prompt queues a graph, GET /history/ID says what became of it, GET /view hands out a file."""

    def __init__(self, address: str) -> None:
        self.address, self.held = address.rstrip("/"), {}  # prompt id -> job

    def queue(self, job: Job) -> None:
        self.held[self._json("/prompt", {"prompt": job[1]})["prompt_id"]] = job

    def done(self) -> Iterator[tuple[Job, dict[str, Any]]]:
        """What has ended since the last time, with its history."""
        for prompt in list(self.held):
            history = self._json(f"/history/{prompt}")
            if prompt in history:
                yield self.held.pop(prompt), history[prompt]

    def files(self, history: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of what the graph saved."""
        for shown in history["outputs"].values():
            for each in (file for files in shown.values() if isinstance(files, list) for file in files):
                if isinstance(each, dict) and each.get("type") == "output":
                    yield each["filename"], self._ask("/view?" + urllib.parse.urlencode(each))

    def _json(self, path: str, data: object = None) -> dict[str, Any]:
        return json.loads(self._ask(path, data))

    def _ask(self, path: str, data: object = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:  # it answers: the graph is at fault, and would be elsewhere too
            raise ValueError(f"{self.address} refuses: {error.read().decode(errors='replace')[:500]}") from None
        except OSError as error:
            raise Gone(f"{self.address}: {error}") from None


def spread(servers: list[Server], jobs: list[Job], take: Callable[[Server, Job, dict[str, Any]], None], every: float = 1.0) -> list[Job]:
    """Hand the jobs to the servers and each that ended to `take`. What is left when no server answers any more is returned."""
    waiting = deque(jobs)
    while servers and (waiting or any(server.held for server in servers)):
        for server in list(servers):
            try:
                for job, history in server.done():
                    take(server, job, history)
                while waiting and len(server.held) < AHEAD:
                    server.queue(waiting[0])
                    waiting.popleft()
            except Gone as error:
                print(f"gone: {error}; its {len(server.held)} graphs go to the others", file=sys.stderr, flush=True)
                servers.remove(server)
                waiting.extendleft(reversed(server.held.values()))
        time.sleep(every)
    return list(waiting)


def graphs(graph: Graph, lines: list[str], into: list[str], seed: str | None) -> Iterator[Job]:
    """One graph a line: its columns, parted by tabs, go to `into` in turn, and its number to `seed`."""
    for number, line in enumerate(lines):
        columns = line.split("\t")
        if len(columns) != len(into):
            raise ValueError(f"line {number + 1} has {len(columns)} columns for {len(into)} --into")
        each = copy.deepcopy(graph)
        for place, value in [*zip(into, columns, strict=True), *([(seed, number)] if seed else [])]:
            node, name = place.split(".", 1)
            before = each[node]["inputs"].get(name)
            each[node]["inputs"][name] = type(before)(value) if isinstance(before, (int, float)) else value
        yield number, each


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("graph", type=Path)
    parser.add_argument("lines", type=Path, help="a text file, one graph a line; a prompt, or several columns parted by tabs")
    parser.add_argument(
        "--into", action="append", required=True, metavar="NODE.INPUT", help="where a line goes; once for each of its columns"
    )
    parser.add_argument("--seed", metavar="NODE.INPUT", help="where its number goes, counted from 0")
    parser.add_argument("--server", action="append", required=True, metavar="URL", help="give it once for each")
    parser.add_argument("--out", type=Path, default=Path("glance_pictures"), help="folder of the files that are fetched")
    options = parser.parse_args()
    lines = [line for line in options.lines.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        return run(options, list(graphs(json.loads(options.graph.read_text(encoding="utf-8")), lines, options.into, options.seed)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, jobs: list[Job]) -> int:
    """Raises ValueError for a graph that a server refuses."""
    options.out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    failed: list[int] = []

    def take(server: Server, job: Job, history: dict[str, Any]) -> None:
        number = job[0]
        if history["status"]["status_str"] != "success":
            failed.append(number)
            print(f"error: line {number + 1} failed on {server.address}", file=sys.stderr, flush=True)
            return
        counts[server.address] = counts.get(server.address, 0) + 1
        for name, content in server.files(history):
            (options.out / f"{number:05d}_{Path(name).name}").write_bytes(content)

    began = time.monotonic()
    left = spread([Server(address) for address in options.server], jobs, take)
    by = ", ".join(f"{address} {count}" for address, count in counts.items())
    print(f"{sum(counts.values())} of {len(jobs)} graphs done in {time.monotonic() - began:.0f} s ({by or 'no server'})")
    if failed or left:
        print(f"error: {len(failed)} failed, {len(left)} found no server", file=sys.stderr)
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
