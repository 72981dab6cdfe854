"""Make many pictures, or train many pairs, on several ComfyUI servers: one graph for each line of a file.

    python docs/scale/pictures_on_servers.py graph.json prompts.txt --into 6.text --seed 3.seed \\
        --server http://gpu1:8188 --server http://gpu2:8188

graph.json is a workflow saved by *Export (API)*. NODE.INPUT says where a line goes, and where its number goes.
Each server gets two graphs ahead, so a slow one gets fewer. If a server stops answering, its graphs go to the others.
Files that the graphs save are fetched into --out. It needs Python's own library only.
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

AHEAD = 2  # graphs in a server's own queue: one runs, one waits
Graph = dict[str, Any]
Job = tuple[int, Graph]


class Gone(Exception):
    """A server that no longer answers."""


class Server:
    """One ComfyUI, by its HTTP interface.

    POST /prompt queues a graph, GET /history/ID says how it ended, GET /view returns a file.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.held: dict[str, Job] = {}  # by prompt id

    def queue(self, job: Job) -> None:
        """Put the job into the server's queue."""
        self.held[self._json("/prompt", {"prompt": job[1]})["prompt_id"]] = job

    def done(self) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Yield the jobs that ended since the last call, each with its history."""
        for prompt in list(self.held):
            history = self._json(f"/history/{prompt}")
            if prompt in history:
                yield self.held.pop(prompt), history[prompt]

    def files(self, history: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of each file that the graph saved."""
        lists = [files for shown in history["outputs"].values() for files in shown.values() if isinstance(files, list)]
        for files in lists:
            for each in files:
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
        except urllib.error.HTTPError as error:  # it answers, so the graph is at fault, on any server
            raise ValueError(
                f"{self.address} rejects the graph: {error.read().decode(errors='replace')[:500]}"
            ) from None
        except OSError as error:
            raise Gone(f"{self.address}: {error}") from None


def spread(
    servers: list[Server], jobs: list[Job], take: Callable[[Server, Job, dict[str, Any]], None], every: float = 1.0
) -> list[Job]:
    """Give the jobs to the servers, and each job that ended to `take`. Return the jobs that found no server."""
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
    """Yield one graph per line.

    Args:
        into: the inputs for the line's columns, which tabs separate.
        seed: the input for the line's number.
    """
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
    """Run all graphs, and return the exit status."""
    options = _parser().parse_args()
    lines = [line for line in options.lines.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        graph = json.loads(options.graph.read_text(encoding="utf-8"))
        return run(options, list(graphs(graph, lines, options.into, options.seed)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("graph", type=Path, help="a workflow saved by Export (API)")
    add("lines", type=Path, help="a text file with one graph per line: a prompt, or several columns separated by tabs")
    into_help = "where a line goes; once for each of its columns"
    add("--into", action="append", required=True, metavar="NODE.INPUT", help=into_help)
    add("--seed", metavar="NODE.INPUT", help="where the line's number goes, counted from 0")
    add("--server", action="append", required=True, metavar="URL", help="a server; once for each")
    add("--out", type=Path, default=Path("glance_pictures"), help="folder for the fetched files")
    return parser


def run(options: argparse.Namespace, jobs: list[Job]) -> int:
    """Run the jobs, fetch their files, and return the exit status.

    Raises:
        ValueError: for a graph that a server rejects.
    """
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
    seconds = time.monotonic() - began
    by = ", ".join(f"{address} {count}" for address, count in counts.items()) or "no server"
    print(f"{sum(counts.values())} of {len(jobs)} graphs done in {seconds:.0f} s ({by})")
    if failed or left:
        print(f"error: {len(failed)} failed, {len(left)} found no server", file=sys.stderr)
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
