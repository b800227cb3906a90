from __future__ import annotations

import numpy as np
import pytest
import torch

from blsp.generation import HEARD, left_padded, pack
from tests.blsp.tiny import CPU, clip


def test_sequences_end_together_and_speech_is_marked() -> None:
    asked = left_padded([[5, HEARD, HEARD, 6], [7], [HEARD]], pad_id=9)
    assert asked.input_ids.tolist() == [[5, 9, 9, 6], [9, 9, 9, 7], [9, 9, 9, 9]]
    assert asked.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert asked.speech_mask.tolist() == [[False, True, True, False], [False] * 4, [False, False, False, True]]


def test_clips_are_int16_of_one_channel_and_not_empty() -> None:
    packed, lengths = pack([clip(300), clip(200)], CPU)
    assert (packed.dtype, len(packed), lengths.tolist()) == (torch.int16, 500, [300, 200])
    for wrong, complaint in (
        (np.zeros(0, np.int16), "clip 1 holds no samples"),
        (np.zeros(300, np.float32), r"clip 1 is float32 \[300\], not int16"),
        (np.zeros((2, 300), np.int16), r"clip 1 is int16 \[2, 300\], not int16 samples of one channel"),
    ):
        with pytest.raises(ValueError, match=complaint):
            pack([clip(300), wrong], CPU)
