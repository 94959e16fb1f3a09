"""Who may do what, as pure rules: scopes, grants, plans, secrets, claims, decisions."""
