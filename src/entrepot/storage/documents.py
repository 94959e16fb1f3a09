"""YAML files that users write, read with the line of every value, so that an error can name it.

Plain data only: no tags, no aliases (which can blow a few lines up to gigabytes), no key twice (of which the parser
would silently keep the last).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from entrepot.errors import FileInvalid

MAX_BYTES = 1024 * 1024

_PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

Place = tuple[str | int, ...]
"""The way to a value: keys of mappings and positions in lists."""


@dataclass(frozen=True)
class Document:
    """What a file says, and where."""

    path: Path
    value: Any
    lines: dict[Place, int]

    def line_of(self, place: Iterable[str | int]) -> int | None:
        """The line, counted from 1, of a value; or of the nearest value around it."""
        way = tuple(place)
        while way not in self.lines and way:
            way = way[:-1]
        return self.lines.get(way)


def read_yaml(path: Path) -> Document:
    """The document in a file. Raises FileInvalid."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileInvalid(str(path), None, f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise FileInvalid(str(path), None, f"has more than {MAX_BYTES} bytes")
    lines: dict[Place, int] = {}
    try:
        loader = _Loader(content.decode("utf-8"))
        node = loader.get_single_node()
        value = None if node is None else _Reader(path, loader, lines).read(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise FileInvalid(str(path), None if mark is None else mark.line + 1, str(error.problem)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileInvalid(str(path), None, f"is not YAML in UTF-8: {error}") from error
    except RecursionError as error:
        raise FileInvalid(str(path), None, "is nested too deeply") from error
    return Document(path, value, lines)


class _Loader(yaml.SafeLoader):
    """Refuses aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not read here", event.start_mark)
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class _Reader:
    path: Path
    loader: _Loader
    lines: dict[Place, int]

    def read(self, node: yaml.Node, place: Place) -> Any:
        """The value of a node; lines are noted on the way."""
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            raise FileInvalid(str(self.path), line, f"the tag {node.tag[:80]!r} is not read here")
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(entry, (*place, number)) for number, entry in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except ValueError as error:
            raise FileInvalid(str(self.path), line, str(error)) from error

    def _read_mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str):
                raise FileInvalid(str(self.path), line, "a key must be text")
            if key in found:
                raise FileInvalid(str(self.path), line, f"{key!r} stands here twice")
            self.lines[(*place, key)] = line
            found[key] = self.read(value_node, (*place, key))
        return found


_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def line_of_path(document: Document, problem: str) -> int | None:
    """The line that a problem such as `plans.free.grants[0].actions: ...` speaks of."""
    path = problem.partition(":")[0]
    return document.line_of(int(match[2]) if match[2] else match[1] for match in _STEP.finditer(path))
