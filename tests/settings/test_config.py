"""The config file: what it means, what is refused and in which words, and that the example cannot rot."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from datetime import UTC, date, datetime, time, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from archiver.errors import ConfigError
from archiver.proof import layout
from archiver.settings import config as configuration
from archiver.settings import loaded
from archiver.settings import tables as settings_tables
from archiver.settings.config import Changes, Config, diff, find, kinds, load, warnings
from archiver.settings.options import SourceOptions, StoreOptions

EXAMPLE = Path(__file__).parents[2] / "config" / "archiver.toml"
STORE = '[stores.disk]\nkind = "file"\npath = "calls"\n'
SOURCE = '[sources.hq]\nkind = "chronicall"\nbase_url = "http://10.0.0.1:9080"\n'
TOKEN = 'token = "hunter2-token"\n'
VALID = STORE + SOURCE + TOKEN


@pytest.fixture
def write(tmp_path, monkeypatch):
    for name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "ARCHIVER_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def write(text: str | bytes) -> Path:
        path = tmp_path / "archiver.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o600)
        return path

    return write


@pytest.fixture
def problems(write):
    def problems(text: str | bytes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(write(text))
        lines = str(caught.value).split("\n")
        assert lines == caught.value.problems
        assert all(line.startswith("archiver.toml: ") for line in lines)
        return [line.removeprefix("archiver.toml: ") for line in lines]

    return problems


# -- what it means ---------------------------------------------------------------------------------------------------


def test_a_small_config_has_the_documented_defaults(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load(write(VALID))
    assert config.data_dir == Path("/home/someone/.local/share/archiver")
    assert (config.transfers, config.memory, config.log_level) == (32, 256 << 20, "info")
    assert config.database_url.get_secret_value() == "embedded"
    assert config.http_listen == ("127.0.0.1", 8410)
    assert config.heartbeat_url is None
    assert config.sources["hq"].stores == ("disk",)
    assert config.sources["hq"].options.timeout == timedelta(seconds=60)
    assert config.stores["disk"].options.path == tmp_path / "calls"
    assert config.secrets == {"hunter2-token"}


def test_everything_can_be_set(write, tmp_path):
    config = load(write(f'''
        data_dir = "var"
        transfers = 4
        memory = "1GiB"
        log_level = "debug"
        heartbeat_url = "https://hc.example.com/ping/0000-uuid"
        database.url = "postgresql://archiver:p%40ss-word@db.example.com/archiver"
        http.listen = "[::1]:0"
        {VALID}
        start = 2024-01-01
        ca_file = "tls/pbx.pem"
        stores = ["disk"]
        [stores.other]
        kind = "file"
        path = "/srv/calls"
    '''))  # fmt: skip
    assert config.data_dir == tmp_path / "var"
    assert (config.transfers, config.memory, config.log_level) == (4, 1 << 30, "debug")
    assert config.http_listen == ("::1", 0)
    assert config.heartbeat_url.get_secret_value().endswith("uuid")
    assert config.sources["hq"].options.ca_file == tmp_path / "tls" / "pbx.pem"
    assert config.sources["hq"].options.start == datetime(2024, 1, 1, tzinfo=UTC)
    assert config.sources["hq"].stores == ("disk",)
    assert config.stores["other"].options.path == Path("/srv/calls")
    assert {"p%40ss-word", "p@ss-word", "hunter2-token", config.database_url.get_secret_value()} < config.secrets


def test_a_config_shows_no_secret_of_its_own(write):
    config = load(write('database.url = "postgresql://a:hunter2@b/c"\n' + VALID))
    assert "hunter2" not in repr(config)


def test_paths_start_at_the_files_folder_wherever_the_process_is(write, tmp_path, monkeypatch):
    path = write(VALID)
    monkeypatch.chdir(tmp_path.parent)
    config = load(path.relative_to(tmp_path.parent))
    assert config.stores["disk"].options.path == tmp_path / "calls"
    assert config.path == path


def test_systemd_tells_where_the_state_goes(write, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/archiver:/var/lib/other")
    assert load(write(VALID)).data_dir == Path("/var/lib/archiver")


def test_a_source_gets_every_store_unless_it_names_some(write):
    second = STORE.replace("disk", "second")
    config = load(write(second + STORE + SOURCE + TOKEN + SOURCE.replace("hq", "b") + TOKEN + 'stores = ["disk"]\n'))
    assert config.sources["hq"].stores == ("second", "disk")
    assert config.sources["b"].stores == ("disk",)


def test_any_string_may_come_from_elsewhere_and_is_then_a_secret(write, tmp_path, monkeypatch):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "db").write_text("postgresql://archiver:from-credential@db/archiver\n")
    (tmp_path / "token").write_text("from-file\n\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("ARCHIVER_TEST_URL", "http://from-env:80")
    monkeypatch.setenv("ARCHIVER_TEST_STORE", "disk")
    config = load(write(
        STORE + '[database]\nurl = { credential = "db" }\n[sources.hq]\nkind = "chronicall"\n'
        'token = { file = "token" }\nbase_url = { env = "ARCHIVER_TEST_URL" }\n'
        'stores = [{ env = "ARCHIVER_TEST_STORE" }]\n'
    ))  # fmt: skip
    options = config.sources["hq"].options
    assert config.database_url.get_secret_value() == "postgresql://archiver:from-credential@db/archiver"
    assert options.token.get_secret_value() == "from-file\n"
    assert options.base_url == "http://from-env:80"
    assert config.sources["hq"].stores == ("disk",)
    assert {"from-file\n", "http://from-env:80", "disk", "from-credential"} < config.secrets
    assert config.literal_secrets == frozenset()


def test_every_secret_field_is_known_for_redaction_even_in_the_file_itself(write):
    config = load(write(
        '[stores.s3]\nkind = "s3"\nbucket = "calls"\naccess_key_id = "AKIA-literal"\nsecret_access_key = "sk-literal"\n'
        + SOURCE + TOKEN
    ))  # fmt: skip
    assert config.secrets == {"AKIA-literal", "sk-literal", "hunter2-token"}
    assert config.literal_secrets == {"sources.hq.token", "stores.s3.access_key_id", "stores.s3.secret_access_key"}


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_editors_of_every_system_will_do(write, start, end):
    assert load(write(start + VALID.encode().replace(b"\n", end))).sources


# -- which file ------------------------------------------------------------------------------------------------------


def test_the_first_of_option_variable_and_working_directory_is_taken(write, tmp_path, monkeypatch):
    here, other, third = write(VALID), tmp_path / "other.toml", tmp_path / "third.toml"
    other.write_text(VALID)
    third.write_text(VALID)
    monkeypatch.chdir(tmp_path)
    assert find().absolute() == here
    monkeypatch.setenv("ARCHIVER_CONFIG", str(other))
    assert find() == other
    assert find(str(third)) == third


def test_a_working_directory_that_may_not_be_looked_into_is_passed_over(write, tmp_path, monkeypatch):
    (closed := tmp_path / "closed").mkdir()
    usual = write(VALID)
    monkeypatch.delenv("ARCHIVER_CONFIG", raising=False)
    monkeypatch.chdir(closed)
    is_file = Path.is_file

    def refuse(path):
        # Root may look everywhere.
        if not path.is_absolute() or path.parent == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr(configuration, "_PLACES", ("archiver.toml", str(usual)))
    assert find() == usual
    monkeypatch.setattr(configuration, "_PLACES", ("archiver.toml", str(closed / "archiver.toml")))
    with pytest.raises(ConfigError, match="you may not look there; run as root or as the service's user"):
        find()


def test_without_any_file_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("ARCHIVER_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configuration, "_PLACES", ("archiver.toml",))
    with pytest.raises(
        ConfigError,
        match=r"^there is no config file \(archiver\.toml\): `archiver init` writes one; --config names another$",
    ):
        find()
    with pytest.raises(
        ConfigError, match=r"^--config: there is no file nowhere\.toml; `archiver init` writes a first config$"
    ):
        find("nowhere.toml")
    monkeypatch.setenv("ARCHIVER_CONFIG", "nowhere.toml")
    with pytest.raises(
        ConfigError, match=r"^\$ARCHIVER_CONFIG: there is no file nowhere\.toml; `archiver init` writes a first config$"
    ):
        find()


# -- what is refused, in which words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (VALID + 'tokne = "x"\n', 'sources.hq.tokne: unknown key; did you mean "token"?'),
        (VALID + 'Timeout = "x"\n', 'sources.hq.Timeout: unknown key; did you mean "timeout"?'),
        (VALID + "retry = { frist = 1 }\n", 'sources.hq.retry.frist: unknown key; did you mean "first"?'),
        ("tranfsers = 3\n" + VALID, 'tranfsers: unknown key; did you mean "transfers"?'),
        ("http.lisen = 3\n" + VALID, 'http.lisen: unknown key; did you mean "listen"?'),
        ("[store.x]\n" + VALID, 'store: unknown key; did you mean "stores"?'),
        (VALID + '"a b\\n" = 1\n', 'sources.hq."a b\\n": unknown key; the nearest known one is "enabled"'),
        (VALID.replace('"chronicall"', '"chronical"'), "sources.hq.kind: is not known; known are chronicall, imagicle"),
        (VALID.replace('"file"', '"fiel"'), "stores.disk.kind: is not known; known are file, webdav, s3"),
        (VALID.replace('"file"', "3"), "stores.disk.kind: must be text; known are "),
        (VALID.replace('kind = "file"\n', ""), "stores.disk.kind: is missing; known are "),
        (STORE + SOURCE, "sources.hq.token: is missing"),
        (VALID.replace('"chronicall"', '"xivo"'), "sources.hq.timezone: is missing: the times of this API"),
        (VALID + 'stores = ["dsik"]\n', 'sources.hq.stores: there is no store dsik; did you mean "disk"?'),
        (VALID + 'stores = ["elsewhere"]\n', "sources.hq.stores: there is no store elsewhere"),
        (VALID + "stores = []\n", "sources.hq.stores: is empty"),
        (VALID + 'stores = ["disk", "disk"]\n', "sources.hq.stores: names a store twice"),
        (VALID + 'stores = "disk"\n', "sources.hq.stores: must be a list"),
        (VALID + "stores = [3]\n", "sources.hq.stores.0: must be text"),
        (VALID + 'poll = "61 * * * *"\n', "sources.hq.poll: is no cron expression; write it like"),
        (VALID + 'poll = "often"\n', "sources.hq.poll: is not a duration; write it like"),
        (VALID + "timeout = 60\n", "sources.hq.timeout: is not a duration; write it like"),
        (VALID + 'timeout = "0s"\n', "sources.hq.timeout: must be longer than nothing"),
        (VALID + 'retry = { first = "1h", cap = "1m" }\n', "sources.hq.retry.cap: must not be shorter than"),
        (VALID + 'retry.give_up_after = "1s"\n', "sources.hq.retry.give_up_after: must not be shorter than"),
        (VALID + "retry = 3\n", "sources.hq.retry: must be a table"),
        (VALID + "start = 1024-01-01\n", "sources.hq.start: lies before 1990"),
        (VALID + "start = 08:00:00\n", "sources.hq.start: is no date; write it like 2024-01-31"),
        (VALID + 'concurrency = "lots"\n', "sources.hq.concurrency: must be a whole number"),
        (VALID + "concurrency = 1.5\n", "sources.hq.concurrency: must be a whole number"),
        (VALID + "concurrency = 0\n", "sources.hq.concurrency: must be at least 1"),
        (VALID + "concurrency = 5000\n", "sources.hq.concurrency: must be at most 1000"),
        (VALID + 'enabled = "perhaps"\n', "sources.hq.enabled: must be true or false"),
        (VALID + 'format = "mp3"\n', 'sources.hq.format: must be "spx" or "wav"'),
        (VALID + "ca_file = 3\n", "sources.hq.ca_file: must be a path"),
        (VALID + 'ca_file = "a\\u0000b"\n', "sources.hq.ca_file: holds a NUL character"),
        (VALID.replace(TOKEN, "token = 3\n"), "sources.hq.token: must be text"),
        (VALID.replace("[sources.hq]", '[sources."h q"]'), 'sources."h q": is no name'),
        *(
            (VALID.replace("[sources.hq]", f"[sources.{name}]"), f"sources.{name}: is a reserved name")
            for name in (folder.rstrip("/") for folder in layout.OURS)
        ),
        (VALID.replace("[stores.disk]", '[stores."a/b"]'), 'stores."a/b": is no name'),
        (VALID.replace("[stores.disk]", f"[stores.{'x' * 65}]"), f'stores."{"x" * 64}": is no name'),
        (STORE, "there is no source: add a section [sources.NAME]"),
        (STORE + "[sources]\n", "there is no source: add a section [sources.NAME]"),
        (SOURCE + TOKEN, "there is no store: add a section [stores.NAME]"),
        ("sources = 3\n" + STORE, "sources: must be a table; write a section [sources.NAME]"),
        ("sources.hq = 3\n" + STORE, "sources.hq: must be a table; write a section [sources.hq]"),
        ("database = 3\n" + VALID, "database: must be a table"),
        ("http = []\n" + VALID, "http: must be a table"),
        ('memory = "lots"\n' + VALID, "memory: is not a size; write it like"),
        ("memory = 1\n" + VALID, "memory: must be at least 1048576"),
        ("transfers = 0\n" + VALID, "transfers: must be at least 1"),
        ("transfers = inf\n" + VALID, "transfers: must be a finite number"),
        ('log_level = "loud"\n' + VALID, 'log_level: must be "debug", "info", "warning" or "error"'),
        ('heartbeat_url = "hc"\n' + VALID, "heartbeat_url: is no URL"),
        ('http.listen = "8410"\n' + VALID, 'http.listen: is no address; write it like "127.0.0.1:8410"'),
        ('http.listen = "a:99999"\n' + VALID, "http.listen: is no address"),
        ('database.url = "mysql://a:hunter2@b/c"\n' + VALID, 'database.url: is neither "embedded" nor like'),
        ('data_dir = { env = "ARCHIVER_NOT_SET" }\n' + VALID, "environment variable ARCHIVER_NOT_SET is not set"),
        (STORE + SOURCE + 'token = { env = "ARCHIVER_NOT_SET" }\n',
         "sources.hq.token: environment variable ARCHIVER_NOT_SET is not set"),
        (STORE + SOURCE + 'token = { env = "" }\n', "sources.hq.token: names no env"),
        (STORE + SOURCE + 'token = { env = 3 }\n', "sources.hq.token: must be text"),
        (STORE + SOURCE + 'token = { file = "none" }\n',
         "sources.hq.token: file none can't be read: No such file or directory"),
        (STORE + SOURCE + 'token = { file = "." }\n', "sources.hq.token: file . can't be read: Is a directory"),
        (STORE + SOURCE + 'token = { credential = "pbx" }\n',
         "sources.hq.token: no credential pbx: $CREDENTIALS_DIRECTORY is not set"),
        (VALID.replace('"chronicall"', '{ env = "ARCHIVER_NOT_SET" }'), "sources.hq.kind: environment variable"),
        ("x = \n", "line 1: is no TOML: invalid value"),
        ('a = 1\nb = "unfinished\n', "line 2: is no TOML: "),
        ("a = 1\na = 2\n", "line 2: is no TOML: cannot overwrite a value"),
        ("a = 2024-02-30\n", "is no TOML: "),
        (b"a = 1\nb = '\xff'\n", "line 2: is not UTF-8"),
        (b"\x00", "line 1: is no TOML: "),
        ("a = " + "9" * 5000 + "\n", "is no TOML: "),
        ("a = " + "[" * 100_000, "is nested too deeply"),
        (VALID + "retry.first." + "a." * 5000 + "b = 1\n", "is nested too deeply"),
        (b"#" * (5 << 20), "is too large for a config file"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_plain_line(problems, text, problem):
    lines = problems(text)
    assert any(problem in line for line in lines), lines
    assert not any("hunter2" in line or "pydantic" in line or "Error" in line for line in lines)
    if "missing" not in problem:
        assert len(lines) == 1, lines


def test_every_problem_is_told_at_once(problems):
    assert problems("""
        transfers = "many"
        [stores.main]
        kind = "s3"
        access_key_id = { env = "ARCHIVER_NOT_SET" }
        prefx = "a"
        [stores.dav]
        kind = "webdaf"
        [sources.hq]
        kind = "chronicall"
        base_url = "ftp://x"
        token = "hunter2-token"
        stores = ["mian"]
        [sources.sydney]
        kind = "noojee"
        base_url = "http://noojee"
        api_key = "hunter2-key"
        timezone = "Mars/Olympus"
        ids_from = "hqq"
        timeout = "soon"
    """) == [
        "transfers: must be a whole number",
        "stores.main.access_key_id: environment variable ARCHIVER_NOT_SET is not set; set it where archiver runs",
        "stores.main.bucket: is missing; add it",
        'stores.main.prefx: unknown key; did you mean "prefix"?',
        "stores.dav.kind: is not known; known are webdav, file, s3",
        'sources.hq.base_url: is no base URL; write it like "http://10.0.0.101:9080", without user, query or fragment',
        'sources.sydney.timezone: is no IANA time zone; write it like "Europe/Paris"',
        'sources.sydney.timeout: is not a duration; write it like "90s", "5m", "1h" or "7d"',
        'sources.hq.stores: there is no store mian; did you mean "main"?',
        'sources.sydney.ids_from: there is no other source hqq; did you mean "hq"?',
    ]


def test_what_can_not_be_resolved_spoils_no_other_rule(problems):
    """S3's keys come in pairs; that one of them is not set is one problem, not two."""
    text = (
        '[stores.s3]\nkind = "s3"\nbucket = "calls"\naccess_key_id = "x"\nsecret_access_key = { env = "NOT_SET_9" }\n'
    )
    (problem,) = problems(text + SOURCE + TOKEN)
    assert problem.startswith("stores.s3.secret_access_key: environment variable NOT_SET_9 is not set; ")


def test_an_empty_variable_or_file_is_a_problem(problems, tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHIVER_EMPTY", "")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    assert problems(
        f'data_dir = {{ env = "ARCHIVER_EMPTY" }}\nlog_level = {{ file = "binary" }}\n{STORE}{SOURCE}'
        'token = { file = "empty" }\n'
    ) == [
        "data_dir: environment variable ARCHIVER_EMPTY is empty",
        "log_level: file binary can't be read: is not UTF-8",
        "sources.hq.token: file empty is empty",
    ]  # fmt: skip


def test_a_credential_stays_in_its_folder(problems, tmp_path, monkeypatch):
    (tmp_path / "outside").write_text("hunter2")
    (tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert problems(STORE + SOURCE + 'token = { credential = "../outside" }\n') == [
        "sources.hq.token: ../outside is no credential's name"
    ]


def test_a_file_that_can_not_be_read_is_one_line(tmp_path):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none.toml", "No such file or directory")):
        with pytest.raises(ConfigError, match=rf"^{path.name}: can't be read: {why}$"):
            load(path)


# -- fuzz ------------------------------------------------------------------------------------------------------------


def toml(value: object) -> str:
    """The value as inline TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{toml(key)}={toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)


words = st.sampled_from([
    "", "embedded", "file", "s3", "webdav", "chronicall", "xivo", "noojee", "imagicle", "genesys", "http://a", "5m",
    "0s", "1/s", "* * * * *", "64MiB", "Europe/Paris", "hq", "disk", "../x", "\0", "postgresql://a:b@c/d", "http://[",
])  # fmt: skip
texts = words | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
keys = (
    st.sampled_from([
        "stores", "sources", "database", "http", "url", "listen", "hq", "disk", "env", "credential", "transfers",
        "memory", "data_dir", "heartbeat_url", *SourceOptions.model_fields, *StoreOptions.model_fields, "token",
        "path", "bucket", "api_key", "username", "password", "ids_from", "first", "cap", "object_lock",
    ])
    | texts
)  # fmt: skip
values = st.recursive(
    texts | st.booleans() | st.integers() | st.floats() | st.dates() | st.datetimes() | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
options = st.dictionaries(keys, values, max_size=6)
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


def loads_or_tells(path: Path) -> None:
    try:
        assert isinstance(load(path), Config)
    except ConfigError as error:
        told = error.problems
    else:
        return
    assert told
    assert all(problem.startswith("archiver.toml: ") and problem.isprintable() for problem in told)


@FUZZ
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"sources.hq.x = [" + b"[" * 5000)
@example(b"x." * 3000 + b"y = 1")
def test_any_bytes_are_a_config_or_a_config_error(write, data):
    loads_or_tells(write(data))


@FUZZ
@given(
    top=options,
    kind=st.sampled_from(["chronicall", "xivo", "noojee", "imagicle", "genesys"]) | values,
    source=options,
    store=options,
)
@example(top={}, kind="chronicall", source={"start": datetime(1, 1, 1), "token": "x"}, store={})  # noqa: DTZ001
def test_any_values_are_a_config_or_a_config_error(write, top, kind, source, store):
    whole = {
        "stores": {"disk": {"kind": "file", "path": "x", **store}},
        "sources": {"hq": {"base_url": "http://a", **source, "kind": kind}},
        **top,
    }
    loads_or_tells(write("\n".join(f"{toml(key)} = {toml(value)}" for key, value in whole.items())))


@FUZZ
@given(source=options, kind=st.sampled_from(["chronicall", "xivo", "noojee", "imagicle"]))
def test_no_message_holds_a_secret(write, source, kind):
    secret = "s3cr3t-hunter2"
    secrets = {"token": secret, "password": secret, "api_key": secret}
    whole = {"stores": {"disk": 3}, "sources": {"hq": {**source, **secrets, "kind": kind}}}
    with pytest.raises(ConfigError) as caught:
        load(write("\n".join(f"{toml(key)} = {toml(value)}" for key, value in whole.items())))
    assert secret not in str(caught.value)


# -- kinds -----------------------------------------------------------------------------------------------------------


class Talkative(SourceOptions):
    """A third party's, careless with secrets and exceptions."""

    token: SecretStr
    mood: str = "calm"

    def model_post_init(self, _context: object) -> None:
        if self.mood == "angry":
            raise RuntimeError(self.token.get_secret_value())
        if self.mood == "chatty":
            raise ValueError(f"does not like\n{self.token.get_secret_value()}")


class ThirdParty:
    Options = Talkative


class Wrong:
    Options = dict


@pytest.fixture
def third_party(monkeypatch):
    monkeypatch.setitem(sys.modules, "third_party_kinds", sys.modules[__name__])
    ours = loaded.entry_points

    def entry_points(group: str) -> list[EntryPoint]:
        names = {"third": "ThirdParty", "wrong": "Wrong", "absent": "Absent"}
        theirs = [EntryPoint(name, f"third_party_kinds:{cls}", group) for name, cls in names.items()]
        return [*ours(group=group), *theirs, EntryPoint("broken", "no.such.module:X", group)]

    monkeypatch.setattr(loaded, "entry_points", entry_points)


def test_however_many_sources_there_are_the_installed_kinds_are_looked_up_once(write, monkeypatch):
    asked = []
    ours = loaded.entry_points
    monkeypatch.setattr(loaded, "entry_points", lambda group: asked.append(group) or ours(group=group))
    more = "".join(SOURCE.replace("sources.hq", f"sources.s{n}") + TOKEN for n in range(50))
    assert len(load(write(VALID + more)).sources) == 51
    assert sorted(asked) == ["archiver.sources", "archiver.stores"]


def test_the_five_sources_and_three_stores_are_found():
    assert kinds("archiver.sources").keys() >= {"chronicall", "xivo", "imagicle", "noojee", "genesys"}
    assert kinds("archiver.stores").keys() >= {"file", "s3", "webdav"}


def test_a_third_partys_kind_works_like_ours(third_party, write):
    config = load(write(STORE + SOURCE.replace("chronicall", "third") + TOKEN))
    assert config.sources["hq"].cls is ThirdParty
    assert config.secrets == {"hunter2-token"}


@pytest.mark.parametrize(
    ("kind", "more", "problem"),
    [
        ("broken", "", "sources.hq.kind: broken can't be loaded: ModuleNotFoundError"),
        ("absent", "", "sources.hq.kind: absent can't be loaded: AttributeError"),
        ("wrong", "", "sources.hq.kind: wrong can't be loaded: TypeError: its Options are no SourceOptions"),
        ("third", 'mood = "angry"\n', "sources.hq: can't be used (RuntimeError)"),
        ("third", 'mood = "chatty"\n', "sources.hq: does not like ***"),
    ],
)
def test_a_third_partys_mistake_is_a_problem_without_secrets(third_party, problems, kind, more, problem):
    (line,) = problems(STORE + SOURCE.replace("chronicall", kind) + TOKEN + more)
    assert line.startswith(problem)
    assert "hunter2" not in line


# -- reload and warnings ---------------------------------------------------------------------------------------------


def test_a_reload_names_what_was_added_removed_and_changed(write):
    second = SOURCE.replace("hq", "b") + TOKEN
    old = load(write(VALID + second))
    assert diff(old, load(write(VALID + second))) == Changes()
    assert not diff(old, old)
    # The defaults, spelt out, change nothing.
    assert not diff(old, load(write('transfers = 32\nlog_level = "info"\n' + VALID + 'poll = "5m"\n' + second)))
    new = load(
        write(
            'transfers = 3\nreserve = "1GiB"\n'
            + VALID.replace("hunter2", "hunter3")
            + SOURCE.replace("hq", "c")
            + TOKEN
        )
    )
    assert diff(old, new) == Changes(
        sources_added=("c",), sources_removed=("b",), sources_changed=("hq",), settings_changed=("transfers", "reserve")
    )


def test_a_new_store_changes_the_sources_that_go_to_every_store(write):
    named = SOURCE.replace("hq", "named") + TOKEN + 'stores = ["disk"]\n'
    old = load(write(VALID + named))
    new = load(write(VALID + named + STORE.replace("disk", "second")))
    assert diff(old, new) == Changes(stores_added=("second",), sources_changed=("hq",))
    assert diff(new, old) == Changes(stores_removed=("second",), sources_changed=("hq",))
    moved = load(write((VALID + named).replace('"calls"', '"moved"')))
    assert diff(old, moved) == Changes(stores_changed=("disk",))


def test_a_readable_file_with_secrets_in_it_is_warned_of(write, monkeypatch):
    config = load(write(VALID))
    assert warnings(config) == []
    config.path.chmod(0o644)
    (line,) = warnings(config)
    assert line.startswith("archiver.toml: others may read it, and it holds secrets (such as sources.hq.token): chmod")
    monkeypatch.setenv("ARCHIVER_TOKEN", "hunter2")
    config = load(write(STORE + SOURCE + 'token = { env = "ARCHIVER_TOKEN" }\n'))
    config.path.chmod(0o644)
    assert warnings(config) == []


def test_what_works_but_should_not_stay_so_is_warned_of(write):
    config = load(write(
        VALID.replace("10.0.0.1", "pbx.example.com") + "verify_tls = false\nstart = 2999-01-01\nenabled = false\n"
        + STORE.replace("disk", "again")
    ))  # fmt: skip
    said = warnings(config)
    assert [line.split(":")[1].split(" is ")[0].split(" lies ")[0].strip() for line in said] == [
        "sources.hq.verify_tls", "stores.disk and stores.again are the same place", "sources.hq.start",
        "no source",
    ]  # fmt: skip


def test_a_source_that_is_not_to_be_erased_needs_stores_that_lock(write):
    (said,) = warnings(load(write(VALID + 'policy = "worm"\n')))
    assert 'sources.hq.policy is "worm", and disk locks nothing' in said
    locking = STORE.replace('kind = "file"', 'kind = "s3"').split("path")[0] + (
        'bucket = "calls"\nobject_lock = { mode = "COMPLIANCE", days = 9 }\n\n'
    )
    assert warnings(load(write(VALID.replace(STORE, locking) + 'policy = "worm"\n'))) == []


# -- the example -----------------------------------------------------------------------------------------------------

#: The options whose value in the example is no default, since that depends on others: shown there is the usual one.
EXAMPLES = {"prefix", "time_format", "list_path", "audio_path"}


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^#(?=\[|[a-z_0-9]+ = )", "", text)


@pytest.fixture
def example_folder(write, tmp_path, monkeypatch):
    text = EXAMPLE.read_text()
    for name in re.findall(r'\{ env = "(\w+)" \}', text):
        monkeypatch.setenv(name, f"value-of-{name}")
    for name in re.findall(r'\{ (?:file|credential) = "([\w./-]+)" \}', text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("from a file\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path


def test_the_example_loads_as_it_is(example_folder, write):
    config = load(write(EXAMPLE.read_bytes()))
    assert list(config.stores) == ["disk"]
    assert list(config.sources) == ["hq"]
    assert warnings(config) == []


def test_the_example_loads_with_everything_turned_on(example_folder, write):
    config = load(write(uncommented(EXAMPLE.read_text())))
    assert {source.options.kind for source in config.sources.values()} >= kinds("archiver.sources").keys()
    assert {store.options.kind for store in config.stores.values()} >= kinds("archiver.stores").keys()


def test_the_example_holds_no_line_that_is_neither_option_nor_prose():
    for line in EXAMPLE.read_text().splitlines():
        assert re.match(r"$|# |#$|#?\[|#?[a-z_0-9]+ = ", line), line
        assert len(line) <= 120


def test_the_example_shows_every_option_of_every_installed_kind():
    document = tomllib.loads(uncommented(EXAMPLE.read_text()))
    assert document.keys() == settings_tables.Top.model_fields.keys() | {"stores", "sources"}
    assert document["database"].keys() == settings_tables.Database.model_fields.keys()
    assert document["http"].keys() == settings_tables.Http.model_fields.keys()
    assert document["web"].keys() == settings_tables.Web.model_fields.keys()
    for section, base in (("sources", SourceOptions), ("stores", StoreOptions)):
        tables = list(document[section].values())
        everywhere = set().union(*tables)
        for kind, entry in kinds(f"archiver.{section}").items():
            shown = set().union(*(table for table in tables if table["kind"] == kind))
            for name, about in entry.load().Options.model_fields.items():
                key = about.alias or name
                inherited = base.model_fields.get(name)
                own = inherited is None or inherited.default != about.default
                # What several share is shown once; what is a kind's own stands in its section.
                shared = sum(name in e.load().Options.model_fields for e in kinds(f"archiver.{section}").values()) > 1
                where = shown if own and not shared else everywhere
                assert key in where, f"{section}, {kind}: {key} is not in the example"


def test_the_example_shows_the_defaults(example_folder, write):
    config = load(write(uncommented(EXAMPLE.read_text())))
    for entry in (*config.sources.values(), *config.stores.values()):
        table = tomllib.loads(uncommented(EXAMPLE.read_text()))
        shown = {**table["sources"], **table["stores"]}[entry.name]
        for name, about in type(entry.options).model_fields.items():
            if (about.alias or name) in shown and not about.is_required() and about.default is not None:
                assert getattr(entry.options, name) == about.default, f"{entry.name}.{name}"
    for name in ("transfers", "memory", "log_level", "database_url", "http_listen"):
        assert getattr(config, name) == getattr(load(write(VALID)), name)


def test_the_process_needs_no_home_folder_when_data_dir_is_given(write, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("HOME", raising=False)
    assert load(write('data_dir = "var"\n' + VALID))


def test_a_coding_that_nobody_knows_is_told_with_those_that_are(problems):
    (said,) = problems(VALID + 'audio = "raw:ulow:8000"\n')
    assert said.startswith("sources.hq.audio: 'raw:ulow:8000': no such raw coding: 'ulow'; there are ulaw")
