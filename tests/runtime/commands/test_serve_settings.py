"""Settings of the server: flags before environment before file before defaults, and what they come to."""

import os
import tomllib

import pytest

from s2ap_defend.commands.main import run


def settings(capsys, *options) -> dict:
    """What `serve --print-config` says, by name, with where it is from."""
    assert run(["serve", *options, "--print-config"]) == 0
    printed = capsys.readouterr().out
    values = tomllib.loads(printed)
    sources = {
        line.partition(" = ")[0]: line.rpartition("  # ")[2]
        for line in printed.splitlines()
        if not line.startswith("#")
    }
    return {name: (value, sources[name]) for name, value in values.items()}


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path, capsys, monkeypatch):
    path = tmp_path / "serve.toml"
    path.write_text(
        'model = "m.onnx"\nport = 1\ngrace = 2\nmax-batch-rows = 3\nallow-host = ["a", "b"]\ncache = true\n'
    )
    monkeypatch.setenv("S2AP_DEFEND_SERVE_PORT", "4")
    monkeypatch.setenv("S2AP_DEFEND_SERVE_MAX_BATCH_ROWS", "5")
    monkeypatch.setenv("S2AP_DEFEND_SERVE_EXPOSE_EVIDENCE", "1")
    found = settings(capsys, "--config", str(path), "--max-batch-rows", "6")
    assert found["model"] == ("m.onnx", "file")
    assert found["port"] == (4, "environment")
    assert found["max-batch-rows"] == (6, "command line")
    assert found["grace"] == (2.0, "file")
    assert found["allow-host"] == (["a", "b"], "file")
    assert (found["cache"], found["expose-evidence"]) == ((True, "file"), (True, "environment"))
    assert found["max-queue-rows"] == (1024, "default")
    assert "threads" not in found


def test_what_is_printed_can_be_read_again(tmp_path, capsys):
    options = ["--host", "::1", "--allow-host", 'a"\\b', "--resize", "crop", "--drain-delay", "0.5", "--insecure"]
    first = settings(capsys, 'a "model".onnx', *options)
    assert run(["serve", 'a "model".onnx', *options, "--print-config"]) == 0
    (tmp_path / "again.toml").write_text(capsys.readouterr().out)
    again = settings(capsys, "--config", str(tmp_path / "again.toml"))
    assert {name: value for name, (value, _) in again.items()} == {name: value for name, (value, _) in first.items()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "have 'prot', which is no option; did you mean 'port'?"),
        ("zzz = 1", "have 'zzz', which is no option; choose from model, host, port"),
        ("config = 'a'", "have 'config', which is no option"),
        ("port = '1'", "port of the settings {} must be a whole number"),
        ("port = true", "port of the settings {} must be a whole number"),
        ("grace = 'long'", "grace of the settings {} must be a number"),
        ("insecure = 1", "insecure of the settings {} must be true or false"),
        ("allow-host = 'a'", "allow-host of the settings {} must be a list of texts"),
        ("host = ['a']", "host of the settings {} must be a text"),
        ("[port]\nhttp = 1", "port of the settings {} must be a whole number"),
        ("resize = 'larger'", "Invalid value for '--resize'"),
        ("port = 70000", "port 70000 does not exist"),
        ("port 1", "the settings {} are no TOML"),
        (None, "cannot read the settings {}: No such file"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_what_to_write(tmp_path, capsys, text, said):
    path = tmp_path / "serve.toml"
    if text is not None:
        path.write_text(text)
    assert run(["serve", "model.onnx", "--config", str(path), "--print-config"]) == 2
    error = capsys.readouterr().err
    assert said.format(path) in error
    assert error.count("\n") == 1


def test_several_models_are_given_on_every_road(tmp_path, capsys, monkeypatch):
    expected = ["a.onnx", "b=c.onnx"]
    assert settings(capsys, *expected)["model"] == (expected, "command line")
    path = tmp_path / "serve.toml"
    path.write_text(f"model = {expected}")
    assert settings(capsys, "--config", str(path))["model"] == (expected, "file")
    monkeypatch.setenv("S2AP_DEFEND_SERVE_MODEL", os.pathsep.join(expected))
    assert settings(capsys)["model"] == (expected, "environment")
    monkeypatch.setenv("S2AP_DEFEND_SERVE_MODEL", "a.onnx")
    assert settings(capsys)["model"] == ("a.onnx", "environment")
    assert run(["serve", "a.onnx", "b/a.onnx"]) == 2
    assert "a.onnx and b/a.onnx are both called 'a'; name one of them" in capsys.readouterr().err
    path.write_text("model = 3")
    assert run(["serve", "--config", str(path), "--print-config"]) == 2
    assert "must be a text, or a list of texts" in capsys.readouterr().err
