"""The verbs `blsp miniature world | llm | encoder`: what a user with a corpus and pretrained models does not need."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import BEGINS_ANEW, on_ctrl_c
from launcher.progress import Progress
from launcher.quiet import silence_libraries

# Enough voices that the emotion of a new one is heard, few enough clips for minutes on two cores.
NUM_ASR, NUM_SER, NUM_TEST_GROUPS, NUM_DEV_GROUPS = 2400, 3000, 48, 30
_LLM_STEPS, _LLM_BATCH = 200, 32
_ENCODER_STEPS, _ENCODER_BATCH = 210, 24


def world(root: Path, seed: int) -> None:
    """Synthesises the corpora asr, ser, dev and test below `root`, as audio files and JSON lines."""
    from shards.miniature.world import takes, write_corpora

    corpora = takes(NUM_ASR, NUM_SER, NUM_TEST_GROUPS, NUM_DEV_GROUPS, seed)
    total = sum(len(clips) for clips in corpora.values())
    with on_ctrl_c(f"stopped; {BEGINS_ANEW}"), Progress() as progress:
        for done in write_corpora(root, corpora):
            progress.update("clips spoken", done, total)


def llm(out: Path, seed: int) -> None:
    """Trains the stand-in for a chat LLM from text."""
    from blsp.standins import train_llm

    silence_libraries()
    with on_ctrl_c(f"stopped; {BEGINS_ANEW}"), Progress() as progress:

        def show(step: int, steps: int, loss: float) -> None:
            progress.update(f"{out}: steps", step, steps, f"loss {loss:.3f}")

        train_llm(out, steps=_LLM_STEPS, batch_size=_LLM_BATCH, seed=seed, on_step=show)


def encoder(manifest: Path, marks: Path, out: Path, seed: int) -> None:
    """Trains the stand-in for Whisper's encoder on phones and words."""
    from blsp.standins import train_encoder

    silence_libraries()
    with on_ctrl_c(f"stopped; {BEGINS_ANEW}"), Progress() as progress:

        def show(step: int, steps: int, loss: float) -> None:
            progress.update(f"{out}: steps", step, steps, f"loss {loss:.3f}")

        train_encoder(manifest, marks, out, steps=_ENCODER_STEPS, batch_size=_ENCODER_BATCH, seed=seed, on_step=show)
