"""Helm 3 and 4 log in, pull and push."""

from pathlib import Path

from tests.clients.tools import Helm
from tests.support.programs import Credential, Entrepot

OTHER_SECRET = "entp_" + "0" * 36


def test_pulls_what_was_replicated_byte_for_byte(
    helm: Helm, registry: Entrepot, customer: Credential, chart: Path
) -> None:
    done = helm.login(registry.host, customer.username, customer.secret)
    assert done.returncode == 0, done.stderr
    done = helm.pull(registry.host, "charts/hello", "1.0.0")
    assert done.returncode == 0, done.stderr
    assert helm.pulled.read_bytes() == chart.read_bytes()


def test_wrong_secret_is_refused(helm: Helm, registry: Entrepot, customer: Credential) -> None:
    done = helm.login(registry.host, customer.username, OTHER_SECRET)
    assert done.returncode != 0
    assert "401" in done.stderr or "unauthorized" in done.stderr.lower()


def test_plan_refuses_with_its_reason(helm: Helm, registry: Entrepot, customer: Credential) -> None:
    helm.login(registry.host, customer.username, customer.secret)
    done = helm.pull(registry.host, "internal/hello", "1.0.0")
    assert done.returncode != 0
    # Helm 3 asks with HEAD, whose answer has no room for a reason.
    assert "403" in done.stderr or "plan 'free' does not allow pull on 'internal/hello'" in done.stderr


def test_pushes_what_it_then_pulls(helm: Helm, registry: Entrepot, publisher: Credential, chart: Path) -> None:
    assert helm.login(registry.host, publisher.username, publisher.secret).returncode == 0
    done = helm.push(registry.host, "pushed-charts", chart)
    assert done.returncode == 0, done.stderr
    done = helm.pull(registry.host, "pushed-charts/hello", "1.0.0")
    assert done.returncode == 0, done.stderr
    assert helm.pulled.read_bytes() == chart.read_bytes()
