"""Downloads, from a server of this process: whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest

from metarl import families
from metarl.envs.fewshot import files, omniglot_files
from metarl.settings import SettingsError

CONTENT = bytes(range(256)) * 3000


class _Server(http.server.BaseHTTPRequestHandler):
    """What it answers is in the address."""

    def do_GET(self):
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if "cut" in self.path else CONTENT)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.handle_error = lambda *arguments: None  # of clients that hang up, as they do here
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


MD5 = hashlib.md5(CONTENT).hexdigest()


def test_a_file_comes_whole_and_says_how_far_it_is(tmp_path, url, capsys):
    files.fetch(f"{url}data.zip", tmp_path / "data.zip", MD5)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]
    assert "data.zip: 100%" in capsys.readouterr().err


FAULTS = {
    "missing.zip": (MD5, "missing.zip cannot be downloaded .*404.*; put data.zip into .* yourself"),
    "cut.zip": (MD5, r"not the official one \(md5 \w{32}, not \w{32}\); try again, or put data.zip into"),
    "data.zip": ("0" * 32, "cut|data.zip gave a file that is not the official one"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_left_of_a_download_that_failed(tmp_path, url, name):
    """Catches half a file under the whole one's name, which the next start would take for it."""
    md5, message = FAULTS[name]
    with pytest.raises(SettingsError, match=message) as caught:
        files.fetch(url + name, tmp_path / "data.zip", md5)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_download_leaves_nothing(tmp_path, url, monkeypatch):
    """Ctrl-C in the middle; what was there before stays."""
    (tmp_path / "data.zip").write_text("old")

    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "tqdm", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.fetch(f"{url}data.zip", tmp_path / "data.zip", MD5)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_without_a_network_or_a_folder_one_line_says_so(tmp_path):
    with pytest.raises(SettingsError, match=r"127.0.0.1:9/x cannot be downloaded .*; put x into"):
        files.fetch("http://127.0.0.1:9/x", tmp_path / "x", MD5)
    with pytest.raises(SettingsError, match=r"nowhere cannot be written to .*; name another env.root"):
        files.fetch("http://127.0.0.1:9/x", tmp_path / "nowhere" / "x", MD5)
    assert not list(tmp_path.iterdir())


def test_omniglot_is_fetched_when_asked(tmp_path, url, monkeypatch):
    """Only with download=true, only what is not there, and only with the checksums in the code."""
    monkeypatch.setattr(omniglot_files, "URL", url)
    with pytest.raises(SettingsError, match="found no data in"):
        families.make("omniglot", root=str(tmp_path)).pool()
    with pytest.raises(SettingsError, match=r"images_background.zip gave a file that is not the official one"):
        families.make("omniglot", root=str(tmp_path), download=True).pool()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(omniglot_files, "MD5", dict.fromkeys(omniglot_files.MD5, MD5))
    (tmp_path / "images_background.zip").write_bytes(CONTENT)
    before = (tmp_path / "images_background.zip").stat().st_mtime_ns
    with pytest.raises(SettingsError, match=r"cannot be read .*BadZipFile"):
        families.make("omniglot", root=str(tmp_path), download=True).pool()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images_background.zip", "images_evaluation.zip"]
    assert (tmp_path / "images_background.zip").stat().st_mtime_ns == before
