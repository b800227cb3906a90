"""The paper's own numbers (BLSP-Emo, arXiv 2406.03872), for context beside ours.

Only cells that we know are here; None is a cell that we could not read, not a zero. They were taken from notes on the
paper's tables, so check the paper before you cite them.
"""

from __future__ import annotations

# Accuracy of emotion recognition in %, and GPT-4's marks from 0 to 10 for answers to SpeechAlpaca.
COLUMNS = {
    "emotion recognition": ("IEMOCAP", "MELD", "RAVDESS", "SpeechAlpaca"),
    "SpeechAlpaca, judged": ("quality", "empathy"),
}
ROWS: dict[str, tuple[float | None, ...]] = {
    "HuBERT-Large": (64.6, 53.2, 70.5, None, None, None),
    "wav2vec2-Large": (69.3, 54.8, 64.0, None, None, None),
    "WavLM-Large": (68.9, 54.6, 70.3, None, None, None),
    "Text + LLM": (None, 54.0, 11.1, None, None, 7.4),
    "Whisper + LLM": (None, 53.8, 13.7, None, None, None),
    "SALMONN-7B": (67.0, 32.9, 38.8, None, None, None),
    "BLSP-SER": (None, None, None, None, 1.9, 2.1),
    "BLSP-ChatGPT": (None, None, None, None, 6.1, 6.0),
    "BLSP-Emo without stage 1": (68.5, None, None, None, 6.7, None),
    "BLSP-Emo without emotion loss": (72.2, None, 66.6, None, None, None),
    "BLSP-Emo": (76.0, 57.3, 72.0, 83.8, 8.8, 7.7),
}
