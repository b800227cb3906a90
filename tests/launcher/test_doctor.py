"""`blsp doctor` on two real hosts: what is whole passes, what is planted is found."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from blsp.estimate.parts import read_parts, weights
from blsp.recipe import TrainRecipe
from cluster.agent_link import AgentLink, Place
from cluster.diagnosis import the_same
from launcher.doctor import Hosts, _alone, _room
from launcher.recipe_files import load_kind
from tests.launcher.tiny_recipe import write_recipe
from tests.testbed.hosts import CHECKOUT, SEARCHED, Bed, Host

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(bed: Bed, tokenizer: PreTrainedTokenizerFast) -> Iterator[Path]:
    """On the file system of all hosts, with a recipe and a hostfile."""
    folder = bed.folder / "doctor"
    folder.mkdir()
    write_recipe(folder, tokenizer)
    (folder / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    yield folder
    shutil.rmtree(folder)


def doctor(bed: Bed, folder: Path) -> tuple[int, dict[str, str], str]:
    """Exit code, verdict by check, and all that it said."""
    arguments = ["-m", "launcher", "doctor", "recipe.yaml", "--hostfile", "hostfile"]
    env = {"PATH": SEARCHED, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"}
    ended = bed.login.run([sys.executable, *arguments], cwd=folder, env=env)
    rows = [line.split() for line in ended.stdout.splitlines()]
    verdicts = {
        " ".join(row[: row.index(verdict)]): verdict
        for verdict in ("ok", "FAILED", "-")
        for row in rows
        if verdict in row
    }
    return ended.returncode, verdicts, ended.stdout + ended.stderr


def shell(host: Host, command: str) -> None:
    host.run(["bash", "-c", command], check=True)


def host_lists(host: Host, folder: Path) -> list[str]:
    return host.run(["ls", "-A", str(folder)], check=True).stdout.split()


def test_two_hosts_that_are_whole_pass_in_a_minute_and_nothing_is_left(bed: Bed, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    began_s = time.monotonic()
    code, verdicts, said = doctor(bed, folder)
    assert time.monotonic() - began_s < 60
    assert code == 0 and set(verdicts.values()) == {"ok"}, said
    assert {"ssh", "python", "packages", "clocks", "shared folder", "network", "model.llm", "collective"} <= set(
        verdicts
    )
    assert said.count("node1 eth0, node2 eth0") == 2 and "2 ranks, gloo" in said
    assert [path for path in sorted(folder.rglob("*")) if path.name != "run"] == before
    assert bed.nodes[0].processes() == bed.nodes[1].processes() == {}


def test_what_is_planted_on_one_host_is_found_and_named(bed: Bed, folder: Path, tmp_path: Path) -> None:
    odd = bed.nodes[1]
    from importlib.metadata import distribution

    import peft

    metadata = next(path for path in distribution("peft").files or () if path.name == "METADATA").locate()
    other = tmp_path / "METADATA"
    other.write_text(Path(str(metadata)).read_text().replace(f"\nVersion: {peft.__version__}", "\nVersion: 0.0.1", 1))
    late = tmp_path / "late.pth"
    late.write_text("import time; time.time = lambda true=time.time: true() + 90\n")
    site = Path(str(metadata)).parent.parent
    pth = next(path for path in sorted(site.glob("*.pth")))
    shell(odd, f"mount --bind {other} {metadata} && mount --bind {late} {pth}")
    shell(odd, f"mkdir -p {folder}/run && mount -t tmpfs -o size=100m tmpfs {folder}/run")
    # What a doctor that was killed may have left there is no sign that the folder is shared.
    shell(odd, f"mkdir {folder}/run/.doctor && touch {folder}/run/.doctor/token-0 {folder}/run/.doctor/token-1")
    shell(odd, f"mkdir -p {tmp_path}/llm && cp -r {folder}/llm/. {tmp_path}/llm && echo >> {tmp_path}/llm/config.json")
    shell(odd, f"mount --bind {tmp_path}/llm {folder}/llm")
    odd.ip("route", "add", "prohibit", f"{bed.nodes[0].address}/32")
    try:
        code, verdicts, said = doctor(bed, folder)
        left = [*host_lists(odd, folder / "run"), *host_lists(bed.nodes[0], folder / "run")]
    finally:
        odd.power_off()
        bed.mend()
    assert code == 1
    wrong = {check for check, verdict in verdicts.items() if verdict == "FAILED"}
    assert wrong == {"packages", "free disk", "clocks", "shared folder", "network", "model.llm"}, said
    assert verdicts["collective"] == "-"
    assert left == [".doctor"]  # the one that was planted
    assert "peft 0.0.1" in said and re.search(r"clocks +FAILED +node2: \+\d+", said), said
    assert "node1" not in said.split("packages:")[1].split("\n")[0]


def test_a_host_that_ssh_does_not_reach_is_named_and_the_others_are_looked_at(bed: Bed, folder: Path) -> None:
    bed.nodes[1].power_off()
    try:
        code, verdicts, said = doctor(bed, folder)
    finally:
        bed.mend()
    assert code == 1
    assert verdicts["ssh"] == "FAILED" and "node2: " in said
    assert verdicts["packages"] == verdicts["model.llm"] == "ok" and verdicts["collective"] == "-"


def test_the_disk_must_have_room_for_the_checkpoints_that_are_still_to_come(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = {"keep_checkpoints": 3, "checkpoint_every_steps": 2}
    recipe = load_kind(TrainRecipe, write_recipe(tmp_path, tokenizer, engine=engine))
    learns = weights(read_parts(recipe), recipe).num_trained
    assert _room(recipe).num_bytes == (4 * 12 + 4) * learns + 10**9
    for step in (2, 4):
        (tmp_path / "run" / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert _room(recipe).num_bytes == (2 * 12 + 4) * learns + 10**9
    assert _room(recipe).what_for.startswith("2 checkpoints of 0.0 GB")
    (tmp_path / "llm" / "config.json").unlink()
    assert _room(recipe).num_bytes == 20 * 10**9


def test_hosts_that_drop_out_midway_fail_every_row_that_follows(tmp_path: Path) -> None:
    only_facts = (
        "import json, pathlib, sys; from cluster import checkup; sys.stdin.readline(); "
        f"print(json.dumps({{'is': 'answer'}} | checkup.facts(pathlib.Path({str(tmp_path)!r}))))"
    )
    command = (sys.executable, "-c", only_facts)
    places = [Place(name, 1, command) for name in ("node1", "node2")]
    asked = Hosts({place.name: AgentLink(place) for place in places})
    facts = asked.ask("facts")
    rows = {row.check: row for row in _alone(asked, facts, None, {"node1": 1, "node2": 1}, tmp_path / ".doctor")}
    assert rows["ssh"].ok and rows["packages"].ok
    for check in ("clocks", "shared folder", "network", "master port"):
        assert rows[check].ok is False and "no answer" in rows[check].found, rows[check]
    assert the_same("model.llm", asked.ask("model", model="m", revision=None), "").ok is False
