from entrepot.access.keys import Keys
from entrepot.accounts.sealing import seal, unseal

ONE, OTHER = (Keys.derive(secret * 32) for secret in (b"a", b"b"))


def test_what_was_sealed_opens_with_its_key_in_its_place_and_unchanged() -> None:
    sealed = seal(ONE.webhooks, b"secret", "platform")
    assert b"secret" not in sealed
    assert seal(ONE.webhooks, b"secret", "platform") != sealed
    assert unseal(ONE.sealing, sealed, "platform") == b"secret"
    assert unseal((OTHER.webhooks, ONE.webhooks), sealed, "platform") == b"secret"
    assert unseal(OTHER.sealing, sealed, "platform") is None
    assert unseal(ONE.sealing, sealed, "elsewhere") is None
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        assert unseal(ONE.sealing, changed, "platform") is None
    for length in range(len(sealed)):
        assert unseal(ONE.sealing, sealed[:length], "platform") is None
