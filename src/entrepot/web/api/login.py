"""Ready-made lines for whoever gets a credential."""

from entrepot.accounts.service import IssuedCredential


def login_lines(registry: str, credential: IssuedCredential, *, is_plain_http: bool) -> dict[str, str]:
    """What to type, by tool. The secret goes through standard input, so that it does not stay in a process list."""
    user, secret = credential.username, credential.secret.reveal()
    insecure = " --plain-http" if is_plain_http else ""
    podman_insecure = " --tls-verify=false" if is_plain_http else ""
    return {
        "docker": f"echo '{secret}' | docker login {registry} --username {user} --password-stdin",
        "podman": f"echo '{secret}' | podman login{podman_insecure} {registry} --username {user} --password-stdin",
        "helm": f"echo '{secret}' | helm registry login{insecure} {registry} --username {user} --password-stdin",
        "kubernetes": (
            "kubectl create secret docker-registry entrepot "
            f"--docker-server={registry} --docker-username={user} --docker-password='{secret}'"
        ),
    }
