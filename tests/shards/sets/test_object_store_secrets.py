"""Addresses of buckets and the keys to them: what is refused, and that no key is ever repeated."""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest

from shards.sets import object_store, reads
from shards.sets.store import open_store
from tests.shards.s3_server import BUCKET, KEY, ROOT, SECRET, TOKEN, S3Server, failing


@pytest.mark.parametrize(
    "url", [f"s3://{KEY}:{SECRET}@{BUCKET}/x", f"s3://{BUCKET}/x?X-Amz-Signature={SECRET}", f"https://u:{SECRET}@h/x"]
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as failure:
        open_store(url)
    text = "".join(traceback.format_exception(failure.value, chain=True))
    assert str(failure.value) and SECRET not in str(failure.value) and KEY not in str(failure.value)
    assert "AWS_ACCESS_KEY_ID" in text or "only folders and s3://bucket/prefix" in text


@pytest.mark.parametrize("url", ["s3:/bucket/prefix", "s3://", "s3://x", "s3://b cket/x", "gs://bucket/x"])
def test_what_is_no_address_of_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        open_store(url)


def everything(error: BaseException | None) -> str:
    """All that an error says and refers to."""
    if error is None:
        return ""
    return f"{error!r} {error} {error.args} {vars(error)}" + everything(error.__cause__) + everything(error.__context__)


def test_keys_are_in_no_error_log_repr_or_pickle(
    s3: S3Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.05)
    caplog.set_level(logging.DEBUG)  # all loggers that have no level of their own
    object_store._filesystems.pop(os.getpid())
    bucket = open_store(ROOT)
    said = repr(bucket) + repr(vars(bucket)) + repr(pickle.dumps(bucket))
    bucket.write("a", b"0123")
    for status in ("403 Forbidden", "400 Bad Request", "500 Internal Server Error", "drop", "404 Not Found"):
        s3.fault = failing(status, 1e9)
        for action in (bucket.read, bucket.size, lambda name: bucket.read_ranges([(name, 0, 1)]), bucket.delete):
            with pytest.raises(OSError) as failure:
                action("a")
            said += everything(failure.value)
    out, err = capfd.readouterr()
    said += out + err + "".join(record.getMessage() + str(record.exc_text) for record in caplog.records)
    assert "the store answers 500" in said
    assert [secret for secret in (KEY, SECRET, TOKEN) if secret in said] == []


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"AWS_ENDPOINT_URL": "user:made-up-secret-of-tests@host"}, "AWS_ENDPOINT_URL: is not an address"),
        ({"AWS_PROFILE": "nobody"}, r"no usable keys were found \(ProfileNotFound\)"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, r"no usable keys were found \(\w*Credential\w*\)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"no answer from the store \(EndpointConnectionError\)"),
    ],
)
def test_a_wrong_environment_is_one_sentence(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], sentence: str
) -> None:
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.1)
    monkeypatch.setattr(object_store, "_filesystems", {})
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, OSError), match=sentence) as failure:
        open_store(ROOT).read("a")
    assert SECRET not in everything(failure.value)
