"""`/token`: the docker token spec over HTTP."""
