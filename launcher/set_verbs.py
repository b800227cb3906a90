"""The verbs under `shard` that look after sets: what is typed; `launcher.sets` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ShardSetPath = Annotated[str, typer.Argument(metavar="SET", help="Folder (or URL) of a shard set.")]


def verify(
    shards: ShardSetPath,
    fast: Annotated[bool, typer.Option("--fast", help="Only sizes, indexes and a few samples of each shard.")] = False,
) -> None:
    """Look at every byte of a shard set: one line per damage, and exit code 1 if there is any."""
    from launcher import sets

    raise typer.Exit(sets.verify(shards, fast))


def index(
    tars: Annotated[list[str], typer.Argument(metavar="TAR...", help="WebDataset tars (paths or URLs), not packed.")],
    out: Annotated[str, typer.Option(metavar="SET", help="The new set's folder.")],
    corpus: Annotated[str, typer.Option(help="Name of the corpus; part of every clip's id.")],
    licence: Annotated[str | None, typer.Option(help="Under which the clips may be used.")] = None,
) -> None:
    """Make a set over tars that others wrote; their audio stays where it is, and training reads it from there."""
    from launcher import sets

    sets.index(tars, out, corpus, licence)


def remove(
    shards: ShardSetPath,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The new set's folder; SET is left as it is.")],
    speaker: Annotated[str | None, typer.Option(help="Remove this speaker, of all corpora or of --corpus.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Remove this corpus.")] = None,
) -> None:
    """Make a set without a speaker or a corpus that stands by itself, and prove that nothing of them is in it."""
    from launcher import sets

    sets.remove(shards, out, speaker, corpus)


def report(
    shards: ShardSetPath,
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT.html]", help="The page to write; default: the set's name, here.")
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option(metavar="SET", help="Another stage's set, whose transcripts should look alike.")
    ] = None,
) -> None:
    """Put all about a set on one page of HTML: what was left out and why, whether the targets are any good, and some
    clips to read and to hear.
    """
    from launcher import sets

    sets.report(shards, out, beside or [])
