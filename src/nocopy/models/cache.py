"""The Hugging Face cache as it lies on disk, read and pruned without a network or a library.

    $HF_HUB_CACHE or $HF_HOME/hub or ~/.cache/huggingface/hub
      models--USER--REPO/
        blobs/<etag>                       contents
        snapshots/<commit>/<path>          links to them
        refs/main                          the commit that was current at the last download

A name means the newest snapshot that has the file: a later download of one file does not hide the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nocopy.errors import Error
from nocopy.models.hub_name import HubName, model_files, parts_of, preference, quant_of
from nocopy.models.huggingface import INDEX, SINGLE, read_json

PREFIX: Final = "models--"


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.

    `path` is what opens: a GGUF file (the first part of a split one) or a snapshot folder. `files` are all
    of its files, as links in the snapshot.
    """

    name: HubName
    path: Path
    files: tuple[Path, ...]

    @property
    def kind(self) -> str:
        """The format: "gguf" or "safetensors"."""
        return "safetensors" if self.path.is_dir() else "gguf"

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files)


def cache_folder() -> Path:
    """Where the hub's libraries keep what they fetch; it need not exist."""
    environment = os.environ
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or str(Path(home) / "huggingface")
    folder = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(folder or str(Path(home) / "hub"))).expanduser()


def repository_folder(repo: str) -> Path:
    """The folder of a repository in the cache; it need not exist."""
    return cache_folder() / (PREFIX + repo.replace("/", "--"))


def cached_models(repo: str | None = None) -> list[CachedModel]:
    """The complete models in the cache, of one repository or of all, by name."""
    folder = cache_folder()
    if repo is not None:
        folders = [repository_folder(repo)]
    else:
        folders = sorted(folder.glob(f"{PREFIX}*")) if folder.is_dir() else []
    found: list[CachedModel] = []
    for place in folders:
        found += _models_of(place)
    return found


def find_cached(name: HubName) -> CachedModel | None:
    """The model that a name means; None if it is not in the cache, or not whole."""
    wanted = name.quant.upper()
    models = [m for m in cached_models(name.repo) if wanted in ("", m.name.quant)]
    return min(models, key=lambda m: preference(m.name.quant), default=None)


def remove(models: list[CachedModel]) -> int:
    """Delete models of one repository from the cache, and the repository when nothing else is left of it.

    Contents that another snapshot still links to stay.

    Returns:
        Bytes that were freed.
    """
    repository = repository_folder(models[0].name.repo)
    before = _disk_bytes(repository)
    for model in models:
        blobs = {file.resolve() for file in model.files}
        for link in _links(repository):
            if link.resolve() in blobs:
                link.unlink()
        for blob in blobs:
            if blob.is_relative_to(repository.resolve()):
                blob.unlink(missing_ok=True)
    if not cached_models(models[0].name.repo):
        shutil.rmtree(repository)
    return before - _disk_bytes(repository)


def snapshots(repository: Path) -> list[Path]:
    """The snapshots of a repository in the cache: the current one, then by falling age."""
    folder = repository / "snapshots"
    if not folder.is_dir():
        return []
    main = repository / "refs" / "main"
    current = main.read_text().strip() if main.is_file() else ""
    found = [path for path in folder.iterdir() if path.is_dir()]
    return sorted(found, key=lambda p: (p.name == current, p.stat().st_mtime), reverse=True)


def _models_of(repository: Path) -> Iterator[CachedModel]:
    repo = repository.name.removeprefix(PREFIX).replace("--", "/", 1)
    seen: set[str] = set()
    for snapshot in snapshots(repository):
        files = [str(p.relative_to(snapshot)) for p in sorted(snapshot.rglob("*.gguf")) if p.is_file()]
        for file in model_files(files):
            parts = [snapshot / part for part in parts_of(file)]
            if file not in seen and all(part.is_file() for part in parts):
                seen.add(file)
                yield CachedModel(HubName(repo, quant_of(file)), parts[0], tuple(parts))
        if "" not in seen and _is_whole(snapshot):
            seen.add("")
            plain = tuple(p for p in sorted(snapshot.rglob("*")) if p.is_file() and p.suffix != ".gguf")
            yield CachedModel(HubName(repo), snapshot, plain)


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot holds a configuration and all of its weights."""
    if not (folder / "config.json").is_file():
        return False
    if not (folder / INDEX).is_file():
        return (folder / SINGLE).is_file()
    try:
        shards = read_json(folder / INDEX).get("weight_map")
    except Error:  # a broken index: opening the folder says what is wrong, listing the rest goes on
        return False
    return isinstance(shards, dict) and all(
        (folder / str(name)).is_file()
        for name in {str(v) for v in shards.values()}  # pyright: ignore
    )


def _links(repository: Path) -> list[Path]:
    return [p for p in (repository / "snapshots").rglob("*") if p.is_symlink() or p.is_file()]


def _disk_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, without links."""
    if not folder.is_dir():
        return 0
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
