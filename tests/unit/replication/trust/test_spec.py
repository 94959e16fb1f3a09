"""What a rule may say of signatures, and the files that it names."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from entrepot.errors import RuleInvalid
from entrepot.oci.reference import Tag
from entrepot.replication.rules import Rule
from entrepot.replication.trust.files import load_policy
from entrepot.replication.trust.spec import SignSpec, TrustSpec
from tests.support.signatures import make_certificate, public_pem

KEY = public_pem(ec.generate_private_key(ec.SECP256R1()))
ROOT = make_certificate("root", is_authority=True).pem
RULE = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["*"]}}
ARN = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        pytest.param({"trust": []}, "trust: must be a mapping", id="list"),
        pytest.param({"trust": {}}, "trust: says whose", id="empty"),
        pytest.param({"trust": {"gpg": {}}}, "trust.gpg: not a field", id="other-kind"),
        pytest.param({"trust": {"cosign": {}}}, "trust.cosign.keys: must be a list", id="no-keys"),
        pytest.param({"trust": {"cosign": {"keys": []}}}, "trust.cosign.keys: must be a list", id="empty-keys"),
        pytest.param({"trust": {"cosign": {"key": KEY}}}, "trust.cosign.key: not a field", id="typo"),
        pytest.param({"trust": {"cosign": {"keys": ["x.pub"]}}}, "trust.cosign.keys[0]: must be an abs", id="relative"),
        pytest.param({"trust": {"cosign": {"keys": [KEY, 7]}}}, "trust.cosign.keys[1]: must be text", id="number"),
        pytest.param({"trust": {"cosign": {"keys": [None]}}}, "trust.cosign.keys[0]: must be", id="nothing"),
        pytest.param({"trust": {"cosign": {"keys": [ROOT]}}}, "trust.cosign.keys[0]: holds no public key", id="no-key"),
        pytest.param(
            {"trust": {"cosign": {"keys": ["-----BEGIN " + "x" * 70_000]}}},
            "trust.cosign.keys[0]: is longer",
            id="long",
        ),
        pytest.param(
            {"trust": {"notation": {"certificates": [KEY]}}},
            "trust.notation.certificates[0]: holds no certificate",
            id="no-certificate",
        ),
        pytest.param(
            {"trust": {"notation": {"timestamp_authorities": ["/tsa.pem"]}}},
            "trust.notation.certificates: must be a list",
            id="authorities-alone",
        ),
        pytest.param(
            {"trust": {"notation": {"certificates": [ROOT], "timestamp_authorities": []}}},
            "trust.notation.timestamp_authorities: must be a list",
            id="no-authorities",
        ),
        pytest.param({"sign": {}}, "sign: a key is in a file", id="no-key-to-sign"),
        pytest.param({"sign": {"key_file": "/k", "kms": ARN}}, "sign: a key is in a file", id="two-keys"),
        pytest.param({"sign": {"key_file": "k"}}, "sign.key_file: must be an absolute path", id="relative-key"),
        pytest.param({"sign": {"kms": "alias/x"}}, "sign.kms: must be the ARN", id="no-arn"),
        pytest.param({"sign": {"kms": ARN, "password_env": "P"}}, "sign: has a password", id="password-for-kms"),
        pytest.param(
            {"sign": {"key_file": "/k", "password_env": "P", "password_file": "/p"}},
            "sign: has a pass",
            id="two-passwords",
        ),
        pytest.param(
            {"sign": {"key_file": "/k", "password_env": "ENTREPOT_X"}}, "sign.password_env: ENTREPOT_", id="our-own"
        ),
        pytest.param({"sign": {"key_file": "/k", "password": "x"}}, "sign.password: not a field", id="inline-password"),
        pytest.param({"referrers": "some"}, "referrers: must be follow or none", id="referrers"),
        pytest.param({"referrers": ["none"]}, "referrers: must be follow or none", id="referrers-list"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(RuleInvalid) as refusal:
        Rule.parse("smm", RULE | document)
    assert str(refusal.value).startswith(f"rules.smm.{problem}")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"referrers": "none"},
        {"trust": {"cosign": {"keys": ["/run/cosign.pub", KEY.strip()]}}},
        {"trust": {"cosign": {"keys": ["/k"]}, "notation": {"certificates": ["/ca.pem", ROOT.strip()]}}},
        {"trust": {"notation": {"certificates": ["/ca.pem"], "timestamp_authorities": ["/tsa.pem"]}}},
        {"sign": {"key_file": "/k", "password_env": "P"}},
        {"sign": {"kms": ARN}},
    ],
)
def test_a_rule_reads_back_as_it_was_written(document: dict[str, Any]) -> None:
    rule = Rule.parse("smm", RULE | document)
    written = rule.to_document()
    assert {name: written.get(name) for name in ("referrers", "trust", "sign") if name in written} == document
    assert Rule.parse("smm", written) == rule
    assert rule.follow is (document.get("referrers") != "none")


def test_a_kms_key_says_its_region() -> None:
    assert SignSpec(kms=ARN).region == "eu-west-1"
    assert SignSpec(kms="arn:aws-us-gov:kms:us-gov-west-1:123456789012:alias/signing/x").region == "us-gov-west-1"


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_a_tag_that_speaks_of_a_digest_is_not_selected_for_its_own_sake(suffix: str) -> None:
    rule = Rule.parse("smm", RULE)
    assert rule.selects_tag(Tag("sha256-abc"))
    assert not rule.selects_tag(Tag(f"sha256-{'a' * 64}{suffix}"))


def test_keys_and_certificates_come_from_files_or_the_rule(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "roots").write_text(ROOT * 2)
    spec = TrustSpec((KEY.strip(), str(tmp_path / "key")), (str(tmp_path / "roots"),), (ROOT,))
    policy = load_policy(spec, "rules.smm.trust")
    assert len(policy.keys) == 2
    assert (len(policy.roots.signers), len(policy.roots.timestamps)) == (2, 1)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_text("nonsense")
    (tmp_path / "huge").write_bytes(b"x" * 100_000)
    for name, problem in (("none", "No such file"), ("nonsense", "holds no public key"), ("huge", "is larger than")):
        with pytest.raises(RuleInvalid, match=rf"^rules\.smm\.trust\.cosign\.keys\[1\]: .*{name}.*{problem}"):
            load_policy(TrustSpec((KEY, str(tmp_path / name))), "rules.smm.trust")
