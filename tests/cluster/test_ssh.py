"""Nothing in a word, a path or an environment can become a command on the other host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.ssh import carried, over_ssh
from tests.testbed.hosts import HOME, Bed

HOSTILE = [
    "$(touch ran)", "`touch ran`", "; touch ran", "a\ntouch ran\n", "' && touch ran '", '"$(touch ran)"', "\\", "!!",
    "*", "~", "", " ", "-oProxyCommand=touch ran", "a=b", "#", "é\u2028\x01", "& touch ran", "| touch ran", "${HOME}",
]  # fmt: skip
SAY_WORDS = [sys.executable, "-c", "import json, os, sys; print(json.dumps([os.getcwd(), sys.argv[1:]]))"]
# Without a slash: were they run, they could do nothing outside of the test's folder.
words = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=st.lists(words | st.sampled_from(HOSTILE), min_size=1), name=st.text("a ;$'`\"\n", min_size=1, max_size=8))
def test_any_words_and_folder_arrive_as_they_are(tmp_path: Path, told: list[str], name: str) -> None:
    """What ssh hands to the shell over there, handed to one here."""
    (folder := tmp_path / f"-{name}").mkdir(exist_ok=True)
    line = over_ssh("node1", ["/bin/printf", "%s\\0", *told], folder)[-1]
    said = subprocess.run(
        ["/bin/sh", "-c", line], cwd=tmp_path, env={"PATH": "/none"}, capture_output=True, check=True
    ).stdout
    assert said.decode() == "".join(f"{word}\0" for word in told)
    assert [path.name for path in folder.iterdir()] == []


@pytest.mark.slow
def test_hostile_words_arrive_through_a_real_ssh_and_run_nothing(bed: Bed, tmp_path: Path) -> None:
    (folder := tmp_path / "a $(touch ran)'\n\"; touch ran #").mkdir()
    said = bed.login.run(over_ssh("node1", [*SAY_WORDS, *HOSTILE], folder), check=True).stdout
    assert json.loads(said) == [str(folder), HOSTILE]
    assert list(tmp_path.rglob("ran")) == []
    assert bed.login.run(["test", "-e", f"{HOME}/ran"]).returncode == 1


@pytest.mark.slow
def test_a_users_own_ssh_settings_count_but_for_what_belongs_to_a_terminal(bed: Bed, tmp_path: Path) -> None:
    config = bed.home / ".ssh" / "config"
    own = config.read_text()
    config.write_text(
        "Host big-machine\n  HostName node2\n  HostKeyAlias node2\n  IdentityFile /run/bed/id\n  RequestTTY force\n"
        "  UserKnownHostsFile /run/bed/known_hosts\n  RemoteCommand touch ran\n  LocalForward 22 localhost:22\n" + own
    )
    try:
        said = bed.login.run(over_ssh("big-machine", ["hostname"], tmp_path), check=True)
        assert (said.stdout, said.stderr) == ("node2\n", "")
    finally:
        config.write_text(own)
    refused = bed.login.run(over_ssh("big-machine", ["hostname"], tmp_path))
    assert refused.returncode == 255
    assert "big-machine" in refused.stderr
    assert bed.login.run(over_ssh("node1", ["sh", "-c", "exit 7"], tmp_path)).returncode == 7


def test_what_is_of_a_login_session_stays_at_home() -> None:
    here = {
        "HOME": "/home/me", "SSH_AUTH_SOCK": "/tmp/agent", "DISPLAY": ":0", "TERM": "xterm", "PWD": "/", "_": "/bin/x",
        "NCCL_DEBUG": "INFO", "PATH": "/opt/bin", "HF_TOKEN": "secret", "TERMINAL": "x", "HOMES": "x", "A": "$(id)\n",
    }  # fmt: skip
    assert carried(here) == {
        "NCCL_DEBUG": "INFO", "PATH": "/opt/bin", "HF_TOKEN": "secret", "HOMES": "x", "A": "$(id)\n",
    }  # fmt: skip
