"""Containerfile and compose.yaml, as far as they can be checked where no container runs: that they fit together."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from archiver.settings.config import load

ROOT = Path(__file__).resolve().parent.parent
CONTAINERFILE = (ROOT / "Containerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
SERVICES = COMPOSE["services"]


def prepare(folder: Path) -> Path:
    shutil.copytree(ROOT / "container", folder, ignore=shutil.ignore_patterns("secrets", "archiver.toml"))
    subprocess.run(["sh", str(folder / "prepare.sh")], check=True, capture_output=True)
    return folder


def test_every_file_that_the_image_copies_is_there_and_let_through():
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE)
        for name in sources.split()
        if name != "dist*"  # where it is
    }
    assert copied
    assert copied <= let_through
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_runs_the_daemon_and_not_as_root():
    users = re.findall(r"^USER (.+)$", CONTAINERFILE, re.MULTILINE)
    # A number, for whoever must tell that it is not root without looking into the image.
    assert users == ["10001:10001"]
    assert 'ENTRYPOINT ["archiver"]\nCMD ["run"]' in CONTAINERFILE
    assert CONTAINERFILE.rindex("\nFROM ") < CONTAINERFILE.rindex("USER ")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_has_a_read_only_root_and_no_rights(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_services_volumes_and_files_that_are_named_exist(tmp_path):
    made = prepare(tmp_path / "container")
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (made.parent / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
    assert SERVICES["archiver"]["build"]["dockerfile"] == "Containerfile"


def test_the_config_to_begin_with_finds_its_secrets(tmp_path, monkeypatch):
    made = prepare(tmp_path / "container")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(made / "secrets"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    (made / "secrets" / "hq").write_text("a recorder's token")
    with (made / "archiver.toml").open("a") as config_file:
        config_file.write(
            '[sources.hq]\nkind = "chronicall"\nbase_url = "http://10.0.0.1"\ntoken = { credential = "hq" }'
        )
    config = load(made / "archiver.toml")
    password = (made / "secrets" / "postgres_password").read_text()
    assert config.database_url.get_secret_value() == f"postgresql://archiver:{password}@postgres/archiver"
    known = (made / "secrets" / "s3.json").read_text()
    assert all((made / "secrets" / name).read_text() in known for name in ("s3_key", "s3_secret"))
    # The hosts that it names are services.
    assert {"postgres", "seaweedfs"} <= set(SERVICES)
    assert str(config.stores["main"].options.endpoint_url) == "http://seaweedfs:8333"


def test_secrets_are_made_once_and_stay(tmp_path):
    made = prepare(tmp_path / "container")
    secrets = {path.name: path.read_bytes() for path in (made / "secrets").iterdir()}
    (made / "archiver.toml").write_text("# mine\n")
    subprocess.run(["sh", str(made / "prepare.sh")], check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in (made / "secrets").iterdir()} == secrets
    assert (made / "archiver.toml").read_text() == "# mine\n"
    assert made.stat().st_mode & 0o077 == 0


def test_the_image_has_every_file_that_the_wheel_is_made_of():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    parts = {*wheel["packages"], *wheel.get("force-include", {}), *wheel.get("shared-data", {})}
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", CONTAINERFILE, re.MULTILINE) for name in line.split()}
    assert parts <= copied
