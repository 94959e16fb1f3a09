"""Signing what is published, once, whatever goes wrong meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from entrepot.errors import SignerUnavailable
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest, read_layer_annotations
from entrepot.oci.reference import RepositoryName, cosign_tags
from entrepot.replication.signing import Signing
from entrepot.replication.trust.cosign import BUNDLE, SIGNATURE, make_payload, verify_simple_signing
from entrepot.replication.trust.signers import FileSigner
from tests.faults.conftest import Replicating
from tests.support.hostile import HostileRegistry
from tests.support.served import Served, serve
from tests.support.signatures import private_pem, sign_simply

NAME = "smm/api"
API = RepositoryName(NAME)
KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


class LameSigner(FileSigner):
    """Fails at the signatures whose number is in `failing`."""

    def __init__(self, failing: set[int]) -> None:
        super().__init__(KEY)
        self._failing = failing
        self.count = 0

    async def sign(self, message: bytes) -> bytes:
        self.count += 1
        if self.count in self._failing:
            raise SignerUnavailable("KMS is away")
        return await super().sign(message)


async def count_signatures(served: Served, digest: Digest) -> tuple[int, int]:
    """How many are below the tag, and in bundles."""
    manifest = await served.parts.registry.find_manifest(API, cosign_tags(digest)[0])
    bundles = await served.parts.registry.list_referrers(API, digest, BUNDLE, "")
    return 0 if manifest is None else len(manifest.blobs) - 1, len(bundles.entries)


async def publish(served: Served) -> Digest:
    return (await (await served.client("publisher")).push_image(NAME, "v1")).digest


async def test_what_is_signed_names_the_public_registry(served: Served) -> None:
    digest = await publish(served)
    signing = Signing(served.parts.registry, FileSigner(KEY), "registry.example.com")
    assert await signing.sign(API, digest)
    manifest = await served.parts.registry.find_manifest(API, cosign_tags(digest)[0])
    assert manifest is not None
    payload = make_payload(digest, "registry.example.com/smm/api")
    assert manifest.blobs[1].digest == Digest.of(payload)
    signature = read_layer_annotations(manifest.content)[0][SIGNATURE]
    assert verify_simple_signing(payload, signature, digest, (KEY.public_key(),))


async def test_the_same_key_signs_once_and_another_one_beside_it(served: Served) -> None:
    digest = await publish(served)
    registry = served.parts.registry
    for key, is_new in ((KEY, True), (KEY, False), (OTHER_KEY, True), (KEY, False), (OTHER_KEY, False)):
        assert (await Signing(registry, FileSigner(key), "host").sign(API, digest) is not None) is is_new
    assert await count_signatures(served, digest) == (2, 2)


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_key_service_that_was_away_leaves_nothing_twice(served: Served, failing: int) -> None:
    digest = await publish(served)
    signer = LameSigner({failing})
    signing = Signing(served.parts.registry, signer, "host")
    with pytest.raises(SignerUnavailable):
        await signing.sign(API, digest)
    assert await signing.sign(API, digest)
    assert not await signing.sign(API, digest)
    assert await count_signatures(served, digest) == (1, 1)


async def test_several_keys_sign_at_the_same_time(served: Served) -> None:
    digest = await publish(served)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(4)]
    await asyncio.gather(*(Signing(served.parts.registry, FileSigner(key), "host").sign(API, digest) for key in keys))
    assert await count_signatures(served, digest) == (4, 4)


@pytest.fixture
async def immutable(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path / "immutable", repositories={"immutable_tags": ["**:sha256-*"]}) as served:
        yield served


async def test_a_tag_that_may_not_change_is_told_and_nothing_piles_up(
    immutable: Served, hostile: HostileRegistry, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(private_pem(KEY))
    replicating = Replicating(immutable)
    await replicating.apply(hostile.url)
    await replicating.apply_rule(sign={"key_file": str(tmp_path / "key")})
    image = hostile.put_image(NAME, "v1")
    sign_simply(hostile, NAME, image.digest, OTHER_KEY)
    for _ in range(3):
        run = await replicating.run()
        assert "is immutable and names another manifest" in run.report["failures"][0]["problem"]
    assert await count_signatures(immutable, image.digest) == (1, 1)


async def test_tags_that_were_here_are_signed_when_the_rule_says_so(
    replicating: Replicating, hostile: HostileRegistry, tmp_path: Path
) -> None:
    images = [hostile.put_image(NAME, f"v{number}") for number in range(3)]
    hostile.put_image(NAME, "again", images[0])
    assert (await replicating.run()).report["signed"] == 0
    (tmp_path / "key").write_bytes(private_pem(KEY))
    await replicating.apply_rule(sign={"key_file": str(tmp_path / "key")})
    hostile.seen.clear()
    assert (await replicating.run()).report["signed"] == 3
    assert (await replicating.run()).report["signed"] == 0
    assert hostile.count("/blobs/") == 0
    for image in images:
        assert await count_signatures(replicating.served, image.digest) == (1, 1)


async def test_several_tags_of_one_digest_are_signed_once(
    replicating: Replicating, hostile: HostileRegistry, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(private_pem(KEY))
    await replicating.apply_rule(sign={"key_file": str(tmp_path / "key")})
    image = hostile.put_image(NAME, "v1")
    for number in range(6):
        hostile.put_image(NAME, f"v1.{number}", image)
    run = await replicating.run()
    assert (run.report["tags_copied"], run.report["signed"]) == (7, 1)
    assert await count_signatures(replicating.served, image.digest) == (1, 1)


async def test_what_others_signed_is_kept_byte_for_byte(
    replicating: Replicating, hostile: HostileRegistry, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(private_pem(KEY))
    await replicating.apply_rule(sign={"key_file": str(tmp_path / "key")})
    image = hostile.put_image(NAME, "v1")
    theirs = sign_simply(hostile, NAME, image.digest, OTHER_KEY)
    await replicating.run()
    manifest = await replicating.served.parts.registry.find_manifest(API, cosign_tags(image.digest)[0])
    assert manifest is not None
    layers = json.loads(manifest.content)["layers"]
    source = Manifest.parse(hostile.manifests[NAME, theirs][1])
    assert layers[0] == json.loads(source.content)["layers"][0]
    assert len(layers) == 2
