"""The worked example of docs/new-source.md: its text is the code, and the code works as a third party's package."""

import asyncio
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from archiver.ports import Store
from archiver.testing.stores import StoreContract

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "acme"
DOCUMENT = (ROOT / "docs" / "new-source.md").read_text("utf-8")

CONFIG = """
[stores.disk]
kind = "file"
path = "store"

[sources.shop]
kind = "acme"
base_url = "http://127.0.0.1:9"
token = { env = "ACME_KEY" }
page_size = %d
"""


def run(*command: str | Path, package: Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A Python command that finds the package beside ours, and no other configuration."""
    paths = os.pathsep.join(map(str, (package, ROOT)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ARCHIVER_", "PYTEST_", "PIP_"))}
    environment |= {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example is installed to, as pip does it, without an index."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = run("-m", "pip", "install", *options, "--target", folder, EXAMPLE, package=folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "archiver.toml"
    path.write_text(CONFIG % 100)
    return path


def test_the_document_shows_exactly_the_files_of_the_example():
    shown = dict(re.findall(r"`examples/acme/([\w.]+)`:\n\n```\w+\n(.*?)```\n", DOCUMENT, re.DOTALL))
    files = {p.name: p.read_text("utf-8") for p in EXAMPLE.iterdir() if p.suffix in {".py", ".toml"}}
    assert shown == files


def test_the_whole_source_takes_less_than_80_lines():
    assert len((EXAMPLE / "acme_archiver.py").read_text("utf-8").splitlines()) < 80


def test_the_source_imports_only_the_seams():
    source = (EXAMPLE / "acme_archiver.py").read_text("utf-8")
    used = set(re.findall(r"^from archiver\.([\w.]+)", source, re.MULTILINE))
    assert used <= {"wire.recorder", "audio", "settings.options", "ports", "model", "errors"}


def test_what_the_document_says_of_a_store_is_the_seam():
    told = DOCUMENT[DOCUMENT.index("class TapeStore") : DOCUMENT.index("class TestTape")]
    assert set(re.findall(r"def ([a-z]+)\(", told)) == {n for n in vars(Store) if not n.startswith("_")}
    assert {"unreachable", "refusing"} <= vars(StoreContract).keys()
    assert all(f"`{name}()`" in DOCUMENT for name in ("unreachable", "refusing"))


def test_its_kind_is_known_only_once_the_package_is_installed(package, config):
    assert "acme" not in entry_points(group="archiver.sources").names
    without = run("-m", "archiver", "--config", config, "check", "--offline", package=config.parent, cwd=config.parent)
    assert without.returncode == 2
    assert "kind" in without.stderr
    installed = run("-m", "archiver", "--config", config, "check", "--offline", package=package, cwd=config.parent,
                    ACME_KEY="k-1234567890")  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    assert "1 source," in installed.stdout
    assert "k-1234567890" not in installed.stdout + installed.stderr


def test_its_own_options_are_checked_like_ours(package, config):
    config.write_text(CONFIG % 501)
    refused = run("-m", "archiver", "--config", config, "check", "--offline", package=package, cwd=config.parent,
                  ACME_KEY="k-1234567890")  # fmt: skip
    assert refused.returncode == 2
    assert "sources.shop.page_size" in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_the_contract_s_tests_pass_for_the_installed_package(package, tmp_path):
    (tmp_path / "test_acme.py").write_text((EXAMPLE / "test_acme.py").read_text("utf-8"))
    done = await asyncio.to_thread(
        run, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-c", EXAMPLE / "pyproject.toml",
        "--rootdir", tmp_path, tmp_path / "test_acme.py", package=package, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 35
