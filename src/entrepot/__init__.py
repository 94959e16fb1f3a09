"""Entrepot: distribute a vendor's private OCI artifacts under per-customer credentials."""

from importlib.metadata import version

__version__ = version("entrepot")
