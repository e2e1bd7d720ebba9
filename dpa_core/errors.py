"""Every error dpaflow raises on purpose.

    DPAError
    ├── ConfigError      a setting is wrong                      exit code 2
    ├── DataError        a data file or a frame is wrong         exit code 2
    ├── ModelFileError   a model or checkpoint file is wrong     exit code 2
    └── NumericalError   a run went wrong (NaN, divergence)      exit code 1

A message says what is wrong, the value seen, what is allowed, where (file and key),
and what to do about it.
"""

from __future__ import annotations


class DPAError(Exception):
    """Base of all errors raised on purpose; its text is meant for the user as it is."""

    exit_code = 1


class ConfigError(DPAError):
    """A setting is missing, misspelt, of the wrong type or out of range."""

    exit_code = 2


class DataError(DPAError):
    """A data set cannot be read, is inconsistent or holds impossible values."""

    exit_code = 2


class ModelFileError(DPAError):
    """A model or checkpoint file is truncated, of an unknown version or does not fit."""

    exit_code = 2


class NumericalError(DPAError):
    """A computation produced a non-finite number; names the step and the frames."""
