"""What can go wrong, as exceptions.

    KiloError
    ├── ConfigError       flags, environment, host: the program ends with 1 and one line
    ├── MeshError         what the mesh is said to be cannot be built: the network stays as it is
    ├── BackendError      the store cannot be used: the last snapshot stays in force
    ├── DataplaneError    the kernel refused or is not as needed: tried again at the next pass
    └── LabError          a lab on this machine is not there, half there or cannot be made

Exceptions of libraries are translated into these once, in the driver that calls the
library, with ``raise ... from error``. No message ever holds a private or preshared key.
"""

from __future__ import annotations


class KiloError(Exception):
    """Everything Kilo raises on purpose; its text is one line, fit for an operator."""


class ConfigError(KiloError):
    """The program was asked for something it cannot do; names the flag or file and the value."""


class MeshError(KiloError):
    """The declared mesh contradicts itself, say more segments than addresses."""


class BackendError(KiloError):
    """The store cannot be read or written now; names the store and the operation."""


class DataplaneError(KiloError):
    """One operation on the kernel failed; names the object and the operation."""


class LabError(KiloError):
    """An operation on a lab failed; names the lab or the host, and the operation."""


def flatten_errors(error: BaseException) -> list[BaseException]:
    """The leaves of an exception group, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in flatten_errors(inner)]
    return [error]
