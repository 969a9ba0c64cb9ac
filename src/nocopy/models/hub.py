"""Fetching models from the Hugging Face hub into its standard cache: `pull(HubName.parse("user/repo:Q8_0"))`.

The protocol, the credentials and the environment variables are `huggingface_hub`'s. The files are kept here,
because that library begins again when a download was interrupted: a part that is there is kept as
`blobs/<etag>.incomplete` and continued by the next attempt, in this process or another. A file joins the
cache only after its digest was found to be what the hub announced.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from nocopy.errors import HubError, UsageError
from nocopy.models.cache import CachedModel, cache_folder, find_cached, repository_folder
from nocopy.models.hub_name import HubName, parts_of

Progress = Callable[[str, int, int], None]
"""Called with what is being fetched, its bytes so far, and all of its bytes."""

FOLDER_FILES: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "modules.json", "1_Pooling/config.json",
)  # fmt: skip
"""What a folder of safetensors needs beside them, where the repository has it."""
READ: Final = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    `etag` names its contents: the SHA-256 where the hub keeps it outside of git (`large`), else git's SHA-1
    of the blob.
    """

    path: str
    nbytes: int
    etag: str
    large: bool


def is_offline() -> bool:
    """Whether the environment forbids the network, as the hub's own library reads it."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def pull(name: HubName, *, progress: Progress | None = None) -> CachedModel:
    """Bring a model's newest version into the cache; what is there already is not fetched again.

    Raises:
        UsageError: there is no such quantisation, or `huggingface_hub` is not installed.
        HubError: the hub cannot be reached, refuses, has no such model, or sent something else.
    """
    if is_offline():
        raise HubError(f"{name} was to be fetched; HF_HUB_OFFLINE is set, so the hub is not asked")
    if find_spec("huggingface_hub") is None:
        raise UsageError(
            f"{name} was to be fetched; huggingface_hub is not installed: pip install 'nocopy[hub]'"
        )
    with _explaining(name):
        commit, files = _list_files(name)
        wanted = _wanted(name, files)
        folder = repository_folder(name.repo)
        for file in wanted:
            _fetch(name, commit, file, folder, progress)
    _write_reference(folder, commit)
    found = find_cached(name)
    if found is None:
        raise HubError(f"{name} was fetched into {folder}; its files are no complete model")
    return found


def _list_files(name: HubName) -> tuple[str, list[RemoteFile]]:
    """The newest commit of a repository, and its files."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repo, files_metadata=True)
    if not info.sha:
        raise HubError(f"{name} was to be fetched; the hub names no version of {name.repo}")
    files = [
        RemoteFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else s.blob_id or "", s.lfs is not None)
        for s in info.siblings or ()
    ]
    broken = [f.path for f in files if not _is_inside(f.path) or not f.etag.isalnum()]
    if broken or not info.sha.isalnum():
        raise HubError(f"{name} was to be fetched; the hub names a file {broken[:1]} that cannot be kept")
    return info.sha, files


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return bool(path) and not path.startswith("/") and "\\" not in path and not {"", ".", ".."} & set(parts)


def _wanted(name: HubName, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files of the model that a name means."""
    by_path = {file.path: file for file in files}
    chosen = name.choose(by_path)
    if chosen is not None:
        missing = [part for part in parts_of(chosen) if part not in by_path]
        if missing:
            raise HubError(f"{name} was to be fetched; {name.repo} lacks its part {missing[0]}")
        return [by_path[part] for part in parts_of(chosen)]
    weights = [f for f in files if f.path.endswith(".safetensors") and "/" not in f.path]
    if name.quant or not weights or "config.json" not in by_path:
        raise HubError(f"{name} was to be fetched; {name.repo} has no GGUF file and no safetensors model")
    index = [f for f in files if f.path == "model.safetensors.index.json"]
    beside = [by_path[path] for path in FOLDER_FILES if path in by_path]
    return [*beside, *index, *weights]


def _fetch(name: HubName, commit: str, file: RemoteFile, folder: Path, progress: Progress | None) -> None:
    """Make one file part of the snapshot `commit`."""
    link = folder / "snapshots" / commit / file.path
    if link.is_file() and link.stat().st_size == file.nbytes:
        return
    blob = folder / "blobs" / file.etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not blob.is_file():
        partial = blob.with_name(f"{file.etag}.incomplete")
        with partial.open("ab") as target:
            _lock(target, name)
            _continue(name, commit, file, target, progress)
        if _digest(partial, file) != file.etag:
            partial.unlink()
            raise HubError(
                f"{file.path} of {name.repo} was fetched; its bytes are not those that the hub announced,"
                " and were dropped. Fetch it again"
            )
        partial.replace(blob)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))


def _continue(
    name: HubName, commit: str, file: RemoteFile, target: BinaryIO, progress: Progress | None
) -> None:
    """Fetch what is missing at the end of `target`."""
    from huggingface_hub import file_download, hf_hub_url, utils

    have = target.tell()
    if have > file.nbytes:
        target.truncate(have := 0)
        target.seek(0)
    if have == file.nbytes:
        return
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each retry
    library, headers = cast(Any, file_download), cast(Any, utils).build_hf_headers()
    library.http_get(
        hf_hub_url(name.repo, file.path, revision=commit),
        target,
        resume_size=have,
        headers=headers | {"Accept-Encoding": "identity"},
        expected_size=file.nbytes,
        tqdm_class=_counter(file, progress),
    )


def _counter(file: RemoteFile, progress: Progress | None) -> Callable[..., Any]:
    """A class in the shape of tqdm that hands on what it counts."""

    class Counter:
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self.done = initial
            self.update(0)

        def update(self, nbytes: int) -> None:
            self.done += nbytes
            if progress:
                progress(file.path, self.done, file.nbytes)

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            return

    return Counter


def _lock(file: BinaryIO, name: HubName) -> None:
    """Keep other processes from writing the same part; the system lets go when this one ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HubError(f"{name} was to be fetched; another process is fetching it. Wait for it") from None
    file.seek(0, os.SEEK_END)


def _digest(path: Path, file: RemoteFile) -> str:
    """What the hub calls these contents: their SHA-256, or git's SHA-1 of a blob of them."""
    digest = hashlib.sha256() if file.large else hashlib.sha1(usedforsecurity=False)
    if not file.large:
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as source:
        while piece := source.read(READ):
            digest.update(piece)
    return digest.hexdigest()


def _write_reference(folder: Path, commit: str) -> None:
    """Say which snapshot is the newest."""
    main = folder / "refs" / "main"
    main.parent.mkdir(parents=True, exist_ok=True)
    partial = main.with_name(f"main.{os.getpid()}.tmp")
    partial.write_text(commit)
    partial.replace(main)


@contextmanager
def _explaining(name: HubName) -> Generator[None]:
    """Turn what the hub's library raises into one line each."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as e:
        raise HubError(
            f"{name} was to be fetched; its owner grants access on request: ask at"
            f" {constants.ENDPOINT}/{name.repo} and set HF_TOKEN to a token of yours"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise HubError(
            f"{name} was to be fetched; {constants.ENDPOINT} has no model {name.repo} that you may see."
            " Check the name; a private one needs HF_TOKEN"
        ) from e
    except errors.HfHubHTTPError as e:
        status = e.response.status_code
        hint = " Check HF_TOKEN" if status in (401, 403) else " Try again later"
        raise HubError(f"{name} was to be fetched; {constants.ENDPOINT} answered {status}.{hint}") from e
    except (errors.HTTPError, OSError) as e:  # pyright: ignore[reportPrivateImportUsage]
        if isinstance(e, OSError) and e.errno and not isinstance(e, ConnectionError | TimeoutError):
            raise HubError(f"{name} was to be fetched into {cache_folder()}; {e.strerror}") from e
        said = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise HubError(
            f"{name} was to be fetched; {constants.ENDPOINT} could not be read: {said}."
            " What has arrived is kept; the same command continues"
        ) from e
