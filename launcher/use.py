"""The verbs `eval`, `report`, `chat` and `export`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from blsp.recipe import EvalRecipe
from launcher.errors import BEGINS_ANEW, on_ctrl_c
from launcher.progress import Progress
from launcher.quiet import silence_libraries

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from blsp.model import SpeechLM

_MAX_NEW_TOKENS = 128
_AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au", ".sph"}


def evaluate(recipe: EvalRecipe, *, over_ray: bool = False) -> None:
    """Measures every system of the recipe and prints the table. `over_ray`: inside a cluster brought up for it."""
    silence_libraries()
    from blsp.evaluate.kept import GOES_ON
    from blsp.evaluate.run import evaluate
    from blsp.evaluate.table import terminal_table

    with on_ctrl_c(f"stopped; {GOES_ON}"), Progress() as progress:
        result = evaluate(recipe, progress.update, over_ray=over_ray)
    Console().print(terminal_table(result))
    print(recipe.out / "result.json")


def report(evaluation: Path, *, runs: list[Path], out: Path) -> None:
    """Writes the page about an evaluation."""
    from blsp.report import write_report

    if out.suffix != ".html":
        raise ValueError(f"{out}: the last path is the page to write and must end in .html")
    write_report(evaluation, runs, out)
    print(out)


def chat(run: Path, audio: list[Path], language: str | None = None) -> None:
    """Answers each audio file; without any, each line that is typed: a path is heard, anything else is read. The system
    message is in Chinese for the language zh, else in English."""
    from shards.audio import load_audio

    turns = [(path, load_audio(path)) for path in audio]  # what cannot be heard is said before models are loaded
    silence_libraries()
    from blsp.hf.convert import load_model
    from shards.prompts import in_language

    model, console, prompt = load_model(run), Console(), in_language("chat", language)
    for path, waveform in turns:
        console.print(f"[bold]{escape(path.name)}[/bold]")
        _answer_speech(model, waveform, prompt, console)
    if not turns:
        _converse(model, prompt, console)


def export(run: Path, out: Path, *, step: str, classifier: bool, merge: bool) -> None:
    """Writes a run as one folder that transformers loads."""
    silence_libraries()
    from blsp.hf.convert import export_run

    with on_ctrl_c(f"stopped before {out} was there; {BEGINS_ANEW}"):
        export_run(run, out, step=step, classifier=classifier, merge=merge)
    print(f"{out / 'README.md'}: what it is, how to load it, and what the licences of its data allow")
    print(out)


def _converse(model: SpeechLM, prompt: str, console: Console) -> None:
    """Until an empty line, Ctrl-D or Ctrl-C."""
    from shards.audio import load_audio

    console.print(
        "[dim]Type a sentence, or the path of an audio file; an empty line leaves. Each turn stands alone.[/]"
    )
    while line := _line(console):
        path = _audio_path(line)
        try:
            if path is None:
                _print(model.answer(line, prompt, _MAX_NEW_TOKENS), console)
            else:
                _answer_speech(model, load_audio(path), prompt, console)
        except (ValueError, OSError) as error:
            console.print(escape(str(error)), style="red")


def _line(console: Console) -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return ""


def _audio_path(line: str) -> Path | None:
    """The path that a line is; a sentence that merely ends like one is not. A terminal quotes what is dropped on it."""
    path = Path(line.strip("'\"")).expanduser()
    if path.suffix.lower() in _AUDIO_SUFFIXES and (path.is_file() or " " not in line):
        return path
    return None


def _answer_speech(model: SpeechLM, waveform: NDArray[np.int16], prompt: str, console: Console) -> None:
    from shards.sample import EMOTIONS

    if "classifier" in model.exported_parts:
        chances = model.classify([waveform])[0]
        console.print(f"[dim]sounds {EMOTIONS[int(chances.argmax())]} ({math.exp(chances.max()):.0%})[/dim]")
    _print(model.generate([waveform], prompt, _MAX_NEW_TOKENS)[0], console)


def _print(answer: str, console: Console) -> None:
    console.print(answer, markup=False, highlight=False, soft_wrap=True)
