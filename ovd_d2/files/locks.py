"""Locks between processes, which the system takes back from one that dies, however it dies."""

import errno
import logging
import os

from filelock import BaseFileLock, FileLock, Timeout

from ovd_d2.errors import OVDError

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of the file system


def lock(path: str | os.PathLike, *, taken: str, wait: float = 0.0) -> BaseFileLock:
    """Locks ``path`` until ``release`` is called or the process ends.

    Where the file system has no locks, a warning says so and nothing is held.

    Args:
        path: a file for this alone, made if need be and left there; its folder exists.
        taken: what is said if another holds the lock.
        wait: seconds until that is said.

    Raises:
        OVDError: ``taken``.
        OSError: ``path`` cannot be written.
    """
    held = FileLock(path, thread_local=False)
    try:
        held.acquire(timeout=wait)
    except Timeout:
        raise OVDError(taken) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        logger.warning("No lock on %s (%s): start no second writer.", path, error)
    return held
