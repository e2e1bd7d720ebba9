"""The block `publish` of the pipeline YAML: which models go where for others to use."""

from __future__ import annotations

import re

import pydantic
from pydantic import Field

from dpa_core.config import Config
from dpa_core.errors import ConfigError
from ops.storage.urls import parse_target

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Publish(Config):
    """Publish models when all is done; who reads sees the old version or the new, never half."""

    to: str
    """Where: s3://bucket/models/NAME. Earlier versions stay below it."""
    models: dict[str, str] = Field(default_factory=dict)
    """File name -> step whose model it is, the first is the one that users of the URL get. Left
    out: the final models of concurrent learning, else of every target that finetuned on most
    frames, else the pretrained ones."""

    @pydantic.field_validator("to")
    @classmethod
    def _writable(cls, value: str) -> str:
        try:
            place = parse_target(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if not place.key:
            raise ValueError(f"{value}: name a folder of the bucket, s3://bucket/models/NAME")
        return str(place)

    @pydantic.field_validator("models")
    @classmethod
    def _file_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no file name; allowed are letters, digits, - and _")
        return value
