"""The registry: push, pull, tags and deletion of OCI content."""
