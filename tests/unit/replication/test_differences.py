from hypothesis import given
from hypothesis import strategies as st

from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication.differences import Change, count_changes, plan_items

NAME = RepositoryName("a/b")
TAGS = st.dictionaries(
    st.sampled_from([Tag(f"v{number}") for number in range(6)]),
    st.sampled_from([Digest.of(bytes([number])) for number in range(3)]),
)


@given(there=TAGS, here=TAGS)
def test_every_tag_at_the_source_is_judged_once(there: dict[Tag, Digest], here: dict[Tag, Digest]) -> None:
    items = plan_items(NAME, NAME, there, here)
    assert [item.tag for item in items] == sorted(there)
    for item in items:
        expected = (
            Change.NEW if item.tag not in here else Change.SAME if here[item.tag] == there[item.tag] else Change.CHANGED
        )
        assert item.change is expected
    assert sum(count_changes(items).values()) == len(there)


@given(there=TAGS)
def test_what_was_copied_is_not_due_again(there: dict[Tag, Digest]) -> None:
    assert all(item.change is Change.SAME for item in plan_items(NAME, NAME, there, there))
