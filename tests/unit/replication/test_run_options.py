from typing import Any

import pytest

from entrepot.errors import RuleInvalid
from entrepot.replication.rules import Rule, parse_rule_file
from entrepot.replication.run_options import RunOptions

RULE = {"source": "internal", "repositories": ["smm/*"], "tags": {"include": ["v*"]}}
FULL = {
    "schedule": "*/15 * * * *",
    "window": "22:00-06:00",
    "time_zone": "Europe/Berlin",
    "priority": -5,
    "concurrency": 8,
    "bandwidth": "50MB",
}


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("schedule", "* * * *", "write five fields"),
        ("schedule", "0 0 30 2 *", "bad day-of-month"),
        ("schedule", 5, "must be text"),
        ("window", "22:00", "write HH:MM-HH:MM"),
        ("window", ["22:00-06:00"], "must be text"),
        ("time_zone", "Middle-earth/Bree", "must be a time zone"),
        ("time_zone", "../../etc/passwd", "must be a time zone"),
        ("time_zone", "", "must be a time zone"),
        ("time_zone", 1, "must be a time zone"),
        ("priority", "high", "must be a whole number from -1000 to 1000"),
        ("priority", 1001, "must be a whole number"),
        ("priority", True, "must be a whole number"),
        ("concurrency", 0, "must be a whole number from 1 to 64"),
        ("concurrency", 65, "must be a whole number"),
        ("bandwidth", "fast", "no amount of bytes"),
        ("bandwidth", "100KB", "no less than 500000"),
        ("bandwidth", -1, "no amount of bytes"),
        ("bandwidth", True, "no less than"),
    ],
)
def test_a_malformed_option_is_refused_with_its_place(field: str, value: Any, problem: str) -> None:
    with pytest.raises(RuleInvalid, match=f"^rules.smm.{field}: .*{problem}"):
        Rule.parse("smm", RULE | {field: value})


def test_options_read_back_as_they_were_written() -> None:
    rule = Rule.parse("smm", RULE | FULL)
    assert rule.to_document().items() >= FULL.items()
    assert Rule.parse("smm", rule.to_document()) == rule
    assert rule.options.bytes_per_second == 50_000_000


def test_options_that_say_nothing_are_not_written() -> None:
    assert RunOptions.parse({}, "r").to_document() == {}


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([], "events: must be a mapping"),
        ({}, "events.queue_url: must be the URL"),
        ({"queue_url": "pushes"}, "events.queue_url: must be the URL"),
        ({"queue_url": "https://sqs.eu-west-1.amazonaws.com/1234/pushes"}, "events.queue_url: must be the URL"),
        ({"queue_url": "https://h/123456789012/p", "region": 1}, "events.region: must be an AWS region"),
        ({"queue_url": "https://h/123456789012/p", "endpoint": "h"}, "events.endpoint: must be http"),
        ({"queue_url": "https://h/123456789012/p", "polls": 1}, "events.polls: not a field here"),
    ],
)
def test_a_malformed_queue_is_refused_with_its_place(events: Any, problem: str) -> None:
    source = {"type": "ecr", "account": "123456789012", "region": "eu-west-1", "events": events}
    with pytest.raises(RuleInvalid, match=f"^sources.internal.{problem}"):
        parse_rule_file({"sources": {"internal": source}})


@pytest.mark.parametrize(
    "source",
    [
        {"type": "oci", "url": "https://registry.example.com", "concurrent_runs": 2},
        {"type": "archive", "path": "/mnt/usb", "concurrent_runs": 2},
        {
            "type": "ecr",
            "account": "123456789012",
            "region": "eu-west-1",
            "events": {"queue_url": "https://sqs.eu-west-1.amazonaws.com/123456789012/pushes", "region": "eu-west-1"},
            "concurrent_runs": 2,
        },
    ],
)
def test_limits_and_queues_of_sources_read_back_as_they_were_written(source: dict[str, Any]) -> None:
    (spec,) = parse_rule_file({"sources": {"internal": source}}).sources
    assert spec.to_document() == source
    for wrong in (0, 65, "2", True):
        with pytest.raises(RuleInvalid, match=r"^sources.internal.concurrent_runs: must be a whole number"):
            parse_rule_file({"sources": {"internal": source | {"concurrent_runs": wrong}}})
