"""`entrepot demo`: the whole story on this machine, told with the commands and requests that its readers will use."""

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from entrepot.errors import EntrepotError

if TYPE_CHECKING:
    import aiohttp

    from entrepot.demo.content import Content, Key
    from entrepot.demo.registry_user import RegistryUser

IMAGE, CHART, INTERNAL = "demo/hello", "demo/charts/hello", "demo/internal"
TAG, NEXT_TAG, CHART_TAG = "v1.0.0", "v1.1.0", "1.0.0"
_START_SECONDS = 20
_REVOCATION_SECONDS = 10
_PUSH_SECONDS = 60
# Image and chart, and the next version of the image.
_PULLS = 3

_VENDOR_PLANS = """\
plans:
  publisher:
    grants: [{repositories: ["**"], actions: [pull, push]}]
"""
_PLANS = f"""\
plans:
  free:
    grants:
      - repositories: ["{IMAGE}", "{CHART}"]
        actions: [pull]
"""
_REPLICATION = """\
sources:
  vendor: {{type: oci, url: {url}, username: {username}, password_file: {password_file}}}
rules:
  demo:
    source: vendor
    repositories: [{repositories}]
    tags: {{include: ["*"]}}
    trust: {{cosign: {{keys: [{key}]}}}}
    schedule: "*/15 * * * *"
"""


class DemoFailed(EntrepotError):
    """A step of the demo did not end as it must."""


@dataclass(frozen=True)
class Source:
    """The vendor's private registry."""

    url: str
    username: str
    password: str


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the story instead of serving on.")] = False,
    source: Annotated[
        str | None,
        typer.Option(help="A registry to use as the vendor's; the demo pushes demo/* into it.", metavar="URL"),
    ] = None,
    source_user: Annotated[str, typer.Option(help="User name there.", metavar="USER")] = "",
    source_password_stdin: Annotated[
        bool, typer.Option("--source-password-stdin", help="Read the password from standard input.")
    ] = False,
) -> None:
    """Tell the whole story on this machine: replicate what is signed, issue, pull, watch, refuse, revoke."""
    if (source is not None, bool(source_user), source_password_stdin) not in {(False,) * 3, (True,) * 3}:
        raise typer.BadParameter("give --source, --source-user and --source-password-stdin together")
    if source is not None and not source.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{source!r} is no http(s):// address", param_hint="--source")
    password = sys.stdin.readline().rstrip("\n") if source_password_stdin else ""
    given = Source(source, source_user, password) if source is not None else None
    with tempfile.TemporaryDirectory(prefix="entrepot-demo-") as folder, _servers() as start:
        asyncio.run(_Story(Path(folder), start, given).tell(once=once))


Start = Any
"""Starts `entrepot serve` on a data folder; answers its URL."""


@contextmanager
def _servers() -> Iterator[Start]:
    """A way to start servers, which end with the demo however it ends."""
    running: list[subprocess.Popen[bytes]] = []

    def start(data: Path, port: int) -> str:
        with (data.parent / f"{data.name}.log").open("wb") as log:
            command = [*_program(data), "serve", "--port", str(port)]
            # A session of its own: Ctrl-C is for the demo, which then stops its servers in order.
            running.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=_environment(), start_new_session=True)
            )
        return f"http://127.0.0.1:{port}"

    try:
        yield start
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(frozen=True)
class _Vendor:
    """The vendor's side: its registry, the pipeline that pushes there, what it signs with, and its next version."""

    source: Source
    pipeline: "RegistryUser"
    key: "Key"
    coming: "Content"


class _Story:
    """The demo, step by step."""

    def __init__(self, folder: Path, start: Start, given: Source | None) -> None:
        self._folder = folder
        self._start = start
        self._given = given
        self._data = folder / "entrepot"
        self._console = Console(highlight=False)

    async def tell(self, *, once: bool) -> None:
        """Every step; raises DemoFailed, or what went wrong."""
        import aiohttp

        begun = time.monotonic()
        async with aiohttp.ClientSession() as session:
            vendor = await self._publish(session)
            url = await self._replicate(session, vendor)
            key, created = await self._sign_up(session, url)
            customer = await self._pull(session, url, created)
            await self._release(session, vendor, url, customer)
            await self._watch_and_revoke(session, url, key, created, customer)
            self._console.print(f"\n[bold green]Done[/] in {time.monotonic() - begun:.0f} seconds.")
            if not once:
                await self._serve_on(session, url, key)
            self._console.print("The servers are stopped and the folder is removed.")

    async def _publish(self, session: "aiohttp.ClientSession") -> "_Vendor":
        from entrepot.demo.content import Key, make_chart, make_image
        from entrepot.demo.registry_user import RegistryUser, wait_until_ready

        self._head(1, "The vendor's private registry")
        source = self._given
        if source is None:
            data = self._folder / "vendor"
            self._write("vendor-plans.yaml", _VENDOR_PLANS)
            self._run(data, "plan", "apply", str(self._folder / "vendor-plans.yaml"))
            pipeline = json.loads(self._run(data, "account", "create", "pipeline", "--plan", "publisher", "--json"))
            credential = pipeline["credential"]
            url = self._start(data, _free_port())
            await wait_until_ready(session, url, _START_SECONDS)
            source = Source(url, credential["username"], credential["secret"])
        vendor = _Vendor(
            source,
            RegistryUser(session, source.url, source.username, source.password),
            Key.generate(),
            make_image(IMAGE, NEXT_TAG, assets="public"),
        )
        for content in (
            make_image(IMAGE, TAG, assets="public"),
            make_image(INTERNAL, TAG, assets="internal"),
            make_chart(CHART),
        ):
            await vendor.pipeline.push(content)
            await vendor.pipeline.push(vendor.key.sign(content))
            self._say(f"pushed {content.repository}:{content.tag}, signed  {content.digest}")
        await vendor.pipeline.push(vendor.coming)
        self._say(f"pushed {IMAGE}:{NEXT_TAG}, not signed yet  {vendor.coming.digest}")
        return vendor

    async def _replicate(self, session: "aiohttp.ClientSession", vendor: "_Vendor") -> str:
        from entrepot.demo.registry_user import wait_until_ready

        self._head(2, "Entrepot copies what is signed out of it")
        scalars = {
            "url": vendor.source.url,
            "username": vendor.source.username,
            "password_file": str(self._write("vendor-password", vendor.source.password)),
            "key": str(self._write("cosign.pub", vendor.key.public_pem)),
        }
        rule = _REPLICATION.format(
            repositories=f"{IMAGE}, {CHART}, {INTERNAL}",
            **{name: json.dumps(value) for name, value in scalars.items()},
        )
        self._show(self._write("replication.yaml", rule))
        url: str = self._start(self._data, _free_port(8080))
        await wait_until_ready(session, url, _START_SECONDS)
        self._run(self._data, "replicate", "apply", str(self._folder / "replication.yaml"))
        self._run(self._data, "replicate", "run", "demo", "--wait", is_shown=True, fails=True)
        self._say(f"{IMAGE}:{NEXT_TAG} has to wait until somebody signs it.")
        return url

    async def _sign_up(self, session: "aiohttp.ClientSession", url: str) -> tuple[str, Any]:
        from entrepot.demo.registry_user import Refused, call_api

        self._head(3, "Somebody signs up; the platform asks for a credential")
        self._show(self._write("plans.yaml", _PLANS))
        self._run(self._data, "plan", "apply", str(self._folder / "plans.yaml"))
        arguments = ("create", "platform", "--scope", "accounts:write", "--plan", "free", "--json")
        key = json.loads(self._run(self._data, "api-key", *arguments))["secret"]
        body = {"external_id": "user-4711", "plan": "free", "identity": {"email": "ada@example.com"}}
        self._say(f"POST {url}/api/v1/accounts  {json.dumps(body)}")
        created = await call_api(session, "POST", f"{url}/api/v1/accounts", key, body)
        self._say(f"201  account {created['account']['name']} on plan {created['account']['plan']}")
        try:
            await call_api(session, "GET", f"{url}/api/v1/audit", key)
        except Refused as refusal:
            self._say(f"the same key at /api/v1/audit: {refusal.status}, {refusal}")
        else:
            raise DemoFailed("a key that may only write accounts could read the audit log")
        return key, created

    async def _pull(self, session: "aiohttp.ClientSession", url: str, created: Any) -> "RegistryUser":
        from entrepot.demo.registry_user import RegistryUser

        self._head(4, "The customer pulls")
        credential = created["credential"]
        customer = RegistryUser(session, url, credential["username"], credential["secret"])
        for repository, tag in ((IMAGE, TAG), (CHART, CHART_TAG)):
            pulled = await customer.pull(repository, tag)
            size = pulled.size / 1e6
            self._say(f"pulled {repository}:{tag}  {pulled.digest}")
            self._say(f"  {pulled.parts} manifests and blobs, {size:.1f} MB, every digest right")
        self._say("What the customer would type:")
        self._show_login(created, url)
        return customer

    def _show_login(self, created: Any, url: str) -> None:
        host = url.removeprefix("http://")
        for lines in (
            created["login"]["docker"],
            f"docker pull {host}/{IMAGE}:{TAG}",
            created["login"]["helm"],
            f"helm pull --plain-http oci://{host}/{CHART} --version {CHART_TAG}",
            created["login"]["kubernetes"],
        ):
            self._console.print(textwrap.indent(lines, "     "), markup=False, soft_wrap=True)

    async def _release(
        self, session: "aiohttp.ClientSession", vendor: "_Vendor", url: str, customer: "RegistryUser"
    ) -> None:
        from entrepot.demo.registry_user import Refused, call_api

        self._head(5, "The vendor signs the next version, and its registry says so")
        arguments = ("create", "vendor-registry", "--scope", "replication:run", "--json")
        key = json.loads(self._run(self._data, "api-key", *arguments))["secret"]
        await vendor.pipeline.push(vendor.key.sign(vendor.coming))
        path, body = "/api/v1/replication/sources/vendor/pushes", {"pushes": [{"repository": IMAGE, "tag": NEXT_TAG}]}
        self._say(f"POST {url}{path}  {json.dumps(body)}")
        told = time.perf_counter()
        await call_api(session, "POST", url + path, key, body)
        await customer.log_in(IMAGE, "pull")
        while True:
            try:
                manifest = await customer.get_manifest(IMAGE, NEXT_TAG)
            except Refused as refusal:
                if refusal.status != HTTPStatus.NOT_FOUND or time.perf_counter() - told > _PUSH_SECONDS:
                    raise
                await asyncio.sleep(0.02)
            else:
                break
        taken = (time.perf_counter() - told) * 1000
        self._say(f"{taken:.0f} ms later the customer gets {IMAGE}:{NEXT_TAG}  {manifest.digest}")

    async def _watch_and_revoke(
        self, session: "aiohttp.ClientSession", url: str, key: str, created: Any, customer: "RegistryUser"
    ) -> None:
        from entrepot.demo.registry_user import Refused, call_api

        self._head(6, "The vendor watches, refuses and revokes")
        name = created["account"]["name"]
        await self._show_usage(name)
        try:
            await customer.pull(INTERNAL, TAG)
        except Refused as refusal:
            self._say(f"pull of {INTERNAL}: {refusal.status}, {refusal}")
        else:
            raise DemoFailed(f"plan free could pull {INTERNAL}")
        await customer.log_in(IMAGE, "pull")
        await customer.get_manifest(IMAGE, TAG)
        path = f"/api/v1/accounts/{name}/credentials/{created['credential']['id']}"
        self._say(f"DELETE {url}{path}")
        # From the moment of asking: what the revocation itself takes belongs to it.
        revoked = time.perf_counter()
        await call_api(session, "DELETE", url + path, key)
        while True:
            try:
                await customer.get_manifest(IMAGE, TAG)
            except Refused as refusal:
                lag = (time.perf_counter() - revoked) * 1000
                self._say(f"the token already issued stopped working after {lag:.0f} ms: {refusal.status}, {refusal}")
                return
            if time.perf_counter() - revoked > _REVOCATION_SECONDS:
                raise DemoFailed("a revoked credential's token went on working")

    async def _show_usage(self, name: str) -> None:
        """Show the account's counts, which are written down every second."""
        for _ in range(50):
            usage = json.loads(self._run(self._data, "account", "show", name, "--json", is_told=False))["usage"]
            if usage["pulls"] >= _PULLS:
                break
            await asyncio.sleep(0.2)
        else:
            raise DemoFailed("the pulls were not counted")
        self._say(self._run(self._data, "account", "show", name).rstrip())

    async def _serve_on(self, session: "aiohttp.ClientSession", url: str, key: str) -> None:
        from entrepot.demo.registry_user import call_api

        self._head(7, "Serving until Ctrl-C")
        body = {"external_id": "you", "plan": "free"}
        created = await call_api(session, "POST", f"{url}/api/v1/accounts", key, body)
        self._say("A credential for you, and what to type with it:")
        self._show_login(created, url)
        self._say(f"registry  {url.removeprefix('http://')}\nAPI docs  {url}/api/docs\nmetrics   {url}/metrics")
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()

    def _run(
        self, data: Path, *arguments: str, is_shown: bool = False, is_told: bool = True, fails: bool = False
    ) -> str:
        """Run a command as a reader would; answers what it printed, unless that is shown.

        Raises DemoFailed unless it ends well, or says what failed where the story wants it so.
        """
        if is_told:
            self._console.print(f"   $ entrepot --data {data} {shlex.join(arguments)}", style="dim", soft_wrap=True)
        done = subprocess.run(
            [*_program(data), *arguments],
            stdout=None if is_shown else subprocess.PIPE,
            stderr=None if is_shown else subprocess.PIPE,
            env=_environment(),
            text=True,
            check=False,
        )
        if done.returncode != (1 if fails else 0):
            raise DemoFailed(f"entrepot {arguments[0]} {arguments[1]} failed: {(done.stderr or '').strip()}")
        return done.stdout or ""

    def _write(self, name: str, content: str) -> Path:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_text(content, encoding="utf-8")
        return path

    def _head(self, number: int, text: str) -> None:
        self._console.print(f"\n[bold]{number}. {text}[/]")

    def _say(self, text: str) -> None:
        self._console.print(textwrap.indent(text, "   "), markup=False, soft_wrap=True)

    def _show(self, file: Path) -> None:
        """Show a file that the reader would write."""
        self._console.print(f"   $ cat {file}", style="dim", soft_wrap=True)
        self._say(file.read_text(encoding="utf-8").rstrip())


def _program(data: Path) -> list[str]:
    return [sys.executable, "-m", "entrepot", "--data", str(data)]


def _environment() -> dict[str, str]:
    """This process's environment without settings, which are for the reader's own server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ENTREPOT_")}


def _free_port(wanted: int = 0) -> int:
    """`wanted` when nobody listens there, any other else."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
