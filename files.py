"""Files that are whole or absent, and digests that tell a damaged file from the one that was written.

Everything that is written in one piece is written by `replacing`: a kill, a full disk or an error leaves the old file
or none. Its temporary is NAME.PID.part, so that what a killed process left can be told from what another one is
writing.

A digest is the CRC-32 of a whole file: every flipped bit changes it, as does any damage within 32 bits; other damage
passes once in 4 billion times. It is made against accidents and not against people, and is the fastest one at hand
(zlib 3.8 GB/s on one core, sha256 1.7, blake2b 1.0).
"""

import contextlib
import gzip
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from cli import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# The errors that reading a file may raise when it is missing, or holds something else than expected
MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
MAX_JSON = 512 << 20  # bytes of a JSON file that is read whole: records of evaluations have a few MB
TRAILER = b"\ncrc32="  # 8 hexadecimal digits and a newline follow
DIGESTS = "digests"  # in a folder, JSON: {name: digest} of the files that `write_jsonl` wrote there


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError within gets the name of the file: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.strerror = error.strerror or str(error)  # numpy's has text alone
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """A name for a file or folder to make, which takes the name `path` at the end; on any error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, path.name)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with named(path):
            yield part
            os.replace(part, path)
    finally:
        _remove(part)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write that takes the name `path` only once it is whole and on disk."""
    with replacing_path(path) as part, open(part, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


class _Checked:
    """A binary file to write that knows the digest of what went into it, and its last OSError."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.error, self.flush = file, 0, None, file.flush  # torch.save calls write and flush

    def write(self, content) -> int:
        self.digest = zlib.crc32(content, self.digest)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise


@contextlib.contextmanager
def replacing_with_trailer(path: Path) -> Iterator[_Checked]:
    """`replacing`, with the digest of the content in 16 bytes at the end of the file (`check_trailer`)."""
    with replacing(path) as file:
        checked = _Checked(file)
        try:
            yield checked
        except RuntimeError:
            if checked.error:  # torch.save puts an error of its own in the place of the system's
                raise checked.error from None
            raise
        file.write(b"%s%08x\n" % (TRAILER, checked.digest))


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_jsonl(path: Path, rows: Iterable[dict], digest: bool = False) -> None:
    """A JSON object a line; compressed where the name ends in .gz. With `digest`, `check_digest` can check the file."""
    digests = _read_digests(path.parent) if digest else {}
    if digests.pop(path.name, None):  # a kill between the two files leaves one without a digest, not with a wrong one
        write_text(path.parent / DIGESTS, json.dumps(digests, indent=1) + "\n")
    compressed = path.suffix == ".gz"  # in ASCII: programs read it. What is not compressed is for people too
    lines = (json.dumps(row, ensure_ascii=compressed).encode("utf-8") + b"\n" for row in rows)
    with replacing(path) as file:
        if compressed:  # without name and time in its header: the same rows are the same bytes
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as gz:
                gz.writelines(lines)
        else:
            file.writelines(lines)
    if digest:
        write_text(path.parent / DIGESTS, json.dumps(digests | {path.name: crc32(path)}, indent=1) + "\n")


def remove_stale(folder: Path, name: str = "") -> None:
    """Remove the temporaries (of the file `name`, or all) that processes of this machine left when they were killed."""
    for part in folder.glob("*.part"):
        target, _, pid = part.name.removesuffix(".part").rpartition(".")
        if pid.isdigit() and (target == name or not name) and not _is_alive(int(pid)):
            _remove(part)


def take_lock(folder: Path, wait_s: float = 0.0) -> int | None:
    """A file descriptor that holds FOLDER/lock until it is closed or the process ends; None where there are no locks
    (Windows, some network file systems). UserError if another process holds it for longer than wait_s."""
    if fcntl is None:
        return None
    lock, end = os.open(folder / "lock", os.O_CREAT | os.O_RDWR), time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(lock)
                raise UserError(
                    f"{folder}: another process is at work there; wait, stop it, or pass another --out (if its machine is "
                    f"gone, delete {folder / 'lock'})"
                ) from None
            time.sleep(0.1)
        except OSError:  # this file system has no locks
            os.close(lock)
            return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Digests
# ---------------------------------------------------------------------------------------------------------------------


def crc32(path: Path, end: int | None = None, progress: Callable[[int], None] | None = None) -> str:
    """The digest of a file, or of its first `end` bytes; `progress` is told the bytes of each piece."""
    digest, buffer = 0, memoryview(bytearray(1 << 20))
    left = os.path.getsize(path) if end is None else end
    with named(path), open(path, "rb", buffering=0) as file:
        while left > 0 and (n := file.readinto(buffer[: min(left, len(buffer))])):
            digest, left = zlib.crc32(buffer[:n], digest), left - n
            if progress:
                progress(n)
    return f"{digest:08x}"


def check_trailer(path: Path) -> None:
    """UserError if the file ends in a digest that is not that of what stands before it.

    Every flipped bit is found: one before the trailer or in its digits changes one of the two digests; one in its name
    makes it a file without a trailer, whose content is as it was written."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 16))
        trailer = file.read()
    if trailer.startswith(TRAILER) and b"%s%s\n" % (TRAILER, crc32(path, size - 16).encode()) != trailer:
        raise UserError(f"{path}: damaged: its content is not what was written (digest); use another one")


def check_digest(path: Path) -> None:
    """UserError if `digests` beside the file says that it was another one when it was written."""
    wanted = _read_digests(path.parent).get(path.name)
    if wanted and crc32(path) != wanted:
        raise UserError(
            f"{path}: damaged or changed since it was written (its digest is not that of {DIGESTS} beside it); prepare "
            f"it again, or, if you changed it yourself, delete {path.parent / DIGESTS}"
        )


def _read_digests(folder: Path) -> dict[str, str]:
    path = folder / DIGESTS
    if not path.exists():
        return {}
    digests = read_json(path)
    if not isinstance(digests, dict):
        raise UserError(f"{path}: not a JSON object; delete it")
    return digests


def json_digest(content: dict) -> str:
    """The digest of a JSON object without its own entry "digest"."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def read_json(path: Path):
    """The content of a JSON file, compressed where its name ends in .gz; UserError if it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(MAX_JSON + 1)  # a few MB can unpack to gigabytes
        if len(content) > MAX_JSON:
            raise UserError(f"{path}: longer than {MAX_JSON >> 20} MiB, as no file of this project is")
        return json.loads(content.decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None  # gzip's have no strerror
    except (ValueError, RecursionError, EOFError, zlib.error) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path}: not a whole JSON file ({type(error).__name__})") from None
