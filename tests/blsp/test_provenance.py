from __future__ import annotations

import pytest

from blsp.provenance import refuse_other_weights

HASH, OTHER = "0123456789ab", "ba9876543210"


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (f"a@{HASH}", f"b@{HASH}", True),  # a folder that has moved
        (f"a@{HASH}", f"a@{OTHER}", False),
        ("openai/whisper-small@main", "openai/whisper-small@main", True),
        ("openai/whisper-small@main", "openai/whisper-large-v2@main", False),
    ],
)
def test_a_folder_is_its_content_and_a_hub_id_is_name_and_revision(before: str, now: str, same: bool) -> None:
    if same:
        refuse_other_weights({"encoder": before}, {"encoder": now}, "run")
    else:
        with pytest.raises(ValueError, match=f"run was made with the encoder {before}, not {now}; give it that one"):
            refuse_other_weights({"encoder": before}, {"encoder": now}, "run")


def test_a_part_that_is_no_longer_there_is_refused() -> None:
    with pytest.raises(ValueError, match="run was made with the init a@1, not none"):
        refuse_other_weights({"init": "a@1"}, {}, "run")
