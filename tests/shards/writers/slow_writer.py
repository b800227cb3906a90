"""A writer that takes its time over each text and says on stdout what it is asked for: `slow_writer.py CACHE TEXTS`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.writers.greedy import GreedyWriter
from shards.writers.protocol import Generation, NoAnswer, Request


class SlowWriter(GreedyWriter[str]):
    """Writes one after the other, 2 ms each."""

    def prompt(self, request: Request) -> str:
        return request.text

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Generation | NoAnswer]]:
        for number, prompt in enumerate(prompts):
            time.sleep(0.002)
            print(prompt, flush=True)
            yield number, Generation(f"and {prompt}\n«so on»", number % 3 > 0, 7, 2)


if __name__ == "__main__":
    asked = [Request(f"text {i}", None, "continue") for i in range(int(sys.argv[2]))]
    written = SlowWriter("slow greedy", None, Path(sys.argv[1])).write(asked)
    assert [answer.text for answer in written] == [f"and text {i}\n«so on»" for i in range(len(asked))]
