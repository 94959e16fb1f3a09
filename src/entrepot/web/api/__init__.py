"""`/api/v1/*`: the platform API."""
