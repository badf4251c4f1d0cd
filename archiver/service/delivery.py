"""Sends what others are told: a heartbeat, a webhook's message, a mail. No error repeats an address: it is a secret."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import Any

from pydantic import SecretStr
from yarl import URL

from .. import __version__
from ..common.words import reason_of
from ..errors import ArchiverError
from ..settings.config import Email
from ..wire import tls
from ..wire.exchange import Origin, ProxyRefused
from ..wire.login import basic

#: Of one delivery, in all: nobody downstream waits for it, but a stop does.
PATIENCE = 20.0


class Undelivered(ArchiverError):
    """It reached nobody."""


async def ping(url: SecretStr, proxy: SecretStr | None = None) -> None:
    """GET it. Raises Undelivered."""
    await _request("GET", url, "the heartbeat", proxy)


async def send_webhook(url: SecretStr, document: Mapping[str, Any], proxy: SecretStr | None = None) -> None:
    """POST it as JSON; its ``text`` is what chat services show. Raises Undelivered."""
    await _request("POST", url, "the webhook", proxy, json.dumps(document).encode())


async def _request(method: str, url: SecretStr, what: str, proxy: SecretStr | None, body: bytes | None = None) -> None:
    # Here, for most commands send nothing and need not wait for its import.
    from ..wire.client import Transport

    headers = {"User-Agent": f"archiver/{__version__}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    transport = Transport(timeout=PATIENCE, connect_timeout=PATIENCE, headers=headers, proxy=proxy)
    try:
        async with asyncio.timeout(PATIENCE):
            at = URL(url.get_secret_value())
            login = basic(at.user or "", at.password or "") if at.user is not None else {}
            async with await transport.send(method, Origin.of(at), at.raw_path_qs, login, body) as answer:
                status = answer.status
    except TimeoutError:
        raise Undelivered(f"{what} was not answered within {PATIENCE:g} s") from None
    except ProxyRefused as error:
        raise Undelivered(f"{what} could not be sent: {error}") from None
    except (OSError, ValueError) as error:
        # Their texts may quote the address.
        raise Undelivered(f"{what} could not be sent ({type(error).__name__})") from None
    finally:
        await transport.close()
    if not 200 <= status < 300:
        raise Undelivered(f"{what} was answered with {status}")


async def send_mail(email: Email, subject: str, text: str) -> None:
    """One mail to all. Raises Undelivered."""
    from aiosmtplib import SMTP, SMTPException

    message = EmailMessage()
    message["From"] = email.sender
    message["To"] = ", ".join(email.to)
    message["Subject"] = " ".join(subject.split())[:200]
    # Relays take a mail without these two, and those behind them bounce it.
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = make_msgid("archiver", email.sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    host, port = email.server
    try:
        trusted = await asyncio.to_thread(tls.context, email.ca_file) if email.tls != "none" else None
    except tls.BadFile as error:
        raise Undelivered(f"the mail was not sent: {reason_of(error)}") from None
    client = SMTP(
        hostname=host,
        port=port,
        use_tls=email.tls == "tls",
        start_tls=email.tls == "starttls",
        timeout=PATIENCE / 2,
        tls_context=trusted,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            await client.connect()
            try:
                if email.username and email.password:
                    await client.login(email.username, email.password.get_secret_value())
                await client.send_message(message)
            finally:
                client.close()
    except TimeoutError:
        raise Undelivered(f"the mail was not taken within {PATIENCE:g} s") from None
    except (SMTPException, OSError, ValueError) as error:
        causes = (error, error.__cause__, error.__context__)
        refused = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
        if refused is not None:
            remedy = tls.remedy(refused, address="alerts.email.server", ca_file=email.ca_file, legacy=None)
            raise Undelivered(f"the mail was not taken: TLS failed ({tls.reason(refused)}); {remedy}") from None
        code = getattr(error, "code", None)
        raise Undelivered(f"the mail was not taken ({type(error).__name__}{f' {code}' if code else ''})") from None
