"""The digest of a user's source changes with every file that the network is made of, and with no other."""

import pytest

from s2ap_defend.errors import RecipeError
from s2ap_train.models.source import source_digest

FILES = {
    "nets/__init__.py": "",
    "nets/small.py": "from . import parts\nfrom .blocks.first import block\nimport shared\n",
    "nets/parts.py": "import torch\n",
    "nets/blocks/__init__.py": "from nets.blocks import second\n",
    "nets/blocks/first.py": "",
    "nets/blocks/second.py": "",
    "shared.py": "def inner():\n    from late import thing\n",
    "late.py": "",
    "other.py": "import nets.small\n",
    "nets/unused.py": "",
}
FACTORY = "nets.small:make"


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_file_counts_exactly_if_the_network_imports_it(project, name):
    before = source_digest(FACTORY)
    (project / name).write_text(FILES[name] + "# changed\n")
    assert (source_digest(FACTORY) != before) == (name not in {"other.py", "nets/unused.py"})


def test_a_module_that_is_moved_to_another_name_counts(project):
    before = source_digest(FACTORY)
    (project / "late.py").rename(project / "later.py")
    (project / "shared.py").write_text(FILES["shared.py"].replace("late", "later"))
    assert source_digest(FACTORY) != before


def test_networks_of_ours_and_what_cannot_be_found_have_no_source(project):
    assert source_digest("small_cnn") == source_digest({"name": "small_cnn"}) == ""
    assert source_digest("nowhere.to_be_found:make") == source_digest(":make") == source_digest("sys:exit") == ""
    assert source_digest({"name": "user", "factory": FACTORY}) == source_digest(FACTORY) != ""


def test_modules_in_other_folders_of_the_path_count_as_those_of_the_project(project, tmp_path_factory, monkeypatch):
    away = tmp_path_factory.mktemp("away")
    (away / "mylayers").mkdir()
    (away / "mylayers" / "__init__.py").write_text("from mylayers.deep import layer\n")
    deep = away / "mylayers" / "deep.py"
    deep.write_text("layer = 1\n")
    monkeypatch.syspath_prepend(away)
    (project / "shared.py").write_text("from mylayers import layer\n")
    before = source_digest(FACTORY)
    deep.write_text("layer = 2\n")
    assert source_digest(FACTORY) != before


def test_the_module_counts_that_python_would_import(project, tmp_path_factory, monkeypatch):
    """The current folder is searched first unless it has another place on the path already."""
    first = tmp_path_factory.mktemp("first")
    (first / "nets").mkdir()
    (first / "nets" / "__init__.py").write_text("")
    (first / "nets" / "small.py").write_text("")
    here = source_digest(FACTORY)
    monkeypatch.syspath_prepend(project)
    monkeypatch.syspath_prepend(first)
    assert source_digest(FACTORY) != here
    (first / "nets" / "small.py").write_text("changed = 1\n")
    changed = source_digest(FACTORY)
    (project / "nets" / "small.py").write_text("changed = 2\n")
    assert source_digest(FACTORY) == changed


def test_an_import_that_may_fail_and_one_from_nowhere_do_no_harm(project, monkeypatch):
    (project / "alone.py").write_text("try:\n    from . import shared\nexcept ImportError:\n    import shared\n")
    before = source_digest("alone:make")
    (project / "shared.py").write_text("changed = 1\n")
    assert source_digest("alone:make") != before
    monkeypatch.chdir("/")
    assert source_digest("alone:make") == ""


def test_a_source_that_cannot_be_read_is_refused_in_words(project):
    (project / "nets" / "parts.py").unlink()
    (project / "nets" / "parts.py").symlink_to("/proc/self/mem")
    with pytest.raises(RecipeError, match=r"parts\.py, which the network is made of, cannot be read"):
        source_digest(FACTORY)


def test_source_that_does_not_parse_counts_by_its_bytes(project):
    (project / "nets/small.py").write_text("def broken(:\n")
    first = source_digest(FACTORY)
    (project / "nets/small.py").write_text("def broken(::\n")
    assert source_digest(FACTORY) not in ("", first)


def test_of_an_installed_package_only_the_package_itself_counts(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages"
    for name, text in {"first": "import second\nfrom . import inner\n", "second": ""}.items():
        (installed / name).mkdir(parents=True)
        (installed / name / "__init__.py").write_text(text)
    (installed / "first" / "inner.py").write_text("")
    monkeypatch.syspath_prepend(installed)
    before = source_digest("first:make")
    (installed / "second" / "__init__.py").write_text("changed = 1\n")
    assert source_digest("first:make") == before
    (installed / "first" / "inner.py").write_text("changed = 1\n")
    assert source_digest("first:make") != before
