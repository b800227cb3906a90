"""Tiny stand-ins that many tests need, made on the spot: a chat tokenizer and a Qwen2 with random weights."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from shards.prompts import PROMPTS, language_of

# A test run in the background inherits that Ctrl-C is ignored, and would hand it on to every process that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same commit passes or fails everywhere alike: what is drawn follows from the test alone, and a busy machine is no
# fault. `make fuzz` draws anew.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tests.testbed.hosts import Bed
    from tests.testbed.slurm import Slurm

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = ("Anna heard the phone message last night.", "The teacher saw the old house this morning.")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML turns, as Qwen's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    english = [prompt for name, prompt in PROMPTS.items() if language_of(name) == "en"]
    texts = [text for prompt in english for text in (prompt.system, prompt.instruction)]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*texts, *SENTENCES], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """What `make_tokenizer` makes."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def llm_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 50 k random weights with its tokenizer, as `save_pretrained` writes them."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """The one Ray session of the test run; `ray_session` inside it is this one."""
    from cluster.ray_session import ray_session

    with ray_session(num_cpus=4):
        yield


@pytest.fixture(scope="session")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The one bed of the test run; `bed` is what tests ask for."""
    from tests.testbed.hosts import hosts_up, why_not
    from tests.testbed.required import do_without

    if (why := why_not()) is not None:
        do_without(why)
    with hosts_up(tmp_path_factory.mktemp("bed")) as bed:
        yield bed


@pytest.fixture
def bed(two_hosts: Bed) -> Bed:
    """`login`, `node1` and `node2` with ssh between them (see tests/testbed/hosts.py), all of them running."""
    two_hosts.mend()
    return two_hosts


@pytest.fixture(scope="module")  # other modules' tests look at all that runs on the hosts
def slurm_on_two_hosts(two_hosts: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """The one SLURM of a module; `slurm` is what tests ask for."""
    from tests.testbed.required import do_without
    from tests.testbed.slurm import slurm_up, why_not

    if (why := why_not()) is not None:
        do_without(why)
    with slurm_up(two_hosts, tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_on_two_hosts: Slurm) -> Slurm:
    """A real SLURM on `node1` and `node2` (see tests/testbed/slurm.py), all of it running and idle."""
    slurm_on_two_hosts.mend()
    return slurm_on_two_hosts
