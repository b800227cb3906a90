"""What every section of a recipe is made of: strict fields, paths and addresses, and errors that say where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from shards.sets.object_store import parse_url
from shards.sets.store import is_url

Problem = tuple[tuple[str, ...], str]  # where (a path of field names) and what is wrong with it, in words

T = TypeVar("T")
FilePath = Annotated[Path, Field(strict=False)]  # strict pydantic takes no text for a path
Listed = Annotated[tuple[T, ...], Field(strict=False)]  # nor a list for a tuple
NonEmpty = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Pair = Annotated[tuple[float, float], Field(strict=False)]


def _checked_location(root: str) -> str:
    if is_url(root):
        try:
            parse_url(root)
        except ValueError as error:
            raise PydanticCustomError("location", "{why}", {"why": str(error)}) from None
    return root


Location = Annotated[Text, AfterValidator(_checked_location)]


class Section(BaseModel):
    """Strict and frozen. A subclass reports what its fields say of each other by yielding from `problems`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def problems(self) -> Iterator[Problem]:
        """Contradictions between valid fields, each with the remedy."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        found = list(self.problems())
        if found:
            lines = "; ".join(f"{'.'.join(place)}: {what}" for place, what in found)
            raise PydanticCustomError("contradiction", "{lines}", {"lines": lines, "problems": found})
        return self
