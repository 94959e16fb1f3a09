from pathlib import Path

import pytest

from entrepot.errors import FileInvalid
from entrepot.storage.documents import MAX_BYTES, line_of_path, read_yaml


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        pytest.param(b"a: [1, 2\nb: 3\n", 2, "", id="unclosed"),
        pytest.param(b"a: 1\n\tb: 2\n", 2, "", id="tab"),
        pytest.param(b"a: 1\nb: 2\na: 3\n", 3, "'a' stands here twice", id="key-twice"),
        pytest.param(b"a: &x 1\nb: *x\n", 2, "aliases are not read here", id="alias"),
        pytest.param(b"a: !!python/object/apply:os.system ['id']\n", 1, "is not read here", id="python-tag"),
        pytest.param(b"a: !!python/name:os.system\n", 1, "", id="python-name"),
        pytest.param(b"? [a, b]\n: 1\n", 1, "a key must be text", id="list-as-key"),
        pytest.param(b"a: 2026-99-99\n", 1, "", id="no-date"),
        pytest.param(b"\xff\xfe\x00", None, "", id="not-utf-8"),
        pytest.param(b"a: \x00", None, "", id="nul"),
        pytest.param(b"[" * 5000, None, "", id="deep"),
        pytest.param(b"#" * (MAX_BYTES + 1), None, "more than", id="huge"),
        pytest.param(b"a: 1\n---\nb: 2\n", None, "", id="two-documents"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(
    tmp_path: Path, content: bytes, line: int | None, problem: str
) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(FileInvalid) as refusal:
        read_yaml(path)
    assert refusal.value.path == str(path)
    assert problem in refusal.value.problem
    if line is not None:
        assert refusal.value.line == line


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileInvalid, match=r"none.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_an_empty_file_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("# nothing\n")
    assert read_yaml(path).value is None


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        ("plans.free.grants[1].actions[0]: 'read' is not one of pull", 5),
        ("plans.free.grants[1].repositories[1]: glob", 4),
        ("plans.free: must be", 2),
        ("plans.other: unknown", 1),
        ("the file: must be", 1),
    ],
)
def test_the_line_of_a_problem_is_found(tmp_path: Path, problem: str, line: int) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(
        "plans:\n"
        "  free:\n"
        "    grants: [{repositories: [a], actions: [pull]},\n"
        "      {repositories: [b, 'c d'],\n"
        "       actions: [read]}]\n"
    )
    assert line_of_path(read_yaml(path), problem) == line
