"""What a customer is told when a request is refused, and that it is kept for the vendor to see."""

from urllib.parse import quote

from entrepot.accounts.authentication import WRONG_SECRET
from entrepot.accounts.usage import UsageCounter
from entrepot.errors import CredentialInvalid, EntrepotError
from entrepot.web.asgi import Scope

_ACCOUNT = "entrepot.account"


class Refusals:
    """Tells and counts. `help_url` is where customers find help; `{account}` and `{reason}` in it are filled in."""

    def __init__(self, usage: UsageCounter, help_url: str) -> None:
        self._usage = usage
        self._help_url = help_url

    @staticmethod
    def know(scope: Scope, account_id: int, account: str) -> None:
        """Note whose request it is, for a refusal that comes later."""
        scope[_ACCOUNT] = (account_id, account)

    def tell(self, scope: Scope, error: EntrepotError, repository: str = "") -> str:
        """What the sender is told; an account that is refused something for a reason of its own has it counted."""
        if not error.reason:
            return str(error)
        account = error.account if isinstance(error, CredentialInvalid) else scope.get(_ACCOUNT)
        if account is None:
            return self._with_help(str(error), "", error.reason)
        account_id, name = account
        self._usage.count_refusal(account_id, name, error.reason, repository, str(error))
        # Who has not proven the secret is not told whether there is such an account.
        return self._with_help(str(error), "" if error.reason == WRONG_SECRET else name, error.reason)

    def _with_help(self, message: str, account: str, reason: str) -> str:
        if not self._help_url:
            return message
        url = self._help_url.replace("{account}", quote(account)).replace("{reason}", quote(reason))
        return f"{message}; help: {url}"
