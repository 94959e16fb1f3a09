"""Whatever is asked of `/v2/`, in whatever order: every answer is what a correct registry would give.

The model is a registry in a few dictionaries. SOAK_SECONDS says for how long to look beyond the short form.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import CONFIG_TYPE, LAYER_TYPE, descriptor
from tests.support.served import RegistryClient, serve

# A long run looks at so many sequences a second, about.
SEQUENCES = max(60, int(float(os.environ.get("SOAK_SECONDS", "0")) * 2))
STEPS = 60

BLOBS = [b"", b"{}", b"layer one", b"layer two" * 50, bytes(range(256)) * 20]
TAGS = ["0.1.2", "0.1.20", "0.2.0", "latest", "v1", "V1", "_x"]
ALGORITHMS = ["sha256", "sha512"]
TYPES = [None, "application/vnd.example.sbom", "application/vnd.example.signature+json"]
MISSING = "sha256:" + "0" * 64

blobs = st.sampled_from(BLOBS)
algorithms = st.sampled_from(ALGORITHMS)
tags = st.sampled_from(TAGS)
sides = st.sampled_from(["a", "b"])

Ask = Callable[..., httpx.Response]


@dataclass
class Stored:
    """A manifest as the model knows it."""

    media_type: str
    content: bytes
    blobs: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)
    subject: str | None = None
    artifact_type: str | None = None


@dataclass
class Repository:
    """A repository as the model knows it."""

    name: str
    exists: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Stored] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)

    def keep_blob(self, digest: str, content: bytes) -> None:
        self.exists = True
        self.blobs[digest] = content

    def find(self, reference: str) -> str | None:
        """The digest that a reference names."""
        digest = self.tags.get(reference, reference)
        return digest if digest in self.manifests else None


def error_code(answer: httpx.Response) -> str:
    (error,) = answer.json()["errors"]
    assert error["message"]
    return str(error["code"])


class Model(RuleBasedStateMachine):
    """Two repositories of their own for each sequence, so that all can share one registry."""

    ask: Ask
    sequence = 0

    def __init__(self) -> None:
        super().__init__()
        Model.sequence += 1
        self.sides = {side: Repository(f"fuzz{Model.sequence}/{side}") for side in ("a", "b")}

    def call(self, method: str, repository: Repository, path: str, **arguments: Any) -> httpx.Response:
        if not path.startswith("/"):
            path = f"/v2/{repository.name}/{path}"
        return type(self).ask(method, path, **arguments)

    # Blobs

    @rule(side=sides, content=blobs, algorithm=algorithms, is_right=st.integers(0, 4).map(bool))
    def push_blob_in_one_request(self, side: str, content: bytes, algorithm: str, is_right: bool) -> None:
        repository = self.sides[side]
        digest = str(Digest.of(content if is_right else content + b"!", algorithm))
        answer = self.call("POST", repository, f"blobs/uploads/?digest={digest}", content=content)
        if is_right:
            assert (answer.status_code, answer.headers.get("docker-content-digest")) == (201, digest)
            repository.keep_blob(digest, content)
        elif not content:
            # Nothing came that could be wrong: a session was opened.
            assert answer.status_code == 202
            repository.uploads[answer.headers["location"]] = b""
        else:
            assert (answer.status_code, error_code(answer)) == (400, "DIGEST_INVALID")

    @rule(side=sides)
    def begin_upload(self, side: str) -> None:
        repository = self.sides[side]
        answer = self.call("POST", repository, "blobs/uploads/")
        assert answer.status_code == 202
        repository.uploads[answer.headers["location"]] = b""

    @rule(side=sides, content=blobs, pick=st.integers(0), shift=st.sampled_from([None, 0, 0, 0, -1, 1, 10**15]))
    def append(self, side: str, content: bytes, pick: int, shift: int | None) -> None:
        repository = self.sides[side]
        if not repository.uploads:
            return
        location = sorted(repository.uploads)[pick % len(repository.uploads)]
        before = repository.uploads[location]
        headers = {}
        start = len(before) + (shift or 0)
        if shift is not None and content and start >= 0:
            headers["Content-Range"] = f"{start}-{start + len(content) - 1}"
        answer = self.call("PATCH", repository, location, content=content, headers=headers)
        if headers and shift:
            assert (answer.status_code, error_code(answer)) == (416, "BLOB_UPLOAD_INVALID")
        else:
            assert answer.status_code == 202
            repository.uploads[location] = before + content
        self.see_upload(side, pick)

    @rule(side=sides, pick=st.integers(0))
    def see_upload(self, side: str, pick: int) -> None:
        repository = self.sides[side]
        if repository.uploads:
            location = sorted(repository.uploads)[pick % len(repository.uploads)]
            answer = self.call("GET", repository, location)
            size = len(repository.uploads[location])
            assert (answer.status_code, answer.headers["range"]) == (204, f"0-{max(size - 1, 0)}")

    @rule(side=sides, content=blobs, pick=st.integers(0), algorithm=algorithms, is_right=st.integers(0, 4).map(bool))
    def finish_upload(self, side: str, content: bytes, pick: int, algorithm: str, is_right: bool) -> None:
        repository = self.sides[side]
        if not repository.uploads:
            return
        location = sorted(repository.uploads)[pick % len(repository.uploads)]
        whole = repository.uploads.pop(location) + content
        digest = str(Digest.of(whole if is_right else whole + b"!", algorithm))
        separator = "&" if "?" in location else "?"
        answer = self.call("PUT", repository, f"{location}{separator}digest={digest}", content=content)
        if is_right:
            assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, digest)
            repository.keep_blob(digest, whole)
        else:
            assert (answer.status_code, error_code(answer)) == (400, "DIGEST_INVALID")
        assert self.call("GET", repository, location).status_code == 404

    @rule(side=sides, pick=st.integers(0))
    def cancel_upload(self, side: str, pick: int) -> None:
        repository = self.sides[side]
        if repository.uploads:
            location = sorted(repository.uploads)[pick % len(repository.uploads)]
            del repository.uploads[location]
            assert self.call("DELETE", repository, location).status_code == 204
            answer = self.call("PATCH", repository, location, content=b"x")
            assert (answer.status_code, error_code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")

    @rule(content=blobs, algorithm=algorithms, source=sides, side=sides)
    def mount(self, content: bytes, algorithm: str, source: str, side: str) -> None:
        digest = str(Digest.of(content, algorithm))
        here, there = self.sides[side], self.sides[source]
        answer = self.call("POST", here, f"blobs/uploads/?mount={digest}&from={there.name}")
        if digest in there.blobs:
            assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, digest)
            here.keep_blob(digest, content)
        else:
            assert answer.status_code == 202
            here.uploads[answer.headers["location"]] = b""

    @rule(side=sides, content=blobs, algorithm=algorithms, part=st.tuples(st.integers(0, 6000), st.integers(0, 6000)))
    def pull_blob(self, side: str, content: bytes, algorithm: str, part: tuple[int, int]) -> None:
        repository = self.sides[side]
        digest = str(Digest.of(content, algorithm))
        whole = self.call("GET", repository, f"blobs/{digest}")
        head = self.call("HEAD", repository, f"blobs/{digest}")
        assert whole.status_code == head.status_code
        first, last = min(part), max(part)
        ranged = self.call("GET", repository, f"blobs/{digest}", headers={"Range": f"bytes={first}-{last}"})
        if digest not in repository.blobs:
            assert (whole.status_code, error_code(whole), ranged.status_code) == (404, "BLOB_UNKNOWN", 404)
            return
        assert (whole.status_code, whole.content) == (200, content)
        assert head.headers["content-length"] == str(len(content))
        if first < len(content):
            assert (ranged.status_code, ranged.content) == (206, content[first : last + 1])
        else:
            assert ranged.status_code == 416

    @rule(side=sides, content=blobs, algorithm=algorithms)
    def delete_blob(self, side: str, content: bytes, algorithm: str) -> None:
        repository = self.sides[side]
        digest = str(Digest.of(content, algorithm))
        answer = self.call("DELETE", repository, f"blobs/{digest}")
        if any(digest in stored.blobs for stored in repository.manifests.values()):
            assert (answer.status_code, error_code(answer)) == (409, "DENIED")
        elif digest in repository.blobs:
            assert answer.status_code == 202
            del repository.blobs[digest]
        else:
            assert answer.status_code == 404

    # Manifests

    def put(self, repository: Repository, stored: Stored, reference: str | None, algorithm: str) -> None:
        digest = str(Digest.of(stored.content, algorithm if reference is None else "sha256"))
        headers = {"Content-Type": stored.media_type}
        path = f"manifests/{digest if reference is None else reference}"
        answer = self.call("PUT", repository, path, content=stored.content, headers=headers)
        missing = (stored.blobs - set(repository.blobs)) | (stored.children - set(repository.manifests))
        if missing:
            assert (answer.status_code, error_code(answer)) == (404, "MANIFEST_BLOB_UNKNOWN")
            return
        assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, digest)
        assert answer.headers.get("oci-subject") == stored.subject
        repository.exists = True
        repository.manifests[digest] = stored
        if reference is not None:
            repository.tags[reference] = digest

    @rule(
        side=sides,
        config=blobs,
        layers=st.lists(blobs, max_size=3),
        reference=st.none() | tags,
        algorithm=algorithms,
        kind=st.sampled_from(TYPES),
        speaks_of=st.none() | st.just("missing") | st.integers(0, 5),
    )
    def push_manifest(
        self,
        side: str,
        config: bytes,
        layers: list[bytes],
        reference: str | None,
        algorithm: str,
        kind: str | None,
        speaks_of: int | str | None,
    ) -> None:
        repository = self.sides[side]
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": descriptor(CONFIG_TYPE, config),
            "layers": [descriptor(LAYER_TYPE, layer) for layer in layers],
            "annotations": {"org.example.of": str(speaks_of)},
        }
        if kind is not None:
            document["artifactType"] = kind
        subject = None
        if speaks_of == "missing":
            subject = document["subject"] = {
                "mediaType": media_types.OCI_MANIFEST,
                "digest": MISSING,
                "size": 7,
            }
        elif isinstance(speaks_of, int) and repository.manifests:
            digest = sorted(repository.manifests)[speaks_of % len(repository.manifests)]
            other = repository.manifests[digest]
            subject = document["subject"] = {
                "mediaType": other.media_type,
                "digest": digest,
                "size": len(other.content),
            }
        names = {str(Digest.of(blob)) for blob in (config, *layers)}
        about = None if subject is None else str(subject["digest"])
        content = json.dumps(document).encode()
        stored = Stored(media_types.OCI_MANIFEST, content, names, set(), about, kind or CONFIG_TYPE)
        self.put(repository, stored, reference, algorithm)

    @rule(side=sides, picks=st.lists(st.integers(0, 9), max_size=3), reference=st.none() | tags, algorithm=algorithms)
    def push_index(self, side: str, picks: list[int], reference: str | None, algorithm: str) -> None:
        repository = self.sides[side]
        both = {**self.sides["a"].manifests, **self.sides["b"].manifests}
        chosen = sorted({sorted(both)[pick % len(both)] for pick in picks}) if both else []
        entries = [
            {"mediaType": both[digest].media_type, "digest": digest, "size": len(both[digest].content)}
            for digest in chosen
        ]
        document = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}
        stored = Stored(media_types.OCI_INDEX, json.dumps(document).encode(), set(), set(chosen))
        self.put(repository, stored, reference, algorithm)

    @rule(side=sides, tag=tags, pick=st.none() | st.integers(0))
    def pull_manifest(self, side: str, tag: str, pick: int | None) -> None:
        repository = self.sides[side]
        known = sorted(repository.manifests)
        reference = tag if pick is None or not known else known[pick % len(known)]
        self.verify_manifest(repository, reference)

    def verify_manifest(self, repository: Repository, reference: str) -> None:
        answer = self.call("GET", repository, f"manifests/{reference}")
        head = self.call("HEAD", repository, f"manifests/{reference}")
        assert (answer.status_code, answer.headers.get("etag")) == (head.status_code, head.headers.get("etag"))
        digest = repository.find(reference)
        if digest is None:
            expected = "MANIFEST_UNKNOWN" if repository.exists else "NAME_UNKNOWN"
            assert (answer.status_code, error_code(answer)) == (404, expected)
            return
        stored = repository.manifests[digest]
        assert (answer.status_code, answer.content) == (200, stored.content)
        assert answer.headers["content-type"] == stored.media_type
        assert answer.headers["docker-content-digest"] == head.headers["docker-content-digest"] == digest
        assert answer.headers["content-length"] == head.headers["content-length"]

    @rule(side=sides, tag=tags)
    def delete_tag(self, side: str, tag: str) -> None:
        repository = self.sides[side]
        answer = self.call("DELETE", repository, f"manifests/{tag}")
        assert answer.status_code == (202 if tag in repository.tags else 404)
        repository.tags.pop(tag, None)
        self.verify_manifest(repository, tag)

    @rule(side=sides, pick=st.integers(0))
    def delete_manifest(self, side: str, pick: int) -> None:
        repository = self.sides[side]
        known = sorted(repository.manifests)
        digest = known[pick % len(known)] if known else MISSING
        answer = self.call("DELETE", repository, f"manifests/{digest}")
        if not known:
            assert answer.status_code == 404
        elif any(digest in stored.children for stored in repository.manifests.values()):
            assert (answer.status_code, error_code(answer)) == (409, "DENIED")
        else:
            assert answer.status_code == 202
            del repository.manifests[digest]
            repository.tags = {tag: named for tag, named in repository.tags.items() if named != digest}
        self.verify_manifest(repository, digest)

    # Lists

    @rule(side=sides, size=st.integers(1, 4))
    def list_tags(self, side: str, size: int) -> None:
        repository = self.sides[side]
        answer = self.call("GET", repository, f"tags/list?n={size}")
        if not repository.exists:
            assert (answer.status_code, error_code(answer)) == (404, "NAME_UNKNOWN")
            return
        found = list(answer.json()["tags"])
        while "link" in answer.headers:
            assert len(answer.json()["tags"]) == size
            answer = self.call("GET", repository, answer.links["next"]["url"])
            found += answer.json()["tags"]
        assert found == sorted(repository.tags)

    @rule(side=sides, pick=st.none() | st.integers(0), kind=st.sampled_from([*TYPES, CONFIG_TYPE]))
    def list_referrers(self, side: str, pick: int | None, kind: str | None) -> None:
        repository = self.sides[side]
        known = sorted(repository.manifests)
        subject = MISSING if pick is None or not known else known[pick % len(known)]
        query = "" if kind is None else f"?artifactType={quote(kind, safe='')}"
        answer = self.call("GET", repository, f"referrers/{subject}{query}")
        assert answer.status_code == 200
        expected = {
            digest
            for digest, stored in repository.manifests.items()
            if stored.subject == subject and kind in {None, stored.artifact_type}
        }
        entries = answer.json()["manifests"]
        assert {entry["digest"] for entry in entries} == expected
        for entry in entries:
            stored = repository.manifests[entry["digest"]]
            assert (entry["artifactType"], entry["size"]) == (stored.artifact_type, len(stored.content))
            assert "org.example.of" in entry["annotations"]

    @invariant()
    def what_tags_name_is_there(self) -> None:
        for repository in self.sides.values():
            for tag in sorted(repository.tags)[:1]:
                self.verify_manifest(repository, tag)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A registry in this process, asked by a publisher."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def begin() -> RegistryClient:
            served = await stack.enter_async_context(serve(tmp_path_factory.mktemp("fuzz") / "data"))
            return await served.client("publisher")

        client = runner.run(begin())

        def call(method: str, path: str, **arguments: Any) -> httpx.Response:
            answer = runner.run(client.call(method, path, **arguments))
            assert answer.status_code < 500, f"{method} {path}: {answer.text}"
            return answer

        yield call
        runner.run(stack.aclose())


def test_every_answer_is_what_a_correct_registry_would_give(ask: Ask) -> None:
    Model.ask = staticmethod(ask)  # type: ignore[assignment]
    options = settings(
        max_examples=SEQUENCES,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Model, settings=options)  # type: ignore[no-untyped-call]


names = st.sampled_from(["smm/api", "smm", "SMM", "a" * 300, "smm//api", "smm/blobs/uploads", "%2e%2e/smm", ""])
digests = st.sampled_from([MISSING, "sha256:abc", "sha512:" + "0" * 128, "md5:" + "0" * 32, "SHA256:" + "0" * 64, ":"])
references = digests | tags | st.text(max_size=12)
upload_ids = st.uuids().map(str) | st.text(max_size=40)
paths = st.one_of(
    st.tuples(names, st.just("manifests"), references),
    st.tuples(names, st.just("blobs"), references),
    st.tuples(names, st.just("blobs/uploads"), upload_ids | st.just("")),
    st.tuples(names, st.just("tags"), st.just("list") | st.text(max_size=5)),
    st.tuples(names, st.just("referrers"), references),
    st.tuples(st.just("_catalog")),
    st.lists(st.text(max_size=10), max_size=5).map(tuple),
).map("/".join)
queries = st.dictionaries(
    st.sampled_from(["n", "last", "digest", "mount", "from", "artifactType", "tag", "digest-algorithm", "_state"]),
    digests | names | st.text(max_size=12) | st.integers(-(10**30), 10**30).map(str),
    max_size=3,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | digests,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "digest", "size", "config", "layers", "manifests", "subject", "annotations"])
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
documents = st.builds(
    lambda document, media_type: json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}).encode(),
    st.dictionaries(st.sampled_from(["config", "layers", "manifests", "subject", "artifactType"]), json_values),
    st.sampled_from(sorted(media_types.ACCEPTED)),
)
header_values = st.sampled_from(
    [
        "bytes=0-1",
        "bytes=-0",
        "bytes=5-1",
        "0-10",
        "1-0",
        "bytes 0-1/2",
        "*",
        '"x"',
        "W/",
        "," * 50,
        *media_types.ACCEPTED,
    ]
) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
headers = st.dictionaries(
    st.sampled_from(["Range", "Content-Range", "Content-Type", "If-Match", "If-None-Match", "If-Range", "Accept"]),
    header_values,
    max_size=3,
)


@settings(
    max_examples=max(400, SEQUENCES * 20), deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "X"]),
    path=paths,
    query=queries,
    headers=headers,
    content=st.binary(max_size=20) | documents,
)
def test_nothing_that_is_asked_is_too_much_for_it(
    ask: Ask, method: str, path: str, query: dict[str, str], headers: dict[str, str], content: bytes
) -> None:
    """`ask` fails for every answer that blames the server; a refusal says why, in the specification's form."""
    url = "/v2/" + quote(path, safe="/:%")
    answer = ask(method, url, params=query, headers=headers, content=content)
    # Clients resolve dots before they ask.
    if answer.status_code >= 400 and method != "HEAD" and answer.request.url.path.startswith("/v2/"):
        assert error_code(answer)
