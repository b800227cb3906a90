"""Finds, reads and checks recipes; every error at once as `file:line: section.field: what is wrong`."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from blsp.recipe import KINDS, EvalRecipe, Recipe, ShardRecipe, TrainRecipe
from launcher.recipe_yaml import MAX_ERRORS, Place, RecipeError, RecipeYaml, dotted

SHIPPED = Path(__file__).with_name("recipes")

R = TypeVar("R", TrainRecipe, ShardRecipe, EvalRecipe)


def find(name: str | Path) -> Path:
    """The file of that path, else the shipped recipe of that name. Raises RecipeError when there is neither."""
    path = Path(name)
    with suppress(OSError):  # a name that is too long
        if path.is_file():
            return path
    shipped = {file.stem: file for file in shipped_recipes()}
    stem = path.name.removesuffix(".yaml")
    if stem in shipped and path.parent == Path():
        return shipped[stem]
    nearest = difflib.get_close_matches(stem, shipped, n=1, cutoff=0.5)
    hint = f"the nearest is {nearest[0]!r}; " if nearest else ""
    raise RecipeError(f"no recipe file or shipped recipe {str(name)!r}; {hint}`blsp ls` lists them")


def shipped_recipes() -> list[Path]:
    """The recipes that come with the package, by name."""
    return sorted(SHIPPED.glob("*.yaml"))


def load(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe of any kind. Raises RecipeError with one line per error."""
    source = RecipeYaml(find(name))
    for text in overrides:
        source.override(text)
    kind = source.values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        wrong = f"is {kind!r}" if "kind" in source.values else "is missing"
        source.errors.append(f"{source.origin(('kind',))}: kind: {wrong}; expected one of {', '.join(KINDS)}")
        raise RecipeError("\n".join(source.errors))
    model = KINDS[kind]
    try:
        recipe = model.model_validate(source.values)
    except ValidationError as error:
        source.errors += islice(_lines(error, source, model), MAX_ERRORS + 1)  # a hint for each takes time
    if source.errors:
        raise RecipeError("\n".join(dict.fromkeys(source.errors)))
    return recipe


def load_kind(kind: type[R], name: str | Path, overrides: Sequence[str] = ()) -> R:
    """Like `load`, and refuses a recipe of another kind."""
    recipe = load(name, overrides)
    if not isinstance(recipe, kind):
        wanted = next(word for word, model in KINDS.items() if model is kind)
        raise RecipeError(f"{find(name)}: this is a recipe for `blsp {recipe.kind}`, not for `blsp {wanted}`")
    return recipe


def _lines(error: ValidationError, source: RecipeYaml, model: type[BaseModel]) -> Iterator[str]:
    """One line per error, in words of ours where pydantic's would not tell what to do."""
    details = error.errors(include_url=False)
    for detail in details:
        place = _in_values(detail["loc"], source.values, missing=detail["type"] == "missing")
        if detail["type"] == "contradiction":
            problems = [((*place, *where), what) for where, what in detail["ctx"]["problems"]]
        elif detail["type"] == "too_short" and detail["input"]:
            continue  # pydantic counts only the valid items of a list; the invalid ones have errors of their own
        else:
            problems = [(place, _what(detail, place, model))]
        for where, what in problems:
            yield f"{source.origin(where)}: {dotted(where)}: {what}"


def _in_values(loc: Place, values: Any, missing: bool) -> Place:
    """Pydantic's location without the steps that are not in the recipe (tags of unions, '[key]'), but with its last
    when that is the field that is missing."""
    place: Place = ()
    for index, step in enumerate(loc):
        known = (isinstance(values, dict) and step in values) or (
            isinstance(values, list) and isinstance(step, int) and step < len(values)
        )
        if known:
            place, values = (*place, step), values[step]
        elif missing and index == len(loc) - 1:
            place = (*place, step)
    return place


def _what(detail: Any, place: Place, model: type[BaseModel]) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown_key(place, model)
    if kind == "missing":
        field = _fields(place[:-1], model)[str(place[-1])]
        return f"is missing: {field.description}" if field.description else "is missing"
    if kind in ("literal_error", "union_tag_invalid"):
        context = detail["ctx"]
        wrong = str(context.get("tag", value))
        choices = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
        return f"{wrong!r} is not one of {', '.join(choices)}{_nearest(wrong, choices)}"
    if kind == "string_pattern_mismatch":
        while isinstance(place[-1], int):  # an item is what its list is described as
            place = place[:-1]
        return f"{value!r} does not fit; it is {_fields(place[:-1], model)[str(place[-1])].description}"
    if kind == "location":
        return str(detail["msg"])  # without the value, which may hold a key
    if kind == "union_tag_not_found":
        return f"needs the key {detail['ctx']['discriminator'].strip(chr(39))!r}"
    message = re.sub(r"^(Input|Value|String|Tuple|Dictionary) ", "", str(detail["msg"])).rstrip(".")
    return message if isinstance(value, dict | list) else f"{message}, got {value!r}"


def _unknown_key(place: Place, model: type[BaseModel]) -> str:
    key = str(place[-1])
    here = _fields(place[:-1], model)
    elsewhere = [f"{section}.{key}" for section in model.model_fields if key in _fields((section,), model)]
    if key not in here and key in model.model_fields:
        elsewhere.append(key)
    if elsewhere:
        return f"unknown key here; it belongs at {elsewhere[0]}"
    return f"unknown key{_nearest(key, here) or '; known are ' + ', '.join(here)}"


def _nearest(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else ""


def _fields(place: Place, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of the section at `place`; of all its forms where it has several (as a system has)."""
    models = [model]
    for step in place:
        if isinstance(step, str):
            fields = [form.model_fields[step] for form in models if step in form.model_fields]
            models = [form for field in fields for form in _models_in(field.annotation)]
    return {name: field for form in models for name, field in form.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
