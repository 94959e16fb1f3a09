"""Tags by which clients find what speaks of a manifest, when no other tag leads to that manifest any more."""

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa

from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, subject_of
from entrepot.registry import records
from entrepot.registry.policies import Policies
from entrepot.registry.reach import find_reached
from entrepot.storage.signals import publish

Companions = Mapping[Tag, Digest]
"""Such tags, and what they must name to be taken away."""


def find_leftovers(connection: sa.Connection, name: RepositoryName, companions: Companions) -> list[Tag]:
    """Those whose subject no other tag leads to."""
    repository_id = records.find_repository(connection, name)
    if repository_id is None:
        return []
    subjects = {tag: str(subject) for tag in companions if (subject := subject_of(tag)) is not None}
    reached = find_reached(connection, repository_id, set(subjects.values()))
    return [tag for tag, subject in subjects.items() if subject not in reached]


def delete_leftovers(
    connection: sa.Connection, name: RepositoryName, companions: Companions, policies: Policies, now: datetime
) -> list[Tag]:
    """Drop them, and tell every process; answers which are gone. Immutable ones stay."""
    repository_id = records.find_repository(connection, name)
    deleted: list[Tag] = []
    if repository_id is None:
        return deleted
    for tag in find_leftovers(connection, name, companions):
        named = records.lock_tag(connection, repository_id, tag)
        if named == str(companions[tag]) and not policies.is_immutable(name, tag):
            records.delete_tag(connection, repository_id, tag)
            publish(connection, "manifest", f"{name}:{tag}", now)
            deleted.append(tag)
    return deleted
