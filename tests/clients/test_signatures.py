"""cosign and notation sign; Entrepot judges, copies and signs; cosign, notation, skopeo, crane and oras look at it."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from entrepot.bootstrap import build_parts, close_parts
from entrepot.errors import SignatureBroken
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.runs import Run
from entrepot.replication.trust.certificates import parse_certificates
from entrepot.replication.trust.notation import COSE, JWS, Roots, verify_envelope
from entrepot.settings import Settings
from entrepot.storage.clock import utc_now
from entrepot.storage.signals import CURRENT_SECONDS
from tests.support.aws import ACCOUNT, moto_server
from tests.support.content import Image, index_of
from tests.support.programs import Entrepot, docker_registry, require, run, run_well
from tests.support.served import TESTER
from tests.support.signatures import DAY, make_certificate, private_pem
from tests.support.stamps import stamping

PASSWORD = "password-of-the-key"
READER = ("reader", "secret-of-the-source")
PLANS = {"reader": {"grants": [{"repositories": ["**"], "actions": ["pull"]}]}}
REGION = "eu-central-2"


@dataclass
class World:
    """A registry with signed content, an Entrepot that replicates it, and the clients, logged in to both."""

    folder: Path
    source: str
    entrepot: Entrepot
    images: dict[str, Digest] = field(default_factory=dict)
    credential: tuple[str, str] = ("", "")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DOCKER_CONFIG": str(self.folder / "docker"),
            "REGISTRY_AUTH_FILE": str(self.folder / "docker" / "config.json"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "COSIGN_PASSWORD": PASSWORD,
        }

    def call(self, program: str, *arguments: str | Path) -> str:
        """Run a client that must succeed."""
        return run_well(require(program), *arguments, environment=self.environment)

    def log_in(self, logins: Mapping[str, tuple[str, str]]) -> None:
        """Log the clients in, by the file that all of them read."""
        entries = {
            host: {"auth": base64.b64encode(":".join(login).encode()).decode()} for host, login in logins.items()
        }
        (self.folder / "docker").mkdir(exist_ok=True)
        (self.folder / "docker" / "config.json").write_text(json.dumps({"auths": entries}))

    def push(self, name: str, *images: Image) -> None:
        """Push an image to the source, or an index of several, as v1."""
        with httpx.Client(base_url=f"http://{self.source}", auth=READER) as http:
            for image in images:
                for blob in (image.config, image.layer):
                    location = http.post(f"/v2/{name}/blobs/uploads/").headers["location"]
                    http.put(f"{location}&digest={Digest.of(blob)}", content=blob).raise_for_status()
                self._put(http, f"/v2/{name}/manifests/{image.digest}", image.manifest, media_types.OCI_MANIFEST)
            content = index_of(*images) if len(images) > 1 else images[0].manifest
            media_type = media_types.OCI_INDEX if len(images) > 1 else media_types.OCI_MANIFEST
            self._put(http, f"/v2/{name}/manifests/v1", content, media_type)
            self.images[name] = Digest.of(content)

    def _put(self, http: httpx.Client, path: str, content: bytes, media_type: str) -> None:
        http.put(path, content=content, headers={"Content-Type": media_type}).raise_for_status()

    def cosign(self, version: int, verb: str, key: str, reference: str, *options: str | Path) -> str:
        """Sign or attest with a version of cosign."""
        config = ["--use-signing-config=false"] if version == 3 else []
        keys = ["--yes", "--tlog-upload=false", *config, "--allow-http-registry", "--key", self.folder / f"{key}.key"]
        return self.call(f"cosign{version}", verb, *keys, *options, reference)

    def is_verified(self, version: int, key: str, reference: str) -> bool:
        """Whether a version of cosign verifies something."""
        options = ["--insecure-ignore-tlog=true", "--allow-http-registry", "--key", self.folder / f"{key}.pub"]
        command = [require(f"cosign{version}"), "verify", *options, reference]
        return run(*command, environment=self.environment).returncode == 0

    def at_source(self, name: str) -> str:
        return f"{self.source}/{name}@{self.images[name]}"

    def here(self, name: str, origin: str | None = None) -> str:
        return f"{self.entrepot.host}/{name}@{self.images[origin or name]}"

    def replicate(
        self, name: str, rule: dict[str, Any], environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Apply a rule, run it, and answer its report. In this process: a command takes a second to start.

        What moved is known to the server, which is another process, after CURRENT_SECONDS.
        """
        rule = {"source": "debian", "tags": {"include": ["*"]}} | rule
        source = {"type": "oci", "url": f"http://{self.source}", "username": READER[0], "password_env": "READER"}
        file = parse_rule_file({"sources": {"debian": source}, "rules": {name: rule}})

        async def work() -> Run:
            parts = build_parts(Settings(data=self.entrepot.data))
            try:
                await parts.rulebook.apply(file, TESTER)
                return await parts.replications.run(name, TESTER)
            finally:
                close_parts(parts)

        with pytest.MonkeyPatch.context() as patch:
            for variable, value in {"READER": READER[1], "SIGNING": PASSWORD, **(environment or {})}.items():
                patch.setenv(variable, value)
            return asyncio.run(work()).report

    def tag(self, name: str, kind: str) -> str:
        return f"{str(self.images[name]).replace(':', '-')}.{kind}"


def configure_notation(world: World) -> Path:
    """A signing key under an authority of our own, and a policy that trusts it; answers the root's file."""
    valid = (utc_now() - DAY, utc_now() + DAY)
    root = make_certificate("root", is_authority=True, valid=valid)
    leaf = make_certificate("vendor.example.com", root, valid=valid)
    folder = world.folder / "config" / "notation"
    store = folder / "truststore" / "x509" / "ca" / "vendor"
    store.mkdir(parents=True)
    (store / "root.pem").write_text(root.pem)
    (folder / "key").write_bytes(private_pem(leaf.key))
    (folder / "chain").write_text(leaf.pem + root.pem)
    key = {"name": "vendor", "keyPath": str(folder / "key"), "certPath": str(folder / "chain")}
    (folder / "signingkeys.json").write_text(json.dumps({"default": "vendor", "keys": [key]}))
    policy = {
        "name": "all",
        "registryScopes": ["*"],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:vendor"],
        "trustedIdentities": ["*"],
    }
    (folder / "trustpolicy.json").write_text(json.dumps({"version": "1.0", "trustPolicies": [policy]}))
    return store / "root.pem"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("signatures")
    entrepot = Entrepot(folder / "data")
    entrepot.apply_plans(PLANS)
    credential = entrepot.issue("customer", "reader")
    with docker_registry(folder / "source", *READER) as source:
        world = World(folder, source, entrepot, credential=(credential.username, credential.secret))
        world.log_in({source: READER, entrepot.host: world.credential})
        fill(world)
        with entrepot.serving("--no-jobs"):
            yield world


def fill(world: World) -> None:
    """Content at the source, signed in every way."""
    folder = world.folder
    for version, key in ((2, "two"), (3, "three"), (2, "ours")):
        world.call(f"cosign{version}", "generate-key-pair", "--output-key-prefix", folder / key)
    for name in ("smm/two", "smm/three", "smm/jws", "smm/cose", "smm/unsigned", "smm/stranger"):
        world.push(name, Image())
    world.push("smm/index", Image(), Image())
    (folder / "sbom.json").write_text('{"spdxVersion": "SPDX-2.3"}')

    world.cosign(2, "sign", "two", world.at_source("smm/two"))
    predicate = ["--type", "custom", "--predicate", folder / "sbom.json"]
    world.cosign(2, "attest", "two", world.at_source("smm/two"), *predicate)
    attach = ["attach", "sbom", "--allow-http-registry", "--sbom", folder / "sbom.json"]
    world.call("cosign2", *attach, world.at_source("smm/two"))
    world.cosign(3, "sign", "three", world.at_source("smm/three"))
    world.cosign(3, "sign", "three", world.at_source("smm/index"), "--recursive")
    # An attestation alone is no signature, though cosign 3 takes it for one.
    world.cosign(3, "attest", "three", world.at_source("smm/unsigned"), *predicate)
    assert world.is_verified(3, "three", world.at_source("smm/unsigned"))
    world.cosign(2, "sign", "ours", world.at_source("smm/stranger"))

    root = configure_notation(world)
    assert root.exists()
    login = ["--insecure-registry", "-u", READER[0], "-p", READER[1]]
    for kind in ("jws", "cose"):
        world.call("notation", "sign", *login, "--signature-format", kind, world.at_source(f"smm/{kind}"))
    attached = ["--plain-http", "--artifact-type", "application/spdx+json", "--disable-path-validation"]
    world.call("oras", "attach", *attached, world.at_source("smm/jws"), f"{folder}/sbom.json:application/json")


@pytest.fixture(scope="module")
def trusted(world: World) -> dict[str, Any]:
    """The report of a run that asks for signatures."""
    root = world.folder / "config" / "notation" / "truststore" / "x509" / "ca" / "vendor" / "root.pem"
    keys = [str(world.folder / f"{key}.pub") for key in ("two", "three")]
    trust = {"cosign": {"keys": keys}, "notation": {"certificates": [str(root)]}}
    return world.replicate("trusted", {"repositories": ["smm/*"], "trust": trust})


def test_what_cosign_and_notation_signed_is_published_and_nothing_else(world: World, trusted: dict[str, Any]) -> None:
    assert (trusted["tags_copied"], trusted["refused"]) == (5, 2)
    reasons = {failure["what"]: failure["problem"] for failure in trusted["failures"]}
    assert "attests 'https://cosign.sigstore.dev/attestation/v1', which is no signature" in reasons["smm/unsigned:v1"]
    assert "it was made with another key" in reasons["smm/stranger:v1"]
    for name in ("smm/unsigned", "smm/stranger"):
        answer = run(require("crane"), "digest", world.here(name), environment=world.environment)
        assert answer.returncode != 0


def test_plan_and_run_say_what_is_refused_and_why(world: World, trusted: dict[str, Any]) -> None:
    environment = {"READER": READER[1]}
    planned = run_well(*world.entrepot.command("replicate", "plan", "trusted"), environment=environment)
    assert f"refused  smm/unsigned:v1  smm/unsigned:v1  {world.images['smm/unsigned']}" in planned
    assert "7 tags at the source match, 2 of them are due, 2 of those refused" in planned
    done = run(*world.entrepot.command("replicate", "run", "trusted", "--wait"), environment=environment)
    assert done.returncode == 1
    assert "REFUSED smm/stranger:v1: smm/stranger@sha256:" in done.stdout
    assert "2 refused, FAILED: smm/" in done.stdout


def test_skopeo_and_crane_find_the_same_bytes_under_the_same_names(world: World, trusted: dict[str, Any]) -> None:
    for tag in ("v1", *(world.tag("smm/two", kind) for kind in ("sig", "att", "sbom"))):
        here, there = (f"{host}/smm/two:{tag}" for host in (world.entrepot.host, world.source))
        assert world.call("crane", "digest", here) == world.call("crane", "digest", there)
    copied = ["copy", "--src-tls-verify=false", f"docker://{world.entrepot.host}/smm/two:{world.tag('smm/two', 'sig')}"]
    world.call("skopeo", *copied, f"oci:{world.folder}/copied:sig")
    raw = ["inspect", "--raw", "--tls-verify=false", f"docker://{world.entrepot.host}/smm/index:v1"]
    assert Digest.of(world.call("skopeo", *raw).encode()) == world.images["smm/index"]


def test_cosign_verifies_what_arrived(world: World, trusted: dict[str, Any]) -> None:
    assert world.is_verified(2, "two", world.here("smm/two"))
    assert world.is_verified(3, "two", world.here("smm/two"))
    assert world.is_verified(3, "three", world.here("smm/three"))
    assert not world.is_verified(2, "ours", world.here("smm/two"))
    options = ["--insecure-ignore-tlog=true", "--allow-http-registry", "--key", world.folder / "two.pub"]
    world.call("cosign2", "verify-attestation", *options, "--type", "custom", world.here("smm/two"))
    index = json.loads(world.call("crane", "manifest", world.here("smm/index")))
    for child in index["manifests"]:
        assert world.is_verified(3, "three", f"{world.entrepot.host}/smm/index@{child['digest']}")


def test_notation_and_oras_find_what_arrived(world: World, trusted: dict[str, Any]) -> None:
    login = ["--insecure-registry", "-u", world.credential[0], "-p", world.credential[1]]
    for kind in ("jws", "cose"):
        assert "Successfully verified" in world.call("notation", "verify", *login, world.here(f"smm/{kind}"))
    found = world.call("oras", "discover", "--plain-http", "--format", "json", world.here("smm/jws"))
    assert {one["artifactType"] for one in json.loads(found)["manifests"]} == {
        "application/vnd.cncf.notary.signature",
        "application/spdx+json",
    }


@pytest.mark.parametrize(("kind", "media_type"), [("jws", JWS), ("cose", COSE)])
def test_a_time_stamp_outlives_the_certificate(world: World, tmp_path: Path, kind: str, media_type: str) -> None:
    name = f"stamped/{kind}"
    world.push(name, Image())
    with stamping(tmp_path / "authority") as authority:
        login = ["--insecure-registry", "-u", READER[0], "-p", READER[1]]
        stamp = ["--timestamp-url", authority.url, "--timestamp-root-cert", authority.folder / "root"]
        world.call("notation", "sign", *login, *stamp, "--signature-format", kind, world.at_source(name))
    listed = json.loads(world.call("crane", "manifest", f"{world.source}/{name}:{world.tag(name, 'x')[:-2]}"))
    envelope = json.loads(world.call("crane", "manifest", f"{world.source}/{name}@{listed['manifests'][0]['digest']}"))
    # crane prints text; the bytes of COSE are none.
    with httpx.Client(base_url=f"http://{world.source}", auth=READER) as http:
        content = http.get(f"/v2/{name}/blobs/{envelope['layers'][0]['digest']}").content
        headers = {"Accept": media_types.OCI_MANIFEST}
        manifest = Manifest.parse(http.get(f"/v2/{name}/manifests/v1", headers=headers).content)
    root = world.folder / "config" / "notation" / "truststore" / "x509" / "ca" / "vendor" / "root.pem"
    signers = parse_certificates(root.read_bytes())
    stranger = make_certificate("stranger", is_authority=True, valid=(utc_now() - DAY, utc_now() + DAY))
    later = utc_now() + 30 * DAY

    assert verify_envelope(content, media_type, manifest, Roots(signers), utc_now())
    assert verify_envelope(content, media_type, manifest, Roots(signers, (authority.root.certificate,)), later)
    with pytest.raises(SignatureBroken, match="expired on"):
        verify_envelope(content, media_type, manifest, Roots(signers), later)
    with pytest.raises(SignatureBroken, match="its time stamp does not hold"):
        verify_envelope(content, media_type, manifest, Roots(signers, (stranger.certificate,)), later)


def test_a_late_signature_arrives_with_the_next_run(world: World) -> None:
    rule = {"repositories": ["smm/two"], "target": "late/{repository}"}
    assert world.replicate("late", rule)["tags_copied"] == 1
    world.cosign(2, "sign", "ours", world.at_source("smm/two"))
    world.cosign(3, "sign", "three", world.at_source("smm/two"))
    report = world.replicate("late", rule)
    assert (report["tags_copied"], report["referrers_copied"], report["failed"]) == (0, 2, 0)
    here = world.here("late/smm/two", "smm/two")
    assert world.is_verified(2, "two", here)
    assert world.is_verified(2, "ours", here)
    assert world.is_verified(3, "three", here)


def test_what_is_published_is_signed_once_and_beside_what_was_there(world: World) -> None:
    sign = {"key_file": str(world.folder / "ours.key"), "password_env": "SIGNING"}
    repositories = ["smm/three", "smm/index", "smm/cose", "smm/stranger"]
    rule = {"repositories": repositories, "target": "signed/{repository}", "sign": sign}
    assert world.replicate("signed", rule)["signed"] == 4
    for name in repositories:
        here = world.here(f"signed/{name}", name)
        assert world.is_verified(2, "ours", here)
        assert world.is_verified(3, "ours", here)
    assert world.is_verified(3, "three", world.here("signed/smm/three", "smm/three"))

    # A signature more at the source joins ours, and nothing is signed or copied again.
    world.cosign(2, "sign", "two", world.at_source("smm/cose"))
    assert world.replicate("signed", rule)["signed"] == 0
    time.sleep(CURRENT_SECONDS)
    for key in ("two", "ours"):
        assert world.is_verified(2, key, world.here("signed/smm/cose", "smm/cose"))
    names = [f"{world.entrepot.host}/signed/smm/cose:{world.tag('smm/cose', 'sig')}"]
    before = world.call("crane", "manifest", *names)
    assert len(json.loads(before)["layers"]) == 2
    report = world.replicate("signed", rule)
    assert (report["signed"], report["referrers_copied"], report["blobs_copied"]) == (0, 0, 0)
    assert world.call("crane", "manifest", *names) == before


def test_a_key_in_kms_signs_what_cosign_verifies(world: World, tmp_path: Path) -> None:
    with moto_server(tmp_path) as moto:
        kms = moto.client("kms", REGION)
        aws = {
            "AWS_ENDPOINT_URL_KMS": moto.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        for spec in ("ECC_NIST_P256", "RSA_2048"):
            key_id = kms.create_key(KeySpec=spec, KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
            arn = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{key_id}"
            public = serialization.load_der_public_key(kms.get_public_key(KeyId=key_id)["PublicKey"])
            content = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            (world.folder / f"{spec}.pub").write_bytes(content)
            target = f"kms/{spec.lower()}"
            rule = {"repositories": ["smm/unsigned"], "target": target, "sign": {"kms": arn}}
            assert world.replicate("kms", rule, aws)["signed"] == 1
            here = world.here(target, "smm/unsigned")
            assert world.is_verified(2, spec, here)
            assert world.is_verified(3, spec, here)
        arn = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-0000-0000-0000-000000000000"
        report = world.replicate("kms", rule | {"sign": {"kms": arn}}, aws)
        assert "rules.kms.sign.kms: KMS refused get_public_key with NotFoundException" in report["problem"]["problem"]
    report = world.replicate("kms", rule, aws)
    assert "rules.kms.sign.kms: KMS cannot be reached" in report["problem"]["problem"]
    assert report["problem"]["is_temporary"]
