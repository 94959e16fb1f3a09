"""Pushes told by EventBridge through SQS (moto plays it): they appear within seconds, and nothing blocks the queue."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication import push_queue
from entrepot.replication.backoff import Backoff
from entrepot.replication.push_queue import PushQueues
from entrepot.replication.records import Figures, RunFilter
from entrepot.replication.rules import parse_rule_file
from tests.faults.conftest import HASTY, PATIENT, RULE, Replicating, eventually, rule_of, working
from tests.support.aws import ACCOUNT, Moto
from tests.support.hostile_ecr import HostileEcr, serving_ecr
from tests.support.served import TESTER, Served

API = RepositoryName("smm/api")
# moto is shared by all tests; and a queue may be in another region than its registry.
REGION = "eu-north-1"


class Queue:
    """A queue, and EventBridge in front of it."""

    def __init__(self, moto: Moto) -> None:
        self._sqs = moto.client("sqs", REGION)
        self.name = f"pushes-{time.time_ns()}"
        self.url = f"{moto.url}/{ACCOUNT}/{self.name}"

    async def create(self) -> None:
        """Make the queue."""
        await asyncio.to_thread(self._sqs.create_queue, QueueName=self.name)

    async def send(self, body: str) -> None:
        """Put a message into it."""
        await asyncio.to_thread(self._sqs.send_message, QueueUrl=self.url, MessageBody=body)

    async def tell(self, repository: str, tag: str | None, **fields: Any) -> None:
        """Tell of a push, as EventBridge does."""
        detail = {"result": "SUCCESS", "repository-name": repository, "action-type": "PUSH", "image-tag": tag}
        event = {
            "version": "0",
            "detail-type": "ECR Image Action",
            "source": "aws.ecr",
            "account": ACCOUNT,
            "region": "eu-west-1",
            "detail": detail,
        }
        await self.send(json.dumps(event | fields))

    async def is_empty(self) -> bool:
        """Whether every message was deleted."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await asyncio.to_thread(self._sqs.get_queue_attributes, QueueUrl=self.url, AttributeNames=names)
        return all(answer["Attributes"][name] == "0" for name in names)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys for the SDK to find, and calls that do not hold up the end of a test."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
    monkeypatch.setattr(push_queue, "_WAIT_SECONDS", 2)
    monkeypatch.setattr(push_queue, "_HIDDEN_SECONDS", 1)


@pytest.fixture
async def ecr() -> AsyncIterator[HostileEcr]:
    async with serving_ecr() as served:
        yield served


@pytest.fixture
def queue(moto: Moto) -> Queue:
    return Queue(moto)


@pytest.fixture
async def copying(served: Served, ecr: HostileEcr, queue: Queue, moto: Moto) -> Replicating:
    """Replication of smm/ from an ECR that tells of its pushes."""
    replicating = Replicating(served, PATIENT)
    await apply(replicating, ecr, {"queue_url": queue.url, "region": REGION, "endpoint": moto.url})
    return replicating


async def apply(replicating: Replicating, ecr: HostileEcr, events: dict[str, str] | None) -> None:
    source = ecr.document | ({"events": events} if events else {})
    document = {"sources": {"hostile": source}, "rules": {RULE: rule_of("smm/*")}}
    await replicating.rulebook.apply(parse_rule_file(document), TESTER)


@asynccontextmanager
async def consuming(replicating: Replicating) -> AsyncIterator[PushQueues]:
    """A process that reads the queue."""
    queues = PushQueues(replicating.rulebook, replicating.runs, PATIENT, HASTY)
    queues._pause = Backoff(first_seconds=0.1, most_seconds=0.2)
    stop = asyncio.Event()
    task = asyncio.create_task(queues.consume(stop))
    try:
        yield queues
    finally:
        stop.set()
        await task


async def wait_for_tag(served: Served, tag: str) -> None:
    async def is_here() -> bool:
        return bool(await served.parts.registry.read_tag_digests(API, [Tag(tag)]))

    await eventually(is_here, 60)


def test_the_policy_of_the_how_to_allows_to_read_the_queue_alone() -> None:
    how_to = Path(__file__).parents[2] / "docs" / "how-to" / "replicate-from-ecr.md"
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", how_to.read_text(), re.DOTALL)]
    ((statement,),) = [
        block["Statement"] for block in blocks if block.get("Statement", [{}])[0].get("Sid") == "ReadPushes"
    ]
    assert set(statement["Action"]) == {"sqs:ReceiveMessage", "sqs:DeleteMessage"}
    assert statement["Resource"] == "arn:aws:sqs:eu-west-1:123456789012:entrepot-pushes"
    (attributes,) = [block for block in blocks if "Policy" in block]
    (allowed,) = json.loads(attributes["Policy"])["Statement"]
    assert (allowed["Principal"], allowed["Action"]) == ({"Service": "events.amazonaws.com"}, "sqs:SendMessage")
    assert allowed["Resource"] == statement["Resource"]


async def outcomes(replicating: Replicating) -> dict[str, int]:
    figures: Figures = await replicating.runs.read_figures()
    return {name: amount for subject, name, amount in figures.totals if subject == "source:hostile"}


async def test_a_push_appears_without_a_listing(
    ecr: HostileEcr, queue: Queue, copying: Replicating, served: Served
) -> None:
    await queue.create()
    async with consuming(copying), consuming(copying.beside()), working(copying, copying.beside()):
        for number in range(2):
            ecr.registry.put_image(API.value, f"v{number}")
            await queue.tell(API.value, f"v{number}")
            await wait_for_tag(served, f"v{number}")
        await eventually(queue.is_empty)
    runs = await copying.runs.list_runs(RunFilter(RULE), 10)
    assert {(run.cause, run.status) for run in runs} == {("push", "done")}
    assert "DescribeImages" not in ecr.calls
    assert (await outcomes(copying))["push"] >= 2


async def test_what_is_no_push_blocks_nothing(
    ecr: HostileEcr, queue: Queue, copying: Replicating, served: Served
) -> None:
    await queue.create()
    ecr.registry.put_image(API.value, "v1")
    ecr.registry.put_image("other/web", "v1")
    for body in ("push!", "[]", "{}", '{"source": "aws.ecr"}'):
        await queue.send(body)
    await queue.tell(API.value, "v9", account="999999999999")
    await queue.tell(API.value, "v9", region="us-east-1")
    await queue.tell(API.value, "a b")
    await queue.tell(API.value, "v9", detail={"action-type": "DELETE", "repository-name": API.value})
    # No rule means this one; and what is gone again by now is no failure.
    await queue.tell("other/web", "v1")
    await queue.tell(API.value, "gone")
    await queue.tell(API.value, "v1")
    async with consuming(copying), working(copying):
        await wait_for_tag(served, "v1")
        await eventually(queue.is_empty)

        async def are_done() -> bool:
            return all(run.status == "done" for run in await copying.runs.list_runs(RunFilter(RULE), 10))

        await eventually(are_done)
    assert await outcomes(copying) == {"foreign": 4, "ignored": 1, "malformed": 3, "push": 3}
    assert await served.parts.registry.read_tag_digests(RepositoryName("other/web"), [Tag("v1")]) == {}


async def test_a_deletion_that_is_told_is_mirrored(
    ecr: HostileEcr, queue: Queue, copying: Replicating, served: Served
) -> None:
    await queue.create()
    for tag in ("v1", "v2"):
        ecr.registry.put_image(API.value, tag)
    await copying.apply_rule(deletions="mirror")
    assert (await copying.run()).status == "done"
    ecr.registry.delete_tag(API.value, "v1")
    detail = {"result": "SUCCESS", "action-type": "DELETE", "repository-name": API.value, "image-tag": "v1"}
    await queue.tell(API.value, None, detail=detail)
    ecr.calls.clear()

    async def is_gone() -> bool:
        return await served.parts.registry.read_tag_digests(API, [Tag("v1")]) == {}

    async with consuming(copying), working(copying):
        await eventually(is_gone)
        await eventually(queue.is_empty)
    # Of that repository alone.
    assert "DescribeRepositories" not in ecr.calls
    assert await served.parts.registry.read_tag_digests(API, [Tag("v2")]) != {}
    assert await outcomes(copying) == {"deletion": 1}


async def test_a_signature_that_is_pushed_brings_its_repository(
    ecr: HostileEcr, queue: Queue, copying: Replicating, served: Served
) -> None:
    await queue.create()
    image = ecr.registry.put_image(API.value, "v1")
    await queue.tell(API.value, f"sha256-{image.digest.hex}.sig")
    async with consuming(copying), working(copying):
        await wait_for_tag(served, "v1")
    assert "DescribeRepositories" not in ecr.calls


async def test_what_could_not_be_queued_comes_again(
    ecr: HostileEcr, queue: Queue, copying: Replicating, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.create()
    ecr.registry.put_image(API.value, "v1")
    await queue.tell(API.value, "v1")
    monkeypatch.setattr(push_queue, "_FULL_SECONDS", 0.1)
    answers = iter([False, False])
    queue_pushes = copying.runs.queue_pushes

    async def refuse(*arguments: Any) -> bool:
        return next(answers, None) is None and await queue_pushes(*arguments)

    monkeypatch.setattr(copying.runs, "queue_pushes", refuse)
    async with consuming(copying), working(copying):
        await wait_for_tag(served, "v1")
    assert next(answers, None) is None


async def test_a_queue_that_is_not_there_is_looked_for_again(
    ecr: HostileEcr, queue: Queue, copying: Replicating, served: Served
) -> None:
    ecr.registry.put_image(API.value, "v1")
    async with consuming(copying), working(copying):
        await asyncio.sleep(1)
        await queue.create()
        await queue.tell(API.value, "v1")
        await wait_for_tag(served, "v1")


async def test_queues_come_and_go_with_their_sources(
    ecr: HostileEcr, queue: Queue, copying: Replicating, served: Served, moto: Moto
) -> None:
    await queue.create()
    await apply(copying, ecr, None)
    ecr.registry.put_image(API.value, "v1")
    async with consuming(copying), working(copying):
        await queue.tell(API.value, "v1")
        await asyncio.sleep(1)
        assert not await queue.is_empty()
        await apply(copying, ecr, {"queue_url": queue.url, "region": REGION, "endpoint": moto.url})
        await wait_for_tag(served, "v1")
        await eventually(queue.is_empty)
        await apply(copying, ecr, None)
        await asyncio.sleep(3)
        await queue.tell(API.value, "v2")
        await asyncio.sleep(1)
        assert not await queue.is_empty()
