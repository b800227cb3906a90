"""The recipes for container images: what can be said of them where no image can be built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = ROOT / "cluster" / "containers" / "Dockerfile"
APPTAINER = ROOT / "cluster" / "containers" / "blsp-emo.def"


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    assert subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True).stdout == ""


def test_flash_attention_is_built_for_the_torch_that_is_installed() -> None:
    (pin,) = re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.M)
    build, image = DOCKERFILE.read_text().split("\nFROM ")[1:]
    assert f" {pin} " in build and "-c constraints.txt" in build
    assert "make .venv/installed" in image  # the step of `make test`: torch as in constraints.txt


def test_both_images_have_the_same_environment() -> None:
    docker = DOCKERFILE.read_text().split("\nENV ")[-1].split("\n")[0].split()
    assert all(f"export {variable}\n" in APPTAINER.read_text() for variable in docker)


def test_everything_that_pip_installs_by_name_is_pinned() -> None:
    for command in re.findall(r"pip (?:install|wheel) (.+)", DOCKERFILE.read_text()):
        names = [word for word in command.split() if not word.startswith(("-", "/"))]
        names = [name for name in names if name not in ("constraints.txt", "psutil", "setuptools")]
        assert names == [name for name in names if "==" in name], command
