import base64
import time

import pytest
import standardwebhooks

from entrepot.access.signatures import generate_key, show_key, sign


def test_the_specification_s_own_example() -> None:
    """The one that every library of Standard Webhooks is tested with."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_any_of_the_keys_verifies_it_and_no_other() -> None:
    new, old = generate_key(), generate_key()
    body = '{"type":"pull.first","data":{"name":"Zoë"}}'.encode()
    headers = sign([new, old], "evt_1", int(time.time()), body)
    for key in (new, old):
        receiver = standardwebhooks.Webhook(show_key(key).reveal())
        assert receiver.verify(body, headers)["type"] == "pull.first"
        for changed in (headers | {"webhook-id": "evt_2"}, headers | {"webhook-timestamp": str(int(time.time()) - 9)}):
            with pytest.raises(standardwebhooks.WebhookVerificationError):
                receiver.verify(body, changed)
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            receiver.verify(body + b" ", headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(show_key(generate_key()).reveal()).verify(body, headers)


def test_a_secret_has_the_form_of_the_specification() -> None:
    text = show_key(generate_key()).reveal()
    assert text.startswith("whsec_")
    assert 24 <= len(base64.b64decode(text.removeprefix("whsec_"))) <= 64
    assert str(show_key(generate_key())) == "***"
