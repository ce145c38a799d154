"""Contestants of a benchmark, each in a process of its own, as in use, that take turns.

What one leaves in caches, thread pools and settings of the memory allocator is not another's fate; that they take
turns, round after round, lets a busy machine disturb all alike.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class Contestant:
    """A process that takes a turn when it is asked to.

    Args:
        command: what Python runs; its `main` ends in :func:`serve`.
    """

    def __init__(self, *command: str):
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def turn(self, what: str = ""):
        """What the contestant's turn gave; `what` says which turn, where there are several kinds."""
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the contestant {' '.join(self.process.args[1:])} ended; its reason stands above"
            )
        return json.loads(line)


def take(contestants: dict[str, Contestant], rounds: int, what: str = "") -> Iterator[tuple[str, object]]:
    """Lets contestants take turns, and gives name and result of each turn that counts.

    A round before the first does not count: others are still starting, networks are built and memory grows.

    Args:
        contestants: name -> contestant, in the order of a round. rounds: that count. what: as of `Contestant.turn`.
    """
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            result = contestant.turn(what)
            if number:
                yield name, result
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)


def report(name: str, found: dict, smoke: bool) -> None:
    """Prints what a benchmark found, and keeps it as results/<name>.json unless it was a smoke run."""
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if not smoke:
        (Path(__file__).parent / "results" / f"{name}.json").write_text(text, encoding="utf-8")


def serve(turn: Callable[[str], object]) -> None:
    """In the contestant's process: a turn for each line that comes, its result, plain values, as a line of JSON."""
    for line in sys.stdin:
        print(json.dumps(turn(line.strip())), flush=True)
