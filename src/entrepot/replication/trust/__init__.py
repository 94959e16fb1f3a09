"""Signatures: judging what others signed, and signing what is published."""
