"""Typed values from JSON: what a file says is checked as strictly as what a flag says."""

import math
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def decode(kind: Any, value: Any, name: str = "it") -> Any:
    """A value of JSON as `kind`: a dataclass, int, float, bool, str, Path, Literal, list, tuple, dict, or None.

    A dataclass needs exactly its fields, and checks their ranges itself. Raises ValueError or TypeError.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return decode_fields(kind, value, name)
    if origin in (Union, UnionType):
        return None if value is None and NoneType in args else decode(args[0], value, name)
    if origin is Literal and any(value == x and type(value) is type(x) for x in args):
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(decode(args[0], x, f"{name}[{i}]") for i, x in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: decode(args[1], x, f"{name}.{key}") for key, x in value.items()}
    if kind is Path and type(value) is str:
        return Path(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        wanted = f"one of {args}" if origin is Literal else getattr(kind, "__name__", kind)
        raise TypeError(f"{name} is {str(value)[:40]}, not {wanted}")
    return value


def decode_fields(kind: Any, values: Any, name: str) -> Any:
    """The dataclass `kind` from an object of JSON with exactly its fields."""
    hints = get_type_hints(kind)
    given = set(values) if isinstance(values, dict) else set()
    if wrong := sorted(given ^ set(hints)):
        raise ValueError(f"{name} lacks or should not have {', '.join(wrong)[:80]}")
    return kind(**{key: decode(hints[key], values[key], key) for key in hints})
