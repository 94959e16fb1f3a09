"""What blob storage is made of: a bag of objects under names of our own, in a folder or in an object store."""

import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from obstore.exceptions import BaseError as StoreError

from entrepot.errors import EntrepotError, StorageFull, StorageUnavailable
from entrepot.oci.ranges import ByteRange

# Large enough that the cost per piece vanishes, small enough for a hundred streams at once.
PIECE_BYTES = 1024 * 1024
# Objects lie in as many folders as there are of these, by the first characters of their names.
SHARDS = tuple(f"{number:02x}" for number in range(256))
# Objects on one page of a list.
LISTED = 1000


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing shows it."""

    key: str
    size: int
    modified_at: datetime


class Objects(Protocol):
    """Keeps objects. Every method raises StorageUnavailable, and StorageFull where it writes."""

    can_sign: bool
    """Whether clients can be sent to the store itself."""

    async def put(self, key: str, blocks: AsyncIterator[bytes]) -> None:
        """Keep an object that is new; it is durable once this returns. When `blocks` raises, nothing of it stays."""

    async def read(self, key: str, part: ByteRange | None = None) -> AsyncIterator[bytes]:
        """The bytes of an object, or of a part of it; they begin to flow once this returns. Raises ObjectMissing."""

    def find_file(self, key: str) -> Path | None:
        """The object's file, None where it has none."""

    async def sign(self, key: str, lifetime: timedelta) -> str:
        """A URL by which anybody can GET an object for a while, where `can_sign`."""

    async def drop(self, key: str) -> None:
        """Drop an object; harmless when it is gone."""

    def list_shard(self, shard: str) -> AsyncIterator[list[StoredObject]]:
        """All objects of one of the SHARDS, by pages; unfinished ones too."""

    async def verify_writable(self) -> None:
        """Write and drop a small object."""


class ObjectMissing(Exception):
    """There is no object of this name."""


@contextmanager
def storage_errors() -> Iterator[None]:
    """The one place where errors of the library and of the system become ours."""
    try:
        yield
    except (EntrepotError, ObjectMissing):
        raise
    except (StoreError, OSError) as error:
        is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if is_full or "No space left" in str(error) or "quota exceeded" in str(error).lower():
            raise StorageFull("blob storage is full; nothing of this upload was kept") from error
        raise StorageUnavailable("blob storage failed; try again in a moment") from error
