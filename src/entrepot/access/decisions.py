"""The decision whether this account, with this token, may do that."""

from entrepot.access.plans import Plan, TagLimits
from entrepot.access.scopes import Action, Scope
from entrepot.errors import NameInvalid, PlanDenied, ScopeInsufficient
from entrepot.oci.reference import RepositoryName, Tag


def verify_allowed(plan: Plan, scopes: tuple[Scope, ...] | None, repository: RepositoryName, action: Action) -> None:
    """Raises unless the plan grants the action, and the token, if it came with one, was issued for it.

    `scopes` None means that the request came with the credential itself. The plan is asked first: a new token would not
    help where it says no. Raises PlanDenied or ScopeInsufficient.
    """
    if not plan.allows(repository, action):
        raise PlanDenied(
            f"plan '{plan.name}' does not allow {action} on '{repository}'; ask your vendor for a plan that does"
        )
    if not _covers(scopes, repository, action):
        raise ScopeInsufficient(f"this token was not issued for {action} on '{repository}'; get a new one")


def verify_tag_allowed(plan: Plan, repository: RepositoryName, tag: Tag, action: Action) -> None:
    """Raises PlanDenied unless the plan, which allows the action on the repository, does so for this tag."""
    limits = plan.tag_limits(repository, action)
    if limits is not None and not limits.allow(tag.value):
        raise tags_denied(plan, repository, str(tag), limits)


def tags_denied(plan: Plan, repository: RepositoryName, what: str, limits: TagLimits) -> PlanDenied:
    """The refusal of a tag or digest that the plan's tags do not take in."""
    return PlanDenied(
        f"plan '{plan.name}' does not allow '{what}' of '{repository}', only these tags and what belongs to them: "
        f"{limits}; ask your vendor for a plan that does"
    )


def is_allowed(plan: Plan, scopes: tuple[Scope, ...] | None, repository: RepositoryName, action: Action) -> bool:
    """Whether `verify_allowed` would let it pass."""
    return plan.allows(repository, action) and _covers(scopes, repository, action)


def _covers(scopes: tuple[Scope, ...] | None, repository: RepositoryName, action: Action) -> bool:
    if scopes is None:
        return True
    for scope in scopes:
        if scope.name == repository.value and action in scope.actions and scope.type == "repository":
            return True
    return False


def grant_scopes(plan: Plan, wanted: tuple[Scope, ...]) -> tuple[Scope, ...]:
    """What of the wanted scopes a token of this plan is issued for; the rest is left out, as the token spec asks.

    `*` stands for every action. The catalog is open to every account, since it shows only what the plan allows.
    """
    granted = []
    for scope in wanted:
        if scope.type == "registry" and scope.name == "catalog":
            granted.append(scope)
            continue
        if scope.type != "repository":
            continue
        try:
            repository = RepositoryName.parse(scope.name)
        except NameInvalid:
            continue
        actions = frozenset(
            action.value
            for action in Action
            if (action in scope.actions or "*" in scope.actions) and plan.allows(repository, action)
        )
        if actions:
            granted.append(Scope(scope.type, scope.name, actions))
    return tuple(granted)
