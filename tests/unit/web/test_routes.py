import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import EntrepotError, NameInvalid, PathUnknown, UploadUnknown
from entrepot.web.oci.routes import find_route

UPLOAD = "12345678-1234-1234-1234-123456789abc"


@pytest.mark.parametrize(
    ("path", "kind", "name", "item"),
    [
        ("/v2/a/manifests/v1", "manifest", "a", "v1"),
        ("/v2/a/b/manifests/v1", "manifest", "a/b", "v1"),
        ("/v2/a/blobs/sha256:0", "blob", "a", "sha256:0"),
        ("/v2/a/blobs/sha256%3a0", "blob", "a", "sha256:0"),
        ("/v2/a/tags/list", "tags", "a", "tags/list"),
        ("/v2/a/blobs/uploads/", "uploads", "a", "blobs/uploads/"),
        ("/v2/a/blobs/uploads", "uploads", "a", "blobs/uploads"),
        (f"/v2/a/blobs/uploads/{UPLOAD}", "upload", "a", UPLOAD),
        # Repositories may be called like the words of the paths.
        ("/v2/manifests/manifests/tags/list", "tags", "manifests/manifests", "tags/list"),
        ("/v2/blobs/uploads/blobs/uploads/", "uploads", "blobs/uploads", "blobs/uploads/"),
    ],
)
def test_finds_what_a_path_names(path: str, kind: str, name: str, item: str) -> None:
    route = find_route(path)
    assert (route.kind, str(route.name), route.item) == (kind, name, item)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        pytest.param("/v2/a/../b/manifests/v1", NameInvalid, id="parent in the name"),
        pytest.param("/v2/../manifests/v1", NameInvalid, id="parent as the name"),
        pytest.param("/v2/a%2fb/manifests/v1", NameInvalid, id="encoded slash"),
        pytest.param("/v2/a%252fb/manifests/v1", NameInvalid, id="slash encoded twice"),
        pytest.param("/v2/a\x00b/manifests/v1", NameInvalid, id="zero byte"),
        pytest.param("/v2/A/manifests/v1", NameInvalid, id="upper case"),
        pytest.param(f"/v2/{'a' * 600}/manifests/v1", NameInvalid, id="too long"),
        pytest.param("/v2/a", PathUnknown, id="nothing behind the name"),
        pytest.param("/v2//manifests/", PathUnknown, id="nothing at all"),
        pytest.param("/v2/a/manifests/", PathUnknown, id="no reference"),
        pytest.param("/v2/a/tags/list/", PathUnknown, id="slash behind"),
        pytest.param("/v2/a/blobs/uploads/../../secret", PathUnknown, id="parent behind uploads"),
        pytest.param("/v2/a/blobs/uploads/x", UploadUnknown, id="upload that is no id"),
    ],
)
def test_refuses_other_paths(path: str, error: type[EntrepotError]) -> None:
    with pytest.raises(error):
        find_route(path)


@given(st.text(max_size=600))
def test_strange_paths_never_fail_in_another_way(text: str) -> None:
    try:
        find_route(f"/v2/{text}")
    except EntrepotError:
        return
