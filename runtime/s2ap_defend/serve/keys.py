"""API keys: the file that lists them by their hashes, and how one is made."""

import difflib
import hashlib
import re
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from s2ap_defend.errors import RecipeError
from s2ap_defend.files import read_file, replace_file

__all__ = ["RIGHTS", "Key", "Right", "add_key", "hash_key", "new_key", "parse_entry", "read_keys", "write_entry"]

Right = Literal["infer", "evidence", "admin"]
RIGHTS: tuple[Right, ...] = get_args(Right)
FIELDS = ("name", "sha256", "rights", "images_per_second", "burst")
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
PREFIX = "s2ap_"  # by which scanners for leaked secrets find it
KEY_BYTES = 32
LARGEST_FILE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Key:
    """What one key may do.

    Attributes:
        name: What the log calls it.
        sha256: Hash of the key itself, which the server does not know.
        rights: 'infer' asks for verdicts, 'evidence' sees the evidence in them, 'admin' sees metrics and statistics.
        images_per_second: How many images it may ask about in the long run; None for any number.
        burst: How many it may ask about at once, after a pause; a request with more is refused.
    """

    name: str
    sha256: bytes
    rights: frozenset[Right]
    images_per_second: float | None = None
    burst: int | None = None


def hash_key(key: bytes) -> bytes:
    """The hash by which a key is stored.

    A plain SHA-256: salts and slow hashes protect words that people choose, which can be guessed. A key of 256 random
    bits cannot be, and a slow hash would be work that anybody could cause.
    """
    return hashlib.sha256(key).digest()


def new_key() -> str:
    """A new key: 256 bits from the system's random numbers."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def write_entry(key: Key) -> str:
    """The entry of a key in a keys file."""
    listed = ", ".join(f'"{right}"' for right in RIGHTS if right in key.rights)
    lines = ["[[key]]", f'name = "{key.name}"', f'sha256 = "{key.sha256.hex()}"', f"rights = [{listed}]"]
    lines += [] if key.images_per_second is None else [f"images_per_second = {key.images_per_second:g}"]
    lines += [] if key.burst is None else [f"burst = {key.burst}"]
    return "\n".join(lines) + "\n"


def add_key(path: Path, key: Key) -> None:
    """Add a key to a keys file, which is made where it is missing; what else is in it stays as it is.

    Raises:
        RecipeError: If the file is wrong, has a key of that name, or cannot be written.
    """
    before = b""
    if path.exists():
        if any(other.name == key.name for other in read_keys(path)):
            raise RecipeError(f"the keys file {path} has a key called {key.name}; choose another name, or remove it")
        before = path.read_bytes().rstrip() + b"\n\n"
    try:
        replace_file(path.resolve(), before + write_entry(key).encode())
    except OSError as error:
        raise RecipeError(f"cannot write the keys file {path}: {error.strerror or error}") from error


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a keys file. Its errors name no value of it: it may be a key that was put there by mistake.

    Raises:
        RecipeError: If it cannot be read, is no TOML, or an entry is not what it has to be.
    """
    content = read_file(path, LARGEST_FILE_BYTES, f"the keys file {path}")
    try:
        table = tomllib.loads(content.decode())
    except ValueError as error:
        raise RecipeError(
            f"the keys file {path} is no TOML: {error}; `s2ap-defend serve-key` prints entries"
        ) from error
    entries = table.pop("key", None)
    if table:
        raise RecipeError(f"the keys file {path} has {next(iter(table))[:40]!r}, but only [[key]] tables are read")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise RecipeError(f"the keys file {path} has no [[key]] table; `s2ap-defend serve-key NAME` prints one")
    keys = tuple(parse_entry(entry, f"{path}, [[key]] {number}") for number, entry in enumerate(entries, 1))
    for i, key in enumerate(keys):
        for first, other in enumerate(keys[:i], 1):
            same = "name" if other.name == key.name else "sha256" if other.sha256 == key.sha256 else None
            if same is not None:
                raise RecipeError(
                    f"{path}, [[key]] {i + 1} ({key.name}): it has the {same} of [[key]] {first}; remove one"
                )
    return keys


def parse_entry(entry: dict[str, Any], where: str) -> Key:
    """The key of an entry of a keys file; `where` begins what is said of a wrong one.

    Raises:
        RecipeError: With the first thing that is wrong.
    """
    name = entry.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RecipeError(f"{where}: name must have 1 to 64 letters, digits, points, dashes and underscores")
    where = f"{where} ({name})"
    for field in entry:
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(FIELDS)}"
            raise RecipeError(f"{where}: there is no {field[:40]!r}; {hint}")
    digest = entry.get("sha256")
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise RecipeError(
            f"{where}: sha256 must be the SHA-256 of the key, 64 hexadecimal digits; `s2ap-defend serve-key` prints it"
        )
    rate, burst = entry.get("images_per_second"), entry.get("burst")
    if rate is not None and not (_is_number(rate) and 0 < rate < float("inf")):
        raise RecipeError(f"{where}: images_per_second must be a number above 0")
    if burst is not None and not (isinstance(burst, int) and _is_number(burst) and burst >= 1):
        raise RecipeError(f"{where}: burst must be a whole number of images, 1 or more")
    if (rate is None) != (burst is None):
        raise RecipeError(f"{where}: images_per_second and burst need each other; give both or none")
    return Key(name, bytes.fromhex(digest), _read_rights(entry.get("rights"), where), rate, burst)


def _read_rights(rights: object, where: str) -> frozenset[Right]:
    if not isinstance(rights, list) or not rights or not all(right in RIGHTS for right in rights):
        raise RecipeError(f"{where}: rights must be a list of some of {', '.join(RIGHTS)}")
    if "evidence" in rights and "infer" not in rights:
        raise RecipeError(f"{where}: the right evidence is about verdicts, so it needs the right infer; add it")
    return frozenset(rights)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
