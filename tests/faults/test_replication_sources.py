"""Sources that are away, broken or lying: a clear reason, and nothing of it is kept."""

import asyncio
import gzip
import json
import os
import re
import time
from collections.abc import Callable

import pytest
from aiohttp import web
from yarl import URL

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.backoff import Backoff
from entrepot.replication.rules import parse_rule_file
from tests.faults.conftest import IMPATIENT, RULE, Replicating
from tests.support.content import CONFIG_TYPE, LAYER_TYPE, Image, descriptor
from tests.support.forward_proxy import forward_proxy
from tests.support.hostile import HostileRegistry, Misbehave, send_pieces, serving
from tests.support.programs import free_port
from tests.support.served import TESTER, Served, files_below

API = RepositoryName("smm/api")
IMAGE = Image(layer=os.urandom(300_000))
LAYER = str(Digest.of(IMAGE.layer))
MANIFEST = str(IMAGE.digest)


def at(*words: str) -> Callable[[Misbehave], Misbehave]:
    """Misbehave only where the path has all these words."""

    def decorate(misbehave: Misbehave) -> Misbehave:
        async def where(request: web.Request) -> web.StreamResponse | None:
            return await misbehave(request) if all(word in request.path for word in words) else None

        return where

    return decorate


def answering(status: int, body: bytes | str = b"", content_type: str = "application/json") -> Misbehave:
    """One and the same answer."""

    async def misbehave(request: web.Request) -> web.StreamResponse:
        content = body.encode() if isinstance(body, str) else body
        return web.Response(status=status, body=content, content_type=content_type)

    return misbehave


def sending(content: bytes, *, length: int | None = None, pause: float = 0) -> Misbehave:
    """A body in pieces, which ends before its announced length, or has none."""

    async def misbehave(request: web.Request) -> web.StreamResponse:
        pieces = [content[start : start + 50_000] for start in range(0, len(content), 50_000)]
        return await send_pieces(request, pieces, length=length, pause=pause)

    return misbehave


def redirecting(target: str) -> Misbehave:
    async def misbehave(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": target})

    return misbehave


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def stall(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": str(len(IMAGE.layer))})
    await answer.prepare(request)
    await answer.write(IMAGE.layer[:1000])
    await asyncio.sleep(30)
    return answer


async def endless(request: web.Request) -> web.StreamResponse:
    """A body that never ends, as fast as it is read."""
    answer = web.StreamResponse()
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    while True:
        await answer.write(b" " * 65536)


async def endless_pages(request: web.Request) -> web.StreamResponse:
    return web.json_response({"tags": ["v1"]}, headers={"Link": f'<{request.path_qs}>; rel="next"'})


async def foreign_page(request: web.Request) -> web.StreamResponse:
    return web.json_response({"tags": ["v1"]}, headers={"Link": '<http://other.example/v2/>; rel="next"'})


def compressed(content: bytes) -> Misbehave:
    """A body that says it is to be unpacked, though nobody asked for that."""
    packed = gzip.compress(content)

    async def misbehave(request: web.Request) -> web.StreamResponse:
        # The length keeps aiohttp's server from packing it once more.
        headers = {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}
        return web.Response(body=packed, headers=headers, content_type="application/json")

    return misbehave


WRONG_BLOB = os.urandom(len(IMAGE.layer))
WRONG_END = IMAGE.layer[:-1] + bytes([IMAGE.layer[-1] ^ 1])
BOMB = b" " * 200_000_000
METADATA = "/latest/meta-data/iam/security-credentials/"
OTHER_MANIFEST = Image().manifest
HTML = "<html><body>Please sign in</body></html>"

LIES = [
    pytest.param(at(LAYER)(answering(200, WRONG_BLOB)), "source", "not kept|nothing was kept", id="other-blob"),
    pytest.param(at(LAYER)(answering(200, WRONG_END)), "source", "not kept|nothing was kept", id="wrong-last-byte"),
    pytest.param(at(LAYER)(sending(IMAGE.layer + b"more")), "source", "has more than its 300000", id="longer-chunked"),
    pytest.param(at(LAYER)(sending(IMAGE.layer[:-1])), "source", "ends after 299999 of 300000", id="shorter-chunked"),
    pytest.param(at(LAYER)(answering(200, IMAGE.layer + b"x")), "source", "announced with 300001", id="longer"),
    pytest.param(at(LAYER)(answering(200, IMAGE.layer[:9])), "source", "announced with 9 bytes", id="shorter"),
    pytest.param(at(LAYER)(answering(200, HTML, "text/html")), "source", "announced with", id="html-as-blob"),
    pytest.param(at(LAYER)(sending(IMAGE.layer[:200], length=300_000)), "source", "broke off", id="truncated"),
    pytest.param(at(LAYER)(answering(206, IMAGE.layer)), "source", "asked from byte 0", id="unasked-part"),
    pytest.param(at(LAYER)(answering(404)), "source", "404", id="blob-missing"),
    pytest.param(at(LAYER)(answering(500)), "source", "500.*tried 3 times", id="blob-500"),
    pytest.param(at(LAYER)(hang), "source", "did not answer within", id="blob-hangs"),
    pytest.param(at(LAYER)(stall), "source", "stopped answering", id="blob-stalls"),
    pytest.param(at(LAYER)(redirecting("ftp://x/y")), "source", "no URL", id="redirect-nowhere"),
    pytest.param(at(LAYER)(redirecting("http://x:1y/")), "source", "no URL", id="redirect-to-no-port"),
    pytest.param(at(LAYER)(redirecting("/v2/smm/api/blobs/" + LAYER)), "source", "redirects .* more", id="loop"),
    pytest.param(at(LAYER)(redirecting(f"http://169.254.169.254{METADATA}")), "source", "may lead to", id="metadata"),
    pytest.param(
        at(LAYER)(redirecting(f"http://2852039166{METADATA}")), "source", "not answer in HTTP", id="metadata-2"
    ),
    pytest.param(at(LAYER)(redirecting(f"http://[::ffff:a9fe:a9fe]{METADATA}")), "source", "lead to", id="metadata-v6"),
    pytest.param(at(LAYER)(redirecting("http://0.0.0.0:1/")), "source", "may lead to", id="unspecified-address"),
    pytest.param(at(MANIFEST)(answering(200, OTHER_MANIFEST)), "source", "has another digest", id="other-manifest"),
    pytest.param(at(MANIFEST)(answering(200, HTML, "text/html")), "source", "another digest", id="html-as-manifest"),
    pytest.param(at(MANIFEST)(sending(b"{" * 5_000_000)), "source", "more than the 4194304", id="huge-manifest"),
    pytest.param(at(MANIFEST)(endless), "source", "more than the 4194304", id="endless-manifest"),
    pytest.param(at(LAYER)(endless), "source", "has more than its 300000", id="endless-blob"),
    pytest.param(at(LAYER)(compressed(BOMB)), "source", "announced with", id="bomb-as-blob"),
    pytest.param(at("tags/list")(endless), "source", "more than the 16777216", id="endless-list"),
    pytest.param(at("_catalog")(answering(200, HTML, "text/html")), "source", "no list of", id="html-as-catalog"),
    pytest.param(at(MANIFEST)(compressed(BOMB)), "source", "has another digest", id="bomb-as-manifest"),
    pytest.param(at("tags/list")(compressed(BOMB)), "source", "no list of tags", id="bomb-as-list"),
    pytest.param(at(MANIFEST)(answering(429)), "source", "429.*waited", id="throttled-for-ever"),
    pytest.param(at("tags/list")(answering(200, HTML, "text/html")), "source", "no list of tags", id="html-as-list"),
    pytest.param(at("tags/list")(answering(200, '{"tags": ["a b"]}')), "source", "is no tag", id="bad-tag"),
    pytest.param(at("tags/list")(answering(200, '{"tags": [1]}')), "source", "no list of tags", id="numbers-as-tags"),
    pytest.param(at("tags/list")(endless_pages), "source", "have no end", id="endless-pages"),
    pytest.param(at("tags/list")(foreign_page), "source", "is on another server", id="page-elsewhere"),
    pytest.param(at("tags/list")(sending(b" " * 17_000_000)), "source", "more than the 16777216", id="huge-list"),
    pytest.param(at("_catalog")(answering(401)), "source", "no kind of login", id="no-challenge"),
    pytest.param(at("_catalog")(answering(403)), "source", "refused with 403.*without \\*", id="catalog-denied"),
    pytest.param(at("_catalog")(hang), "source", "did not answer within", id="hangs"),
]

SILENCES = {"did not answer within", "stopped answering"}


@pytest.mark.parametrize(("misbehave", "side", "problem"), LIES)
async def test_a_source_that_misbehaves_fails_the_run_and_leaves_nothing(
    hostile: HostileRegistry, replicating: Replicating, misbehave: Misbehave, side: str, problem: str
) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    hostile.misbehave = misbehave
    if problem in SILENCES:
        replicating.deadlines = IMPATIENT
    run = await replicating.run()
    assert run.status == "failed"
    failure = run.report.get("problem") or run.report["failures"][0]
    assert failure["side"] == side
    assert failure["problem"].startswith("source hostile")
    assert re.search(problem, failure["problem"]), failure["problem"]
    assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}
    assert await replicating.served.parts.registry.find_manifest(API, IMAGE.digest) is None
    assert not await replicating.served.parts.registry.hold_blob(API, Digest.of(IMAGE.layer))
    stored = files_below(replicating.served.parts.settings.data / "blobs")
    assert [path for path in stored if path.read_bytes() != IMAGE.config] == []


async def test_after_a_failure_the_same_rule_succeeds(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    hostile.misbehave = at(LAYER)(answering(500))
    assert (await replicating.run()).status == "failed"
    hostile.misbehave = None
    assert (await replicating.run()).status == "done"
    assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {Tag("v1"): IMAGE.digest}


async def test_one_bad_tag_does_not_hold_up_the_others(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    good = hostile.put_image(API.value, "v2")
    hostile.misbehave = at(LAYER)(answering(404))
    run = await replicating.run()
    assert run.status == "failed"
    assert [failure["what"] for failure in run.report["failures"]] == ["smm/api:v1"]
    there = await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1"), Tag("v2")])
    assert there == {Tag("v2"): good.digest}


async def test_an_unreachable_source_is_named(replicating: Replicating) -> None:
    await replicating.apply(f"http://127.0.0.1:{free_port()}")
    run = await replicating.run()
    assert run.status == "failed"
    problem = run.report["problem"]
    assert problem["is_temporary"]
    assert "source hostile" in problem["problem"]
    assert "cannot be reached" in problem["problem"]
    assert "tried 3 times" in problem["problem"]


async def test_a_source_that_is_no_http_server_is_named(replicating: Replicating) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        await replicating.apply(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        run = await replicating.run()
    assert "does not answer in HTTP" in run.report["problem"]["problem"]


async def test_a_blob_that_breaks_off_is_continued_where_it_stopped(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    ranges: list[str | None] = []

    @at(LAYER)
    async def break_off_once(request: web.Request) -> web.StreamResponse | None:
        ranges.append(request.headers.get("Range"))
        if len(ranges) > 1:
            return None
        return await send_pieces(request, [IMAGE.layer[:200_000]], length=len(IMAGE.layer))

    hostile.misbehave = break_off_once
    run = await replicating.run()
    assert run.status == "done", run.report
    assert ranges[0] is None
    assert re.fullmatch(r"bytes=[1-9]\d+-", ranges[1] or "")
    assert run.report["bytes"] == len(IMAGE.layer) + len(IMAGE.config)


async def test_a_blob_that_breaks_off_is_read_again_where_ranges_are_not_known(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    tries = 0

    @at(LAYER)
    async def break_off_once(request: web.Request) -> web.StreamResponse | None:
        nonlocal tries
        tries += 1
        if tries == 1:
            return await send_pieces(request, [IMAGE.layer[:200_000]], length=len(IMAGE.layer))
        return web.Response(body=IMAGE.layer)

    hostile.misbehave = break_off_once
    assert (await replicating.run()).status == "done"
    assert tries == 2


async def test_a_throttling_source_is_asked_again(hostile: HostileRegistry, replicating: Replicating) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    refused: set[str] = set()

    async def throttle_first(request: web.Request) -> web.StreamResponse | None:
        if request.path in refused:
            return None
        refused.add(request.path)
        return web.Response(status=429, headers={"Retry-After": "0"})

    hostile.misbehave = throttle_first
    assert (await replicating.run()).status == "done"
    assert len(refused) > 4


async def test_a_source_that_throttles_for_long_is_waited_for(hostile: HostileRegistry, served: Served) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    well_at = time.monotonic() + 2

    async def throttle(_: web.Request) -> web.StreamResponse | None:
        return web.Response(status=429) if time.monotonic() < well_at else None

    hostile.misbehave = throttle
    # Many more refusals than tries that fail otherwise.
    replicating = Replicating(served, backoff=Backoff(attempts=2, first_seconds=0.01, most_seconds=0.1))
    await replicating.apply(hostile.url)
    run = await replicating.run()
    assert run.status == "done", run.report
    assert time.monotonic() >= well_at
    assert len(hostile.seen) > 10


async def test_a_source_that_asks_for_more_patience_than_there_is_is_left_at_once(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.put_image(API.value, "v1", IMAGE)

    async def ask_for_an_hour(_: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "3600"})

    hostile.misbehave = ask_for_an_hour
    run = await replicating.run()
    assert "429; try again later (waited 0 seconds, 3600 more are due)" in run.report["problem"]["problem"]
    assert run.report["problem"]["is_temporary"]
    assert len(hostile.seen) == 1


@pytest.mark.parametrize(
    ("option", "host", "is_followed"),
    [
        pytest.param({}, "127.0.0.2", True, id="as-private-as-the-source"),
        pytest.param({"private_redirects": "allow"}, "127.0.0.2", True, id="allowed"),
        pytest.param({"private_redirects": "refuse"}, "127.0.0.2", False, id="refused"),
        # What a name leads to is judged when it is connected to, whatever it led to before.
        pytest.param({"private_redirects": "refuse"}, "localhost", False, id="refused-by-name"),
    ],
)
async def test_a_redirect_to_a_private_address_is_followed_where_the_source_may(
    hostile: HostileRegistry, replicating: Replicating, option: dict[str, str], host: str, is_followed: bool
) -> None:
    await replicating.apply(hostile.url, **option)
    hostile.put_image(API.value, "v1", IMAGE)
    async with serving(address="0.0.0.0") as storage:
        storage.put_image(API.value, "v1", IMAGE)
        there = URL(storage.url).with_host(host)

        async def redirect(request: web.Request) -> web.StreamResponse:
            return web.Response(status=307, headers={"Location": str(there.with_path(request.path))})

        hostile.misbehave = at("/blobs/")(redirect)
        run = await replicating.run()
    if is_followed:
        assert run.status == "done", run.report
        assert storage.count("/blobs/") == 2
    else:
        assert storage.seen == []
        (failure,) = run.report["failures"]
        problem = failure["problem"]
        assert (failure["what"], failure["side"], failure["is_temporary"]) == ("smm/api:v1", "source", False)
        assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}
        assert "none that a source may lead to; if that is meant, give the source private_redirects: allow" in problem


async def test_through_a_proxy_what_stands_in_the_url_is_judged(hostile: HostileRegistry, served: Served) -> None:
    replicating = Replicating(served)
    hostile.put_image(API.value, "v1", IMAGE)
    hostile.misbehave = at(LAYER)(redirecting(f"http://169.254.169.254{METADATA}"))
    with forward_proxy() as proxy:
        await replicating.apply(hostile.url, proxy=proxy.url)
        run = await replicating.run()
        assert "may lead to" in run.report["failures"][0]["problem"]
        assert proxy.asked
        assert not [target for target in proxy.asked if "169.254" in target]
        proxy.refuses = True
        run = await replicating.run()
    assert re.search(r"the proxy answers 407|answered 407", run.report["problem"]["problem"])


async def test_a_redirect_to_other_storage_is_followed_without_the_login(
    hostile: HostileRegistry, replicating: Replicating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE_PASSWORD", "secret")
    await replicating.apply(hostile.url, username="reader", password_env="HOSTILE_PASSWORD")
    hostile.put_image(API.value, "v1", IMAGE)
    async with serving() as storage:
        storage.put_image(API.value, "v1", IMAGE)

        async def ask_and_redirect(request: web.Request) -> web.StreamResponse | None:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            if "/blobs/" in request.path:
                return web.Response(status=307, headers={"Location": f"{storage.url}{request.path}?sig=a%2Fb"})
            return None

        hostile.misbehave = ask_and_redirect
        run = await replicating.run()
    assert run.status == "done", run.report
    assert any(hostile.authorizations)
    assert storage.count("/blobs/", "sig=a%2Fb") == 2
    assert storage.authorizations == [None, None]


async def test_a_login_is_not_sent_to_a_page_elsewhere(
    hostile: HostileRegistry, replicating: Replicating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE_PASSWORD", "secret")
    await replicating.apply(hostile.url, username="reader", password_env="HOSTILE_PASSWORD")
    async with serving() as other:

        async def ask_and_send_away(request: web.Request) -> web.StreamResponse | None:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            return web.json_response({"repositories": []}, headers={"Link": f'<{other.url}/v2/>; rel="next"'})

        hostile.misbehave = ask_and_send_away
        run = await replicating.run()
    assert other.seen == []
    assert "is on another server" in run.report["problem"]["problem"]
    assert run.report["problem"]["side"] == "source"
    assert "secret" not in json.dumps(run.report)


@pytest.mark.parametrize(
    ("realm", "problem"),
    [
        ("", "which is no URL"),
        ("file:///etc/passwd", "which is no URL"),
        ("http://x:1y/", "which is no URL"),
        ("{url}/token", "sent no token"),
        ("{url}/hang", "did not answer within|stopped answering"),
        ("http://169.254.169.254/token", "may lead to"),
    ],
)
async def test_a_broken_token_service_is_named(
    hostile: HostileRegistry,
    replicating: Replicating,
    monkeypatch: pytest.MonkeyPatch,
    realm: str,
    problem: str,
) -> None:
    monkeypatch.setenv("HOSTILE_PASSWORD", "secret")
    await replicating.apply(hostile.url, username="reader", password_env="HOSTILE_PASSWORD")
    challenge = f'Bearer realm="{realm.format(url=hostile.url)}",service="x"'
    if realm.endswith("/hang"):
        replicating.deadlines = IMPATIENT

    async def challenge_all(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.json_response({"no": "token"})
        if request.path == "/hang":
            return await hang(request)
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    hostile.misbehave = challenge_all
    run = await replicating.run()
    assert re.search(problem, run.report["problem"]["problem"])
    assert (run.status, run.report["problem"]["side"]) == ("failed", "source")
    assert "secret" not in json.dumps(run.report)


async def test_a_token_service_that_hangs_once_something_is_copied_is_named(
    hostile: HostileRegistry, replicating: Replicating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE_PASSWORD", "secret")
    await replicating.apply(hostile.url, username="reader", password_env="HOSTILE_PASSWORD")
    replicating.deadlines = IMPATIENT
    hostile.put_image(API.value, "v1", IMAGE)
    challenge = {"WWW-Authenticate": f'Bearer realm="{hostile.url}/token",service="x",scope="repository:smm/api:pull"'}
    is_hanging = False

    async def end_early(request: web.Request) -> web.StreamResponse | None:
        nonlocal is_hanging
        if request.path == "/token":
            return await hang(request) if is_hanging else web.json_response({"token": "first", "expires_in": 3600})
        if LAYER in request.path:
            is_hanging = True
        is_known = request.headers.get("Authorization") == "Bearer first" and not is_hanging
        return None if is_known else web.Response(status=401, headers=challenge)

    hostile.misbehave = end_early
    run = await replicating.run()
    (failure,) = run.report["failures"]
    assert (failure["what"], failure["side"], failure["is_temporary"]) == ("smm/api:v1", "source", True)
    assert re.search(r"/token.*(did not answer within|stopped answering)", failure["problem"])
    assert "secret" not in json.dumps(run.report)
    assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}
    assert await replicating.served.parts.registry.find_manifest(API, IMAGE.digest) is None


async def test_a_manifest_that_claims_another_size_for_a_blob_is_refused(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    assert (await replicating.run()).status == "done"
    layer = descriptor(LAYER_TYPE, IMAGE.layer) | {"size": 5}
    content = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": descriptor(CONFIG_TYPE, IMAGE.config),
            "layers": [layer],
        }
    ).encode()
    hostile.put_manifest(API.value, content, media_types.OCI_MANIFEST, "v2")
    run = await replicating.run()
    assert "has 5 bytes, but it has 300000" in run.report["failures"][0]["problem"]
    assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v2")]) == {}


async def test_indexes_nested_without_end_are_refused(hostile: HostileRegistry, replicating: Replicating) -> None:
    image = hostile.put_image(API.value)
    content, media_type = image.manifest, media_types.OCI_MANIFEST
    for level in range(12):
        entry = descriptor(media_type, content)
        document = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [entry]}
        content, media_type = json.dumps(document).encode(), media_types.OCI_INDEX
        hostile.put_manifest(API.value, content, media_type, "deep" if level == 11 else None)
    run = await replicating.run()
    assert "nests indexes more than 8 deep" in run.report["failures"][0]["problem"]
    assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("deep")]) == {}


@pytest.mark.parametrize(
    ("entries", "problem"),
    [(100_000, "more than the 4194304 bytes"), (15_000, "names 15000 others, at most 10000")],
)
async def test_an_index_without_measure_is_refused(
    hostile: HostileRegistry, replicating: Replicating, entries: int, problem: str
) -> None:
    entry = json.dumps(descriptor(media_types.OCI_MANIFEST, IMAGE.manifest))
    content = f'{{"schemaVersion":2,"mediaType":"{media_types.OCI_INDEX}","manifests":[{",".join([entry] * entries)}]}}'
    hostile.put_manifest(API.value, content.encode(), media_types.OCI_INDEX, "v1")
    run = await replicating.run()
    (failure,) = run.report["failures"]
    assert problem in failure["problem"]
    assert (failure["what"], failure["side"], failure["is_temporary"]) == ("smm/api:v1", "source", False)
    assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}
    assert await replicating.served.parts.registry.find_manifest(API, Digest.of(content.encode())) is None


async def test_an_index_that_names_itself_is_found_out(hostile: HostileRegistry, replicating: Replicating) -> None:
    """No content can name its own digest, so it must lie: about the digest of its tag, and of what it serves there."""
    own = Digest.of(b"the index that names itself")
    entry = {"mediaType": media_types.OCI_INDEX, "digest": str(own), "size": 100}
    document = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [entry]}

    async def name_itself(_: web.Request) -> web.StreamResponse:
        headers = {"Docker-Content-Digest": str(own), "Content-Type": media_types.OCI_INDEX}
        return web.Response(body=json.dumps(document).encode(), headers=headers)

    hostile.put_image(API.value, "v1", IMAGE)
    hostile.misbehave = at("/manifests/")(name_itself)
    run = await replicating.run()
    assert "has another digest" in run.report["failures"][0]["problem"]
    assert await replicating.served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}


async def test_a_manifest_of_an_old_kind_is_refused_by_name(hostile: HostileRegistry, replicating: Replicating) -> None:
    old = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    hostile.put_manifest(API.value, b'{"schemaVersion": 1}', old, "v1")
    hostile.put_manifest(API.value, b'{"schemaVersion": 2}', "application/vnd.example+json", "v2")
    run = await replicating.run()
    assert {failure["what"] for failure in run.report["failures"]} == {"smm/api:v1", "smm/api:v2"}
    assert any("application/vnd.example+json" in failure["problem"] for failure in run.report["failures"])


async def test_a_head_that_lies_about_the_digest_is_found_out(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.put_image(API.value, "v1", IMAGE)
    hostile.blobs.clear()

    async def lie(request: web.Request) -> web.StreamResponse | None:
        wrong = {"Docker-Content-Digest": str(Digest.of(b"wrong"))}
        return web.Response(headers=wrong) if request.method == "HEAD" else None

    hostile.misbehave = lie
    run = await replicating.run()
    assert "404" in run.report["failures"][0]["problem"]


async def test_a_dead_source_is_given_up_before_every_tag_was_tried(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    for number in range(40):
        hostile.put_image(API.value, f"v{number}")
    hostile.misbehave = at("/manifests/sha256")(answering(503))
    run = await replicating.run()
    assert run.status == "failed"
    assert run.report["failed"] < 20
    assert run.report["problem"]["is_temporary"]


async def test_shared_layers_are_read_once_however_many_tags_name_them(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    shared = os.urandom(200_000)
    for name in ("smm/api", "smm/web"):
        for tag in ("v1", "v2", "v3", "v4"):
            hostile.put_image(name, tag, Image(layer=shared))
    hostile.put_index("smm/api", "all", *(Image(layer=shared) for _ in range(3)))
    run = await replicating.run()
    assert run.status == "done", run.report
    assert hostile.count("GET", str(Digest.of(shared))) == 1
    assert run.report["blobs_copied"] == 8 + 3 + 1


async def test_a_second_run_reads_no_content(hostile: HostileRegistry, replicating: Replicating) -> None:
    for tag in ("v1", "v2"):
        hostile.put_image(API.value, tag)
    hostile.put_index(API.value, "all", Image(), Image())
    assert (await replicating.run()).status == "done"
    hostile.seen.clear()
    run = await replicating.run()
    assert run.report["tags"] == {"new": 0, "changed": 0, "same": 3}
    assert hostile.count("/blobs/") == 0
    assert hostile.count("GET", "/manifests/") == 0


async def test_a_moved_tag_moves_here_and_its_old_manifest_stays(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    old = hostile.put_image(API.value, "v1")
    await replicating.run()
    new = Image()
    hostile.tags.clear()
    hostile.put_image(API.value, "v1", new)
    run = await replicating.run()
    assert run.report["tags"] == {"new": 0, "changed": 1, "same": 0}
    registry = replicating.served.parts.registry
    assert await registry.read_tag_digests(API, [Tag("v1")]) == {Tag("v1"): new.digest}
    assert await registry.find_manifest(API, old.digest) is not None


async def test_a_repository_that_the_rule_names_but_the_source_lacks_is_a_failure(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    hostile.put_image(API.value, "v1")
    document = {
        "rules": {RULE: {"source": "hostile", "repositories": ["smm/api", "smm/nine"], "tags": {"include": ["*"]}}}
    }
    await replicating.rulebook.apply(parse_rule_file(document), TESTER)
    run = await replicating.run()
    assert [failure["what"] for failure in run.report["failures"]] == ["smm/nine"]
    assert run.report["tags_copied"] == 1
