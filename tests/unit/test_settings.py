import os
from pathlib import Path

import pytest

from entrepot.errors import SettingsInvalid
from entrepot.settings import CONFIG_VARIABLE, load_settings, setting_fields

KEY = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ENTREPOT_"):
            monkeypatch.delenv(name)
    # `load_settings` remembers the file for the processes that it starts.
    monkeypatch.setenv(CONFIG_VARIABLE, "x")
    monkeypatch.delenv(CONFIG_VARIABLE)


def test_the_defaults_need_nothing() -> None:
    settings = load_settings()
    assert settings.effective_public_url == "http://127.0.0.1:8080"
    assert settings.registry_host == "127.0.0.1:8080"
    assert str(settings.effective_database_url) == f"sqlite:///{Path.cwd()}/entrepot-data/entrepot.db"
    assert settings.effective_storage_url == f"file://{Path.cwd()}/entrepot-data/blobs"


def test_the_first_that_speaks_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "entrepot.toml"
    config.write_text('port = 1111\nhost = "0.0.0.0"\nworkers = 3\n[log]\nlevel = "debug"\n')
    monkeypatch.setenv("ENTREPOT_PORT", "2222")
    monkeypatch.setenv("ENTREPOT_HOST", "::1")
    settings = load_settings(config, port=3333)
    assert (settings.port, settings.host, settings.workers, settings.log.level) == (3333, "::1", 3, "debug")
    assert settings.effective_public_url == "http://[::1]:3333"


def test_nested_settings_come_from_environment_and_file_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "entrepot.toml"
    config.write_text("[limits]\nblob_bytes = 5\nstall_seconds = 7\n")
    monkeypatch.setenv("ENTREPOT_LIMITS__BLOB_BYTES", "6")
    settings = load_settings(config)
    assert (settings.limits.blob_bytes, settings.limits.stall_seconds) == (6, 7)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ENTREPOT_PROT", "1", "ENTREPOT_PROT is not a setting"),
        ("ENTREPOT_LOG__LEVLE", "debug", "ENTREPOT_LOG__LEVLE is not a setting"),
        ("ENTREPOT_PORT", "http", "ENTREPOT_PORT: "),
        ("ENTREPOT_PORT", "70000", "ENTREPOT_PORT: "),
        ("ENTREPOT_WORKERS", "0", "ENTREPOT_WORKERS: "),
        ("ENTREPOT_LOG__LEVEL", "loud", "ENTREPOT_LOG__LEVEL: "),
        ("ENTREPOT_PUBLIC_URL", "registry.example.com", "ENTREPOT_PUBLIC_URL: use http"),
        ("ENTREPOT_PUBLIC_URL", "https://example.com/registry", "ENTREPOT_PUBLIC_URL: use http"),
        ("ENTREPOT_SECRET_KEY", "short", "ENTREPOT_SECRET_KEY: use at least 32"),
        ("ENTREPOT_SECRET_KEY_FILE", "/none", "ENTREPOT_SECRET_KEY_FILE: "),
        ("ENTREPOT_LOG", "{}", "ENTREPOT_LOG is not a setting"),
        ("ENTREPOT_TRUSTED_PROXIES", "10.0.0.1/8", "ENTREPOT_TRUSTED_PROXIES"),
        ("ENTREPOT_TRUSTED_PROXIES", "[10", "ENTREPOT_TRUSTED_PROXIES"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as refusal:
        load_settings()
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("prot = 1\n", "ENTREPOT_PROT: is not a setting"),
        ("port = \n", "entrepot.toml"),
        ("[log]\nlevle = 1\n", "ENTREPOT_LOG__LEVLE: is not a setting"),
        ("\xff", "entrepot.toml"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, problem: str) -> None:
    config = tmp_path / "entrepot.toml"
    config.write_text(content, encoding="latin-1")
    with pytest.raises(SettingsInvalid) as refusal:
        load_settings(config)
    assert problem in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="No such file"):
        load_settings(tmp_path / "none.toml")


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    monkeypatch.setenv("ENTREPOT_SECRET_KEY_FILE", str(path))
    assert load_settings().secret_key.get_secret_value() == KEY
    monkeypatch.setenv("ENTREPOT_SECRET_KEY", KEY)
    with pytest.raises(SettingsInvalid, match="both set; keep one"):
        load_settings()


def test_an_empty_secret_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    monkeypatch.setenv("ENTREPOT_SECRET_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(SettingsInvalid, match="is empty"):
        load_settings()


def test_what_kubernetes_says_of_a_service_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ENTREPOT_SERVICE_HOST": "10.0.0.1",
        "ENTREPOT_SERVICE_PORT": "80",
        "ENTREPOT_SERVICE_PORT_HTTP": "80",
        "ENTREPOT_PORT": "tcp://10.0.0.1:80",
        "ENTREPOT_PORT_80_TCP": "tcp://10.0.0.1:80",
        "ENTREPOT_PORT_80_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings().port == 8080


def test_lists_come_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTREPOT_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8")
    monkeypatch.setenv("ENTREPOT_REPOSITORIES__IMMUTABLE_TAGS", '["smm/**:v*"]')
    monkeypatch.setenv("ENTREPOT_REPOSITORIES__QUOTAS", '{"sandbox/**": "20GB"}')
    settings = load_settings()
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "fd00::/8"]
    assert settings.repositories.immutable_tags == ("smm/**:v*",)
    assert settings.repositories.quotas == {"sandbox/**": "20GB"}


def test_no_error_and_no_printing_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTREPOT_SECRET_KEY", "too-short-secret")
    with pytest.raises(SettingsInvalid) as refusal:
        load_settings()
    assert "too-short-secret" not in str(refusal.value)
    monkeypatch.setenv("ENTREPOT_SECRET_KEY", KEY)
    assert KEY not in repr(load_settings())


def test_every_setting_has_a_name_of_its_own() -> None:
    names = [name for name, _ in setting_fields()]
    assert len(names) == len(set(names))
    assert all(name.startswith("ENTREPOT_") for name in names)
