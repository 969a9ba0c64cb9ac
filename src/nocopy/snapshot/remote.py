"""Objects in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure.

`obstore` does the talking. Credentials, region and endpoint come from the environment, under the names that
each provider's own tools use (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, …). A request that gets no
answer is given up after a while: nothing waits for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from nocopy.errors import StoreError, UsageError
from nocopy.snapshot.objects import ObjectStat, refuse_large

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES: Final = ("s3", "s3a", "gs", "az", "abfs", "abfss", "azure", "adl")
TIMEOUT: Final = timedelta(seconds=30)
"""For one request."""
RETRIES: Final = 4


class RemoteObjects:
    """Objects under a URL such as s3://bucket/prefix.

    Raises:
        UsageError: the URL or the settings in the environment make no sense, or `obstore` is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise UsageError(
                f"the store {url} was asked for; the package that reaches it is missing."
                " pip install 'nocopy[store]'"
            ) from error
        self.url = url
        self._api: Any = obstore
        self._errors = (BaseError, OSError, ValueError)
        try:
            self._store: ObjectStore = from_url(
                cast(Any, url),
                client_options={
                    "timeout": TIMEOUT,
                    "connect_timeout": timedelta(seconds=5),
                    # Options given here replace those of the environment.
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": 2 * TIMEOUT},
            )
        except self._errors as error:
            raise UsageError(f"the store {url} was asked for; {_first_line(error)}") from error

    def put(self, key: str, data: bytes) -> None:
        """See `Objects`."""
        try:
            self._api.put(self._store, key, data)
        except self._errors as error:
            raise self._failure(f"writing {key}", error) from error

    def get(self, key: str, limit: int) -> bytes | None:
        """See `Objects`."""
        try:
            answer = self._api.get(self._store, key)
            refuse_large(self.url, key, int(answer.meta["size"]), limit)
            return bytes(answer.bytes())
        except FileNotFoundError:
            return None
        except self._errors as error:
            raise self._failure(f"reading {key}", error) from error

    def stat(self, key: str) -> ObjectStat | None:
        """See `Objects`."""
        try:
            return _stat(self._api.head(self._store, key))
        except FileNotFoundError:
            return None
        except self._errors as error:
            raise self._failure(f"looking for {key}", error) from error

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """See `Objects`."""
        try:
            for page in self._api.list(self._store, prefix):
                yield from map(_stat, page)
        except self._errors as error:
            raise self._failure(f"listing {prefix}", error) from error

    def delete(self, keys: Sequence[str]) -> None:
        """See `Objects`."""
        for key in keys:
            try:
                self._api.delete(self._store, key)
            except FileNotFoundError:
                continue
            except self._errors as error:
                raise self._failure(f"deleting {key}", error) from error

    def clean(self) -> int:
        """Nothing to do: an object store shows no unfinished object."""
        return 0

    def _failure(self, what: str, error: Exception) -> StoreError:
        return StoreError(
            f"the store {self.url}: {what} was asked for; {_first_line(error)}. Check the address, the"
            " network, and the credentials in the environment"
        )


def _stat(meta: dict[str, Any]) -> ObjectStat:
    return ObjectStat(meta["path"], meta["size"], meta["last_modified"].timestamp())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
