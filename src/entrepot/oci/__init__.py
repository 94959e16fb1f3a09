"""The words of the OCI specifications, as pure and frozen values."""
