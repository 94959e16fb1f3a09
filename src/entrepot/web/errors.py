"""How every face finds an error's answer in its own table."""

from collections.abc import Mapping
from typing import TypeVar

from entrepot.errors import EntrepotError

A = TypeVar("A")


def find_answer(table: Mapping[type[EntrepotError], A], error: EntrepotError) -> A:
    """The answer for the nearest of the error's classes; a table has one for EntrepotError, so there is always one."""
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


def error_document(code: str, message: str) -> dict[str, object]:
    """The body of a refusal. Spec: distribution-spec 1.1, "Error Codes"."""
    return {"errors": [{"code": code, "message": message}]}
