"""Plans that allow some tags of a repository only: what they lead to may be had, and nothing else."""

import json
from typing import Any

import httpx
import pytest

from entrepot.access.plans import parse_plans
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import CONFIG_TYPE, LAYER_TYPE, Image, descriptor, index_of
from tests.support.served import TESTER, RegistryClient, Served

API = "smm/api"
TAGS = {"semver": ">=1.0 <2.0", "exclude": ["*-rc*"]}


def plans(tags: dict[str, Any] = TAGS, actions: list[str] | None = None) -> dict[str, Any]:
    grant = {"repositories": ["smm/*"], "actions": actions or ["pull"], "tags": tags}
    return {"plans": {"limited": {"grants": [grant]}}}


async def limit(served: Served, **changes: Any) -> None:
    await served.parts.plans.apply(parse_plans(plans(**changes)), TESTER)


@pytest.fixture
async def limited(served: Served) -> RegistryClient:
    await limit(served)
    return await served.client("limited")


async def status(client: RegistryClient, path: str, *, method: str = "GET") -> int:
    """By Basic and by token; they must not differ."""
    basic = await client.call(method, f"/v2/{API}/{path}")
    token = await client.token(f"repository:{API}:pull,push,delete")
    for _ in range(2):  # the second may be answered from memory
        again = await client.http.request(method, f"/v2/{API}/{path}", headers={"Authorization": f"Bearer {token}"})
        assert again.status_code == basic.status_code
    return basic.status_code


def verify_denied(answer: httpx.Response, what: str) -> None:
    assert answer.status_code == 403
    (error,) = answer.json()["errors"]
    assert error["code"] == "DENIED"
    assert what in error["message"]
    assert "versions >=1.0 <2.0" in error["message"]


async def test_only_allowed_tags_can_be_pulled(publisher: RegistryClient, limited: RegistryClient) -> None:
    old, new = await publisher.push_image(API, "1.4.2"), await publisher.push_image(API, "2.0.0")
    await publisher.push_image(API, "v1.5.0-rc1")
    assert (await limited.call("GET", f"/v2/{API}/manifests/1.4.2")).content == old.manifest
    for tag in ("2.0.0", "v1.5.0-rc1", "latest"):
        verify_denied(await limited.call("GET", f"/v2/{API}/manifests/{tag}"), tag)
    assert await status(limited, f"manifests/{old.digest}") == 200
    assert await status(limited, f"blobs/{Digest.of(old.layer)}") == 200
    for path in (f"manifests/{new.digest}", f"blobs/{Digest.of(new.layer)}", f"referrers/{new.digest}"):
        assert await status(limited, path) == 403
        assert await status(limited, path, method="HEAD") == 403
    # What is not here looks the same as what may not be had.
    assert await status(limited, f"manifests/sha256:{'0' * 64}") == 403


async def test_a_digest_goes_with_the_tag_that_led_to_it(
    served: Served, publisher: RegistryClient, limited: RegistryClient
) -> None:
    image = await publisher.push_image(API, "1.0.0")
    path = f"manifests/{image.digest}"
    assert await status(limited, path) == 200
    await publisher.push_image(API, "1.0.0")  # the tag moves
    assert await status(limited, path) == 403
    await publisher.push_manifest(API, "1.0.1", image.manifest)
    assert await status(limited, path) == 200
    assert (await publisher.call("DELETE", f"/v2/{API}/manifests/1.0.1")).status_code == 202
    assert await status(limited, path) == 403
    await publisher.push_manifest(API, "3.0.0", image.manifest)
    assert await status(limited, path) == 403
    await limit(served, tags={"include": ["3*"]})
    assert await status(limited, path) == 200


async def test_it_leads_through_indexes_and_referrers(publisher: RegistryClient, limited: RegistryClient) -> None:
    child, loose, signature = Image(), Image(), Image(b"{}")
    for image in (child, loose, signature):
        await publisher.push_blob(API, image.config)
        await publisher.push_blob(API, image.layer)
        await publisher.push_manifest(API, str(image.digest), image.manifest)
    index = index_of(child)
    outer = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_INDEX,
            "manifests": [descriptor(media_types.OCI_INDEX, index)],
        }
    ).encode()
    about = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": descriptor(CONFIG_TYPE, signature.config),
        "layers": [descriptor(LAYER_TYPE, signature.layer)],
        "subject": descriptor(media_types.OCI_MANIFEST, child.manifest),
    }
    referrer = json.dumps(about).encode()
    for content, kind in ((index, media_types.OCI_INDEX), (referrer, media_types.OCI_MANIFEST)):
        assert (await publisher.push_manifest(API, str(Digest.of(content)), content, kind)).status_code == 201
    cosign = f"{str(child.digest).replace(':', '-')}.sig"
    await publisher.push_manifest(API, cosign, signature.manifest)
    paths = [f"manifests/{child.digest}", f"manifests/{Digest.of(index)}", f"blobs/{Digest.of(child.layer)}"]
    paths += [f"manifests/{Digest.of(referrer)}", f"blobs/{Digest.of(signature.layer)}", f"referrers/{child.digest}"]
    paths += [f"manifests/{cosign}", f"manifests/{signature.digest}"]
    for path in paths:
        assert await status(limited, path) == 403
    await publisher.push_manifest(API, "1.2.3", outer, media_types.OCI_INDEX)
    for path in paths:
        assert await status(limited, path) == 200
    assert await status(limited, f"manifests/{loose.digest}") == 403


async def test_tag_lists_show_only_what_is_allowed(publisher: RegistryClient, limited: RegistryClient) -> None:
    image = await publisher.push_image(API, "1.0.0")
    for number in range(40):
        for tag in (f"0.{number}.0", f"1.{number}.0", f"2.{number}.0"):
            await publisher.push_manifest(API, tag, image.manifest)
    expected = sorted(f"1.{number}.0" for number in range(40))
    assert (await limited.call("GET", f"/v2/{API}/tags/list")).json()["tags"] == expected
    found: list[str] = []
    url = f"/v2/{API}/tags/list?n=7"
    while url:
        answer = await limited.call("GET", url)
        assert len(answer.json()["tags"]) <= 7
        found += answer.json()["tags"]
        url = answer.links.get("next", {}).get("url", "")
    assert found == expected


async def test_a_publisher_moves_and_deletes_only_allowed_tags(served: Served, publisher: RegistryClient) -> None:
    await limit(served, actions=["pull", "push", "delete"])
    limited = await served.client("limited")
    image = await limited.push_image(API, "1.0.0")
    refused = await limited.push_manifest(API, "2.0.0", image.manifest)
    verify_denied(refused, "2.0.0")
    verify_denied(await limited.push_manifest(API, f"{image.digest}?tag=2.0.0", image.manifest), "2.0.0")
    await publisher.push_manifest(API, "2.0.0", image.manifest)
    verify_denied(await limited.call("DELETE", f"/v2/{API}/manifests/2.0.0"), "2.0.0")
    verify_denied(await limited.call("DELETE", f"/v2/{API}/manifests/{image.digest}"), str(image.digest))
    assert (await limited.call("DELETE", f"/v2/{API}/manifests/1.0.0")).status_code == 202
    assert (await publisher.call("GET", f"/v2/{API}/manifests/2.0.0")).status_code == 200


async def test_a_blob_that_may_not_be_had_cannot_be_mounted_either(served: Served, publisher: RegistryClient) -> None:
    grants = [
        {"repositories": ["smm/*"], "actions": ["pull"], "tags": TAGS},
        {"repositories": ["own/*"], "actions": ["pull", "push"]},
    ]
    await served.parts.plans.apply(parse_plans({"plans": {"mixed": {"grants": grants}}}), TESTER)
    mixed = await served.client("mixed")
    hidden, shown = await publisher.push_image(API, "2.0.0"), await publisher.push_image(API, "1.0.0")
    for image, expected in ((hidden, 202), (shown, 201)):
        path = f"/v2/own/x/blobs/uploads/?mount={Digest.of(image.layer)}"
        assert (await mixed.call("POST", path)).status_code == 202
        assert (await mixed.call("POST", f"{path}&from={API}")).status_code == expected
