"""An object store that refuses, hangs, fails, cuts off or is slow: bounded waits, whole blobs or none, recovery."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import Image
from tests.support.programs import Entrepot
from tests.support.proxy import Mode, Proxy
from tests.support.servers import ObjectStore

PUBLISHER = {"publisher": {"grants": [{"repositories": ["**"], "actions": ["pull", "push"]}]}}
STALL_SECONDS = 2
# Two tries may wait for a store that is silent, and a busy machine takes its own time.
BOUND_SECONDS = STALL_SECONDS * 4 + 30
LARGE = os.urandom(4_000_000)
# What others may wait while somebody downloads that at the slow store's 640 KB/s, which takes six seconds.
PATIENCE_SECONDS = 3


@pytest.fixture
def proxy(object_store: ObjectStore) -> Iterator[Proxy]:
    with Proxy(int(object_store.endpoint.rpartition(":")[2])).serving() as proxy:
        yield proxy


@pytest.fixture
def entrepot(
    proxy: Proxy,
    object_store: ObjectStore,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Entrepot]:
    monkeypatch.setenv("ENTREPOT_STORAGE_URL", object_store.url())
    monkeypatch.setenv("ENTREPOT_STORAGE__ENDPOINT", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("ENTREPOT_STORAGE__REDIRECT", "false")
    monkeypatch.setenv("ENTREPOT_STORAGE__STALL_SECONDS", str(STALL_SECONDS))
    program = Entrepot(tmp_path_factory.mktemp("storage") / "data")
    program.apply_plans(PUBLISHER)
    with program.serving("--no-jobs"):
        yield program


@pytest.fixture
def http(entrepot: Entrepot) -> Iterator[httpx.Client]:
    credential = entrepot.issue("pipeline", "publisher")
    auth = (credential.username, credential.secret)
    with httpx.Client(base_url=entrepot.url, auth=auth, timeout=BOUND_SECONDS * 2) as client:
        yield client


def push_blob(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("/v2/smm/api/blobs/uploads/", params={"digest": str(Digest.of(content))}, content=content)


def push_image(http: httpx.Client, tag: str) -> Image:
    image = Image()
    for blob in (image.config, image.layer):
        assert push_blob(http, blob).status_code == 201
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    assert http.put(f"/v2/smm/api/manifests/{tag}", content=image.manifest, headers=headers).status_code == 201
    return image


def pull_blob(http: httpx.Client, content: bytes, **headers: str) -> httpx.Response | None:
    """The answer, None when it was broken off so that every client notices."""
    try:
        return http.get(f"/v2/smm/api/blobs/{Digest.of(content)}", headers=headers)
    except httpx.RemoteProtocolError:
        return None


def verify_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert "storage" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("mode", ["refuse", "hang", "fail", "cut"])
def test_nothing_waits_for_ever_and_nothing_half_is_kept_or_served(
    http: httpx.Client, proxy: Proxy, mode: Mode
) -> None:
    image = push_image(http, "v1")
    assert push_blob(http, LARGE).status_code == 201

    proxy.become(mode)
    begun = time.monotonic()
    answer = pull_blob(http, LARGE)
    if answer is not None:
        verify_refused(answer)
    assert time.monotonic() - begun < BOUND_SECONDS
    begun = time.monotonic()
    new = os.urandom(4_000_000)
    verify_refused(push_blob(http, new))
    assert time.monotonic() - begun < BOUND_SECONDS
    # What needs no blob goes on.
    assert http.get("/v2/smm/api/manifests/v1").content == image.manifest
    assert http.head(f"/v2/smm/api/blobs/{Digest.of(new)}").status_code == 404

    proxy.become("pass")
    found = pull_blob(http, LARGE)
    assert found is not None
    assert found.content == LARGE
    assert push_blob(http, new).status_code == 201
    part = pull_blob(http, new, Range="bytes=1000000-1999999")
    assert part is not None
    assert part.content == new[1_000_000:2_000_000]
    assert http.get("/readyz").status_code == 200


def test_an_upload_goes_on_where_it_was_when_the_store_is_back(http: httpx.Client, proxy: Proxy) -> None:
    location = http.post("/v2/smm/api/blobs/uploads/").headers["location"]
    assert http.patch(location, content=LARGE).status_code == 202
    proxy.become("hang")
    verify_refused(http.patch(location, content=LARGE))
    verify_refused(http.put(location, params={"digest": str(Digest.of(LARGE + LARGE))}, content=LARGE))
    assert http.get(location).headers["range"] == f"0-{len(LARGE) - 1}"
    proxy.become("pass")
    answer = http.put(location, params={"digest": str(Digest.of(LARGE + LARGE))}, content=LARGE)
    assert answer.status_code == 201
    found = pull_blob(http, LARGE + LARGE)
    assert found is not None
    assert found.content == LARGE + LARGE


def test_a_slow_store_holds_up_only_who_waits_for_it(http: httpx.Client, proxy: Proxy) -> None:
    image = push_image(http, "v1")
    assert push_blob(http, LARGE).status_code == 201
    proxy.become("slow")
    with ThreadPoolExecutor(20) as pool:
        downloads = [pool.submit(pull_blob, http, LARGE) for _ in range(20)]
        slowest = 0.0
        while not all(download.done() for download in downloads):
            begun = time.monotonic()
            assert http.get("/v2/smm/api/manifests/v1").content == image.manifest
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.05)
    assert slowest < PATIENCE_SECONDS
    for download in downloads:
        found = download.result()
        assert found is not None
        assert found.content == LARGE
