"""The verbs `blsp import ...`."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import BEGINS_ANEW, on_ctrl_c
from launcher.quiet import silence_libraries


def authors(source: Path, out: Path, tokenizer: Path | None) -> None:
    """Imports the authors' checkpoint and says what can be done with it."""
    silence_libraries()
    from blsp.authors import import_authors

    with on_ctrl_c(f"stopped before {out} was there; {BEGINS_ANEW}"):
        found = import_authors(source, out, tokenizer)
    section = found.model
    lora = "with LoRA" if section.lora else "without LoRA (a stage 1, whose emotion classifier never learnt)"
    print(f"{found.num_tensors} tensors, {found.num_parameters / 1e6:,.1f} M numbers, {lora}; all accounted for")
    if found.has_tokenizer:
        print(f"talk to it: blsp chat {out}")
    else:
        print("no tokenizer there, so it takes no words; import again with --tokenizer FOLDER to chat or evaluate")
    print(f"train from it: model.llm={out / 'llm'} model.encoder={out / 'encoder'} model.init={out}")
    print(out)
