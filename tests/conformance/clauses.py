"""Where each of these tests comes from."""

import pytest


def clause(section: str, sentence: str) -> pytest.MarkDecorator:
    """The section and the sentence, in short, that a test holds the registry to.

    Sections are distribution-spec 1.1's, unless they name another source.
    """
    return pytest.mark.clause(section, sentence)
