"""Ready-made lines for whoever gets a credential."""

import base64
import json
from urllib.parse import urlsplit

from entrepot.accounts.service import IssuedCredential


def login_lines(public_url: str, credential: IssuedCredential) -> dict[str, str]:
    """What to type, by tool, to use the server at `public_url`.

    The secret goes through standard input, so that it does not stay in a process list.
    """
    user, secret = credential.username, credential.secret.reveal()
    address = urlsplit(public_url)
    registry = address.netloc
    is_plain = address.scheme == "http"

    def line(command: str, insecure: str = "") -> str:
        option = f" {insecure}" if is_plain and insecure else ""
        return f"echo '{secret}' | {command}{option} {registry} --username {user} --password-stdin"

    helm = line("helm registry login", "--plain-http")
    if is_plain:  # Helm 3 has another word for it, at login only
        helm = f"# Helm 4\n{helm}\n# Helm 3\n{line('helm registry login', '--insecure')}"
    return {
        "docker": line("docker login"),
        "podman": line("podman login", "--tls-verify=false"),
        "helm": helm,
        "kubernetes": (
            "kubectl create secret docker-registry entrepot "
            f"--docker-server={registry} --docker-username={user} --docker-password='{secret}'"
        ),
        "kubernetes_secret": _kubernetes_secret(registry, user, secret),
        "containerd": _containerd(registry, user, secret, is_plain=is_plain),
        "kubelet": _kubelet(registry, user, secret),
    }


def _kubernetes_secret(registry: str, user: str, secret: str) -> str:
    """A Secret of type kubernetes.io/dockerconfigjson, for `kubectl apply -f -`."""
    auth = base64.b64encode(f"{user}:{secret}".encode()).decode()
    config = json.dumps({"auths": {registry: {"username": user, "password": secret, "auth": auth}}})
    return (
        "apiVersion: v1\n"
        "kind: Secret\n"
        "metadata:\n"
        "  name: entrepot\n"
        "type: kubernetes.io/dockerconfigjson\n"
        "data:\n"
        f"  .dockerconfigjson: {base64.b64encode(config.encode()).decode()}\n"
    )


def _containerd(registry: str, user: str, secret: str, *, is_plain: bool) -> str:
    """A hosts.toml. Source: containerd, docs/hosts.md."""
    scheme = "http" if is_plain else "https"
    auth = base64.b64encode(f"{user}:{secret}".encode()).decode()
    return (
        f"# /etc/containerd/certs.d/{registry}/hosts.toml\n"
        f'server = "{scheme}://{registry}"\n'
        "\n"
        f'[host."{scheme}://{registry}"]\n'
        '  capabilities = ["pull", "resolve"]\n'
        f'  [host."{scheme}://{registry}".header]\n'
        f'    Authorization = ["Basic {auth}"]\n'
    )


def _kubelet(registry: str, user: str, secret: str) -> str:
    """A script that makes a credential provider of the kubelet's. Source: kubelet, "Kubelet credential provider"."""
    version = "credentialprovider.kubelet.k8s.io/v1"
    answer = {
        "apiVersion": version,
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "cacheDuration": "1h",
        "auth": {registry: {"username": user, "password": secret}},
    }
    return f"""\
# Run as root on each node, and start the kubelet with
#   --image-credential-provider-config=/etc/kubernetes/entrepot/config.yaml
#   --image-credential-provider-bin-dir=/etc/kubernetes/entrepot/bin
folder=${{KUBELET_FOLDER:-/etc/kubernetes/entrepot}}
mkdir -p "$folder/bin"
cat > "$folder/config.yaml" <<'CONFIG'
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: entrepot
    apiVersion: {version}
    matchImages: ["{registry}"]
    defaultCacheDuration: 1h
CONFIG
umask 077
cat > "$folder/bin/entrepot" <<'PROVIDER'
#!/bin/sh
cat > /dev/null
cat <<'ANSWER'
{json.dumps(answer)}
ANSWER
PROVIDER
chmod 700 "$folder/bin/entrepot"
"""
