"""A recipe's YAML as plain values that remember their lines.

Scalars are read as YAML 1.2 reads them, because YAML 1.1 takes `1e-4` for text and `no` for false. Keys that appear
twice, aliases and custom tags are refused. An override `section.field=value` replaces the value in the file, and an
error in it is reported under its own text instead of a line.

A recipe may come from anybody: what it costs to read one is bounded, and what it says can be printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

MAX_ERRORS = 100  # that are told
_MAX_BYTES = 2**18  # PyYAML takes some seconds for that; a long recipe has 3 kB
_MAX_DEPTH = 32
_MAX_LINE = 1000  # characters of an error
_MAX_INT = 2**64
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # controls, and halves of characters

Place = tuple[str | int, ...]


class RecipeError(ValueError):
    """One or more lines, each saying where and what; keys in a URL that they repeat are left out."""

    def __init__(self, text: str) -> None:
        lines = [_short(re.sub(r"[^\s'\"]+", _without_keys, line)) for line in text.split("\n")]
        more = ["... and more errors"] if len(lines) > MAX_ERRORS else []
        super().__init__("\n".join(lines[:MAX_ERRORS] + more))


def _without_keys(word: re.Match[str]) -> str:
    before, at, behind = word[0].rpartition("@")
    shown = f"{before.partition('://')[0]}://...@{behind}" if at and "://" in before else word[0]
    plain, signed, _ = shown.partition("?X-Amz-")
    return f"{plain}://...@" if signed else shown


def _short(line: str) -> str:
    """A value may be long; what is wrong with it stands behind it."""
    return line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE // 2]}...{line[-_MAX_LINE // 2 :]}"


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012, PyYAML's own hook
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise self._refused("aliases (*name) are not used in recipes")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._refused(f"nested more than {_MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refused(self, what: str) -> yaml.MarkedYAMLError:
        return yaml.composer.ComposerError(None, None, what, self.current_event.start_mark)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes also around texts that only YAML 1.2 takes for numbers, as 0E0."""


for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", "n~"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+0123456789."),
):
    _firsts: list[str | None] = [*_first, *([""] if _tag == "null" else [])]
    for _reads in (_Loader, _Dumper):
        _reads.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _firsts)
_SCALARS = {f"tag:yaml.org,2002:{tag}" for tag in ("bool", "null", "int", "float", "str")}


class RecipeYaml:
    """`values`, where each of them came from (`origin`), and the `errors` met on the way, one line each."""

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises RecipeError when it is not a mapping in YAML at all."""
        self.path = path
        self.errors: list[str] = []
        self._override: str | None = None
        self._origins: dict[Place, str] = {(): f"{path}:1"}
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than {_MAX_BYTES // 2**10} KiB, which no recipe is")
        try:
            root = _compose(content.decode("utf-8"))
        except UnicodeDecodeError:
            raise RecipeError(f"{path}: not a text file in UTF-8; a recipe is a YAML file") from None
        except yaml.YAMLError as error:
            mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
            raise RecipeError(f"{path}:{_line(mark)}: not valid YAML: {_problem(error)}") from None
        if root is None:
            raise RecipeError(f"{path}: the recipe is empty; `blsp ls` lists recipes to copy")
        self.values: Any = self._plain(root, ())
        if not isinstance(self.values, dict):
            raise RecipeError(f"{path}:1: a recipe is a mapping of sections, not {type(self.values).__name__}")

    def origin(self, place: Place) -> str:
        """`file:line`, or the override, of the nearest enclosing value that is written down."""
        while place not in self._origins:
            place = place[:-1]
        return self._origins[place]

    def override(self, text: str) -> None:
        """Applies `section.field=value`; a part of the path that is a number is a position in a list."""
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        self._override = f"override {text!r}"
        if not equals or not all(keys) or _UNPRINTABLE.search(path) or len(keys) > _MAX_DEPTH or len(text) > _MAX_BYTES:
            self.errors.append(f"{self._override}: expected section.field=value")
            return
        try:
            root = _compose(value)
        except yaml.YAMLError as error:
            self.errors.append(f"{self._override}: the value is not YAML: {_problem(error)}")
            return
        target = self._container_of(keys)
        if target is not None:
            container, place = target
            self._origins = {known: at for known, at in self._origins.items() if known[: len(place)] != place}
            self._origins[place] = self._override
            container[place[-1]] = None if root is None else self._plain(root, place)

    def _container_of(self, keys: Sequence[str]) -> tuple[Any, Place] | None:
        """What holds the last key, made on the way where the file leaves a section out; None after an error."""
        container: Any = self.values
        place: Place = ()
        for depth, key in enumerate(keys):
            if isinstance(container, list):
                if not key.isdecimal() or len(key) > 9 or int(key) >= len(container):
                    what = f"is a list of {len(container)}; say which, from 0 to {len(container) - 1}"
                    self.errors.append(f"{self._override}: {dotted(place)} {what}")
                    return None
                place = (*place, int(key))
            elif isinstance(container, dict):
                place = (*place, key)
                if depth < len(keys) - 1 and container.get(key) is None:
                    container[key] = {}
                    self._origins[place] = str(self._override)
            else:
                self.errors.append(f"{self._override}: {dotted(place)} is {container!r}, which has no fields")
                return None
            if depth < len(keys) - 1:
                container = container[place[-1]]
        return container, place

    def _plain(self, node: yaml.Node, place: Place) -> Any:
        """The node's values. Notes where each key stands; keys that appear twice become errors."""
        if not isinstance(node, yaml.ScalarNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.errors.append(
                f"{self._where(node)}: {dotted(place)}: cannot be read as {node.tag!r}; leave the tag out"
            )
            return None
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._origins[(*place, index)] = self._where(item)
            return [self._plain(item, (*place, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node, place)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key_node.tag not in _SCALARS or not isinstance(key, str) or _UNPRINTABLE.search(key):
                where = f"{self._where(key_node)}: {dotted(place)}".removesuffix(": ")
                self.errors.append(f"{where}: holds a key that is no plain word")
                continue
            inside = (*place, key)
            if key in values:
                self.errors.append(f"{self._where(key_node)}: {dotted(inside)}: appears twice; keep one")
                continue
            self._origins[inside] = self._where(key_node)
            values[key] = self._plain(value_node, inside)
        return values

    def _scalar(self, node: yaml.Node, place: Place) -> Any:
        """The scalar's value; an error, and None, for what no field of a recipe can be."""
        loader = _Loader("")
        try:
            value = loader.construct_object(node) if node.tag in _SCALARS else None
        except (yaml.YAMLError, ValueError, LookupError):
            value = None
        finally:
            loader.dispose()
        problem = None
        if node.tag not in _SCALARS or (value is None and node.tag != "tag:yaml.org,2002:null"):
            problem = f"cannot be read as {node.tag}"
        elif type(value) is int and abs(value) >= _MAX_INT:
            problem = "is too large a number"
        elif isinstance(value, str) and _UNPRINTABLE.search(value):
            problem = "holds a control character, or half a character"
        if problem is not None:
            self.errors.append(f"{self.origin(place)}: {dotted(place)}: {node.value!r} {problem}")
            return None
        return value

    def _where(self, node: yaml.Node) -> str:
        return self._override or f"{self.path}:{_line(node.start_mark)}"


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that reads back to equal ones."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def dotted(place: Iterable[str | int]) -> str:
    """`('systems', 0, 'run')` as people write it: `systems.0.run`."""
    return ".".join(map(str, place))


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    except (ValueError, OverflowError):  # PyYAML's own, of \UFFFFFFFF and %YAML 99...9
        raise yaml.MarkedYAMLError(None, None, "an escape or a number out of range", loader.get_mark()) from None
    finally:
        loader.dispose()


def _line(mark: yaml.Mark | None) -> int:
    return 1 if mark is None else mark.line + 1


def _problem(error: yaml.YAMLError) -> str:
    what = (error.problem or error.context) if isinstance(error, yaml.MarkedYAMLError) else None
    return what or " ".join(str(error).split())
