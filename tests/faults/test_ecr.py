"""ECR when it throttles, ends tokens, or is not what it should be; and when it has very much."""

import asyncio
import json
import os
import re
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from entrepot.errors import SourceUntrusted
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.backoff import Deadlines
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.source_specs import parse_source
from entrepot.replication.sources import Sources
from tests.faults.conftest import RULE, Replicating
from tests.support.content import Image
from tests.support.forward_proxy import forward_proxy
from tests.support.hostile import send_pieces
from tests.support.hostile_ecr import PUSHED_AT, Answer, HostileEcr, also, amz_error, serving_ecr
from tests.support.programs import run_measured
from tests.support.served import TESTER, Served
from tests.support.servers import make_certificate
from tests.support.whole import verify_whole

API = RepositoryName("smm/api")
IMAGE = Image(layer=os.urandom(300_000))
LAYER = str(Digest.of(IMAGE.layer))
MANY = 10_000
# The SDK takes its time to begin with, the more so on a busy machine.
PATIENT = Deadlines(connect_seconds=10, idle_seconds=10, answer_seconds=10)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys for the SDK to find."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")


@pytest.fixture
async def ecr() -> AsyncIterator[HostileEcr]:
    async with serving_ecr() as served:
        yield served


@pytest.fixture
async def copying(served: Served, ecr: HostileEcr) -> AsyncIterator[Replicating]:
    """Replication of everything that the ECR has."""
    yield await begin(ecr, Replicating(served, PATIENT))
    await verify_whole(served)


async def begin(ecr: HostileEcr, replicating: Replicating) -> Replicating:
    """Have everything copied that the ECR has."""
    rule = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["*"]}}
    document = {"sources": {"internal": ecr.document}, "rules": {RULE: rule}}
    await replicating.rulebook.apply(parse_rule_file(document), TESTER)
    return replicating


def failing(operation: str, answer: web.Response, times: int = 1_000_000) -> Answer:
    """Answer an operation so, as often as that."""
    left = times

    async def misbehave(called: str, _: dict[str, Any]) -> web.StreamResponse | None:
        nonlocal left
        if called != operation or left == 0:
            return None
        left -= 1
        body = answer.body
        assert isinstance(body, bytes)
        return web.Response(status=answer.status, body=body, content_type=answer.content_type)

    return misbehave


async def test_everything_is_copied_with_one_token(ecr: HostileEcr, copying: Replicating) -> None:
    ecr.page = 2
    for number in range(5):
        ecr.registry.put_image(API.value, f"v{number}")
    ecr.registry.put_image("smm/web", "v1")
    ecr.registry.put_image("other/web", "v1")
    for _ in range(2):
        run = await copying.run()
        assert run.status == "done", run.report
    assert run.report["tags"] == {"new": 0, "changed": 0, "same": 6}
    assert ecr.calls.count("GetAuthorizationToken") == 1
    # The list itself says what tags name.
    assert ecr.registry.count("HEAD") == 0


async def test_the_list_tells_kinds_apart_without_a_look_at_manifests(ecr: HostileEcr, copying: Replicating) -> None:
    ecr.registry.put_image(API.value, "v1")
    ecr.registry.put_index(API.value, "multi", Image())
    chart = json.loads(Image().manifest)
    chart["config"]["mediaType"] = media_types.HELM_CONFIG
    ecr.registry.put_manifest(API.value, json.dumps(chart).encode(), media_types.OCI_MANIFEST, "chart")
    rule = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["*"]}, "media_types": ["artifacts"]}
    await copying.rulebook.apply(parse_rule_file({"rules": {RULE: rule}}), TESTER)
    run = await copying.run()
    assert (run.status, run.report["left_out"]) == ("done", 3), run.report
    assert ecr.registry.count("/v2/") == 0


@pytest.mark.parametrize("status", [403, 401])
async def test_a_token_that_ends_in_the_middle_of_a_layer_is_renewed(
    ecr: HostileEcr, served: Served, status: int
) -> None:
    hours = 0
    replicating = await begin(ecr, Replicating(served, PATIENT, monotonic=lambda: time.monotonic() + 3600 * hours))
    ecr.expired_status = status
    ecr.registry.put_image(API.value, "v1", IMAGE)
    ranges: list[str | None] = []

    async def end_in_the_middle(request: web.Request) -> web.StreamResponse | None:
        nonlocal hours
        if not request.path.endswith(f"/blobs/{LAYER}"):
            return None
        ranges.append(request.headers.get("Range"))
        if len(ranges) > 1:
            return None
        ecr.end_token()
        hours = 1
        return await send_pieces(request, [IMAGE.layer[:200_000]], length=len(IMAGE.layer))

    ecr.registry.misbehave = also(ecr, end_in_the_middle)
    run = await replicating.run()
    assert run.status == "done", run.report
    assert run.report["bytes"] == len(IMAGE.layer) + len(IMAGE.config)
    assert ranges[0] is None
    assert re.fullmatch(r"bytes=[1-9]\d+-", ranges[1] or "")
    assert ecr.calls.count("GetAuthorizationToken") == 2


async def test_a_token_that_ends_in_the_middle_of_a_layer_and_is_not_renewed_is_named(
    ecr: HostileEcr, served: Served
) -> None:
    hours = 0
    replicating = await begin(ecr, Replicating(served, PATIENT, monotonic=lambda: time.monotonic() + 3600 * hours))
    ecr.registry.put_image(API.value, "v1", IMAGE)

    async def end_for_good(request: web.Request) -> web.StreamResponse | None:
        nonlocal hours
        if not request.path.endswith(f"/blobs/{LAYER}") or hours:
            return None
        ecr.end_token()
        hours = 1
        ecr.misbehave = failing("GetAuthorizationToken", denied)
        return await send_pieces(request, [IMAGE.layer[:200_000]], length=len(IMAGE.layer))

    denied = web.Response(
        status=400,
        body=b'{"__type": "AccessDeniedException", "message": "not authorized to perform: ecr:GetAuthorizationToken"}',
        content_type="application/x-amz-json-1.1",
    )
    ecr.registry.misbehave = also(ecr, end_for_good)
    run = await replicating.run()
    assert (run.status, run.report["tags_copied"]) == ("failed", 0)
    (failure,) = run.report["failures"]
    assert (failure["what"], failure["kind"], failure["side"]) == ("smm/api:v1", "failed", "source")
    assert "GetAuthorizationToken" in failure["problem"]
    assert not failure["is_temporary"]
    assert await served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}
    assert not await served.parts.registry.hold_blob(API, Digest.of(IMAGE.layer))
    await verify_whole(served)


async def test_a_repository_that_is_denied_costs_no_further_tokens(ecr: HostileEcr, copying: Replicating) -> None:
    ecr.registry.put_image(API.value, "v1", IMAGE)
    denied = {"errors": [{"code": "DENIED", "message": "User is not authorized to perform: ecr:BatchGetImage"}]}

    async def deny(_: web.Request) -> web.StreamResponse:
        return web.json_response(denied, status=403)

    ecr.registry.misbehave = also(ecr, deny)
    run = await copying.run()
    failure = run.report["failures"][0]
    assert "refused with 403 (DENIED: User is not authorized to perform: ecr:BatchGetImage)" in failure["problem"]
    assert not failure["is_temporary"]
    assert ecr.calls.count("GetAuthorizationToken") == 1


@pytest.mark.parametrize("operation", ["DescribeRepositories", "DescribeImages", "GetAuthorizationToken"])
async def test_a_throttling_api_is_asked_again(ecr: HostileEcr, copying: Replicating, operation: str) -> None:
    ecr.registry.put_image(API.value, "v1", IMAGE)
    ecr.misbehave = failing(operation, amz_error("ThrottlingException", "Rate exceeded"), times=4)
    run = await copying.run()
    assert run.status == "done", run.report
    assert ecr.calls.count(operation) == 5


@pytest.mark.parametrize(
    ("operation", "answer", "problem", "is_temporary"),
    [
        pytest.param(
            "DescribeImages",
            amz_error("ThrottlingException", "Rate exceeded"),
            "Throttling.*waited",
            True,
            id="throttled",
        ),
        pytest.param(
            "DescribeImages", amz_error("ServerException", "x", 500), "ServerException.*tried 3", True, id="500"
        ),
        pytest.param(
            "DescribeRepositories",
            amz_error("AccessDeniedException", "User: arn:aws:x is not authorized"),
            "AccessDeniedException: User: arn:aws:x is not authorized; check what the role may do",
            False,
            id="denied",
        ),
        pytest.param(
            "DescribeImages",
            web.Response(body=b"<html>", content_type="text/html"),
            "answers without imageDetails",
            False,
            id="html",
        ),
        pytest.param(
            "DescribeImages",
            web.Response(body=b" " * 17_000_000, content_type="application/x-amz-json-1.1"),
            "more than the 16777216 bytes",
            False,
            id="huge",
        ),
        pytest.param(
            "DescribeImages",
            web.Response(body=b'{"imageDetails": [], "nextToken": "x"}', content_type="application/x-amz-json-1.1"),
            "pages of describe_images have no end",
            False,
            id="endless",
        ),
        pytest.param(
            "DescribeImages",
            web.Response(
                body=b'{"imageDetails": [{"imageDigest": "x", "imageTags": ["v1"]}]}',
                content_type="application/x-amz-json-1.1",
            ),
            "lists 'x', which is no digest",
            False,
            id="no-digest",
        ),
        pytest.param(
            "GetAuthorizationToken",
            web.Response(body=b'{"authorizationData": []}', content_type="application/x-amz-json-1.1"),
            "AWS sent no registry token",
            False,
            id="no-token",
        ),
    ],
)
async def test_an_api_that_misbehaves_is_named(
    ecr: HostileEcr, copying: Replicating, operation: str, answer: web.Response, problem: str, is_temporary: bool
) -> None:
    ecr.registry.put_image(API.value, "v1", IMAGE)
    ecr.misbehave = failing(operation, answer)
    run = await copying.run()
    assert run.status == "failed"
    failure = run.report.get("problem") or run.report["failures"][0]
    assert failure["side"] == "source"
    assert failure["problem"].startswith("source internal")
    assert re.search(problem, failure["problem"]), failure["problem"]
    assert failure["is_temporary"] is is_temporary
    assert "the-secret-key" not in json.dumps(run.report)
    assert await copying.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}


async def test_an_api_that_hangs_is_given_up(ecr: HostileEcr, served: Served) -> None:
    deadlines = Deadlines(connect_seconds=30, idle_seconds=1, answer_seconds=30)
    copying = await begin(ecr, Replicating(served, deadlines))

    async def hang(_: str, __: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    ecr.misbehave = hang
    run = await copying.run()
    assert re.search(r"AWS cannot be reached .*tried 3 times", run.report["problem"]["problem"])
    assert run.report["problem"]["is_temporary"]


async def test_ten_thousand_tags_are_planned_in_seconds_and_little_memory(ecr: HostileEcr, tmp_path: Path) -> None:
    content = IMAGE.manifest
    ecr.registry.put_manifest(API.value, content, media_types.OCI_MANIFEST, "v0")
    for number in range(1, MANY):
        ecr.registry.manifests[API.value, f"v{number}"] = ecr.registry.manifests[API.value, "v0"]
        ecr.registry.tags[API.value].append(f"v{number}")
    rule = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["*"]}}
    document = {"sources": {"internal": ecr.document}, "rules": {RULE: rule}}
    (tmp_path / "replication.yaml").write_text(json.dumps(document))
    command = ["--data", tmp_path / "data", "replicate"]
    await asyncio.to_thread(run_measured, tmp_path, *command, "apply", tmp_path / "replication.yaml")

    # Processor time: what a busy machine makes of seconds says nothing.
    measured = await asyncio.to_thread(run_measured, tmp_path, *command, "plan", RULE, "--json")
    assert json.loads(measured.output)["tags"] == {"new": MANY, "changed": 0, "same": 0}
    assert ecr.calls.count("DescribeImages") == MANY / 1000
    assert ecr.registry.count("HEAD") == 0
    assert measured.seconds < 10
    assert measured.peak_bytes < 200e6


async def test_an_authority_of_its_own_is_trusted_for_the_api_and_for_content(tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with serving_ecr(tls) as ecr:
        ecr.registry.put_image(API.value, "v1", IMAGE)
        for more, is_trusted in (({"ca_file": str(certificate)}, True), ({}, False)):
            async with Sources(PATIENT).open(parse_source("internal", ecr.document | more)) as source:
                if is_trusted:
                    assert [entry.tag async for entry in source.list_tags(API)] == [Tag("v1")]
                    assert (await source.get_manifest(API, Tag("v1"))).digest == IMAGE.digest
                else:
                    with pytest.raises(SourceUntrusted, match="give the source a ca_file"):
                        _ = [entry async for entry in source.list_tags(API)]


async def test_a_proxy_is_asked_for_the_api_and_for_content(ecr: HostileEcr) -> None:
    ecr.registry.put_image(API.value, "v1", IMAGE)
    with forward_proxy() as proxy:
        spec = parse_source("internal", ecr.document | {"proxy": proxy.url})
        async with Sources(PATIENT).open(spec) as source:
            assert [entry.tag async for entry in source.list_tags(API)] == [Tag("v1")]
            assert (await source.get_manifest(API, Tag("v1"))).digest == IMAGE.digest
        # The list; the manifest, the token, and the manifest again.
        assert len(proxy.asked) == len(ecr.calls) + 2 == 4


async def test_push_times_come_with_the_tags(ecr: HostileEcr) -> None:
    ecr.registry.put_image(API.value, "v1", IMAGE)
    async with Sources().open(parse_source("internal", ecr.document)) as source:
        (entry,) = [entry async for entry in source.list_tags(API)]
    assert (entry.tag, entry.digest, entry.pushed_at) == (Tag("v1"), IMAGE.digest, PUSHED_AT)
