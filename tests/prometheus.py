"""Prometheus's own tool decides whether a rule fires on what a daemon really served."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from archiver.service.alerts import problems
from archiver.service.daemon import Daemon

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "monitoring" / "archiver.rules.yml"
#: Between two scrapes, in simulated minutes; how many scrapes each part of a story lasts.
EVERY, BEFORE, DURING, AFTER = 5, 13, 121, 61

#: Values by series, as scraped.
Scrape = Mapping[str, float]
SERIES = re.compile(r"(archiver_\w+|up)(?:\{(.*)\})? (\S+)")


@dataclass(frozen=True, slots=True)
class Story:
    """What a daemon served before, during and after a mishap, and the alerts that must fire meanwhile."""

    alerts: tuple[str, ...]
    before: Scrape
    during: Scrape
    after: Scrape


async def page(daemon: Daemon, path: str) -> tuple[int, str]:
    """What the daemon serves just now, by HTTP."""
    address = daemon.watch.address()
    assert address is not None
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{address[0]}:{address[1]}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def scrape(daemon: Daemon) -> Scrape:
    """Its metrics (but the histograms) with the labels that a scraper adds."""
    daemon.watch.surveyor.forget()
    status, text = await page(daemon, "/metrics")
    assert status == 200
    found = {"up" + _labels(""): 1.0}
    for line in text.splitlines():
        match = SERIES.fullmatch(line)
        if match and not match[1].endswith("_bucket"):
            found[match[1] + _labels(match[2] or "")] = float(match[3])
    return found


def _labels(more: str) -> str:
    return "{" + ",".join(filter(None, [more, 'job="archiver"', 'instance="here:8410"'])) + "}"


#: What Prometheus has of a daemon that does not answer.
NOTHING: Scrape = {"up" + _labels(""): 0.0}


async def wrong(daemon: Daemon) -> set[str]:
    """The names of the problems that the daemon's own alerts tell of."""
    daemon.watch.surveyor.forget()
    survey = await daemon.watch.surveyor.look()
    return {problem.name for problem in problems(survey, daemon.archive.config.alerts)}


def promtool() -> str:
    """Beside python, where tests/need.sh puts it; else wherever it is."""
    found = shutil.which("promtool", path=f"{Path(sys.executable).parent}") or shutil.which("promtool")
    assert found, "there is no promtool; `sh tests/need.sh` fetches it"
    return found


async def assert_fires(folder: Path, *stories: Story) -> None:
    """Each story's alerts fire in its middle part, and none fires before it or at its end."""
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{EVERY}m",
        "tests": [_test(story) for story in stories],
    }
    path = folder / "stories.json"
    # JSON is YAML.
    path.write_text(json.dumps(document))
    process = await asyncio.create_subprocess_exec(
        promtool(), "test", "rules", str(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


def _test(story: Story) -> dict[str, object]:
    series = sorted({*story.before, *story.during, *story.after})
    parts = ((story.before, BEFORE), (story.during, DURING), (story.after, AFTER))
    ends = [(sum(count for _, count in parts[: i + 1]) - 1) * EVERY for i in range(3)]
    none = {"expr": 'count(ALERTS{alertstate="firing"}) or vector(0)', "exp_samples": [{"labels": "{}", "value": 0}]}
    fires: Sequence[dict[str, object]] = [
        {
            "expr": f'count by (alertname) (ALERTS{{alertname="{alert}", alertstate="firing"}} == 1) > bool 0',
            "eval_time": f"{ends[1]}m",
            "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
        }
        for alert in story.alerts
    ]
    return {
        "name": ", ".join(story.alerts),
        "interval": f"{EVERY}m",
        "input_series": [
            {"series": name, "values": " ".join(_values(part.get(name), count) for part, count in parts)}
            for name in series
        ],
        "promql_expr_test": [none | {"eval_time": f"{ends[0]}m"}, *fires, none | {"eval_time": f"{ends[2]}m"}],
    }


def _values(value: float | None, count: int) -> str:
    """So many samples in promtool's words; ``ax3`` are four."""
    return f"_x{count}" if value is None else f"{value:.6f}x{count - 1}"
