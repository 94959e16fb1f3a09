"""Copying content from source registries: what to copy, how it is fetched, and the runs that do it."""
