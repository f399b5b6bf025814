"""A team's board as its command starts it: TLS with a certificate of its own, the token, pushed logs."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from moonlet.tracker import Run, read
from moonlet.tracker.push import Pusher

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """(address, certificate, folder of runs)."""
    folder = tmp_path_factory.mktemp("team")
    cert, key, runs = folder / "cert.pem", folder / "key.pem", folder / "runs"
    with Run(runs / "one") as run:
        run.log({"loss": 0.5}, 0)
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*make, "-keyout", key, "-out", cert], check=True, capture_output=True)
    command = [sys.executable, "-m", "moonlet", "board", str(runs), "--port", "0", "--token", "s3cret"]
    command += ["--tls-cert", str(cert), "--tls-key", str(key)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process.stderr.readline().split(" on ")[1].split("/?")[0], cert, runs
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def asked(team, path, **headers):
    address, cert, _ = team
    context = ssl.create_default_context(cafile=cert)
    request = urllib.request.Request(address + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_nothing_without_the_token_or_in_clear(team):
    address, _, _ = team
    assert address.startswith("https://127.0.0.1:")
    allowed = {"authorization": "Bearer s3cret"}
    while json.loads(asked(team, "/api/changes?since=-1", **allowed)[1])["scanning"]:
        time.sleep(0.01)
    status, data = asked(team, "/api/runs", **allowed)
    assert status == 200 and json.loads(data)["runs"][0]["name"] == "one"
    assert asked(team, "/api/runs")[0] == asked(team, "/api/runs", authorization="Bearer wrong")[0] == 401
    assert asked(team, "/api/runs", authorization="Bearer s3cret", host="evil.example")[0] == 403
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{address}/api/runs", timeout=10)
    with pytest.raises(OSError):
        urllib.request.urlopen(address.replace("https", "http"), timeout=10)


def test_the_cookie_stays_on_tls(team):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *given):
            return None

    address, cert, _ = team
    secure = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=cert))
    with pytest.raises(urllib.error.HTTPError) as stopped:
        urllib.request.build_opener(secure, Stay).open(f"{address}/?token=s3cret", timeout=10)
    cookie = stopped.value.headers["set-cookie"]
    assert stopped.value.code == 303 and "Secure" in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert asked(team, "/api/runs", cookie=cookie.split(";")[0])[0] == 200


def test_logs_are_pushed_over_tls(team, tmp_path, monkeypatch):
    address, cert, runs = team
    with Run(tmp_path / "spool") as run:
        for step in range(100):
            run.log({"loss": 1 / (step + 1)}, step)
    unknown = Pusher(address, "s3cret", tmp_path / "spool", "far")
    assert not unknown.send() and "CERTIFICATE" in unknown.error and not os.path.exists(runs / "far")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert not Pusher(address, "wrong", tmp_path / "spool", "far").send()
    assert Pusher(address, "s3cret", tmp_path / "spool", "far").stop()
    assert read(runs / "far")["loss"].value.tolist() == [1 / (step + 1) for step in range(100)]
