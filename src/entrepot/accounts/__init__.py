"""Accounts and their credentials, plans, tokens, API keys, usage and audit."""
