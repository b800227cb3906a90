"""The `blsp` command: parses, composes, calls. Every verb imports what it needs when it runs, so `--help` is quick."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from launcher import cluster_verbs, set_verbs
from launcher.arguments import Overrides, RecipeName
from launcher.errors import exit_code_of


class _Group(TyperGroup):
    """Turns what a verb raises into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> None:
        raise typer.Exit(exit_code_of(lambda: super(_Group, self).invoke(ctx), debug=ctx.params["debug"]))

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which they are used: typer puts groups last."""
        names = [name for name in super().list_commands(ctx) if name not in ("shard", "checkpoint")]
        names.insert(names.index("manifest") + 1, "shard")
        names.insert(names.index("train") + 1, "checkpoint")
        return names


class _ShardGroup(TyperGroup):
    """A first word that is no command is a recipe, unless there is none of that name and it looks like a command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args[0] in self.commands or args[0].startswith("-")
        if not known:
            self._refuse_misspelt(args[0])
        return super().resolve_command(ctx, args if known else ["recipe", *args])

    def _refuse_misspelt(self, word: str) -> None:
        from launcher.recipe_files import find

        try:
            find(word)
        except ValueError as error:
            commands = [name for name, command in self.commands.items() if not command.hidden]
            if nearest := difflib.get_close_matches(word, commands, n=1, cutoff=0.7):
                what, _, _ = str(error).partition(";")
                raise ValueError(f"{what}; the nearest command is `blsp shard {nearest[0]}`") from None


class _ManifestCommand(TyperCommand):
    """Its help ends with the corpora that there are; only then are their readers imported."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from shards.corpora.build import CORPORA

        corpora = ", ".join(f"{name} ({corpus.title})" for name, corpus in CORPORA.items())
        self.epilog = f"Corpora: {corpora}. What each needs: docs/corpora.md."
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=_Group,
    help="Teach a chat LLM to hear what is said and how it is said.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the console script. `--debug` may stand anywhere."""
    # Threads of torch that wait busily make a small model ten times slower as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:]
    debug = [argument for argument in arguments if argument == "--debug"]
    app(args=debug + [argument for argument in arguments if argument != "--debug"], prog_name="blsp")


imports = typer.Typer(help="Turn checkpoints of others into run folders of ours.")
app.add_typer(imports, name="import")
miniature = typer.Typer(help="Make the miniature's speech and stand-ins for pretrained models.")
app.add_typer(miniature, name="miniature")
shard = typer.Typer(
    cls=_ShardGroup,
    short_help="Let the LLM write continuations, and pack them with the audio into shards; or look after shards.",
    help="Let the LLM write continuations for the RECIPE's clips, and pack both into a shard set; the same command "
    "again goes on where an earlier one stopped. Or look after sets that are there, with one of the commands.",
    subcommand_metavar="RECIPE [SECTION.FIELD=VALUE]... | COMMAND [ARGS]...",
    no_args_is_help=True,
)
app.add_typer(shard, name="shard")
checkpoints = typer.Typer(help="Look after the checkpoints of a run.", no_args_is_help=True)
app.add_typer(checkpoints, name="checkpoint")
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a training.")]
Seed = Annotated[int, typer.Option(help="Of the synthesised voices, the order of clips and the new weights.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    pass


@app.command("ls")
def list_recipes() -> None:
    """List the recipes that come with the package."""
    from rich.console import Console
    from rich.table import Column, Table

    from launcher.recipe_files import load, shipped_recipes

    table = Table(Column("name", no_wrap=True), "for", "what it does", box=None, header_style="bold")
    paths = shipped_recipes()
    table.columns[0].min_width = max(len(path.stem) for path in paths)
    for path in paths:
        about = path.read_text("utf-8").split("\n", maxsplit=1)[0].removeprefix("#").strip()
        table.add_row(path.stem, f"blsp {load(path).kind}", about)
    Console().print(table)


@app.command("cp")
def copy_recipe(
    name: RecipeName, path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to; never overwrites.")]
) -> None:
    """Copy a recipe to a file of your own."""
    from launcher.recipe_files import find

    text = find(name).read_text("utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path}: already there; choose another name or remove it first") from None
    print(f"{path}: copied; edit it, then `blsp validate {path}`")


@app.command()
def validate(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe, and print it with every default filled in."""
    from launcher.recipe_files import load
    from launcher.recipe_yaml import to_yaml

    print(to_yaml(load(recipe, overrides or []).model_dump(mode="json")), end="")


@app.command(cls=_ManifestCommand)
def manifest(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="Its name, as `blsp manifest --help` lists them.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The corpus as it was unpacked: a folder, or a file.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Manifest to write; rejects go to OUT.rejects.jsonl beside it.")
    ],
    text: Annotated[
        Literal["lower", "raw", "both"],
        typer.Option(help="Transcripts in lower case, as the corpus has them, or both. Use one for all corpora."),
    ] = "lower",
    subset: Annotated[str | None, typer.Option(help="Of GigaSpeech and WenetSpeech: XS, S, M, L, XL.")] = None,
    disjoint_texts: Annotated[
        bool, typer.Option("--disjoint-texts", help="Leave each text that several splits have to one of them.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Hours, speakers and emotions of each split, beside the official counts.")
    ] = False,
) -> None:
    """Read a corpus into a manifest."""
    from launcher import data

    data.manifest(corpus, root, out, text=text, subset=subset, disjoint_texts=disjoint_texts, stats=stats)


shard.command("recipe", hidden=True)(cluster_verbs.shard)
shard.command("verify")(set_verbs.verify)
shard.command("index")(set_verbs.index)
shard.command("remove")(set_verbs.remove)
shard.command("report")(set_verbs.report)


@app.command()
def train(
    context: typer.Context,
    recipe: RecipeName,
    overrides: Overrides = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on this host; default: one per GPU, one without a GPU.")
    ] = None,
) -> None:
    """Train one stage on this host, or go on from its last checkpoint; a rank that fails or hangs is started again."""
    from blsp.recipe import TrainRecipe
    from launcher import start
    from launcher.recipe_files import find, load_kind

    overrides = overrides or []
    loaded = load_kind(TrainRecipe, recipe, overrides)  # before any process starts
    debug = context.find_root().params["debug"]
    raise typer.Exit(start.train(loaded, find(recipe), overrides, processes=processes, debug=debug))


app.command()(cluster_verbs.launch)
app.command()(cluster_verbs.submit)
app.command()(cluster_verbs.doctor)
app.command()(cluster_verbs.estimate)


@checkpoints.command("ls")
def list_checkpoints(run: RunFolder) -> None:
    """List them: step, time, size, number of ranks, and what is wrong as far as sizes tell."""
    from launcher import checkpoints

    checkpoints.show(run)


@checkpoints.command("verify")
def verify_checkpoints(run: RunFolder) -> None:
    """Read every byte: one line per checkpoint, and exit code 1 if any is damaged."""
    from launcher import checkpoints

    raise typer.Exit(checkpoints.verify(run))


@checkpoints.command("prune")
def prune_checkpoints(
    run: RunFolder, keep: Annotated[int, typer.Option(min=1, help="How many of the newest intact ones stay.")]
) -> None:
    """Delete older checkpoints and damaged ones. The last intact one always stays, and that of the best validation."""
    from launcher import checkpoints

    checkpoints.prune(run, keep)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a training.")],
    step: Annotated[int, typer.Argument(metavar="STEP", min=1, help="A step that its log tells of.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Where its clips go; default: replays/RUN/step-STEP.")
    ] = None,
) -> None:
    """Run one past step again on one process: the clips as they were heard, what each cost, and the gradient's norm,
    equal to what was logged. Nothing of RUN changes.
    """
    from launcher import again

    again.replay(run, step, out)


app.command("eval")(cluster_verbs.evaluate)


@app.command()
def report(
    evaluation: Annotated[Path, typer.Argument(metavar="EVAL_DIR", help="Folder that `blsp eval` wrote.")],
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[RUN]... OUT.html", help="Run folders, for their curves; last, the page to write."),
    ],
) -> None:
    """Put an evaluation and its training runs on one page of HTML."""
    from launcher import use

    use.report(evaluation, runs=paths[:-1], out=paths[-1])


@app.command()
def chat(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder of a trained model, or what `blsp export` wrote.")
    ],
    audio: Annotated[
        list[Path] | None, typer.Argument(metavar="[WAV]...", help="Spoken turns, one audio file each.")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="zh: the system message is in Chinese; else in English.")
    ] = None,
) -> None:
    """Talk to a trained model. Without WAV it asks for turns: the path of an audio file is heard, any other line is
    read. Each turn stands alone for now: the model remembers none before it.
    """
    from launcher import use

    use.chat(run, audio or [], language)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a finished training.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write. Never overwrites.")],
    step: Annotated[
        str,
        typer.Option(
            metavar="best|last|N", help="`best`: the checkpoint of the best validation; N: that of step N; or the end."
        ),
    ] = "last",
    without_classifier: Annotated[bool, typer.Option("--without-classifier", help="Leave it out.")] = False,
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="Add LoRA of scope `all` to the LLM's weights; text alone gets it too.")
    ] = False,
) -> None:
    """Write a finished run as one folder that Hugging Face transformers loads: safetensors, tokenizer and a model card
    with the licences of all its data. `blsp chat` and `blsp eval` take it too.
    """
    from launcher import use

    use.export(run, out, step=step, classifier=not without_classifier, merge=merge_lora)


@app.command("quickstart")
def run_quickstart(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where everything is written.")] = Path("quickstart"),
    seed: Seed = 1,
) -> None:
    """The whole method in miniature on this machine's CPU, from synthesised speech to a report."""
    from launcher import quickstart

    quickstart.run(folder, seed)


@imports.command()
def authors(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of the released checkpoint: config.json and its weights.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Run folder to write: llm, encoder and export. Never overwrites.")
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with Qwen-7B-Chat's qwen.tiktoken, where SRC has no tokenizer.")
    ] = None,
) -> None:
    """The authors' BLSP-Emo (cwang621/blsp-emo on the Hugging Face hub): every tensor is accounted for, and no code of
    theirs is run. Afterwards `blsp chat OUT` and `blsp eval` take it, and a recipe can start from it.
    """
    from launcher import bring

    bring.authors(source, out, tokenizer)


@miniature.command()
def world(root: Annotated[Path, typer.Argument(metavar="ROOT", help="Where the corpora go.")], seed: Seed = 1) -> None:
    """Synthesise emotional speech with espeak-ng, as plain corpora."""
    from launcher import miniature

    miniature.world(root, seed)


@miniature.command()
def llm(out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")], seed: Seed = 1) -> None:
    """Train a tiny Qwen2 from text; with a real LLM this is a download."""
    from launcher import miniature

    miniature.llm(out, seed)


@miniature.command()
def encoder(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Of the synthesised corpus `asr`.")],
    marks: Annotated[Path, typer.Argument(metavar="MARKS", help="Its phone and word times.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    seed: Seed = 1,
) -> None:
    """Train a tiny Whisper encoder on phones and words; with a real Whisper this is a download."""
    from launcher import miniature

    miniature.encoder(manifest, marks, out, seed)
