"""Ready-made lines for whoever gets a credential."""

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
    }
