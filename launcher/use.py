"""The verbs `eval`, `report` and `chat`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from blsp.recipe import EvalRecipe
from launcher.progress import Progress


def evaluate(recipe: EvalRecipe) -> None:
    """Measures every system of the recipe and prints the table."""
    from blsp.evaluate.run import evaluate
    from blsp.evaluate.table import terminal_table

    with Progress() as progress:
        result = evaluate(recipe, progress.update)
    Console().print(terminal_table(result))
    print(recipe.out / "result.json")


def report(evaluation: Path, *, runs: list[Path], out: Path) -> None:
    """Writes the page about an evaluation."""
    from blsp.report import write_report

    if out.suffix != ".html":
        raise ValueError(f"{out}: the last path is the page to write and must end in .html")
    write_report(evaluation, runs, out)
    print(out)


def chat(run: Path, wavs: list[Path]) -> None:
    """Answers each WAV; without any, asks for one after the other until an empty line. No turn remembers another."""
    from blsp.model import SpeechLM
    from shards.audio import load_audio
    from shards.sample import EMOTIONS

    model = SpeechLM.load(run)
    console = Console()

    def answer(wav: Path) -> None:
        waveform = load_audio(wav)
        heard = ""
        if "classifier" in model.exported_parts:
            probabilities = model.classify([waveform])[0]
            heard = f" [dim]({EMOTIONS[int(probabilities.argmax())]})[/dim]"
        console.print(f"[bold]{escape(wav.name)}[/bold]{heard}")
        console.print(escape(model.generate([waveform], "chat", 128)[0]))

    for wav in wavs:
        answer(wav)
    while not wavs:
        try:
            line = console.input("[dim]speech file, or nothing to leave:[/dim] ").strip()
        except EOFError:
            return
        if not line:
            return
        try:
            answer(Path(line).expanduser())
        except ValueError as error:
            console.print(escape(str(error)), style="red")
