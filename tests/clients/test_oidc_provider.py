"""A program that signs customers up with no secret but its login at a real OIDC provider (npm's oidc-provider)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.programs import TOOLS, Entrepot, free_port, require, run_well, running, wait_for

AUDIENCE = "https://entrepot.example.com"
PROVIDER = """
import Provider from 'oidc-provider';
const [port, resource] = process.argv.slice(2);
const client = {
  client_id: 'signup', client_secret: 'at-the-provider', grant_types: ['client_credentials'],
  redirect_uris: [], response_types: [],
};
const server = {
  scope: '', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 600, jwt: { sign: { alg: 'RS256' } },
};
const indicators = { enabled: true, defaultResource: () => resource, getResourceServerInfo: () => server };
const features = { clientCredentials: { enabled: true }, resourceIndicators: indicators };
new Provider(`http://127.0.0.1:${port}`, { clients: [client], features }).listen(port, '127.0.0.1');
"""


HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "use-workload-identity.md"


def run_exchange_of_the_how_to(url: str, token: str, folder: Path) -> str:
    """What the how-to's script gets, as somebody would copy it."""
    require("jq")
    file = folder / "token"
    file.write_text(f"{token}\n")
    (script,) = re.findall(r"```sh\n(key=.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    script = script.replace("https://registry.example.com", url).replace("/var/run/registry/token", str(file))
    return run_well("sh", "-eu", "-c", f'{script}\nprintf %s "$key"')


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[str]:
    """The provider's address, which is its issuer, too."""
    node = require("node")
    modules = TOOLS.parent / "oidc" / "node_modules"
    if not modules.exists():
        pytest.skip("oidc-provider is not installed; run: make tools")
    script = tmp_path / "provider.mjs"
    script.write_text(PROVIDER)
    # Node looks for modules beside the script.
    (tmp_path / "node_modules").symlink_to(modules)
    port = free_port()
    with running([node, script, str(port), AUDIENCE], tmp_path / "provider.log") as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/.well-known/openid-configuration", process)
        yield url


def test_a_client_of_a_real_provider_signs_a_customer_up(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = {"name": "signup", "claims": {"sub": "signup"}, "scopes": ["accounts:write"], "plans": ["free"]}
    issuers = [{"url": provider, "audience": AUDIENCE, "workloads": [workload]}]
    monkeypatch.setenv("ENTREPOT_OIDC__ISSUERS", json.dumps(issuers))
    entrepot = Entrepot(tmp_path / "data")
    entrepot.apply_plans({"free": {"grants": [{"repositories": ["smm/**"], "actions": ["pull"]}]}})
    with entrepot.serving("--workers", "2"), httpx.Client(base_url=entrepot.url) as http:
        login = ("signup", "at-the-provider")
        got = httpx.post(f"{provider}/token", data={"grant_type": "client_credentials"}, auth=login)
        answer = http.post("/api/v1/oidc/token", json={"token": got.json()["access_token"]})
        assert answer.status_code == 201, answer.text
        headers = {"Authorization": f"Bearer {answer.json()['secret']}"}
        # Either of the two server processes knows the key.
        for number in range(6):
            body = {"external_id": f"user-{number}", "plan": "free"}
            with httpx.Client(base_url=entrepot.url, headers=headers) as fresh:
                assert fresh.post("/api/v1/accounts", json=body).status_code == 201
        assert http.get("/api/v1/plans", headers=headers).status_code == 403
        assert run_exchange_of_the_how_to(entrepot.url, got.json()["access_token"], tmp_path).startswith("entk_")
        tampered = got.json()["access_token"][:-4] + "AAAA"
        assert http.post("/api/v1/oidc/token", json={"token": tampered}).status_code == 401
