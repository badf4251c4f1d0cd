"""Signs requests to S3: AWS Signature Version 4 with a signed payload hash.

botocore's own signer spends 0.15 ms on each, four HMACs among it; here the signing key is made once a day. A test
compares the two.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime

EMPTY = hashlib.sha256().hexdigest()


class Signer:
    """One account's, for one region."""

    def __init__(self, access_key: str, secret_key: str, token: str | None, region: str) -> None:
        self.access_key = access_key
        self.token = token
        self._secret_key = secret_key
        self._region = region
        self._day = ""
        self._key = b""

    def sign(
        self,
        method: str,
        authority: str,
        target: str,
        headers: Mapping[str, str],
        sha256: str = EMPTY,
        *,
        now: datetime | None = None,
    ) -> dict[str, str]:
        """The headers to send. ``target``: path and query, encoded as S3 wants them; ``sha256``: of the body."""
        at = f"{now or datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        sent = {**headers, "X-Amz-Date": at, "X-Amz-Content-SHA256": sha256}
        if self.token:
            sent["X-Amz-Security-Token"] = self.token
        signed = {name.lower(): " ".join(value.split()) for name, value in sent.items()} | {"host": authority}
        names = sorted(signed)
        path, _, query = target.partition("?")
        query = "&".join(sorted(pair if "=" in pair else f"{pair}=" for pair in query.split("&"))) if query else ""
        fields = "".join([f"{name}:{signed[name]}\n" for name in names])
        canonical = f"{method}\n{path}\n{query}\n{fields}\n{';'.join(names)}\n{sha256}"
        scope = f"{at[:8]}/{self._region}/s3/aws4_request"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        signature = hmac.digest(
            self._signing_key(at[:8]), f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashed}".encode(), "sha256"
        )
        sent["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={';'.join(names)},"
            f" Signature={signature.hex()}"
        )
        return sent

    def _signing_key(self, day: str) -> bytes:
        if day != self._day:
            key = f"AWS4{self._secret_key}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key, self._day = key, day
        return self._key
