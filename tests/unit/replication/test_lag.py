from datetime import UTC, datetime, timedelta

from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.differences import Item
from entrepot.replication.events import ItemFinished, ItemLeftOut, Listed
from entrepot.replication.lag import MAX_KNOWN, Lag, read_ages

NAME = RepositoryName("smm/api")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PUSHED = NOW - timedelta(hours=1)


def item(tag: str, *, is_here: bool = False, pushed_at: datetime | None = None) -> Item:
    digest = Digest.of(tag.encode())
    return Item(NAME, NAME, Tag(tag), digest, digest if is_here else None, pushed_at)


def test_what_is_not_here_is_known_since_its_push_or_since_it_was_seen() -> None:
    lag = Lag(is_whole=True)
    lag.note(Listed([item("v1", pushed_at=PUSHED), item("v2"), item("v3"), item("v4", is_here=True)]))
    lag.note(ItemFinished(item("v3")))
    known = lag.update({}, NOW)
    assert known == {"smm/api:v1": PUSHED.isoformat(), "smm/api:v2": NOW.isoformat()}
    later = NOW + timedelta(minutes=5)
    # Seen again, it is as old as it was.
    assert lag.update(known, later) == known
    assert read_ages(known, later) == (3900.0, 300.0)


def test_a_whole_run_forgets_what_is_gone_and_one_of_pushes_does_not() -> None:
    known = {"smm/api:old": PUSHED.isoformat(), "smm/api:v1": PUSHED.isoformat()}
    for is_whole, expected in ((True, set()), (False, {"smm/api:old"})):
        lag = Lag(is_whole=is_whole)
        lag.note(Listed([item("v1")]))
        lag.note(ItemFinished(item("v1")))
        assert lag.update(known, NOW).keys() == expected


def test_when_all_is_here_there_is_no_lag() -> None:
    assert read_ages({}, NOW) == (0.0, 0.0)


def test_of_very_many_the_oldest_and_the_newest_are_kept() -> None:
    items = [item(f"v{number}", pushed_at=NOW - timedelta(seconds=number)) for number in range(MAX_KNOWN + 100)]
    lag = Lag(is_whole=True)
    lag.note(Listed(items))
    known = lag.update({}, NOW)
    assert len(known) == MAX_KNOWN
    assert read_ages(known, NOW) == (MAX_KNOWN + 99.0, 0.0)


def test_what_a_rule_leaves_out_is_not_behind() -> None:
    for is_whole in (True, False):
        lag = Lag(is_whole=is_whole)
        lag.note(Listed([item("v2")]))
        lag.note(ItemLeftOut(item("v1"), "a chart"))
        lag.note(ItemLeftOut(item("v2"), "it moved"))
        assert lag.update({"smm/api:v1": PUSHED.isoformat()}, NOW) == {}
