"""Amounts of bytes as people write them: `500GB`, `20GiB`, `1024`."""

import re

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_BYTES = re.compile(r"(\d{1,19})\s*([A-Za-z]{0,3})", re.ASCII)


def parse_bytes(text: str) -> int:
    """The number of bytes that `text` spells; decimal units unless they have an `i`. Raises ValueError."""
    match = _BYTES.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].upper())
    if match is None or unit is None:
        raise ValueError(f"{text[:40]!r} is no amount of bytes; write a number with B, KB, MB, GB, TB or KiB ... TiB")
    return int(match[1]) * unit


def format_bytes(amount: int) -> str:
    """The shortest text that `parse_bytes` reads as this amount."""
    units = [(factor, name) for name, factor in _UNITS.items() if name and amount % factor == 0]
    factor, unit = max(units) if amount else (1, "B")
    return f"{amount // factor}{unit.replace('IB', 'iB')}"
