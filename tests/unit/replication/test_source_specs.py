from typing import Any

import pytest
from yarl import URL

from entrepot.errors import RuleInvalid
from entrepot.replication.source_specs import EcrSpec, parse_source

OCI = {"type": "oci", "url": "https://registry.example.com", "username": "reader", "password_file": "/run/secret"}
ECR = {"type": "ecr", "account": "123456789012", "region": "eu-west-1"}
ARCHIVE = {"type": "archive", "path": "/mnt/usb/images.tar"}
ROLE = "arn:aws:iam::123456789012:role/images"


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        pytest.param([], ": must be a mapping", id="list"),
        pytest.param(without(OCI, "type"), ".type: must be one of archive, ecr, oci", id="no-type"),
        pytest.param(OCI | {"type": "harbor"}, ".type: must be one of archive, ecr, oci", id="other-type"),
        pytest.param(OCI | {"type": ["oci"]}, ".type: must be one of archive, ecr, oci", id="list-as-type"),
        pytest.param(without(OCI, "url"), ".url: must be http", id="no-url"),
        pytest.param(OCI | {"url": "registry.example.com"}, ".url: must be", id="no-scheme"),
        pytest.param(OCI | {"url": "ftp://registry"}, ".url: must be", id="other-scheme"),
        pytest.param(OCI | {"url": "https://r/v2"}, ".url: must be", id="path"),
        pytest.param(OCI | {"url": "https://u:p@r"}, ".url: must be", id="login-in-url"),
        pytest.param(OCI | {"url": "https://r:99999"}, ".url: must be", id="port"),
        pytest.param(OCI | {"url": "https://r\nx"}, ".url: must be", id="line-break"),
        pytest.param(OCI | {"password": "x"}, ".password: a password does not belong in this file", id="inline"),
        pytest.param(OCI | {"password_env": "P"}, ": has password_file and password_env; keep one", id="two-passwords"),
        pytest.param(without(OCI, "username"), ": a login is a username and", id="password-alone"),
        pytest.param(without(OCI, "password_file"), ": a login is a username and", id="username-alone"),
        pytest.param(OCI | {"password_file": "x"}, ".password_file: must be an absolute path", id="relative"),
        pytest.param(
            without(OCI, "password_file") | {"password_env": "ENTREPOT_SECRET_KEY"},
            ".password_env: ENTREPOT_... holds settings of ours",
            id="our-own-settings",
        ),
        pytest.param(OCI | {"proxi": "x"}, ".proxi: not a field here; known are ca_file, ", id="unknown"),
        pytest.param(OCI | {"account": "x"}, ".account: not a field here", id="field-of-another-kind"),
        pytest.param(OCI | {"proxy": "proxy:3128"}, ".proxy: must be http", id="proxy"),
        pytest.param(OCI | {"private_redirects": "no"}, ".private_redirects: must be allow or refuse", id="redirects"),
        pytest.param(OCI | {"private_redirects": []}, ".private_redirects: must be allow or refuse", id="list"),
        pytest.param(ECR | {"account": 123456789012}, ".account: must be the 12 digits of an AWS", id="int"),
        pytest.param(ECR | {"account": "1234"}, ".account: must be the 12 digits", id="account"),
        pytest.param(without(ECR, "region"), ".region: must be an AWS region", id="no-region"),
        pytest.param(ECR | {"region": "Ireland"}, ".region: must be an AWS region", id="region"),
        pytest.param(ECR | {"username": "AWS"}, ".username: not a field here", id="ecr-username"),
        pytest.param(ECR | {"endpoint": "ecr"}, ".endpoint: must be http", id="endpoint"),
        pytest.param(ECR | {"role_arn": "images"}, ".role_arn: must be arn:aws:iam::ACCOUNT:role/NAME", id="role"),
        pytest.param(ECR | {"external_id": "abc"}, ".role_arn: must be arn", id="external-id-alone"),
        pytest.param(ECR | {"role_arn": ROLE, "external_id": 7}, ".external_id: must be 2 to 1224", id="external-id"),
        pytest.param(ECR | {"role_arn": ROLE, "roles": []}, ": has role_arn and roles", id="both"),
        pytest.param(ECR | {"roles": []}, ".roles: must be a list of 1 to 5", id="no-roles"),
        pytest.param(ECR | {"roles": [ROLE]}, ".roles[0]: must be a mapping", id="roles-as-text"),
        pytest.param(ECR | {"roles": [{"arn": ROLE}]}, ".roles[0].arn: not a field here", id="role-field"),
        pytest.param(ECR | {"access_key_id": "AKIAIOSFODNN7EXAMPLE"}, ": a static key is", id="key-id-alone"),
        pytest.param(ECR | {"secret_access_key_env": "KEY"}, ": a static key is", id="key-alone"),
        pytest.param(ECR | {"access_key_id": "x y"}, ".access_key_id: must be the id", id="key-id"),
        pytest.param(
            ECR | {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "x"},
            ".secret_access_key: a secret access key does not belong in this file",
            id="inline-key",
        ),
        pytest.param(without(ARCHIVE, "path"), ".path: must be the path", id="no-path"),
        pytest.param(ARCHIVE | {"path": "images"}, ".path: must be an absolute path", id="relative-archive"),
        pytest.param(ARCHIVE | {"repository": "A"}, ".repository: repository name 'A'", id="repository"),
        pytest.param(ARCHIVE | {"url": "x"}, ".url: not a field here", id="archive-url"),
    ],
)  # fmt: skip
def test_a_malformed_source_is_refused_with_its_place(document: object, problem: str) -> None:
    with pytest.raises(RuleInvalid) as refusal:
        parse_source("internal", document)
    assert str(refusal.value).startswith(f"sources.internal{problem}")


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(OCI, id="oci"),
        pytest.param({"type": "oci", "url": "http://localhost:5000"}, id="oci-open"),
        pytest.param(
            OCI | {"ca_file": "/ca.pem", "proxy": "http://proxy:3128", "private_redirects": "refuse"}, id="oci-all"
        ),
        pytest.param(ECR, id="ecr"),
        pytest.param(ECR | {"role_arn": ROLE}, id="ecr-role"),
        pytest.param(ECR | {"role_arn": ROLE, "external_id": "abc"}, id="ecr-external"),
        pytest.param(ECR | {"roles": [{"role_arn": ROLE}, {"role_arn": ROLE, "external_id": "abc"}]}, id="ecr-chain"),
        pytest.param(
            ECR
            | {
                "endpoint": "https://api.ecr.internal",
                "sts_endpoint": "https://sts.internal",
                "url": "https://dkr.internal",
                "access_key_id": "AKIAIOSFODNN7EXAMPLE",
                "secret_access_key_file": "/run/key",
                "ca_file": "/ca.pem",
                "proxy": "http://proxy:3128",
                "private_redirects": "allow",
            },
            id="ecr-all",
        ),
        pytest.param(ARCHIVE, id="archive"),
        pytest.param(ARCHIVE | {"repository": "smm/api"}, id="archive-repository"),
    ],
)
def test_a_source_reads_back_as_it_was_written(document: dict[str, Any]) -> None:
    spec = parse_source("internal", document)
    assert spec.to_document() == document
    assert parse_source("internal", spec.to_document()) == spec


@pytest.mark.parametrize(
    ("document", "url"),
    [
        (ECR, "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com"),
        (ECR | {"region": "cn-north-1"}, "https://123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
        (ECR | {"url": "https://dkr.internal"}, "https://dkr.internal"),
    ],
)
def test_the_content_of_an_ecr_is_where_aws_has_it(document: dict[str, Any], url: str) -> None:
    spec = parse_source("internal", document)
    assert isinstance(spec, EcrSpec)
    assert spec.url == URL(url)
