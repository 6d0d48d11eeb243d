"""Where data are looked for, checked and fetched."""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import pathlib
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from metarl.settings import SettingsError

NAME_IT = "into a directory, and name it by env.root=DIR or by the environment variable METARL_DATA"
# What NumPy, the archive modules and Pillow raise for files that are no such files, or are cut short.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    SyntaxError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_BLOCK = 1 << 18  # bytes
_SECONDS = 30  # without an answer


@dataclass(frozen=True)
class Source:
    """Where the images are: ``kind`` is the family's name of the form; ``paths`` are files or folders with their times."""

    kind: str
    paths: tuple[pathlib.Path, ...]
    stamps: tuple[int, ...]

    @classmethod
    def of(cls, kind: str, paths: Sequence[pathlib.Path]) -> Source:
        """Look at the files' times, so that changed files are read anew."""
        return cls(kind, tuple(paths), tuple(path.stat().st_mtime_ns for path in paths))

    @property
    def name(self) -> str:
        """The files, for messages."""
        return " and ".join(map(str, self.paths))


def root(env: str, named: str | None, wanted: str) -> pathlib.Path:
    """Return the directory of the data: ``named``, or else that of METARL_DATA.

    Raises:
        SettingsError: if there is neither; ``wanted`` says what to put where.
    """
    found = named or os.environ.get("METARL_DATA")
    if not found:
        raise SettingsError(f"env={env} has no data here: {wanted}")
    return pathlib.Path(found)


def damaged(source: Source, error: Exception) -> SettingsError:
    """Return one line that names files which cannot be read, with the reason."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return SettingsError(f"{source.name} cannot be read ({reason}); copy or download it again")


def refuse_other(path: pathlib.Path, md5: str, remedy: str) -> None:
    """Refuse a file that is not the official one.

    Raises:
        SettingsError: with both checksums.
    """
    found = _md5(path)
    if found != md5:
        raise SettingsError(f"{path} is not the official one (md5 {found}, not {md5}); {remedy}")


def fetch(url: str, path: pathlib.Path, md5: str) -> None:
    """Download a file, with its progress on stderr; it appears under its name when it is whole and has this checksum.

    Raises:
        SettingsError: where there is no network, no room or another file.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise SettingsError(f"{path.parent} cannot be written to ({error.strerror}); name another env.root") from error
    part = pathlib.Path(name)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            size = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=size, desc=path.name, unit="B", unit_scale=True) as progress:
                for block in iter(functools.partial(answer.read, _BLOCK), b""):
                    file.write(block)
                    progress.update(len(block))
        found = _md5(part)
        if found != md5:
            raise SettingsError(
                f"{url} gave a file that is not the official one (md5 {found}, not {md5}); try again, or put {path.name} into"
                f" {path.parent} yourself"
            )
        part.chmod(0o644)  # a temporary file is for its owner only
        part.replace(path)
    except (OSError, http.client.HTTPException) as error:  # no network is an OSError, too
        raise SettingsError(
            f"{url} cannot be downloaded ({' '.join(str(error).split())}); put {path.name} into {path.parent} yourself"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _md5(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
