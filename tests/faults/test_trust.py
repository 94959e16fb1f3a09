"""A rule that asks for signatures publishes nothing without, whatever the source serves."""

from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import RepositoryName, Tag, cosign_tags
from entrepot.replication.trust import notation
from entrepot.replication.trust.cosign import BUNDLE, make_payload, make_statement
from entrepot.storage.clock import utc_now
from tests.faults.conftest import Replicating
from tests.support.content import Image
from tests.support.hostile import HostileRegistry
from tests.support.signatures import (
    DAY,
    ENVELOPES,
    bundle_of,
    make_certificate,
    payload_of,
    public_pem,
    put_referrer,
    put_simple_signing,
    sign,
    sign_simply,
    text_of,
)

NAME = "smm/api"
API = RepositoryName(NAME)
V1 = Tag("v1")
KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
VALID = (utc_now() - DAY, utc_now() + DAY)
ROOT = make_certificate("root", is_authority=True, valid=VALID)
LEAF = make_certificate("vendor", ROOT, valid=VALID)
TRUST = {"cosign": {"keys": [public_pem(KEY)]}, "notation": {"certificates": [ROOT.pem]}}


@pytest.fixture
async def trusting(replicating: Replicating) -> Replicating:
    await replicating.apply_rule(trust=TRUST)
    return replicating


async def published(replicating: Replicating) -> str | None:
    found = await replicating.served.parts.registry.read_tag_digests(API, [V1])
    return str(found[V1]) if V1 in found else None


async def refusal(replicating: Replicating) -> str:
    """Why the one tag was refused; a plan says the same before."""
    plan = await replicating.replications.plan("all")
    run = await replicating.run()
    assert run.status == "failed"
    (failure,) = run.report["failures"]
    assert (failure["what"], failure["kind"], failure["is_temporary"]) == ("smm/api:v1", "refused", False)
    assert (run.report["refused"], run.report["tags_copied"], run.report["blobs_copied"]) == (1, 0, 0)
    assert await published(replicating) is None
    assert [str(error) for error in plan.refused.values()] == [failure["problem"]]
    return str(failure["problem"])


def sign_well(registry: HostileRegistry, way: str, manifest: Manifest) -> None:
    """Sign a manifest in one of the ways that are accepted."""
    if way == "tag":
        sign_simply(registry, NAME, manifest.digest, KEY)
    elif way == "bundle":
        put_referrer(registry, NAME, manifest, bundle_of(KEY, make_statement(manifest.digest)), BUNDLE)
    else:
        put_referrer(registry, NAME, manifest, ENVELOPES[way](LEAF, payload_of(manifest)), way)


@pytest.mark.parametrize("way", ["tag", "bundle", notation.JWS, notation.COSE])
async def test_what_is_signed_is_published_with_its_signature(
    hostile: HostileRegistry, trusting: Replicating, way: str
) -> None:
    hostile.has_referrers = True
    image = hostile.put_image(NAME, "v1")
    sign_well(hostile, way, Manifest.parse(image.manifest))
    run = await trusting.run()
    assert (run.status, run.report["referrers_copied"]) == ("done", 1), run.report
    assert await published(trusting) == str(image.digest)


async def test_an_index_is_signed_as_a_whole(hostile: HostileRegistry, trusting: Replicating) -> None:
    child = Image()
    index = hostile.put_index(NAME, "v1", child, Image())
    sign_simply(hostile, NAME, child.digest, KEY)  # of a part, which is not enough
    assert "no signature of a kind" in await refusal(trusting)
    sign_simply(hostile, NAME, Digest.parse(index), KEY)
    assert (await trusting.run()).status == "done"
    assert await published(trusting) == index


async def test_without_a_signature_nothing_is_published(hostile: HostileRegistry, trusting: Replicating) -> None:
    image = hostile.put_image(NAME, "v1")
    assert await refusal(trusting) == (
        f"smm/api@{image.digest} is refused by the rule's trust policy: it has no signature of a kind that the policy "
        "accepts; sign it at the source"
    )
    assert hostile.count("/blobs/") == 0


async def test_each_signature_is_named_with_its_reason(hostile: HostileRegistry, trusting: Replicating) -> None:
    hostile.has_referrers = True
    image, other = hostile.put_image(NAME, "v1"), Image()
    manifest = Manifest.parse(image.manifest)
    of_other = make_payload(other.digest, "x")
    good = make_payload(image.digest, "x")
    rsa_key = rsa.generate_private_key(65537, 2048)
    put_simple_signing(
        hostile,
        NAME,
        [(of_other, text_of(sign(KEY, of_other))), (good, text_of(sign(OTHER_KEY, good))), (good, "%")],
        image.digest,
    )
    put_referrer(hostile, NAME, manifest, bundle_of(rsa_key, make_statement(image.digest)), BUNDLE)
    problem = await refusal(trusting)
    tag = cosign_tags(image.digest)[0]
    assert f"tag {tag}: it was made for '{other.digest}'" in problem
    assert f"tag {tag}: it was made with another key" in problem
    assert f"tag {tag}: the signature is not Base64" in problem
    assert "referrer sha256:" in problem


async def test_a_signature_copied_from_another_image_is_refused(
    hostile: HostileRegistry, trusting: Replicating
) -> None:
    signed, image = hostile.put_image(NAME), hostile.put_image(NAME, "v1")
    sign_simply(hostile, NAME, signed.digest, KEY)
    stolen = hostile.manifests[NAME, cosign_tags(signed.digest)[0].value]
    hostile.manifests[NAME, cosign_tags(image.digest)[0].value] = stolen
    hostile.tags[NAME].append(cosign_tags(image.digest)[0].value)
    assert "it was made for" in await refusal(trusting)


async def test_a_bundle_that_refers_to_another_image_is_not_looked_at(
    hostile: HostileRegistry, trusting: Replicating
) -> None:
    signed, image = hostile.put_image(NAME), hostile.put_image(NAME, "v1")
    bundle = bundle_of(KEY, make_statement(image.digest))
    stray = put_referrer(hostile, NAME, Manifest.parse(signed.manifest), bundle, BUNDLE)
    hostile.put_fallback(NAME, str(image.digest), stray)
    assert "no signature of a kind" in await refusal(trusting)


async def test_huge_and_lying_signatures_are_refused(hostile: HostileRegistry, trusting: Replicating) -> None:
    hostile.has_referrers = True
    image = hostile.put_image(NAME, "v1")
    manifest = Manifest.parse(image.manifest)
    put_referrer(hostile, NAME, manifest, b" " * 300_000, BUNDLE)
    lying = bundle_of(KEY, make_statement(image.digest))
    put_referrer(hostile, NAME, manifest, lying, BUNDLE)
    hostile.blobs[str(Digest.of(lying))] = lying[:-1] + b" "
    missing = lying + b" "
    put_referrer(hostile, NAME, manifest, missing, BUNDLE)
    del hostile.blobs[str(Digest.of(missing))]
    problem = await refusal(trusting)
    assert "it has 300000 bytes, at most 262144 are looked at" in problem
    assert "the source sent other bytes" in problem
    assert "BLOB_UNKNOWN" in problem
    assert hostile.count(str(Digest.of(b" " * 300_000))) == 0


async def test_of_hundreds_of_signatures_a_hundred_are_looked_at(
    hostile: HostileRegistry, trusting: Replicating
) -> None:
    image = hostile.put_image(NAME, "v1")
    payload = make_payload(image.digest, "x")
    bad = [(payload + b" " * number, text_of(sign(OTHER_KEY, payload))) for number in range(300)]
    put_simple_signing(hostile, NAME, [*bad, (payload, text_of(sign(KEY, payload)))], image.digest)
    problem = await refusal(trusting)
    assert "only the first 100 were looked at" in problem
    assert "and 96 more" in problem
    assert hostile.count("/blobs/") == 200  # for the plan, and for the run
    put_simple_signing(hostile, NAME, [*bad[:99], (payload, text_of(sign(KEY, payload)))], image.digest)
    assert (await trusting.run()).status == "done"


async def test_what_is_published_is_what_was_judged_though_the_tag_moved(
    hostile: HostileRegistry, trusting: Replicating
) -> None:
    image, unsigned = hostile.put_image(NAME, "v1"), Image()
    signature = sign_simply(hostile, NAME, image.digest, KEY)
    signature_tag = cosign_tags(image.digest)[0].value

    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        if request.path.endswith(str(Digest.of(make_payload(image.digest, f"vendor.example.com/{NAME}")))):
            # The signature was found, and is read: now everything is swapped.
            hostile.put_image(NAME, image=unsigned)
            hostile.manifests[NAME, "v1"] = (media_types.OCI_MANIFEST, unsigned.manifest)
            hostile.manifests[NAME, signature_tag] = (media_types.OCI_MANIFEST, unsigned.manifest)
        return None

    hostile.misbehave = misbehave
    assert (await trusting.run()).status == "done"
    assert await published(trusting) == str(image.digest)
    tag = cosign_tags(image.digest)[0]
    assert str((await trusting.served.parts.registry.read_tag_digests(API, [tag]))[tag]) == signature
    run = await trusting.run()
    assert run.report["refused"] == 1
    assert await published(trusting) == str(image.digest)  # what was published stays


async def test_a_source_that_does_not_answer_is_no_refusal(hostile: HostileRegistry, trusting: Replicating) -> None:
    image = hostile.put_image(NAME, "v1")
    sign_simply(hostile, NAME, image.digest, KEY)

    async def misbehave(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=503) if "/blobs/" in request.path else None

    hostile.misbehave = misbehave
    run = await trusting.run()
    (failure,) = run.report["failures"]
    assert (failure["kind"], failure["is_temporary"], run.report["refused"]) == ("failed", True, 0)
    assert await published(trusting) is None


@pytest.mark.parametrize(
    ("trust", "way", "is_accepted"),
    [
        pytest.param({"cosign": TRUST["cosign"]}, "tag", True, id="cosign-asked-cosign-given"),
        pytest.param({"cosign": TRUST["cosign"]}, notation.JWS, False, id="cosign-asked-notation-given"),
        pytest.param({"notation": TRUST["notation"]}, notation.JWS, True, id="notation-asked-notation-given"),
        pytest.param({"notation": TRUST["notation"]}, "tag", False, id="notation-asked-cosign-given"),
        pytest.param({"notation": TRUST["notation"]}, "bundle", False, id="notation-asked-bundle-given"),
    ],
)
async def test_only_what_is_asked_for_is_accepted(
    hostile: HostileRegistry, replicating: Replicating, trust: dict[str, Any], way: str, *, is_accepted: bool
) -> None:
    await replicating.apply_rule(trust=trust)
    hostile.has_referrers = True
    sign_well(hostile, way, Manifest.parse(hostile.put_image(NAME, "v1").manifest))
    assert ((await replicating.run()).status == "done") is is_accepted


async def test_signatures_are_judged_though_they_do_not_follow(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    await replicating.apply_rule(trust=TRUST, referrers="none")
    image = hostile.put_image(NAME, "v1")
    assert (await replicating.run()).report["refused"] == 1
    sign_simply(hostile, NAME, image.digest, KEY)
    run = await replicating.run()
    assert (run.status, run.report["referrers_copied"]) == ("done", 0)


async def test_a_key_that_cannot_be_read_ends_the_run_before_anything_is_asked(
    hostile: HostileRegistry, replicating: Replicating
) -> None:
    await replicating.apply_rule(trust={"cosign": {"keys": ["/nonexistent/cosign.pub"]}})
    hostile.put_image(NAME, "v1")
    run = await replicating.run()
    assert run.report["problem"]["problem"].startswith(
        "rules.all.trust.cosign.keys[0]: /nonexistent/cosign.pub: No such"
    )
    assert hostile.seen == []
