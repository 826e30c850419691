"""Train ViCo (in the making)."""

from . import vico_streams  # noqa: F401

NODES = []
