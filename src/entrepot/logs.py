"""Structured log lines on standard error: JSON for machines, colours for a terminal.

No line holds a secret: what is logged is named field by field, and secrets are a type that prints as `***`.
"""

import logging
import sys

import structlog


def configure_logs(*, is_json: bool | None, level: str) -> None:
    """Send every log line, ours and the libraries', through one format; `is_json` None lets the terminal decide."""
    if is_json is None:
        is_json = not sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if is_json:
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # The library's own tracebacks show local variables, and one of them might be a secret.
        last.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    structlog.configure(
        # Lines below the level cost a call of nothing, which counts where there is one per request.
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        processors=[
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Alembic tells of every start that nothing had to be done.
    logging.getLogger("alembic").setLevel(logging.WARNING)
