"""`/v2/*`: the OCI distribution spec over HTTP."""
