"""`entrepot serve`, `entrepot worker` and `entrepot migrate`."""

import asyncio
import gc
import multiprocessing
import multiprocessing.process
import os
import resource
import signal
import socket
import tempfile
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.output import Json, print_json
from entrepot.cli.parts import Options
from entrepot.errors import EntrepotError, SettingsInvalid

if TYPE_CHECKING:
    from entrepot.bootstrap import Parts
    from entrepot.settings import Settings

# How long a stopping server lets requests under way go on.
_STOP_SECONDS = 30
# Connections of one server process; the next one waits until another ends. A silent one takes 3 KB.
_CONNECTIONS = 10_000
# A whole blob takes a file beside its connection; the database and the rest take some, too.
_FILES_BESIDE = 500


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: entrepot serve --port 8080 --data ./entrepot-data")(serve)
    app.command(epilog="Example: entrepot --data ./entrepot-data worker")(worker)
    app.command(epilog="Example: entrepot --data ./entrepot-data migrate")(migrate)


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8080")] = None,
    workers: Annotated[int | None, typer.Option(help="Server processes, one per core.", show_default="1")] = None,
    data: Options.Data = None,
    jobs: Annotated[
        bool | None,
        typer.Option("--jobs/--no-jobs", help="Run jobs, too: replications, garbage collection, webhooks, upkeep."),
    ] = None,
) -> None:
    """Run the registry, the token service and the platform API until Ctrl-C."""
    options: Options = context.obj
    settings = options.load(host=host, port=port, workers=workers, data=data, jobs=jobs)
    with tempfile.TemporaryDirectory(prefix="entrepot-metrics-", ignore_cleanup_errors=True) as metrics:
        # Server processes read their settings from the environment, and prometheus_client reads it when imported.
        os.environ |= {
            "PROMETHEUS_MULTIPROC_DIR": metrics,
            "ENTREPOT_DATA": str(settings.data.absolute()),
            "ENTREPOT_HOST": settings.host,
            "ENTREPOT_PORT": str(settings.port),
        }
        from entrepot.bootstrap import configure_logging, load_faces, opened_parts

        configure_logging(settings)
        _verify_port(settings)
        # Closed again before the server processes are forked from this one, which must have no thread by then.
        with opened_parts(settings) as parts:
            parts.remember_public_url()
            _greet(parts)
        load_faces()
        # What is loaded by now is shared by all of them, as long as nobody writes to it: the garbage collector would.
        gc.collect()
        gc.freeze()
        jobs_process = _start_jobs(settings) if settings.jobs else None
        try:
            _run_server(settings)
        finally:
            if jobs_process is not None:
                jobs_process.terminate()
                jobs_process.join(_STOP_SECONDS)


def _run_server(settings: "Settings") -> None:
    """Serve until SIGINT or SIGTERM; requests under way may end."""
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.http import HTTP1Settings

    Granian(
        "entrepot.bootstrap:create_app",
        address=_find_address(settings),
        port=settings.port,
        interface=Interfaces.ASGI,
        # HTTP/2 has bodies whose length and presence no header announces; proxies in front speak HTTP/1.1 to servers.
        http=HTTPModes.http1,
        loop=Loops.uvloop,
        workers=settings.workers,
        backpressure=_find_connections(),
        factory=True,
        websockets=False,
        http1_settings=HTTP1Settings(header_read_timeout=15_000),
        respawn_failed_workers=True,
        respawn_interval=0.2,
        workers_kill_timeout=_STOP_SECONDS,
        log_enabled=False,
    ).serve()


def _find_connections() -> int:
    """How many connections each server process can take with the files that it may open: as many as the system lets it.

    Clients keep idle connections open, and strangers can, so a few hundred would soon keep everybody out.
    """
    wanted = 2 * _CONNECTIONS + _FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return _CONNECTIONS if soft == resource.RLIM_INFINITY else max(100, min(_CONNECTIONS, (soft - _FILES_BESIDE) // 2))


def worker(context: typer.Context) -> None:
    """Run jobs until Ctrl-C, beside servers with --no-jobs: replications, garbage collection, webhooks, upkeep."""
    options: Options = context.obj
    settings = options.load()
    from entrepot.bootstrap import configure_logging, opened_parts

    configure_logging(settings)
    with opened_parts(settings) as parts:
        print("running jobs; Ctrl-C stops", flush=True)
        asyncio.run(_work_until_signal(parts))


class NotMigrated(EntrepotError):
    """The database has an older schema than this version needs."""


def migrate(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 unless the schema fits.")] = False,
    json: Json = False,
) -> None:
    """Bring the database to this version; `serve` does it by itself for SQLite.

    Programs of the version before go on working on the new schema, so migrate first, then replace them one by one.
    """
    options: Options = context.obj
    settings = options.load()
    from entrepot.bootstrap import configure_logging, open_database, prepare_folder
    from entrepot.storage.database import SCHEMA

    configure_logging(settings, is_command=True)
    prepare_folder(settings.data)
    database = open_database(settings)
    try:
        if not check:
            database.migrate()
        elif database.is_embedded and not database.exists():
            raise NotMigrated(f"the database {database} is not there yet; run: entrepot migrate")
        schema = database.schema()
    finally:
        database.close()
    if not schema.is_usable:
        raise NotMigrated(f"the database {database} has schema {schema.version}, not {SCHEMA}; run: entrepot migrate")
    if json:
        print_json({"database": str(database), "schema": schema.version})
    else:
        print(f"{database} has schema {schema.version}")


async def _work_until_signal(parts: "Parts") -> None:
    from entrepot.accounts.deliveries import deliver_regularly
    from entrepot.accounts.upkeep import keep_up
    from entrepot.registry.garbage import collect_regularly
    from entrepot.replication.push_queue import PushQueues
    from entrepot.replication.worker import work

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    interval = timedelta(seconds=parts.settings.gc.interval_seconds)
    await asyncio.gather(
        work(parts.runs, parts.replications, stop, at_once=parts.settings.replication.runs),
        PushQueues(parts.rulebook, parts.runs).consume(stop),
        collect_regularly(parts.garbage, interval, stop),
        deliver_regularly(parts.deliveries, stop),
        keep_up(parts.upkeep, stop),
    )


def _start_jobs(settings: "Settings") -> multiprocessing.process.BaseProcess:
    """Run jobs in a process of their own, so that copying never slows an answer."""
    process = multiprocessing.get_context("fork").Process(target=_run_jobs, args=(settings,), name="jobs")
    process.start()
    return process


def _run_jobs(settings: "Settings") -> None:
    from entrepot.bootstrap import die_with_parent, opened_parts

    die_with_parent()
    with opened_parts(settings) as parts:
        asyncio.run(_work_until_signal(parts))


def _verify_port(settings: "Settings") -> None:
    """Raises SettingsInvalid when the address cannot be listened on, before anything is started."""
    address = _find_address(settings)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, settings.port))
        except OSError as error:
            raise SettingsInvalid(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another with --port"
            ) from error


def _find_address(settings: "Settings") -> str:
    """The address that a host name such as `localhost` has. Raises SettingsInvalid."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SettingsInvalid(f"ENTREPOT_HOST {settings.host!r} has no address: {error.strerror}") from error
    return str(found[0][4][0])


def _greet(parts: "Parts") -> None:
    """Where everything is, and what to do next."""
    settings = parts.settings
    url = settings.effective_public_url
    data = f" --data {settings.data}" if str(settings.data) != "entrepot-data" else ""
    lines = [
        f"entrepot serves {url} from {settings.data.absolute()}",
        f"  registry   {settings.registry_host}     (docker login {settings.registry_host})",
        f"  API docs   {url}/api/docs",
        f"  health     {url}/readyz     metrics {url}/metrics",
    ]
    if not asyncio.run(parts.plans.list_plans()):
        lines += [
            "Nothing is here yet. Next, in another terminal:",
            f"  entrepot{data} plan apply plans.yaml               what a tier may pull",
            f"  entrepot{data} replicate apply replication.yaml    what to copy from where",
            f"  entrepot{data} api-key create platform --scope accounts:write --plan free",
        ]
    if settings.host not in {"127.0.0.1", "::1", "localhost"} and not settings.public_url:
        lines.append("WARNING: set ENTREPOT_PUBLIC_URL to the address that clients use, or they will not find /token")
    print("\n".join(lines), flush=True)
